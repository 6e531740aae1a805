//! Wrong values in the tensors of attention, and what a check says of them.

use ferroattn::cases::fill::POISON;
use ferroattn::error::CheckError;
use ferroattn::ops::{CHECK_BYTES, check_result};
use ferroattn::reference::HostTensor;
use ferroattn::runtime::{Buffer, Runtime};
use ferroattn::tensor::Dtype;

/// The tensor with other bytes at an index.
pub(crate) fn plant<const N: usize>(tensor: &mut HostTensor, index: &[usize], value: [u8; N]) {
    let mut bytes = tensor.storage.bytes.clone();
    let at = N * tensor.position(index);
    bytes[at..at + N].copy_from_slice(&value);
    *tensor = tensor.with_bytes(bytes);
}

pub(crate) fn workspace(machine: &dyn Runtime, bytes: usize) -> Buffer<'_> {
    Buffer::uninit(machine, "workspace", Dtype::U8, &[bytes]).expect("small")
}

/// What the record says, after looking that nothing was written if it is a fault.
pub(crate) fn judge(
    machine: &dyn Runtime,
    workspace: &Buffer<'_>,
    (out, lse): (HostTensor, Option<HostTensor>),
) -> Result<(), CheckError> {
    let record = workspace.read().expect("read");
    let found = check_result(&record[..CHECK_BYTES]);
    if found.is_err() {
        for tensor in [Some(out), lse].into_iter().flatten() {
            let untouched = tensor.storage.bytes.iter().all(|&byte| byte == POISON);
            let name = tensor.storage.name;
            assert!(untouched, "{name} was written on {}", machine.name());
        }
    }
    found
}
