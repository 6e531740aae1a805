//! What the cases of all operations are made of: text, shapes, numbers, tensors on a machine, comparisons.
//!
//! Nothing here knows an operation.

pub mod compare;
pub(crate) mod device_case;
pub(crate) mod fill;
pub(crate) mod layout;
pub(crate) mod lens;
pub(crate) mod memory_mistake;
pub(crate) mod mismatch;
pub(crate) mod mla_entry;
pub(crate) mod options;
pub(crate) mod pick;
pub(crate) mod same_bytes;
pub(crate) mod tensors;
pub(crate) mod text;
pub(crate) mod uploads;
pub(crate) mod view_mistake;
