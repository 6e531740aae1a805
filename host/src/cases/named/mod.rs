//! Operations on tensors that have names: those of a file, as `ferroattn run` reads them, or those of a case.
//!
//! An [`Operation`] says what it takes and what it writes, and makes a request of it; [`Inputs`] are what it is given, a
//! [`Stage`] holds that on a machine, and a [`Job`] is one launch there.

mod caches;
mod inputs;
mod job;
mod key;
mod names;
mod operation;
mod stage;
mod words;

pub use inputs::FileContents;
pub(crate) use inputs::{Inputs, extent};
pub(crate) use job::{Job, launch};
pub(crate) use key::{BLOCK_SIZE, Key};
pub(crate) use names::Names;
pub(crate) use operation::{Operation, Output};
pub(crate) use stage::Stage;

// What reads files, and says what they may have.
#[cfg(feature = "cli")]
pub(crate) use {
    inputs::span_bytes,
    job::Ready,
    key::Entry,
    words::{MOST_CHARS, listed, shortened},
};
