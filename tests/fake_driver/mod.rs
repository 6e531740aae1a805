//! Runs tests with a driver that is none. A driver is opened once per process, so each case runs its test program
//! again.
#![allow(dead_code, reason = "each test file uses what it needs")]

use std::env;
use std::ffi::{CString, c_char};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use ferroattn::Result;
use ferroattn::runtime::embedded::SETS;
use ferroattn::runtime::{Launch, Launcher};
use gpu_kernels::entry::EntryId;
use libloading::Library;

/// Runs `case` in another process, in which `library` is the driver and behaves as `fake` says.
pub(crate) fn with_driver(test: &str, library: &str, fake: &str, case: impl FnOnce()) {
    if SETS.is_empty() {
        return;
    }
    if env::var("FERROATTN_TEST_CHILD").is_ok_and(|child| child == test) {
        return case();
    }
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("FERROATTN_TEST_CHILD", test)
        .env("FERROATTN_LIBCUDA", library)
        .env("FAKE", fake)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

/// As `with_driver`, with the fake one.
pub(crate) fn with_fake(test: &str, fake: &str, case: impl FnOnce()) {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    let library = LIBRARY.get_or_init(|| {
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let library = dir.join(concat!(env!("CARGO_CRATE_NAME"), "-libcuda.so"));
        if env::var_os("FERROATTN_TEST_CHILD").is_none() {
            let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fake_driver/libcuda.rs");
            let status = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
                .args(["--edition=2024", "--crate-type=cdylib", source, "-o"])
                .arg(&library)
                .status()
                .unwrap();
            assert!(status.success());
        }
        library
    });
    with_driver(test, library.to_str().unwrap(), fake, case);
}

/// A kernel, for launches that run nothing.
pub(crate) const LAUNCH: Launch = Launch {
    kernel: EntryId::check_slots,
    grid: [1, 1, 1],
    shared_bytes: 0,
    overlaps_previous: true,
};

pub(crate) fn launch(launcher: &impl Launcher) -> Result<()> {
    let params = vec![0; LAUNCH.kernel.entry().params_bytes];
    // SAFETY: the fake driver runs nothing.
    unsafe { launcher.launch(&LAUNCH, &params) }
}

/// The fake driver, to be asked. In a process that runs a case with it.
pub(crate) struct Fake(Library);

impl Fake {
    pub(crate) fn open() -> Self {
        let library = env::var_os("FERROATTN_LIBCUDA").expect("set by `with_driver`");
        // SAFETY: it is loaded already.
        Self(unsafe { Library::new(library) }.unwrap())
    }

    /// How often `function` was called.
    pub(crate) fn calls(&self, function: &str) -> usize {
        type Calls = unsafe extern "C" fn(*const c_char) -> usize;
        let function = CString::new(function).unwrap();
        // SAFETY: the function has this type.
        let calls = unsafe { self.0.get::<Calls>("fake_calls") }.unwrap();
        // SAFETY: it does not keep the name.
        unsafe { calls(function.as_ptr()) }
    }
}
