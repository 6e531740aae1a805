//! Where elements lie: distances in bytes, and alignment.

use crate::tensor::TensorView;

/// Bytes from one index to the next along `dim`; 0 where there is only one index.
pub(super) fn byte_stride(view: &TensorView<'_>, dim: usize) -> i64 {
    if view.shape()[dim] <= 1 {
        return 0;
    }
    let bytes = i64::try_from(view.dtype().size()).expect("a few bytes");
    view.strides()[dim].saturating_mul(bytes)
}

/// The same of the first `N` dimensions.
pub(super) fn byte_strides<const N: usize>(view: &TensorView<'_>) -> [i64; N] {
    std::array::from_fn(|dim| byte_stride(view, dim))
}

/// The power of two up to 16 that divides all of them.
pub(super) fn alignment(numbers: &[u64]) -> u32 {
    let all = numbers.iter().fold(16, |all, number| all | number);
    1 << all.trailing_zeros()
}

/// Elements of a shape, or more than can be counted.
pub(super) fn elements(shape: &[usize]) -> usize {
    shape.iter().copied().fold(1, usize::saturating_mul)
}
