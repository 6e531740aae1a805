//! A CUDA driver of few functions, which fail as the environment variable FAKE asks:
//! `FAKE="cuInit=100 version=11000"`. Compiled and loaded by tests/driver.rs.
#![allow(non_snake_case, clippy::missing_safety_doc, unsafe_op_in_unsafe_fn)]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::{Mutex, MutexGuard};

type Handle = *mut c_void;

/// How often each function was called.
fn calls() -> MutexGuard<'static, BTreeMap<&'static str, usize>> {
    static CALLS: Mutex<BTreeMap<&'static str, usize>> = Mutex::new(BTreeMap::new());
    CALLS.lock().unwrap()
}

/// How often `function` was called.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fake_calls(function: *const c_char) -> usize {
    let function = CStr::from_ptr(function).to_str().unwrap();
    calls().get(function).copied().unwrap_or(0)
}

/// What FAKE says of `name`, or `default`.
fn fake(name: &str, default: usize) -> usize {
    let all = std::env::var("FAKE").unwrap_or_default();
    all.split(' ')
        .find_map(|one| one.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
        .unwrap_or(default)
}

fn code(function: &str) -> c_uint {
    fake(function, 0) as c_uint
}

macro_rules! functions {
    ($($name:ident($($arg:ident: $type:ty),*) $body:block)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> c_uint {
            *calls().entry(stringify!($name)).or_default() += 1;
            $body
            code(stringify!($name))
        }
    )*};
}

functions! {
    cuInit(_flags: c_uint) {}
    cuDriverGetVersion(version: *mut c_int) { *version = fake("version", 13000) as c_int; }
    cuGetErrorName(_code: c_uint, text: *mut *const c_char) { *text = c"CUDA_ERROR_FAKE".as_ptr(); }
    cuGetErrorString(_code: c_uint, text: *mut *const c_char) { *text = c"as was asked for".as_ptr(); }
    cuDeviceGetCount(count: *mut c_int) { *count = 1; }
    cuDeviceGet(device: *mut c_int, ordinal: c_int) { *device = ordinal; }
    cuDeviceGetName(name: *mut c_char, _len: c_int, _device: c_int) {
        for (i, byte) in b"fake\0".iter().enumerate() { *name.add(i) = *byte as c_char; }
    }
    cuDeviceGetAttribute(value: *mut c_int, attribute: c_uint, _device: c_int) {
        *value = match attribute {
            75 => fake("major", 9) as c_int,
            76 => fake("minor", 0) as c_int,
            _ => 100_000,
        };
    }
    cuDeviceTotalMem_v2(bytes: *mut usize, _device: c_int) { *bytes = 1 << 30; }
    cuDevicePrimaryCtxRetain(context: *mut Handle, _device: c_int) { *context = 0x10 as Handle; }
    cuDevicePrimaryCtxRelease_v2(_device: c_int) {}
    cuCtxSetCurrent(_context: Handle) {}
    cuCtxGetCurrent(context: *mut Handle) { *context = fake("context", 0x10) as Handle; }
    cuCtxGetDevice(device: *mut c_int) { *device = 0; }
    cuStreamCreate(stream: *mut Handle, _flags: c_uint) { *stream = 0x20 as Handle; }
    cuStreamDestroy_v2(_stream: Handle) {}
    cuStreamSynchronize(_stream: Handle) {}
    cuStreamGetCtx(stream: Handle, context: *mut Handle) {
        *context = if stream as usize == 0x20 { 0x10 } else { 0x11 } as Handle;
    }
    cuStreamIsCapturing(_stream: Handle, status: *mut c_uint) { *status = fake("capturing", 0) as c_uint; }
    cuModuleLoadDataEx(module: *mut Handle, image: *const c_char, _count: c_uint, _options: *mut c_uint, values: *mut *mut c_void) {
        assert!(CStr::from_ptr(image).to_str().unwrap().starts_with(".version"));
        *module = 0x30 as Handle;
        let log: *mut u8 = (*values).cast();
        for (i, byte) in b"line 7: syntax error\0".iter().enumerate() { *log.add(i) = *byte; }
    }
    cuModuleGetFunction(function: *mut Handle, _module: Handle, _name: *const c_char) { *function = 0x40 as Handle; }
    cuModuleUnload(_module: Handle) {}
    cuFuncSetAttribute(_function: Handle, _attribute: c_uint, _value: c_int) {}
    cuLaunchKernelEx(_config: *const c_void, _function: Handle, _params: *mut *mut c_void, _extra: *mut *mut c_void) {}
    cuMemHostAlloc(host: *mut *mut c_void, bytes: usize, _flags: c_uint) {
        *host = Vec::leak(vec![0u128; bytes.div_ceil(16)]).as_mut_ptr().cast();
    }
    cuMemHostGetDevicePointer_v2(address: *mut u64, host: *mut c_void, _flags: c_uint) {
        *address = host as u64 + fake("moved", 0) as u64;
    }
    cuMemFreeHost(_host: *mut c_void) {}
    cuMemAlloc_v2(address: *mut u64, bytes: usize) {
        if bytes == 0 { return 1; }
        *address = 0x5000 + 0x100 * calls()["cuMemAlloc_v2"] as u64;
    }
    cuMemFree_v2(_address: u64) {}
    cuStreamBeginCapture_v2(_stream: Handle, _mode: c_uint) {}
    cuStreamEndCapture(_stream: Handle, graph: *mut Handle) { *graph = 0x50 as Handle; }
    cuGraphInstantiateWithFlags(executable: *mut Handle, _graph: Handle, _flags: u64) { *executable = 0x60 as Handle; }
    cuGraphLaunch(_executable: Handle, _stream: Handle) {}
    cuGraphExecDestroy(_executable: Handle) {}
    cuGraphDestroy(_graph: Handle) {}
}
