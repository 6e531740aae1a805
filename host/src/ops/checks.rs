//! Checks that the operations share. Each names the tensor, what it had to be and what it was.

use super::layout::byte_stride;
use crate::error::RequestError;
use crate::plan::MOST_CTAS_YZ;
use crate::tensor::{Dtype, MAX_RANK, TensorView, contiguous_strides};

/// A tensor under its name in the request.
#[derive(Clone, Copy)]
pub(super) struct Named<'v, 'a> {
    name: &'static str,
    pub(super) view: &'v TensorView<'a>,
}

pub(super) fn named<'v, 'a>(name: &'static str, view: &'v TensorView<'a>) -> Named<'v, 'a> {
    Named { name, view }
}

impl Named<'_, '_> {
    /// How the request calls it.
    pub(super) fn name(self) -> &'static str {
        self.name
    }

    /// The dtype is one of `allowed`: any, or of a subset that kernels tell apart.
    pub(super) fn dtype<D: Copy + Into<Dtype>>(self, allowed: &[D]) -> Result<D, RequestError> {
        let got = self.view.dtype();
        let mut all = allowed.iter().copied();
        all.find(|&dtype| dtype.into() == got)
            .ok_or_else(|| self.wrong_dtype(allowed.iter().map(|&dtype| dtype.into())))
    }

    /// The dtype is one that `allows` takes.
    pub(super) fn dtype_that(self, allows: impl Fn(Dtype) -> bool) -> Result<Dtype, RequestError> {
        let got = self.view.dtype();
        if allows(got) {
            return Ok(got);
        }
        let all = Dtype::ALL.iter().copied();
        Err(self.wrong_dtype(all.filter(|&dtype| allows(dtype))))
    }

    fn wrong_dtype(self, allowed: impl Iterator<Item = Dtype>) -> RequestError {
        let (tensor, got) = (self.name, self.view.dtype());
        if got.is_fnuz() {
            return RequestError::Fnuz { tensor, got };
        }
        let names: Vec<&str> = allowed.map(Dtype::name).collect();
        RequestError::Dtype {
            tensor,
            expected: names.join(" or "),
            got,
        }
    }

    /// The shape, if there are `N` dimensions; `form` says what they mean.
    pub(super) fn rank<const N: usize>(self, form: &str) -> Result<[usize; N], RequestError> {
        self.view
            .shape()
            .try_into()
            .map_err(|_| self.wrong_shape(form.to_owned()))
    }

    /// The shape is exactly `expected`; `form` says what its dimensions mean.
    pub(super) fn shape(self, form: &str, expected: &[usize]) -> Result<(), RequestError> {
        if self.view.shape() == expected {
            return Ok(());
        }
        Err(self.wrong_shape(format!("{form} = {expected:?}")))
    }

    pub(super) fn wrong_shape(self, expected: String) -> RequestError {
        RequestError::Shape {
            tensor: self.name,
            expected,
            got: self.view.shape().to_vec(),
        }
    }

    /// The last dimension is contiguous, no stride is negative, and the strides of every dimension longer
    /// than one are multiples of `multiple` elements.
    pub(super) fn strides(self, multiple: usize) -> Result<(), RequestError> {
        let (shape, strides) = (self.view.shape(), self.view.strides());
        let last = shape.len().saturating_sub(1);
        let fits = |dim: usize| {
            shape[dim] <= 1
                || if dim == last {
                    strides[dim] == 1
                } else {
                    usize::try_from(strides[dim]).is_ok_and(|stride| stride % multiple == 0)
                }
        };
        if (0..shape.len()).all(fits) {
            return Ok(());
        }
        let expected = match multiple {
            1 => "a contiguous last dimension and no negative stride".to_owned(),
            _ => format!(
                "a contiguous last dimension and other strides that are multiples of {multiple}"
            ),
        };
        Err(RequestError::Stride {
            tensor: self.name,
            expected,
            got: strides.to_vec(),
        })
    }

    /// Elements lie side by side in dimensions `first..`, the last one fastest; strides before are not
    /// negative.
    pub(super) fn contiguous_from(self, first: usize) -> Result<(), RequestError> {
        let (shape, strides) = (self.view.shape(), self.view.strides());
        let mut side_by_side = 1i64;
        let fits = |dim: usize| {
            let stride = side_by_side;
            let extent = i64::try_from(shape[dim]).unwrap_or(i64::MAX);
            side_by_side = side_by_side.saturating_mul(extent);
            shape[dim] <= 1
                || if dim < first {
                    strides[dim] >= 0
                } else {
                    strides[dim] == stride
                }
        };
        if (0..shape.len()).rev().all(fits) {
            return Ok(());
        }
        let side_by_side = contiguous_strides(shape);
        Err(RequestError::Stride {
            tensor: self.name,
            expected: format!("strides {side_by_side:?} from dimension {first} on"),
            got: strides.to_vec(),
        })
    }

    /// Elements fill one piece of memory in dimensions `first..`, in any order of these; strides before are
    /// not negative.
    pub(super) fn dense_from(self, first: usize) -> Result<(), RequestError> {
        let (shape, strides) = (self.view.shape(), self.view.strides());
        let mut dims = [(0i64, 1usize); MAX_RANK];
        for (dim, (&stride, &len)) in strides.iter().zip(shape).enumerate() {
            dims[dim] = (stride, len);
        }
        let (outer, inner) = dims.split_at_mut(first);
        inner.sort_unstable();
        let mut filled = 1usize;
        let is_dense = inner
            .iter()
            .filter(|&&(_, len)| len > 1)
            .all(|&(stride, len)| {
                let continues = usize::try_from(stride) == Ok(filled);
                filled = filled.saturating_mul(len);
                continues
            });
        if is_dense && outer.iter().all(|&(stride, len)| len <= 1 || stride >= 0) {
            return Ok(());
        }
        Err(RequestError::Stride {
            tensor: self.name,
            expected: format!("dimensions from {first} on that fill one piece of memory"),
            got: strides.to_vec(),
        })
    }

    /// The shape of a tensor of plain indices: `N` dimensions that `form` names, the last contiguous, aligned
    /// to its elements.
    pub(super) fn indices<const N: usize>(
        self,
        dtype: Dtype,
        form: &str,
    ) -> Result<[usize; N], RequestError> {
        self.dtype(&[dtype])?;
        let shape = self.rank(form)?;
        self.strides(1)?;
        self.aligned(dtype.size())?;
        Ok(shape)
    }

    /// f32, of one of the shapes `allowed`, which `form` names, in any order.
    pub(super) fn floats(
        self,
        allowed: &[&[usize]],
        form: impl FnOnce() -> String,
    ) -> Result<(), RequestError> {
        self.dtype(&[Dtype::F32])?;
        if !allowed.contains(&self.view.shape()) {
            return Err(self.wrong_shape(form()));
        }
        self.no_negative_strides()?;
        self.aligned(4)
    }

    /// No stride is negative; elements may lie in any order.
    pub(super) fn no_negative_strides(self) -> Result<(), RequestError> {
        let strides = self.view.strides();
        if strides.iter().all(|&stride| stride >= 0) {
            return Ok(());
        }
        let expected = "no negative stride".to_owned();
        Err(RequestError::Stride {
            tensor: self.name,
            expected,
            got: strides.to_vec(),
        })
    }

    /// The address is not null and a multiple of `bytes`; an empty tensor may have any.
    pub(super) fn aligned(self, bytes: usize) -> Result<(), RequestError> {
        let got = self.view.address();
        if self.view.shape().contains(&0) || (got != 0 && got.is_multiple_of(bytes as u64)) {
            return Ok(());
        }
        Err(RequestError::Address {
            tensor: self.name,
            expected: bytes,
            got,
        })
    }

    /// Whether every row begins at a multiple of 16 bytes.
    pub(super) fn in_chunks(self) -> bool {
        let values = 16 / self.view.dtype().size();
        self.aligned(16).is_ok() && self.strides(values).is_ok()
    }
}

/// `value` of argument `name`, if it fits the kernels' 32-bit counters.
pub(super) fn count(name: &'static str, value: usize) -> Result<u32, RequestError> {
    u32::try_from(value)
        .ok()
        .filter(|&count| count <= i32::MAX as u32)
        .ok_or_else(|| RequestError::Value {
            name,
            expected: format!("at most {}", i32::MAX),
            got: value.to_string(),
        })
}

/// Slots of a cache that is written by slot numbers: kernels divide them as 32-bit numbers.
pub(super) fn slot_count(num_blocks: usize, block_size: usize) -> Result<u32, RequestError> {
    count(
        "num_blocks * block_size",
        num_blocks.saturating_mul(block_size),
    )
}

/// Scales must be positive and finite: a NaN or a zero would spread silently.
pub(super) fn scale(name: &'static str, value: f32) -> Result<f32, RequestError> {
    if value.is_finite() && value > 0.0 {
        return Ok(value);
    }
    Err(RequestError::Value {
        name,
        expected: "positive and finite".into(),
        got: value.to_string(),
    })
}

/// CUDA grids have at most 65,535 thread blocks along y and z.
pub(super) fn grid_count(name: &'static str, value: usize) -> Result<u32, RequestError> {
    u32::try_from(value)
        .ok()
        .filter(|&count| count <= MOST_CTAS_YZ)
        .ok_or_else(|| RequestError::Value {
            name,
            expected: format!("at most {MOST_CTAS_YZ}"),
            got: value.to_string(),
        })
}

/// Among the eight slots that are looked up together, kernels' byte offsets are 32-bit.
pub(super) fn slot_stride_fits(
    tensor: &'static str,
    cache: &TensorView<'_>,
) -> Result<(), RequestError> {
    const MOST_BYTES: i32 = i32::MAX / 16;
    if byte_stride(cache, 1) <= i64::from(MOST_BYTES) {
        return Ok(());
    }
    let most = MOST_BYTES as usize / cache.dtype().size();
    Err(RequestError::Stride {
        tensor,
        expected: format!("at most {most} elements from slot to slot"),
        got: cache.strides().to_vec(),
    })
}
