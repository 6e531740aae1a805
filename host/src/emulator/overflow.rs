//! Stacks of lanes that overflow between two operations.
//!
//! The page behind a stack's end cannot be touched: the system sends SIGSEGV. If it is the stack of the lane that
//! runs, the lane is made to return from its kernel at once, from an empty stack; everything else is passed on to
//! whoever handled the signal before. No operation of a lane can be cut off so, for each begins with enough room
//! ([`RED_ZONE`](super::state::RED_ZONE)).

#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
pub(super) use linux::arm;

/// Elsewhere an overflow ends the process.
#[cfg(not(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
)))]
pub(super) fn arm() {}

#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
mod linux {
    use std::ffi::{c_int, c_void};
    use std::mem::{transmute, zeroed};
    use std::ptr::{null, null_mut};
    use std::sync::{Once, OnceLock};

    use corosensei::trap::TrapHandlerRegs;
    use libc::{sigaction, siginfo_t, stack_t, ucontext_t};

    use crate::emulator::state::running;

    /// Who handled the signal before.
    static BEFORE: OnceLock<sigaction> = OnceLock::new();

    /// The stack of the signal handler, as long as this OS thread runs lanes: `None` if it had one before.
    pub(in crate::emulator) struct Armed {
        stack: Option<Vec<u8>>,
    }

    /// Makes this OS thread survive overflows of lanes.
    pub(in crate::emulator) fn arm() -> Armed {
        static INSTALLED: Once = Once::new();
        INSTALLED.call_once(install);
        // SAFETY: plain data.
        let mut there: stack_t = unsafe { zeroed() };
        // SAFETY: writes one struct.
        unsafe { libc::sigaltstack(null(), &mut there) };
        if there.ss_flags & libc::SS_DISABLE == 0 {
            return Armed { stack: None };
        }
        let mut stack = vec![0; 64 << 10];
        let ours = stack_t {
            ss_sp: stack.as_mut_ptr().cast(),
            ss_flags: 0,
            ss_size: stack.len(),
        };
        // SAFETY: `Armed` takes it away again before it frees it.
        unsafe { libc::sigaltstack(&ours, null_mut()) };
        Armed { stack: Some(stack) }
    }

    impl Drop for Armed {
        fn drop(&mut self) {
            if self.stack.is_some() {
                let none = stack_t {
                    ss_sp: null_mut(),
                    ss_flags: libc::SS_DISABLE,
                    ss_size: 0,
                };
                // SAFETY: no handler runs on it, for it is this OS thread that would.
                unsafe { libc::sigaltstack(&none, null_mut()) };
            }
        }
    }

    fn install() {
        // SAFETY: plain data, filled in below or by the system.
        let (mut ours, mut before): (sigaction, sigaction) = unsafe { (zeroed(), zeroed()) };
        // SAFETY: writes one struct.
        unsafe { libc::sigaction(libc::SIGSEGV, null(), &mut before) };
        // Known before the first signal comes.
        let _ = BEFORE.set(before);
        ours.sa_sigaction = handle as *const () as usize;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler keeps what a signal handler must: it takes no lock and allocates nothing.
        unsafe { libc::sigaction(libc::SIGSEGV, &ours, null_mut()) };
    }

    extern "C" fn handle(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
        // SAFETY: the system passes both.
        let (address, registers) = unsafe { ((*info).si_addr() as usize, &mut *context.cast()) };
        // SAFETY: this runs on top of the lane, if there is one.
        let lane = unsafe { running() };
        let trap = lane.and_then(|lane| lane.overflow(address));
        if let Some((lane, trap)) = lane.zip(trap)
            && trap.stack_ptr_in_bounds(stack_pointer(registers))
        {
            // SAFETY: the coroutine was interrupted on its own stack and goes on with these registers. It was in
            // the middle of the kernel's own code, not of an operation; the stack is never used again.
            let new = unsafe { trap.setup_trap_handler(move || lane.abandon()) };
            set_registers(registers, new);
            return;
        }
        // SAFETY: the system called this handler with the same three, which it would have passed to that one.
        unsafe { pass_on(signal, info, context) };
    }

    /// # Safety
    /// As for the signal handler.
    unsafe fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
        match BEFORE.get() {
            Some(before) if before.sa_sigaction > libc::SIG_IGN => {
                type Handler = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);
                // SAFETY: a handler that was installed; one of one argument does not look at the others.
                let handler = unsafe { transmute::<usize, Handler>(before.sa_sigaction) };
                handler(signal, info, context);
            }
            // The instruction faults again, and nobody is there.
            // SAFETY: the default action.
            _ => unsafe { _ = libc::signal(signal, libc::SIG_DFL) },
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn stack_pointer(context: &ucontext_t) -> usize {
        context.uc_mcontext.gregs[libc::REG_RSP as usize] as usize
    }

    #[cfg(target_arch = "x86_64")]
    fn set_registers(context: &mut ucontext_t, new: TrapHandlerRegs) {
        let registers = &mut context.uc_mcontext.gregs;
        registers[libc::REG_RIP as usize] = new.rip.cast_signed();
        registers[libc::REG_RSP as usize] = new.rsp.cast_signed();
        registers[libc::REG_RBP as usize] = new.rbp.cast_signed();
        registers[libc::REG_RDI as usize] = new.rdi.cast_signed();
        registers[libc::REG_RSI as usize] = new.rsi.cast_signed();
    }

    #[cfg(target_arch = "aarch64")]
    fn stack_pointer(context: &ucontext_t) -> usize {
        context.uc_mcontext.sp as usize
    }

    #[cfg(target_arch = "aarch64")]
    fn set_registers(context: &mut ucontext_t, new: TrapHandlerRegs) {
        let registers = &mut context.uc_mcontext;
        registers.pc = new.pc;
        registers.sp = new.sp;
        registers.regs[0] = new.x0;
        registers.regs[1] = new.x1;
        registers.regs[29] = new.x29;
        registers.regs[30] = new.lr;
    }
}
