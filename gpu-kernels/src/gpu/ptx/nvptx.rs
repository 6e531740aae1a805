//! Stock rustc's route: in assembly what the other route takes from `cuda_std`, by the same names.

use core::arch::asm;

macro_rules! special_register {
    ($($name:ident = $register:literal;)*) => {$(
        #[inline(always)]
        pub(super) fn $name() -> u32 {
            let value: u32;
            // SAFETY: reads a special register.
            unsafe { asm!(concat!("mov.u32 {0}, ", $register, ";"), out(reg32) value, options(pure, nomem, nostack)) };
            value
        }
    )*};
}

special_register! {
    thread_idx_x = "%tid.x";
    block_idx_x = "%ctaid.x";
    block_idx_y = "%ctaid.y";
    block_idx_z = "%ctaid.z";
    grid_dim_x = "%nctaid.x";
}

/// Waits for every thread of the thread block.
#[inline(always)]
pub(super) fn sync_threads() {
    // SAFETY: a thread that does not come lets the others wait.
    unsafe { asm!("bar.sync 0;", options(nostack)) };
}

/// Waits for the lanes of this warp.
///
/// # Safety
/// All of them come.
#[inline(always)]
pub(super) unsafe fn sync_warp() {
    // SAFETY: all lanes of the warp come: this function's contract.
    unsafe { asm!("bar.warp.sync 0xffffffff;", options(nostack)) };
}

/// Without an operating system a panic can only stop the grid. (`cuda_std` has a handler of its own.)
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        // SAFETY: `trap` ends the thread.
        unsafe { asm!("trap;", options(nostack)) };
    }
}
