//! Runs tests with a driver that is none. A driver is opened once per process, so each case runs its test program
//! again.
#![allow(dead_code, reason = "each test file uses what it needs")]

use std::env;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use ferroattn::Result;
use ferroattn::runtime::embedded::{ROUTE_VARIABLE, SETS};
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
        .env(
            ROUTE_VARIABLE,
            fake.strip_prefix("ptx=").unwrap_or_default(),
        )
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

/// The fake driver, to be asked and told. In a process that runs a case with it.
pub(crate) struct Fake(Library);

impl Fake {
    pub(crate) fn open() -> Self {
        let library = env::var_os("FERROATTN_LIBCUDA").expect("set by `with_driver`");
        // SAFETY: it is loaded already.
        Self(unsafe { Library::new(library) }.unwrap())
    }

    /// The next call of `function` fails with `code`.
    pub(crate) fn once(&self, function: &str, code: u32) {
        let function = CString::new(function).unwrap();
        // SAFETY: the function has this type, and does not keep the name.
        unsafe {
            self.get::<unsafe extern "C" fn(*const c_char, u32)>("fake_once")(
                function.as_ptr(),
                code,
            );
        }
    }

    /// How often `function` was called.
    pub(crate) fn calls(&self, function: &str) -> usize {
        let function = CString::new(function).unwrap();
        // SAFETY: as above.
        unsafe {
            self.get::<unsafe extern "C" fn(*const c_char) -> usize>("fake_calls")(
                function.as_ptr(),
            )
        }
    }

    /// Somebody else destroys the context of a device.
    pub(crate) fn destroy(&self, device: usize) {
        // SAFETY: the function has this type.
        unsafe { self.get::<unsafe extern "C" fn(usize)>("fake_destroy")(device) }
    }

    /// Somebody else makes a context current on this thread.
    pub(crate) fn set_current(&self, context: usize) {
        // SAFETY: the function has this type.
        let code = unsafe {
            self.get::<unsafe extern "C" fn(*mut c_void) -> u32>("cuCtxSetCurrent")(
                context as *mut c_void,
            )
        };
        assert_eq!(code, 0);
    }

    /// Nothing was used in a way that it must not be, and nothing is left.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        // SAFETY: the function has this type.
        let text = unsafe { self.get::<unsafe extern "C" fn() -> *const c_char>("fake_account")() };
        // SAFETY: it ends with a zero byte, and is never freed.
        let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
        assert!(text.is_empty(), "{text}");
    }

    /// # Safety
    /// The function has this type.
    unsafe fn get<F: Copy>(&self, name: &str) -> F {
        // SAFETY: the caller's promise.
        *unsafe { self.0.get::<F>(name) }.unwrap()
    }
}
