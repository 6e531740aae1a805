//! A CUDA driver of two devices that runs nothing, but keeps account: of contexts, of what was made in them, and of
//! what its caller does wrong ("misuse"). Compiled and loaded by tests/fake_driver/mod.rs.
//!
//! Functions fail as the environment variable FAKE asks, `FAKE="cuInit=100 version=11000"`, or once, as
//! [`fake_once`] asks. An error that breaks a context is returned from then on by whatever is done in it.
#![allow(
    non_snake_case,
    clippy::missing_safety_doc,
    clippy::undocumented_unsafe_blocks,
    unsafe_op_in_unsafe_fn
)]

use std::alloc::{Layout, alloc_zeroed};
use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::sync::{LazyLock, Mutex, MutexGuard};

type Handle = *mut c_void;

/// What FAKE says of `name`, or `default`.
fn fake(name: &str, default: usize) -> usize {
    let all = std::env::var("FAKE").unwrap_or_default();
    all.split(' ')
        .find_map(|one| one.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
        .unwrap_or(default)
}

#[derive(Default)]
struct State {
    calls: HashMap<String, usize>,
    once: HashMap<String, c_uint>,
    misuse: Vec<String>,
    /// By device: its context, how often that is held, and how many were destroyed.
    devices: [(usize, usize, usize); 2],
    /// Contexts that are broken, and by which error.
    broken: HashMap<usize, c_uint>,
    destroyed: HashSet<usize>,
    /// What there is, by handle or address: what it is, its context, and its bytes.
    objects: BTreeMap<usize, (&'static str, usize, usize)>,
    capturing: HashSet<usize>,
    made: usize,
}

thread_local! {
    static CURRENT: Cell<usize> = Cell::new(fake("context", 0x10));
}

fn state() -> MutexGuard<'static, State> {
    static STATE: LazyLock<Mutex<State>> = LazyLock::new(|| {
        let mut state = State::default();
        state.devices = [(0x10, 0, 0), (0x11, 0, 0)];
        // Two streams that are always there.
        state.objects.insert(0x20, ("given stream", 0x10, 0));
        state.objects.insert(0x21, ("given stream", 0x11, 0));
        Mutex::new(state)
    });
    STATE
        .lock()
        .unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl State {
    fn make(&mut self, kind: &'static str) -> Handle {
        self.made += 1;
        let handle = 0x1000 + 0x10 * self.made;
        self.objects.insert(handle, (kind, CURRENT.get(), 0));
        handle as Handle
    }

    fn allocate(&mut self, kind: &'static str, bytes: usize) -> usize {
        let layout = Layout::from_size_align(bytes, 256).unwrap();
        // Never given out again, so that whoever uses it too late is caught.
        let address = unsafe { alloc_zeroed(layout) } as usize;
        self.objects.insert(address, (kind, CURRENT.get(), bytes));
        address
    }

    /// Notes if `handle` is not a `kind` of the current context.
    fn uses(&mut self, kind: &str, handle: usize) {
        match self.objects.get(&handle) {
            Some((is, context, _)) if is.ends_with(kind) && *context == CURRENT.get() => {}
            other => {
                let current = CURRENT.get();
                self.misuse.push(format!(
                    "{handle:#x} as {kind} in {current:#x}, but it is {other:?}"
                ));
            }
        }
    }

    fn uses_range(&mut self, address: u64, bytes: usize) {
        let begin = self.objects.range(..=address as usize).next_back();
        let begin = begin.map_or(0, |(&begin, _)| begin);
        self.uses("memory", begin);
        let has = self.objects.get(&begin).map_or(0, |object| object.2);
        if begin + has < address as usize + bytes {
            self.misuse
                .push(format!("{bytes} bytes at {address:#x}: out of bounds"));
        }
    }

    fn destroys(&mut self, kind: &str, handle: usize) {
        self.uses(kind, handle);
        self.objects.remove(&handle);
    }
}

/// Counts a call. What it is to return at once, if not 0.
fn begin(name: &str, in_context: bool) -> c_uint {
    let mut state = state();
    *state.calls.entry(name.to_owned()).or_default() += 1;
    let context = CURRENT.get();
    let asked = state.once.remove(name).unwrap_or(fake(name, 0) as c_uint);
    if asked != 0 {
        if matches!(asked, 214 | 700 | 719) {
            state.broken.insert(context, asked);
        }
        if name == "cuStreamEndCapture" {
            state.capturing.clear();
        }
        return asked;
    }
    match context {
        _ if !in_context => 0,
        0 => 201,
        _ if state.destroyed.contains(&context) => 709,
        _ => state.broken.get(&context).copied().unwrap_or(0),
    }
}

trait Answer {
    fn code(self) -> c_uint;
}
impl Answer for () {
    fn code(self) -> c_uint {
        0
    }
}
impl Answer for c_uint {
    fn code(self) -> c_uint {
        self
    }
}

macro_rules! functions {
    ($in_context:literal: $($name:ident($($arg:ident: $type:ty),*) $body:block)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $type),*) -> c_uint {
            match begin(stringify!($name), $in_context) {
                0 => $body.code(),
                code => code,
            }
        }
    )*};
}

functions! { false:
    cuInit(_flags: c_uint) {}
    cuDriverGetVersion(version: *mut c_int) { *version = fake("version", 13000) as c_int; }
    cuGetErrorName(_code: c_uint, text: *mut *const c_char) { *text = c"CUDA_ERROR_FAKE".as_ptr(); }
    cuGetErrorString(_code: c_uint, text: *mut *const c_char) { *text = c"as was asked for".as_ptr(); }
    cuDeviceGetCount(count: *mut c_int) { *count = 2; }
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
    cuDevicePrimaryCtxRetain(context: *mut Handle, device: c_int) {
        let mut state = state();
        let (current, held, _) = &mut state.devices[device as usize];
        *held += 1;
        *context = *current as Handle;
    }
    cuDevicePrimaryCtxRelease_v2(device: c_int) {
        let mut state = state();
        match &mut state.devices[device as usize].1 {
            0 => state.misuse.push("a context released too often".into()),
            held => *held -= 1,
        }
    }
    cuCtxSetCurrent(context: Handle) {
        let is_destroyed = state().destroyed.contains(&(context as usize));
        if is_destroyed && fake("quiet", 0) == 0 { return 709; }
        CURRENT.set(context as usize);
        0u32
    }
    cuCtxGetCurrent(context: *mut Handle) { *context = CURRENT.get() as Handle; }
    cuStreamGetCtx(stream: Handle, context: *mut Handle) {
        let of = state().objects.get(&(stream as usize)).map_or(0, |object| object.1);
        *context = of as Handle;
    }
}

functions! { true:
    cuCtxGetDevice(device: *mut c_int) { *device = CURRENT.get() as c_int & 0xf; }
    cuStreamCreate(stream: *mut Handle, _flags: c_uint) { *stream = state().make("stream"); }
    cuStreamDestroy_v2(stream: Handle) { state().destroys("stream", stream as usize); }
    cuStreamSynchronize(stream: Handle) { state().uses("stream", stream as usize); }
    cuStreamIsCapturing(stream: Handle, status: *mut c_uint) {
        let is_capturing = state().capturing.contains(&(stream as usize));
        *status = fake("capturing", usize::from(is_capturing)) as c_uint;
    }
    cuModuleGetFunction(function: *mut Handle, module: Handle, _name: *const c_char) {
        state().uses("module", module as usize);
        *function = module.byte_add(8);
    }
    cuModuleUnload(module: Handle) { state().destroys("module", module as usize); }
    cuFuncSetAttribute(function: Handle, _attribute: c_uint, _value: c_int) {
        state().uses("module", function as usize - 8);
    }
    cuFuncGetAttribute(value: *mut c_int, _attribute: c_uint, function: Handle) {
        state().uses("module", function as usize - 8);
        *value = 32;
    }
    cuLaunchKernelEx(config: *const u8, function: Handle, _params: *mut *mut c_void, _extra: *mut *mut c_void) {
        let mut state = state();
        state.uses("stream", *config.add(32).cast::<usize>());
        state.uses("module", function as usize - 8);
    }
    cuMemAlloc_v2(address: *mut u64, bytes: usize) {
        if bytes == 0 { return 1; }
        *address = state().allocate("memory", bytes) as u64;
        0u32
    }
    cuMemFree_v2(address: u64) { state().destroys("memory", address as usize); }
    cuMemHostAlloc(host: *mut *mut c_void, bytes: usize, _flags: c_uint) {
        *host = state().allocate("host memory", bytes) as Handle;
    }
    cuMemHostGetDevicePointer_v2(address: *mut u64, host: *mut c_void, _flags: c_uint) {
        *address = host as u64 + fake("moved", 0) as u64;
    }
    cuMemFreeHost(host: *mut c_void) { state().destroys("host memory", host as usize); }
    cuMemcpyHtoDAsync_v2(target: u64, source: *const u8, bytes: usize, stream: Handle) {
        state().uses("stream", stream as usize);
        state().uses_range(target, bytes);
        source.copy_to(target as *mut u8, bytes);
    }
    cuMemcpyDtoHAsync_v2(target: *mut u8, source: u64, bytes: usize, stream: Handle) {
        state().uses("stream", stream as usize);
        state().uses_range(source, bytes);
        target.copy_from(source as *const u8, bytes);
    }
    cuMemsetD8Async(address: u64, value: u8, bytes: usize, stream: Handle) {
        state().uses("stream", stream as usize);
        state().uses_range(address, bytes);
        (address as *mut u8).write_bytes(value, bytes);
    }
    cuEventCreate(event: *mut Handle, _flags: c_uint) { *event = state().make("event"); }
    cuEventDestroy_v2(event: Handle) { state().destroys("event", event as usize); }
    cuEventRecord(event: Handle, stream: Handle) {
        state().uses("event", event as usize);
        state().uses("stream", stream as usize);
    }
    cuEventElapsedTime(milliseconds: *mut f32, start: Handle, end: Handle) {
        state().uses("event", start as usize);
        state().uses("event", end as usize);
        *milliseconds = 0.5;
    }
    cuStreamBeginCapture_v2(stream: Handle, _mode: c_uint) {
        state().uses("stream", stream as usize);
        if state().capturing.insert(stream as usize) { 0u32 } else { 901 }
    }
    cuStreamEndCapture(stream: Handle, graph: *mut Handle) {
        let mut state = state();
        if !state.capturing.remove(&(stream as usize)) { return 901; }
        *graph = state.make("graph");
        0u32
    }
    cuGraphInstantiateWithFlags(executable: *mut Handle, graph: Handle, _flags: u64) {
        let mut state = state();
        state.uses("graph", graph as usize);
        *executable = state.make("executable");
    }
    cuGraphLaunch(executable: Handle, stream: Handle) {
        state().uses("executable", executable as usize);
        state().uses("stream", stream as usize);
    }
    cuGraphExecDestroy(executable: Handle) { state().destroys("executable", executable as usize); }
    cuGraphDestroy(graph: Handle) { state().destroys("graph", graph as usize); }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadDataEx(
    module: *mut Handle,
    image: *const c_char,
    _count: c_uint,
    _options: *mut c_uint,
    values: *mut *mut c_void,
) -> c_uint {
    assert!(
        CStr::from_ptr(image)
            .to_str()
            .unwrap()
            .starts_with(".version")
    );
    let code = begin("cuModuleLoadDataEx", true);
    if code == 0 {
        *module = state().make("module");
    } else {
        let log: *mut u8 = (*values).cast();
        for (i, byte) in b"line 7: syntax error\0".iter().enumerate() {
            *log.add(i) = *byte;
        }
    }
    code
}

/// The next call of `function` fails with `code`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fake_once(function: *const c_char, code: c_uint) {
    let function = CStr::from_ptr(function).to_str().unwrap();
    state().once.insert(function.to_owned(), code);
}

/// How often `function` was called.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fake_calls(function: *const c_char) -> usize {
    let function = CStr::from_ptr(function).to_str().unwrap();
    state().calls.get(function).copied().unwrap_or(0)
}

/// Somebody else destroys the context of a device.
#[unsafe(no_mangle)]
pub extern "C" fn fake_destroy(device: usize) {
    let mut state = state();
    let (context, _, destroyed) = &mut state.devices[device];
    let old = *context;
    *destroyed += 1;
    *context = 0x100 * *destroyed + 0x10 + device;
    state.destroyed.insert(old);
    state.broken.remove(&old);
}

/// What was done wrong, and what is left in contexts that were not destroyed: a line each.
#[unsafe(no_mangle)]
pub extern "C" fn fake_account() -> *const c_char {
    let state = state();
    let mut lines = state.misuse.clone();
    for (handle, object) in &state.objects {
        let is_given = object.0 == "given stream";
        if !is_given
            && !state.destroyed.contains(&object.1)
            && !state.broken.contains_key(&object.1)
        {
            lines.push(format!("left: {handle:#x}, {object:?}"));
        }
    }
    for (device, (_, held, _)) in state.devices.iter().enumerate() {
        if *held > 0 {
            lines.push(format!(
                "left: the context of device {device}, held {held} times"
            ));
        }
    }
    CString::new(lines.join("\n")).unwrap().into_raw()
}
