//! Storages that have to hold certain bytes, to the last.

use super::mismatch::Mismatch;
use crate::reference::HostTensor;

/// Nothing but the tensor's own elements may have changed in its storage, which was `before`.
///
/// # Errors
/// The first byte that did.
pub(crate) fn gaps_untouched(before: &HostTensor, after: &HostTensor) -> Result<(), Mismatch> {
    let mut expected = before.storage.bytes.clone();
    let size = before.dtype.size();
    let width = *before.shape.last().unwrap_or(&1);
    let step = *before.strides.last().unwrap_or(&1);
    let rows = before.num_elements() / width.max(1);
    for row in 0..rows {
        let start = before.row_position(row);
        for element in 0..width {
            let at = (start + element * step) * size;
            expected[at..at + size].copy_from_slice(&after.storage.bytes[at..at + size]);
        }
    }
    same_bytes(after, &expected)
}

/// The tensor's storage holds exactly `expected`.
///
/// # Errors
/// The first byte that differs.
pub(crate) fn same_bytes(tensor: &HostTensor, expected: &[u8]) -> Result<(), Mismatch> {
    let got = &tensor.storage.bytes;
    assert_eq!(got.len(), expected.len(), "storages of the same length");
    if got == expected {
        return Ok(());
    }
    let at = got
        .iter()
        .zip(expected)
        .position(|(got, expected)| got != expected)
        .expect("they differ");
    Err(Mismatch::Byte {
        tensor: tensor.storage.name,
        at,
        element: index_of(tensor, at / tensor.dtype.size()),
        got: got[at],
        expected: expected[at],
    })
}

/// The index whose element lies at `position` of the storage, if there is one.
fn index_of(tensor: &HostTensor, position: usize) -> Option<Vec<usize>> {
    let mut left = position.checked_sub(tensor.offset)?;
    let mut dims: Vec<usize> = (0..tensor.shape.len()).collect();
    dims.sort_by_key(|&dim| std::cmp::Reverse(tensor.strides[dim]));
    let mut index = vec![0; dims.len()];
    for dim in dims {
        index[dim] = (left / tensor.strides[dim]).min(tensor.shape[dim].saturating_sub(1));
        left -= index[dim] * tensor.strides[dim];
    }
    (left == 0).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Dtype;

    #[test]
    fn a_byte_in_a_gap_is_found() {
        let mut before = HostTensor::contiguous("out", Dtype::Bf16, &[4], vec![0x3f; 8]);
        before.shape = vec![2, 1];
        before.strides = vec![2, 1];
        let mut bytes = before.storage.bytes.clone();
        bytes[0] ^= 1;
        assert_eq!(
            gaps_untouched(&before, &before.with_bytes(bytes.clone())),
            Ok(())
        );
        bytes[3] ^= 1;
        let verdict = gaps_untouched(&before, &before.with_bytes(bytes));
        assert!(matches!(
            verdict,
            Err(Mismatch::Byte {
                at: 3,
                element: None,
                ..
            })
        ));
    }
}
