//! The operations: request → check → plan → launch, one file each, read top to bottom.
//!
//! A request says what is wanted; checking turns it into a type that cannot be built otherwise; a plan is
//! what was decided, printable; launching turns views into parameter blocks and enqueues kernels. Nothing
//! below this folder checks a request again.
//!
//! # Once, and many times
//!
//! Whoever serves makes a plan for each size of batch, and launches it for every layer and step. A plan fits each
//! request of the same operation, kernel, heads, dtypes and options that has at most as many sequences, tokens and
//! rows, and no longer ones, than the one it was made from; the plans' types say it in full. Any other request is
//! refused with [`crate::error::RequestError::Plan`]. Every checked request has a `rebind`, which turns it to other tensors
//! of the same shapes, the next layer's, and looks at no more than that.

mod attention;
mod cache;
mod checks;
mod device_check;
mod layout;
mod made_for;
mod mla_entries;
mod plan;
mod tensors;

pub use attention::*;
pub use cache::*;
pub use device_check::{CHECK_BYTES, CheckMode, check_result};
pub use gpu_kernels::mla::cache_format::EntryForm;
