//! A request's tensors, one by one: whose memory they are, and whether others may take their places.

use std::fmt;

use super::checks::{Named, named};
use super::layout::alignment;
use crate::error::RequestError;
use crate::runtime::Launcher;
use crate::tensor::{TensorView, TensorViewMut};

/// One of a request's tensors; none where it has been left out.
pub(super) type Given<'v, 'a> = Option<Named<'v, 'a>>;

/// A tensor that may have been left out.
pub(super) fn given<'v, 'a>(name: &'static str, view: Option<&'v TensorView<'a>>) -> Given<'v, 'a> {
    view.map(|view| named(name, view))
}

/// Whether a request and its workspace are memory of the machine they are to be launched on, as far as they say.
///
/// # Errors
/// [`RequestError::Machine`] naming the first that is not.
pub(super) fn on_machine(
    launcher: &dyn Launcher,
    tensors: &[Given<'_, '_>],
    workspace: &TensorViewMut<'_>,
) -> Result<(), RequestError> {
    let here = Some(launcher.machine());
    let workspace = Some(named("workspace", workspace.view()));
    for tensor in tensors.iter().chain([&workspace]).flatten() {
        let machine = tensor.view.machine();
        if machine.is_some() && machine != here {
            let tensor = tensor.name();
            return Err(RequestError::Machine { tensor });
        }
    }
    Ok(())
}

/// Whether the tensors `new` may take the places of `old`, which were checked: the same ones are given, with the same
/// dtypes, shapes and strides, and aligned as well, up to 16 bytes.
///
/// # Errors
/// [`RequestError`] naming the first that differs.
pub(super) fn alike(old: &[Given<'_, '_>], new: &[Given<'_, '_>]) -> Result<(), RequestError> {
    for (old, new) in old.iter().zip(new) {
        match (old, new) {
            (None, None) => {}
            (Some(old), Some(new)) => {
                new.aligned(alignment(&[old.view.address()]) as usize)?;
                laid_out_alike(old.view, *new)?;
            }
            (Some(old), None) => return Err(differs(old.name(), "given", "missing")),
            (None, Some(new)) => return Err(differs(new.name(), "absent", "given")),
        }
    }
    Ok(())
}

/// Whether `new` has the dtype, shape and strides of `old`, wherever it is.
///
/// # Errors
/// [`RequestError`] naming it.
pub(super) fn laid_out_alike(old: &TensorView<'_>, new: Named<'_, '_>) -> Result<(), RequestError> {
    if new.view.is_like(old) {
        return Ok(());
    }
    new.dtype(&[old.dtype()])?;
    new.shape("as before", old.shape())?;
    if new.view.strides() == old.strides() {
        return Ok(());
    }
    Err(RequestError::Stride {
        tensor: new.name(),
        expected: format!("strides {:?} as before", old.strides()),
        got: new.view.strides().to_vec(),
    })
}

/// Where the tensors are; 0 for those that were left out.
pub(super) fn addresses<const N: usize>(tensors: [Given<'_, '_>; N]) -> [u64; N] {
    tensors.map(|tensor| tensor.map_or(0, |tensor| tensor.view.address()))
}

/// Whether what is not a tensor is as it was.
pub(super) fn same<T: PartialEq + fmt::Debug>(
    name: &'static str,
    old: T,
    new: T,
) -> Result<(), RequestError> {
    if old == new {
        return Ok(());
    }
    Err(differs(name, &format!("{old:?}"), &format!("{new:?}")))
}

/// Whether a choice among several forms of request, by their names, is as it was.
pub(super) fn same_kind(name: &'static str, old: &str, new: &str) -> Result<(), RequestError> {
    if old == new {
        return Ok(());
    }
    Err(differs(name, old, new))
}

fn differs(name: &'static str, expected: &str, got: &str) -> RequestError {
    RequestError::Value {
        name,
        expected: format!("{expected} as before"),
        got: got.into(),
    }
}
