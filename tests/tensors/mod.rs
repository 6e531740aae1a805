//! Tensors for tests of cache writes and gathers: made on the host, copied to the emulator, read back whole, so
//! that a stray write anywhere shows.
#![allow(dead_code, reason = "each test crate uses a part")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    reason = "small test data"
)]

use std::sync::Arc;

use ferroattn::emulator::Emulator;
use ferroattn::reference::{HostTensor, Storage, fp8_nearest};
use ferroattn::runtime::DeviceMemory;
use ferroattn::tensor::{Dtype, TensorView, TensorViewMut, contiguous_strides};
use half::{bf16, f16};

/// What bytes hold that nobody wrote: NaN in every float type.
pub(crate) const POISON: u8 = 0xff;

/// Small, fast, the same everywhere.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        (self.next() >> 11) as usize % limit
    }
    /// In ±2, spread over exponents.
    pub(crate) fn value(&mut self) -> f32 {
        let mantissa = (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
        mantissa * [2.0, 1.0, 0.5, 0.01][self.below(4)]
    }
}

/// One value as bytes.
pub(crate) fn encode(dtype: Dtype, x: f32) -> Vec<u8> {
    match dtype {
        Dtype::F32 => x.to_le_bytes().to_vec(),
        Dtype::F16 => f16::from_f32(x).to_le_bytes().to_vec(),
        Dtype::Bf16 => bf16::from_f32(x).to_le_bytes().to_vec(),
        Dtype::F8E4m3 | Dtype::F8E5m2 => vec![fp8_nearest(dtype, f64::from(x))],
        #[expect(clippy::cast_possible_truncation, reason = "a whole number, and small")]
        Dtype::I8 => (x as i8).to_le_bytes().to_vec(),
        other => panic!("{other}"),
    }
}

/// A storage of values, one in 16 of them special.
pub(crate) fn values(dtype: Dtype, count: usize, random: &mut Random) -> Vec<u8> {
    const SPECIAL: [f32; 12] = [
        0.0,
        -0.0,
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        1e30,
        -448.0,
        464.0,
        1.0625,
        0.001_953_125,
        -1e-30,
        57344.0,
    ];
    (0..count)
        .flat_map(|_| {
            let x = match random.below(16) {
                0 => SPECIAL[random.below(SPECIAL.len())],
                _ => random.value(),
            };
            encode(dtype, x)
        })
        .collect()
}

/// Finite values alone.
pub(crate) fn finite_values(dtype: Dtype, count: usize, random: &mut Random) -> Vec<u8> {
    (0..count)
        .flat_map(|_| encode(dtype, random.value()))
        .collect()
}

/// A tensor of its own.
pub(crate) fn tensor(
    name: &'static str,
    dtype: Dtype,
    shape: &[usize],
    bytes: Vec<u8>,
) -> HostTensor {
    assert_eq!(bytes.len(), shape.iter().product::<usize>() * dtype.size());
    HostTensor::contiguous(name, dtype, shape, bytes)
}

pub(crate) fn floats(name: &'static str, shape: &[usize], values: &[f32]) -> HostTensor {
    let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    tensor(name, Dtype::F32, shape, bytes)
}

pub(crate) fn longs(name: &'static str, values: &[i64]) -> HostTensor {
    let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    tensor(name, Dtype::I64, &[values.len()], bytes)
}

pub(crate) fn ints(name: &'static str, shape: &[usize], values: &[i32]) -> HostTensor {
    let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    tensor(name, Dtype::I32, shape, bytes)
}

/// A tensor in somebody's storage. `offset` and `strides` count elements.
pub(crate) fn view_of(
    storage: &Arc<Storage>,
    dtype: Dtype,
    offset: usize,
    shape: &[usize],
    strides: &[usize],
) -> HostTensor {
    HostTensor {
        storage: storage.clone(),
        offset,
        dtype,
        shape: shape.to_vec(),
        strides: strides.to_vec(),
    }
}

/// `[tokens, size]` as one head, and a cache's part for it.
pub(crate) fn one_head(
    new: &HostTensor,
    cache: &HostTensor,
    first: usize,
) -> (HostTensor, HostTensor) {
    let (mut new, mut cache) = (new.clone(), cache.clone());
    new.shape.insert(1, 1);
    new.strides.insert(1, 0);
    cache.shape = vec![cache.shape[0], cache.shape[1], 1, new.shape[2]];
    cache.strides.insert(2, 0);
    cache.offset += first;
    (new, cache)
}

/// A row of a tensor as f32, and as bytes.
pub(crate) fn row(tensor: &HostTensor, token: usize) -> (Vec<f32>, Vec<u8>) {
    let size = tensor.shape[1];
    let values = (0..size)
        .map(|dim| tensor.float(&[token, dim]) as f32)
        .collect();
    let at = tensor.position(&[token, 0]) * tensor.dtype.size();
    let bytes = tensor.storage.bytes[at..at + size * tensor.dtype.size()].to_vec();
    (values, bytes)
}

/// Slot of each token that has one.
pub(crate) fn slots_of(slots: &HostTensor) -> impl Iterator<Item = (usize, usize)> {
    (0..slots.shape[0]).filter_map(|token| {
        let slot = usize::try_from(slots.integer(&[token])).ok()?;
        Some((token, slot))
    })
}

/// A storage full of poison.
pub(crate) fn poisoned(name: &'static str, bytes: usize) -> Arc<Storage> {
    Storage::new(name, vec![POISON; bytes])
}

/// A poisoned tensor of its own.
pub(crate) fn poisoned_tensor(name: &'static str, dtype: Dtype, shape: &[usize]) -> HostTensor {
    let bytes = shape.iter().product::<usize>() * dtype.size();
    tensor(name, dtype, shape, vec![POISON; bytes])
}

/// Distinct slots for `num_tokens` tokens, every `skip`-th of them −1.
pub(crate) fn slots(
    num_tokens: usize,
    num_slots: usize,
    skip: usize,
    random: &mut Random,
) -> Vec<i64> {
    let mut free: Vec<usize> = (0..num_slots).collect();
    (0..num_tokens)
        .map(|token| {
            let slot = free.swap_remove(random.below(free.len()));
            if skip > 0 && token % skip == skip - 1 {
                -1
            } else {
                slot as i64
            }
        })
        .collect()
}

/// An emulator with storages on it.
pub(crate) struct Machine {
    pub(crate) emulator: Emulator,
    storages: std::cell::RefCell<Vec<(Arc<Storage>, u64)>>,
}

impl Machine {
    pub(crate) fn new() -> Self {
        Self {
            emulator: Emulator::new(),
            storages: std::cell::RefCell::default(),
        }
    }

    /// Address of the tensor's storage, copied in when it is first met.
    pub(crate) fn address(&self, tensor: &HostTensor) -> u64 {
        let mut storages = self.storages.borrow_mut();
        let known = storages
            .iter()
            .find(|(storage, _)| Arc::ptr_eq(storage, &tensor.storage));
        if let Some(&(_, address)) = known {
            return address;
        }
        let storage = &tensor.storage;
        let address = self
            .emulator
            .allocate(storage.name, storage.len.max(16))
            .expect("small");
        // SAFETY: the allocation is that long.
        unsafe { self.emulator.copy_in(address, &storage.bytes) }.expect("in bounds");
        storages.push((storage.clone(), address));
        address
    }

    pub(crate) fn view(&self, tensor: &HostTensor) -> TensorView<'static> {
        let strides: Vec<i64> = tensor.strides.iter().map(|&stride| stride as i64).collect();
        let address = self.address(tensor) + (tensor.offset * tensor.dtype.size()) as u64;
        // SAFETY: the emulator checks every access.
        unsafe { TensorView::from_raw(address, tensor.dtype, &tensor.shape, &strides) }
            .expect("strides for all dimensions")
    }

    pub(crate) fn view_mut(&self, tensor: &HostTensor) -> TensorViewMut<'static> {
        let strides: Vec<i64> = tensor.strides.iter().map(|&stride| stride as i64).collect();
        let address = self.address(tensor) + (tensor.offset * tensor.dtype.size()) as u64;
        // SAFETY: the emulator checks every access, and launches run one after the other.
        unsafe { TensorViewMut::from_raw(address, tensor.dtype, &tensor.shape, &strides) }
            .expect("strides for all dimensions")
    }

    /// All bytes of the tensor's storage.
    pub(crate) fn read(&self, tensor: &HostTensor) -> Vec<u8> {
        let mut bytes = vec![0; tensor.storage.len];
        // SAFETY: the allocation is that long.
        unsafe { self.emulator.copy_out(self.address(tensor), &mut bytes) }.expect("in bounds");
        bytes
    }

    /// A workspace; 256 bytes for checks unless more is asked for.
    pub(crate) fn workspace(&self, bytes: usize) -> TensorViewMut<'static> {
        let bytes = bytes.max(256);
        let address = self.emulator.allocate("workspace", bytes).expect("small");
        // SAFETY: the allocation is that long; the emulator checks every access.
        unsafe { TensorViewMut::contiguous(address, Dtype::U8, &[bytes]) }.expect("one stride")
    }

    pub(crate) fn read_workspace(&self, workspace: &TensorViewMut<'_>) -> Vec<u8> {
        let mut bytes = vec![0; workspace.view().shape()[0]];
        // SAFETY: the allocation is that long.
        unsafe {
            self.emulator
                .copy_out(workspace.view().address(), &mut bytes)
        }
        .expect("in bounds");
        bytes
    }
}

/// Where two storages differ first, in words.
#[track_caller]
pub(crate) fn assert_same_bytes(got: &[u8], expected: &[u8], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    if let Some(at) = (0..got.len()).find(|&i| got[i] != expected[i]) {
        let differing = (0..got.len()).filter(|&i| got[i] != expected[i]).count();
        panic!(
            "{what}: byte {at} is {:#04x} and had to be {:#04x}; {differing} of {} bytes differ",
            got[at],
            expected[at],
            got.len()
        );
    }
}

/// Contiguous strides as the host's tensors have them.
pub(crate) fn strides(shape: &[usize]) -> Vec<usize> {
    contiguous_strides(shape)
        .into_iter()
        .map(|stride| stride as usize)
        .collect()
}
