//! Tensors on the host: bytes, a dtype, a shape and strides, read one element at a time.

use std::sync::Arc;

use half::{bf16, f16};

use super::fp8_value;
use crate::tensor::{Dtype, contiguous_strides};

/// Bytes that tensors lie in; several tensors may share one, as keys and values of a packed cache do.
#[derive(Debug)]
pub struct Storage {
    /// How faults call it.
    pub name: &'static str,
    /// The bytes, or the pattern that repeats if there are fewer than `len`.
    pub bytes: Vec<u8>,
    /// Bytes on the device. Caches of many gigabytes repeat a pattern, so that a host need not hold them.
    pub len: usize,
}

impl Storage {
    /// A storage whose bytes are all there.
    pub fn new(name: &'static str, bytes: Vec<u8>) -> Arc<Self> {
        let len = bytes.len();
        Arc::new(Self { name, bytes, len })
    }

    /// A storage of `len` bytes that repeats `pattern`.
    pub fn repeating(name: &'static str, pattern: Vec<u8>, len: usize) -> Arc<Self> {
        Arc::new(Self {
            name,
            bytes: pattern,
            len,
        })
    }

    /// `len` bytes from byte `at`.
    pub fn bytes_at(&self, at: usize, len: usize) -> Vec<u8> {
        (at..at + len)
            .map(|at| self.bytes[at % self.bytes.len()])
            .collect()
    }

    /// `N` bytes from byte `at`.
    fn get<const N: usize>(&self, at: usize) -> [u8; N] {
        let at = at % self.bytes.len();
        self.bytes[at..at + N]
            .try_into()
            .expect("a slice of N bytes")
    }
}

/// A tensor on the host.
#[derive(Clone, Debug)]
pub struct HostTensor {
    /// Where its elements are.
    pub storage: Arc<Storage>,
    /// Elements from the start of the storage to the tensor's first.
    pub offset: usize,
    /// Element type.
    pub dtype: Dtype,
    /// Elements along each dimension.
    pub shape: Vec<usize>,
    /// Elements from one index to the next along each dimension; never negative.
    pub strides: Vec<usize>,
}

impl HostTensor {
    /// A contiguous tensor with a storage of its own.
    pub fn contiguous(name: &'static str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Self {
        let strides = contiguous_strides(shape)
            .into_iter()
            .map(|stride| usize::try_from(stride).expect("contiguous strides are positive"))
            .collect();
        Self {
            storage: Storage::new(name, bytes),
            offset: 0,
            dtype,
            shape: shape.to_vec(),
            strides,
        }
    }

    /// Elements, gaps not counted.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Index of an element in its storage.
    ///
    /// # Panics
    /// If `index` lies outside the shape.
    pub fn position(&self, index: &[usize]) -> usize {
        assert_eq!(index.len(), self.shape.len(), "one index per dimension");
        let mut position = self.offset;
        for (dim, &at) in index.iter().enumerate() {
            assert!(at < self.shape[dim], "{index:?} in shape {:?}", self.shape);
            position += at * self.strides[dim];
        }
        position
    }

    /// Index of the `row`-th row (of the last dimension) in its storage, rows counted in order of the shape.
    pub fn row_position(&self, mut row: usize) -> usize {
        let mut position = self.offset;
        for dim in (0..self.shape.len() - 1).rev() {
            position += row % self.shape[dim] * self.strides[dim];
            row /= self.shape[dim];
        }
        position
    }

    /// The rows `start .. start + rows` of the first dimension.
    #[must_use]
    pub fn slice(&self, start: usize, rows: usize) -> Self {
        assert!(start + rows <= self.shape[0], "rows of the tensor");
        let mut slice = self.clone();
        slice.offset += start * self.strides[0];
        slice.shape[0] = rows;
        slice
    }

    /// The floating-point element at `index`.
    ///
    /// # Panics
    /// If `index` lies outside the shape, or the tensor holds integers.
    pub fn float(&self, index: &[usize]) -> f64 {
        self.float_at(self.position(index))
    }

    /// The element at a position of the storage, a floating-point number or a signed byte.
    ///
    /// # Panics
    /// If the tensor holds integers.
    pub fn float_at(&self, position: usize) -> f64 {
        match self.dtype {
            Dtype::F32 => f64::from(f32::from_le_bytes(self.storage.get(position * 4))),
            Dtype::F16 => f64::from(f16::from_le_bytes(self.storage.get(position * 2))),
            Dtype::Bf16 => f64::from(bf16::from_le_bytes(self.storage.get(position * 2))),
            Dtype::I8 => {
                let [byte]: [u8; 1] = self.storage.get(position);
                f64::from(byte.cast_signed())
            }
            // That panics if the dtype is none of them.
            fp8 => {
                let [byte] = self.storage.get(position);
                fp8_value(fp8, byte)
            }
        }
    }

    /// The numbers of the row (of the last dimension) at `place`, an index without that dimension.
    ///
    /// # Panics
    /// If `place` lies outside the shape, or the tensor holds integers.
    pub fn row(&self, place: &[usize]) -> Vec<f64> {
        let (Some(&size), Some(&stride)) = (self.shape.last(), self.strides.last()) else {
            panic!("a row needs a dimension")
        };
        let mut index = place.to_vec();
        index.push(0);
        let start = self.position(&index);
        (0..size)
            .map(|dim| self.float_at(start + dim * stride))
            .collect()
    }

    /// The integer element at `index`.
    ///
    /// # Panics
    /// If `index` lies outside the shape, or the tensor holds floats.
    pub fn integer(&self, index: &[usize]) -> i64 {
        let position = self.position(index);
        match self.dtype {
            Dtype::U8 => i64::from(u8::from_le_bytes(self.storage.get(position))),
            Dtype::I32 => i64::from(i32::from_le_bytes(self.storage.get(position * 4))),
            Dtype::I64 => i64::from_le_bytes(self.storage.get(position * 8)),
            other => panic!("{other} is no integer type"),
        }
    }

    /// The same tensor with other bytes in its storage.
    #[must_use]
    pub fn with_bytes(&self, bytes: Vec<u8>) -> Self {
        assert_eq!(bytes.len(), self.storage.len, "as many bytes as before");
        Self {
            storage: Storage::new(self.storage.name, bytes),
            ..self.clone()
        }
    }
}
