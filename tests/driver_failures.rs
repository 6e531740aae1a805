//! A driver that fails, with one device or two, in one thread or eight: each failure ends in an error with a name,
//! and what is the case after it is as the documentation of `runtime::driver` says.

mod fake_driver;

use fake_driver::{Fake, LAUNCH, launch, with_fake};
use ferroattn::runtime::{
    Buffer, Cuda, DeviceMemory, DriverError, Launcher, Pinned, Runtime, StreamLauncher,
};
use ferroattn::tensor::Dtype;
use ferroattn::{Error, Result};

/// Something done with a machine, and the driver's functions that it calls.
type Act = (&'static [&'static str], fn(&Cuda) -> Result<()>);

/// Everything that a machine does.
const ACTS: &[Act] = &[
    (
        &[
            "cuCtxSetCurrent",
            "cuMemAlloc_v2",
            "cuMemcpyHtoDAsync_v2",
            "cuStreamSynchronize",
            "cuMemcpyDtoHAsync_v2",
        ],
        write_and_read,
    ),
    (&["cuMemsetD8Async"], sweep),
    (
        &[
            "cuStreamGetCtx",
            "cuStreamIsCapturing",
            "cuCtxGetCurrent",
            "cuModuleLoadDataEx",
            "cuModuleGetFunction",
            "cuFuncSetAttribute",
            "cuLaunchKernelEx",
        ],
        launch_and_wait,
    ),
    (&["cuFuncGetAttribute"], usage),
    (
        &[
            "cuStreamBeginCapture_v2",
            "cuStreamEndCapture",
            "cuGraphInstantiateWithFlags",
            "cuGraphLaunch",
        ],
        replay,
    ),
    (
        &["cuEventCreate", "cuEventRecord", "cuEventElapsedTime"],
        time,
    ),
    (&["cuMemHostAlloc", "cuMemHostGetDevicePointer_v2"], pin),
];

fn write_and_read(cuda: &Cuda) -> Result<()> {
    let bytes: Vec<u8> = (0..100).collect();
    let buffer = Buffer::new(cuda, "x", Dtype::U8, &[100], &bytes)?;
    assert_eq!(buffer.read()?, bytes);
    Ok(())
}

fn sweep(cuda: &Cuda) -> Result<()> {
    cuda.sweep_l2()?;
    cuda.synchronize()
}

fn launch_and_wait(cuda: &Cuda) -> Result<()> {
    launch(cuda)?;
    cuda.synchronize()
}

fn usage(cuda: &Cuda) -> Result<()> {
    cuda.prepare(&[LAUNCH.kernel])?;
    let usage = cuda.kernels().usage(LAUNCH.kernel)?;
    assert_eq!(usage.registers, 32);
    Ok(())
}

fn replay(cuda: &Cuda) -> Result<()> {
    cuda.prepare(&[LAUNCH.kernel])?;
    let graph = cuda.capture(launch)?;
    graph.launch()?;
    cuda.synchronize()
}

fn time(cuda: &Cuda) -> Result<()> {
    let times = cuda.time(3, || Ok(()), || launch(cuda))?;
    assert_eq!(times, [0.5; 3]);
    Ok(())
}

fn pin(cuda: &Cuda) -> Result<()> {
    let pinned = Pinned::new(cuda);
    let buffer = Buffer::new(&pinned, "x", Dtype::U8, &[4], &[1, 2, 3, 4])?;
    assert_eq!(buffer.read()?, [1, 2, 3, 4]);
    Ok(())
}

fn driver_error(result: Result<()>) -> DriverError {
    match result {
        Err(Error::Driver(error)) => error,
        other => panic!("{other:?}"),
    }
}

/// What `function` failing with `code` is called.
fn assert_named(error: &DriverError, function: &'static str, code: u32) {
    let is_allocation = ["cuMemAlloc_v2", "cuMemHostAlloc"].contains(&function);
    let is_of_kernel = ["cuModule", "cuFuncSet"]
        .iter()
        .any(|f| function.starts_with(f));
    let name = LAUNCH.kernel.entry().name;
    let expected = match code {
        2 if is_allocation => matches!(error, DriverError::OutOfMemory { bytes: 4 | 100 }),
        2 => {
            *error
                == DriverError::OutOfMemoryIn {
                    function,
                    entry: is_of_kernel.then_some(name),
                }
        }
        _ if is_of_kernel => matches!(error, DriverError::Jit { entry, .. } if *entry == name),
        _ => {
            matches!(error, DriverError::Call { function: f, code: c, .. } if (*f, *c) == (function, code))
        }
    };
    assert!(expected, "{function} failed with {code}: {error:?}");
}

#[track_caller]
fn assert_lost(result: Result<()>, code: u32) {
    let error = driver_error(result);
    let is_lost = matches!(error, DriverError::ContextLost { code: c, .. } if c == code);
    assert!(is_lost, "{error:?}");
    assert!(
        error
            .to_string()
            .starts_with("the CUDA context is lost: `cu"),
        "{error}"
    );
}

#[test]
fn what_a_call_refuses_may_be_tried_again() {
    with_fake("what_a_call_refuses_may_be_tried_again", "", || {
        let fake = Fake::open();
        for (functions, act) in ACTS {
            for function in *functions {
                // Invalid value, out of memory, launch out of resources.
                for code in [1, 2, 701] {
                    let cuda = Cuda::open(0).unwrap();
                    fake.once(function, code);
                    let error = driver_error(act(&cuda));
                    assert_named(&error, function, code);
                    act(&cuda).unwrap_or_else(|error| panic!("after {function}: {error}"));
                    drop(cuda);
                    fake.assert_clean();
                }
            }
        }
    });
}

#[test]
fn a_machine_that_cannot_be_opened_leaves_nothing() {
    with_fake("a_machine_that_cannot_be_opened_leaves_nothing", "", || {
        let fake = Fake::open();
        for function in [
            "cuDriverGetVersion",
            "cuInit",
            "cuDeviceGetCount",
            "cuDeviceGet",
            "cuDevicePrimaryCtxRetain",
            "cuStreamCreate",
            "cuCtxGetCurrent",
            "cuCtxGetDevice",
            "cuDeviceGetAttribute",
            "cuDeviceGetName",
            "cuDeviceTotalMem_v2",
        ] {
            for code in [1, 2] {
                fake.once(function, code);
                let error = Cuda::open(0).expect_err(function);
                assert_named(&error, function, code);
                fake.assert_clean();
            }
        }
        write_and_read(&Cuda::open(0).unwrap()).unwrap();
        fake.assert_clean();
    });
}

#[test]
fn a_capture_returns_what_its_work_returned() {
    with_fake("a_capture_returns_what_its_work_returned", "", || {
        let (fake, cuda) = (Fake::open(), Cuda::open(0).unwrap());
        // Also if the capture fails in its turn, as one that was spoilt does.
        for ends in [0, 901] {
            if ends != 0 {
                fake.once("cuStreamEndCapture", ends);
            }
            let error = cuda.capture(launch).unwrap_err();
            let entry = LAUNCH.kernel.entry().name;
            let is_works = matches!(
                &error,
                Error::Driver(DriverError::NotPrepared { entry: e }) if *e == entry
            );
            assert!(is_works, "{error}");
            write_and_read(&cuda).unwrap();
        }
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            cuda.capture(|_| panic!("on purpose")).map(drop)
        }));
        assert!(panicked.is_err());
        replay(&cuda).unwrap();
        drop(cuda);
        fake.assert_clean();
    });
}

#[test]
fn a_context_that_a_kernel_broke_stays_broken() {
    with_fake("a_context_that_a_kernel_broke_stays_broken", "", || {
        let fake = Fake::open();
        // An illegal address shows when somebody waits; a launch that failed, or the memory, with the next call.
        let broken = [
            ("cuStreamSynchronize", 700, write_and_read as fn(&Cuda) -> _),
            ("cuLaunchKernelEx", 719, launch_and_wait),
        ];
        let machines = [0, 1].map(|ordinal| Cuda::open(ordinal).unwrap());
        for (cuda, (function, code, act)) in machines.iter().zip(broken) {
            let bytes = vec![7; 100];
            let mut buffer = Buffer::new(cuda, "x", Dtype::U8, &[100], &bytes).unwrap();
            cuda.prepare(&[LAUNCH.kernel]).unwrap();
            let graph = cuda.capture(launch).unwrap();
            fake.once(function, code);
            let first = driver_error(act(cuda));
            let is_first = matches!(first, DriverError::ContextLost { function: f, code: c, .. }
                if (f, c) == (function, code));
            assert!(is_first, "{first:?}");
            for (_, act) in ACTS {
                assert_lost(act(cuda), code);
            }
            assert_lost(graph.launch(), code);
            assert_lost(buffer.read().map(drop), code);
            assert_lost(buffer.write(&bytes), code);
            let again = Cuda::open(cuda.properties().ordinal);
            assert_lost(again.map(drop).map_err(Error::from), code);
        }
        drop(machines);
        fake.assert_clean();
    });
}

#[test]
fn a_context_destroyed_under_us() {
    // Whether it shows when the context is made current, or with what is done in it then.
    for quiet in ["quiet=0", "quiet=1"] {
        with_fake("a_context_destroyed_under_us", quiet, || {
            let (fake, cuda, other) =
                (Fake::open(), Cuda::open(0).unwrap(), Cuda::open(1).unwrap());
            let pinned = Pinned::new(&cuda);
            let buffer = Buffer::new(&cuda, "x", Dtype::U8, &[4], &[1; 4]).unwrap();
            let host = Buffer::new(&pinned, "x", Dtype::U8, &[4], &[1; 4]).unwrap();
            sweep(&cuda).unwrap();
            cuda.prepare(&[LAUNCH.kernel]).unwrap();
            let graph = cuda.capture(launch).unwrap();
            let timed = cuda.time(
                2,
                || Ok(()),
                || {
                    fake.destroy(0);
                    Ok(())
                },
            );
            assert_lost(timed.map(drop), 709);
            for (_, act) in ACTS {
                assert_lost(act(&cuda), 709);
                act(&other).unwrap();
            }
            assert_lost(graph.launch(), 709);
            assert_lost(buffer.read().map(drop), 709);
            assert_lost(host.read().map(drop), 709);

            // The device has a new context, and the old things do not disturb it.
            let new = Cuda::open(0).unwrap();
            let kept = Buffer::new(&new, "x", Dtype::U8, &[4], &[3; 4]).unwrap();
            assert_lost(write_and_read(&cuda), 709);
            drop((graph, buffer, host));
            drop(cuda);
            for (_, act) in ACTS {
                act(&new).unwrap();
            }
            assert_eq!(kept.read().unwrap(), [3; 4]);
            drop(kept);
            drop((new, other));
            fake.assert_clean();
        });
    }
}

#[test]
fn two_devices_in_turns() {
    with_fake("two_devices_in_turns", "", || {
        let fake = Fake::open();
        let machines = [0, 1].map(|ordinal| Cuda::open(ordinal).unwrap());
        let mut buffers = Vec::new();
        for round in 0..3 {
            for cuda in &machines {
                for (_, act) in ACTS {
                    act(cuda).unwrap();
                }
                buffers.push(Buffer::new(cuda, "x", Dtype::U8, &[4], &[round; 4]).unwrap());
            }
        }
        for (i, buffer) in buffers.iter().enumerate() {
            assert_eq!(usize::from(buffer.read().unwrap()[0]), i / 2);
        }
        // Kernels of one in a stream of the other.
        let [one, other] = &machines;
        // SAFETY: a stream of `other`, which lives on.
        let mixed = unsafe { StreamLauncher::new(one.kernels(), other.stream()) };
        let what = "the stream";
        assert_eq!(mixed.unwrap_err(), DriverError::WrongContext { what });
        drop(buffers);
        drop(machines);
        fake.assert_clean();
    });
}

#[test]
fn eight_threads_share_a_machine() {
    with_fake("eight_threads_share_a_machine", "", || {
        let fake = Fake::open();
        let machines = [0, 1].map(|ordinal| Cuda::open(ordinal).unwrap());
        let all = |work: &(dyn Fn(usize) + Sync)| {
            std::thread::scope(|scope| {
                for thread in 0..8 {
                    scope.spawn(move || work(thread));
                }
            });
        };
        // One of the threads is told that there is no memory for the kernel; another one loads it.
        for ordinal in [0, 1] {
            fake.once("cuModuleLoadDataEx", 2);
            let failures = std::sync::atomic::AtomicU32::new(0);
            all(&|_| {
                if let Err(error) = launch(&machines[ordinal]) {
                    assert!(
                        error
                            .to_string()
                            .contains("out of memory in `cuModuleLoadDataEx`")
                    );
                    failures.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
            });
            assert_eq!(failures.into_inner(), 1);
            assert_eq!(fake.calls("cuModuleLoadDataEx"), 2 * (ordinal + 1));
        }
        all(&|thread| {
            for round in 0..20 {
                let cuda = &machines[(thread + round) % 2];
                launch_and_wait(cuda).unwrap();
                write_and_read(cuda).unwrap();
                let address = cuda.allocate("x", 8).unwrap();
                // SAFETY: just allocated, and freed once.
                unsafe {
                    cuda.zero(address, 8).unwrap();
                    cuda.free(address, 8);
                }
                time(cuda).unwrap();
                pin(cuda).unwrap();
            }
        });
        assert_eq!(fake.calls("cuModuleLoadDataEx"), 4, "each kernel once");
        drop(machines);
        fake.assert_clean();
    });
}
