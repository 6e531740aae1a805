//! What a machine without a usable driver is told, and one whose driver is asked for what it cannot do.

mod fake_driver;

use fake_driver::{Fake, launch, with_driver, with_fake};
use ferroattn::Error;
use ferroattn::runtime::driver::{DriverVersion, OLDEST_DRIVER};
use ferroattn::runtime::embedded::SETS;
use ferroattn::runtime::{
    Buffer, Cuda, DeviceMemory, DriverError, Kernels, Pinned, Route, StreamLauncher,
};
use ferroattn::tensor::Dtype;
use gpu_kernels::entry::EntryId;

fn open_error() -> DriverError {
    Cuda::open(0).expect_err("the driver is unusable")
}

#[test]
fn no_driver() {
    with_driver("no_driver", "/nowhere/libcuda.so.1", "", || {
        let error = open_error();
        assert!(matches!(error, DriverError::NoDriver { .. }), "{error:?}");
        assert!(
            error.to_string().contains("/nowhere/libcuda.so.1"),
            "{error}"
        );
        assert_eq!(Kernels::load().unwrap_err(), error);
    });
}

#[test]
fn a_missing_function_is_named() {
    // A library that surely exists and surely is no driver.
    with_driver("a_missing_function_is_named", "libc.so.6", "", || {
        let symbol = "cuDriverGetVersion";
        assert_eq!(open_error(), DriverError::MissingSymbol { symbol });
    });
}

#[test]
fn an_old_driver() {
    with_fake("an_old_driver", "version=11070", || {
        let got = DriverVersion(11_070);
        assert_eq!(open_error(), DriverError::TooOld { got });
        assert!(
            open_error()
                .to_string()
                .contains(&format!("CUDA 11.7; {OLDEST_DRIVER} or later"))
        );
    });
}

#[test]
fn a_driver_of_cuda_12_0_is_too_old() {
    with_fake("a_driver_of_cuda_12_0_is_too_old", "version=12000", || {
        let got = DriverVersion(12_000);
        for error in [open_error(), Kernels::load().unwrap_err()] {
            assert_eq!(error, DriverError::TooOld { got });
            assert_eq!(
                error.to_string(),
                "the CUDA driver supports CUDA 12.0; 12.1 or later is needed"
            );
        }
        assert_eq!(Fake::open().calls("cuInit"), 0, "it is not even woken up");
    });
}

#[test]
fn a_driver_of_cuda_12_1_will_do() {
    with_fake("a_driver_of_cuda_12_1_will_do", "version=12010", || {
        let cuda = Cuda::open(0).unwrap();
        assert_eq!(cuda.properties().driver, DriverVersion(12_010));
        launch(&cuda).unwrap();
    });
}

#[test]
fn the_oldest_driver_knows_our_ptx() {
    for set in SETS {
        // PTX 8.n came with CUDA 12.n, up to 8.5.
        let minor = set.ptx_version.strip_prefix("8.").unwrap();
        let minor: i32 = minor.parse().unwrap();
        assert!(minor <= 5);
        assert_eq!(OLDEST_DRIVER, DriverVersion(12_000 + 10 * minor));
    }
}

#[test]
fn the_set_is_the_one_that_was_asked_for() {
    with_fake("the_set_is_the_one_that_was_asked_for", "", || {
        assert_eq!(
            Cuda::open(0).unwrap().kernels().set().route,
            SETS[0].route,
            "the first is the default"
        );
        for set in SETS {
            let cuda = Cuda::open_with(0, set.route).unwrap();
            assert_eq!(cuda.kernels().set().route, set.route);
            assert_eq!(cuda.kernels().set().compiler, set.compiler);
            let kernels = Kernels::load_route(set.route).unwrap();
            assert_eq!(kernels.set().route, set.route);
        }
    });
}

#[test]
fn the_environment_chooses_the_set() {
    let name = "the_environment_chooses_the_set";
    with_fake(name, "ptx=nvptx", || {
        assert_eq!(Kernels::load().unwrap().set().route, Route::Nvptx);
        // Whoever asks in the program is not overruled.
        for set in SETS {
            let kernels = Kernels::load_route(set.route).unwrap();
            assert_eq!(kernels.set().route, set.route);
        }
    });
}

#[test]
fn a_route_that_nobody_knows() {
    with_fake("a_route_that_nobody_knows", "ptx=llvm", || {
        let error = open_error();
        assert!(matches!(error, DriverError::Route { .. }), "{error:?}");
        assert!(error.to_string().contains("`llvm`"), "{error}");
    });
}

#[test]
fn no_device() {
    with_fake("no_device", "cuInit=100 cuDeviceGetCount=100", || {
        assert_eq!(
            open_error(),
            DriverError::NoDevice {
                ordinal: 0,
                count: 0
            }
        );
    });
}

#[test]
fn a_device_too_old() {
    with_fake("a_device_too_old", "major=7 minor=5", || {
        let error = open_error();
        assert!(
            matches!(
                error,
                DriverError::ComputeCapability {
                    major: 7,
                    minor: 5,
                    ..
                }
            ),
            "{error:?}"
        );
    });
}

/// Of compute capability 9.0 alone.
const HOPPER_KERNEL: EntryId = EntryId::prefill_gqa_bf16_d128_sm90a;

#[test]
fn a_kernel_for_one_gpu_comes_from_a_file_of_its_own() {
    let name = "a_kernel_for_one_gpu_comes_from_a_file_of_its_own";
    with_fake(name, "", || {
        let cuda = Cuda::open(0).unwrap();
        assert_eq!(cuda.kernels().archs(), "sm_90, sm_90a");
        cuda.kernels().prepare(&[HOPPER_KERNEL]).unwrap();
    });
}

#[test]
fn a_kernel_for_one_gpu_is_loaded_on_no_other() {
    let name = "a_kernel_for_one_gpu_is_loaded_on_no_other";
    with_fake(name, "major=10 minor=0", || {
        let cuda = Cuda::open(0).unwrap();
        assert_eq!(cuda.kernels().archs(), "sm_90");
        let error = cuda.kernels().prepare(&[HOPPER_KERNEL]).unwrap_err();
        assert!(error.to_string().contains("sm_90a"), "{error}");
    });
}

#[test]
fn a_code_nobody_knows_is_reported_as_it_is() {
    let name = "a_code_nobody_knows_is_reported_as_it_is";
    // Called by `cust`, whose enum of codes does not have it.
    with_fake(name, "cuDevicePrimaryCtxRetain=4711", || {
        let error = open_error();
        let DriverError::Call { function, code, .. } = error else {
            panic!("{error:?}")
        };
        assert_eq!((function, code), ("cuDevicePrimaryCtxRetain", 4711));
    });
}

#[test]
fn a_compiler_error_comes_with_its_log() {
    let name = "a_compiler_error_comes_with_its_log";
    with_fake(name, "cuModuleLoadDataEx=218", || {
        let cuda = Cuda::open(0).unwrap();
        let error = launch(&cuda).unwrap_err().to_string();
        for part in [
            "`check_slots`",
            SETS[0].ptx_version,
            "sm_90",
            "CUDA 13.0",
            "line 7: syntax error",
        ] {
            assert!(error.contains(part), "no {part} in {error}");
        }
    });
}

#[test]
fn nothing_is_compiled_during_a_capture() {
    with_fake(
        "nothing_is_compiled_during_a_capture",
        "capturing=1",
        || {
            let cuda = Cuda::open(0).unwrap();
            let error = launch(&cuda).unwrap_err();
            assert!(
                matches!(
                    error,
                    Error::Driver(DriverError::NotPrepared {
                        entry: "check_slots"
                    })
                ),
                "{error:?}"
            );
            cuda.kernels().prepare(&[EntryId::check_slots]).unwrap();
            launch(&cuda).unwrap();
        },
    );
}

#[test]
fn a_stream_of_another_context() {
    with_fake("a_stream_of_another_context", "", || {
        let kernels = Kernels::load().unwrap();
        // SAFETY: the fake driver knows these streams.
        let [ours, other] =
            [0x20, 0x21].map(|stream: usize| unsafe { StreamLauncher::new(&kernels, stream as _) });
        launch(&ours.unwrap()).unwrap();
        assert_eq!(
            other.unwrap_err(),
            DriverError::WrongContext { what: "the stream" }
        );
    });
}

#[test]
fn no_context() {
    with_fake("no_context", "context=0", || {
        assert_eq!(Kernels::load().unwrap_err(), DriverError::NoContext);
    });
}

#[test]
fn out_of_memory() {
    with_fake("out_of_memory", "cuMemAlloc_v2=2", || {
        let cuda = Cuda::open(0).unwrap();
        let error = cuda.allocate("x", 64).unwrap_err();
        assert!(
            matches!(error, Error::Driver(DriverError::OutOfMemory { bytes: 64 })),
            "{error:?}"
        );
    });
}

#[test]
fn pinned_memory_has_one_address() {
    with_fake("pinned_memory_has_one_address", "", || {
        let cuda = Cuda::open(0).unwrap();
        let pinned = Pinned::new(&cuda);
        let bytes: Vec<u8> = (0..100).collect();
        let buffer = Buffer::new(&pinned, "host cache", Dtype::U8, &[100], &bytes).unwrap();
        assert_eq!(buffer.read().unwrap(), bytes);
    });
}

#[test]
fn pinned_memory_of_a_driver_without_unified_addresses() {
    let test = "pinned_memory_of_a_driver_without_unified_addresses";
    with_fake(test, "moved=4096", || {
        let cuda = Cuda::open(0).unwrap();
        let error = Pinned::new(&cuda).allocate("host cache", 64).unwrap_err();
        assert!(
            matches!(error, Error::Driver(DriverError::NotUnified)),
            "{error:?}"
        );
    });
}

#[test]
fn an_allocation_of_no_bytes_has_an_address() {
    with_fake("an_allocation_of_no_bytes_has_an_address", "", || {
        let cuda = Cuda::open(0).unwrap();
        let pinned = Pinned::new(&cuda);
        for memory in [&cuda as &dyn DeviceMemory, &pinned] {
            let mut buffers =
                [0; 2].map(|_| Buffer::new(memory, "x", Dtype::F32, &[0], &[]).unwrap());
            for buffer in &mut buffers {
                assert!(buffer.read().unwrap().is_empty());
                buffer.write(&[]).unwrap();
            }
        }
    });
}

#[test]
fn a_buffer_is_written_whole() {
    with_fake("a_buffer_is_written_whole", "", || {
        let cuda = Cuda::open(0).unwrap();
        let mut buffer = Buffer::new(&cuda, "x", Dtype::U8, &[4], &[1, 2, 3, 4]).unwrap();
        for wrong in [&[5; 3][..], &[5; 5], &[]] {
            let error = buffer.write(wrong).unwrap_err().to_string();
            assert!(error.contains("must be 4 bytes"), "{error}");
            assert_eq!(buffer.read().unwrap(), [1, 2, 3, 4]);
        }
    });
}

#[test]
fn a_kernel_is_compiled_in_its_own_context_alone() {
    let name = "a_kernel_is_compiled_in_its_own_context_alone";
    with_fake(name, "", || {
        let fake = Fake::open();
        let kernels = Kernels::load().unwrap();
        let prepare_in = |context: usize| {
            let in_thread = || {
                fake.set_current(context);
                kernels.prepare(&[EntryId::check_slots])
            };
            std::thread::scope(|scope| scope.spawn(in_thread).join().unwrap())
        };
        let what = "the calling thread";
        assert_eq!(prepare_in(0x11), Err(DriverError::WrongContext { what }));
        assert_eq!(prepare_in(0), Err(DriverError::NoContext));
        assert_eq!(fake.calls("cuModuleLoadDataEx"), 0);
        assert_eq!(prepare_in(0x10), Ok(()));
        // It is there now, for every thread.
        assert_eq!(prepare_in(0x11), Ok(()));
        assert_eq!(fake.calls("cuModuleLoadDataEx"), 1);
    });
}
