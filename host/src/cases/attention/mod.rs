//! The cases of attention: its outputs are compared with the reference by tolerance.

pub(crate) mod decode;
pub(crate) mod decode_compare;
pub(crate) mod decode_device;
pub(crate) mod decode_fill;
pub(crate) mod decode_grid;
pub(crate) mod decode_special;
pub(crate) mod draw;
pub(crate) mod mistakes;
pub(crate) mod mla_fp8;
pub(crate) mod mla_fp8_device;
pub(crate) mod mla_fp8_fill;
pub(crate) mod mla_fp8_grid;
pub(crate) mod mla_fp8_pages;
pub(crate) mod mla_grid;
pub(crate) mod scaled_grid;
pub(crate) mod score_mods;
pub(crate) mod score_mods_grid;
pub(crate) mod special_grid;
pub(crate) mod unified;
pub(crate) mod unified_device;
pub(crate) mod unified_fill;
pub(crate) mod unified_grid;
