//! The emulator: kernels that call it, fill their stack, or have something to drop. Each ends in a fault, and the
//! machine works after it.
#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "the emulator checks what the kernels below promise; breaking the promise is the point"
)]
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

mod tiny_kernels;

use std::hint::black_box;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Mutex, TryLockError};

use ferroattn::emulator::{Emulator, Fault, FaultKind, Lane};
use ferroattn::runtime::{Buffer, DeviceMemory};
use ferroattn::tensor::Dtype;
use ferroattn::{Error, Result};
use gpu_kernels::gpu::{Line, Memory, Threads};
use tiny_kernels::{fault, two_tensors};

fn is_host_call(result: Result<()>, call: &str) -> Fault {
    let Err(Error::Fault(fault)) = result else {
        panic!("expected a fault, got {result:?}");
    };
    assert_eq!(fault.kind, FaultKind::HostCall, "{fault}");
    assert!(fault.detail.starts_with(&format!("`{call}`")), "{fault}");
    *fault
}

fn works(emulator: &Emulator) {
    let word = emulator.allocate("word", 4).expect("small");
    emulator
        .launch_fn("good", [8, 1, 1], 64, 16, |lane| unsafe {
            lane.sync_cta();
            if lane.thread_idx() == 33 {
                lane.atomic_cas_global_b32(word, 0, 1);
            }
        })
        .expect_err("never written");
    unsafe { emulator.copy_in(word, &[0; 4]) }.expect("in bounds");
    emulator
        .launch_fn("good", [8, 1, 1], 64, 16, |lane| unsafe {
            lane.sync_cta();
            if lane.thread_idx() == 33 {
                lane.atomic_cas_global_b32(word, 0, 1);
            }
        })
        .expect("nothing is left of the fault");
    unsafe { emulator.free(word, 4) };
}

/// A call of an emulator that has a tensor at this address.
type Call = dyn Fn(&Emulator, u64) -> Result<()> + Sync;

#[test]
fn a_kernel_must_not_call_an_emulator() {
    let (emulator, another) = (Emulator::new(), Emulator::new());
    let [input, _] = two_tensors(&emulator);
    let [theirs, _] = two_tensors(&another);
    let calls: [(&str, &Call); 6] = [
        ("allocate", &|e, _| e.allocate("inner", 16).map(drop)),
        ("launch", &|e, _| e.launch_fn("inner", [1; 3], 1, 0, |_| {})),
        ("copy_in", &|e, input| unsafe { e.copy_in(input, &[1]) }),
        ("copy_out", &|e, input| unsafe {
            e.copy_out(input, &mut [1])
        }),
        ("zero", &|e, input| unsafe {
            ferroattn::runtime::Launcher::zero(e, input, 1)
        }),
        ("free", &|e, input| {
            unsafe { e.free(input, 4096) };
            Ok(())
        }),
    ];
    for (call, kernel) in calls {
        for (called, input) in [(&emulator, input), (&another, theirs)] {
            for says in [false, true] {
                let refused = AtomicU32::new(0);
                let result = emulator.launch_fn("outer", [3, 1, 1], 64, 0, |lane| {
                    unsafe { lane.sync_warp() };
                    if lane.thread_idx() == 40 {
                        // Whether the kernel looks at the answer or not.
                        let answer = kernel(called, input);
                        refused.fetch_add(u32::from(answer.is_err()), Relaxed);
                        if says {
                            answer.unwrap();
                        }
                    }
                    unsafe { lane.sync_cta() };
                });
                let fault = is_host_call(result, call);
                assert_eq!((fault.thread, fault.block), (40, [0; 3]));
                assert!(refused.load(Relaxed) > 0 || call == "free");
            }
            works(&emulator);
            works(called);
            unsafe { called.copy_out(input, &mut [1; 4096]) }.expect("it was not freed");
        }
    }
}

#[test]
fn a_buffer_dropped_in_a_kernel_is_a_fault() {
    let emulator = Emulator::new();
    let buffer = || Buffer::uninit(&emulator, "inner", Dtype::U8, &[16]);
    let result = emulator.launch_fn("outer", [1; 3], 32, 0, |_| drop(buffer()));
    is_host_call(result, "allocate");
    works(&emulator);
    drop(buffer().expect("outside of a kernel"));
}

#[test]
fn a_launch_while_the_host_panics_is_one_as_any_other() {
    struct Late<'e>(&'e Emulator, &'e AtomicU32);
    impl Drop for Late<'_> {
        fn drop(&mut self) {
            works(self.0);
            self.1.store(1, Relaxed);
        }
    }
    let (emulator, done) = (Emulator::new(), AtomicU32::new(0));
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _late = Late(&emulator, &done);
        panic!("on purpose");
    }));
    assert!(panicked.is_err() && done.load(Relaxed) == 1);
    works(&emulator);
}

#[inline(never)]
fn recurse(depth: u64, lane: Option<Lane<'_>>) -> u64 {
    let frame = black_box([depth; 16]);
    if let Some(lane) = lane {
        unsafe { lane.sync_warp() };
    }
    if black_box(depth) == u64::MAX {
        return 0;
    }
    recurse(depth + 1, lane) + black_box(frame)[3]
}

#[test]
fn endless_recursion_of_a_lane_is_a_fault() {
    let dropped = AtomicU32::new(0);
    struct Count<'c>(&'c AtomicU32);
    impl Drop for Count<'_> {
        fn drop(&mut self) {
            self.0.fetch_add(1, Relaxed);
        }
    }
    let calls = fault(32, 0, |lane, _| {
        let _count = Count(&dropped);
        recurse(0, Some(lane));
    });
    assert_eq!(calls.kind, FaultKind::StackOverflow);
    assert_eq!(dropped.load(Relaxed), 5 * 32, "all were unwound");
}

#[test]
#[cfg(all(
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]
fn endless_recursion_without_an_operation_is_a_fault_too() {
    let alone = fault(64, 0, |lane, _| {
        unsafe { lane.sync_cta() };
        if lane.thread_idx() == 40 {
            recurse(0, None);
        }
        unsafe { lane.sync_cta() };
    });
    assert_eq!(
        (alone.kind, alone.thread),
        (FaultKind::StackOverflow, 40),
        "{alone}"
    );
    // Again and again, in several thread blocks, on one machine.
    let emulator = Emulator::with_seed(4);
    for _ in 0..10 {
        let result = emulator.launch_fn("deep", [4, 1, 1], 64, 0, |lane| {
            if lane.thread_idx() % 7 == 3 {
                recurse(0, None);
            }
        });
        let error = result.expect_err("it overflows");
        assert!(
            error.to_string().starts_with("stack overflow in `deep`"),
            "{error}"
        );
    }
    works(&emulator);
}

/// Uses its lane when it is dropped, in every way in which it could fail or have to wait.
struct Busy<'a>(Lane<'a>, [u64; 2]);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let (lane, [input, out]) = (self.0, self.1);
        unsafe {
            lane.ld_global_b32(0);
            lane.ld_global_b32(out);
            lane.st_global_b8(input + 5000, 1);
            lane.st_shared_b32(4, 1);
            lane.ld_shared_b128(lane.shared_base());
            lane.cp_async_b128(lane.shared_base(), input, true, Line::ONCE);
            lane.cp_async_b128(lane.shared_base(), 16, true, Line::ONCE);
            lane.cp_async_commit();
            lane.cp_async_wait::<0>();
            lane.atomic_cas_global_b32(input, 1, 1);
            lane.sync_warp();
            lane.shfl(1, 77);
            lane.barrier_sync(99, 1);
            lane.sync_cta();
        }
    }
}

#[test]
fn what_is_dropped_during_a_fault_may_use_its_lane() {
    let others = fault(64, 64, |lane, &tensors| {
        let _busy = Busy(lane, tensors);
        if lane.thread_idx() == 3 {
            unsafe { lane.ld_global_b32(8) };
        }
        unsafe { lane.sync_cta() };
        unreachable!("nobody passes");
    });
    assert_eq!((others.kind, others.thread), (FaultKind::OutOfBounds, 3));

    let own = fault(32, 64, |lane, &tensors| {
        unsafe { lane.sync_warp() };
        let _busy = Busy(lane, tensors);
        assert!(lane.thread_idx() != 9, "nine");
        unsafe { lane.sync_warp() };
    });
    assert_eq!((own.kind, own.thread), (FaultKind::Panicked, 9));
    assert!(own.detail.starts_with("nine"), "{own}");
}

#[test]
fn a_lane_that_catches_its_panic_has_still_missed_the_others() {
    struct Waits<'a>(Lane<'a>);
    impl Drop for Waits<'_> {
        fn drop(&mut self) {
            unsafe { self.0.sync_warp() };
        }
    }
    let fault = fault(32, 0, |lane, _| {
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let _waits = Waits(lane);
            panic!("on purpose");
        }));
        assert!(caught.is_err());
    });
    assert_eq!(fault.kind, FaultKind::Panicked);
    assert!(fault.detail.contains("it was caught"), "{fault}");
}

#[test]
fn what_a_kernel_holds_is_let_go_of() {
    let lock = Mutex::new(0);
    let emulator = Emulator::new();
    for _ in 0..3 {
        let result = emulator.launch_fn("holder", [1; 3], 32, 0, |lane| {
            let _guard = (lane.lane() == 0).then(|| lock.lock());
            unsafe { lane.sync_warp() };
            unsafe { lane.ld_global_b32(0) };
        });
        assert!(result.is_err());
        assert!(!matches!(lock.try_lock(), Err(TryLockError::WouldBlock)));
    }
}
