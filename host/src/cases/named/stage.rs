//! One operation's tensors on a machine, and its launches there.

use std::cell::RefCell;
use std::sync::Arc;

use anyhow::Context;

use super::inputs::{FileContents, Inputs, span_bytes};
use super::job::{Job, Ready, find, no_tensor};
use super::operation::{Operation, Output};
use crate::cases::base::tensors::POISON;
use crate::cases::base::uploads::Uploads;
use crate::ops::CheckMode;
use crate::reference::HostTensor;
use crate::runtime::Runtime;

/// What an operation is given, and the tensors that are made for it to write, on a machine.
pub(crate) struct Stage<'m> {
    machine: &'m dyn Runtime,
    op: &'static Operation,
    inputs: Inputs,
    tensors: Vec<HostTensor>,
    uploads: Uploads<'m>,
}

impl<'m> Stage<'m> {
    /// Outputs are poisoned.
    ///
    /// # Errors
    /// The operation cannot say what it makes of what it is given, or it has more than `most_bytes` bytes; out of memory.
    pub(crate) fn new(
        machine: &'m dyn Runtime,
        op: &'static Operation,
        given: FileContents,
        most_bytes: usize,
    ) -> anyhow::Result<Self> {
        let inputs = Inputs::new(op.name, &op.metadata, given);
        let mut tensors = inputs.tensors().to_vec();
        let mut left = most_bytes;
        for output in (op.outputs)(&inputs)? {
            let span = span_bytes(output.dtype, &output.shape);
            span.filter(|&bytes| bytes <= left).with_context(|| {
                let Output { name, shape, .. } = &output;
                format!("`{name}` would have shape {shape:?}: all that is made may have {most_bytes} bytes")
            })?;
            let tensor = poisoned(&output);
            left -= tensor.storage.len;
            tensors.push(tensor);
        }
        for (at, tensor) in tensors.iter().enumerate() {
            let is_shared = |other: &HostTensor| Arc::ptr_eq(&other.storage, &tensor.storage);
            assert!(!tensors[..at].iter().any(is_shared), "a storage for each");
        }
        Ok(Self {
            machine,
            op,
            uploads: Uploads::new(machine, &tensors)?,
            inputs,
            tensors,
        })
    }

    /// Launches the operation once: it makes its request, whose indices are checked as `check` says, and `start` is given
    /// what is ready. Returns the names of the tensors that are written, in the order in which the request has them.
    ///
    /// # Errors
    /// The request is refused, or something that was given has no effect; whatever `start` says. Those that the library
    /// has are its own [`crate::Error`].
    pub(crate) fn launch(
        &mut self,
        check: CheckMode,
        start: &dyn Fn(Ready<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<Vec<&'static str>> {
        let job = Job {
            machine: self.machine,
            inputs: &self.inputs,
            tensors: &self.tensors,
            uploads: &self.uploads,
            check,
            written: RefCell::default(),
            start,
        };
        (self.op.launch)(&job)?;
        Ok(job.written.into_inner())
    }

    /// The tensors on the machine.
    pub(crate) fn uploads(&self) -> &Uploads<'m> {
        &self.uploads
    }

    /// Waits, and reads the tensor of this name.
    ///
    /// # Errors
    /// There is none, or something enqueued failed.
    pub(crate) fn read(&self, name: &str) -> anyhow::Result<HostTensor> {
        let tensor = find(&self.tensors, name).with_context(|| no_tensor(name))?;
        Ok(self.uploads.read(tensor)?)
    }
}

/// A tensor that nobody has written.
fn poisoned(output: &Output) -> HostTensor {
    let &Output {
        name,
        dtype,
        ref shape,
    } = output;
    let bytes = shape.iter().product::<usize>() * dtype.size();
    HostTensor::contiguous(name, dtype, shape, vec![POISON; bytes])
}
