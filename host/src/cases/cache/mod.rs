//! The cases of operations that write, gather, copy and compact caches: right to the last byte, or wrong.

pub(crate) mod blocks;
pub(crate) mod draw;
pub(crate) mod gather;
pub(crate) mod gather_device;
pub(crate) mod grid;
pub(crate) mod mistakes;
pub(crate) mod mla_form;
pub(crate) mod mla_rows;
pub(crate) mod mla_write;
pub(crate) mod mla_write_grouped;
pub(crate) mod slots;
pub(crate) mod special_grid;
pub(crate) mod write;
pub(crate) mod write_device;
pub(crate) mod write_fill;
pub(crate) mod write_grid;
