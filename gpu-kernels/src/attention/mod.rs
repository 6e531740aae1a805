//! What all attention shares, whichever way its tiles are cut: where keys and values lie, what a query sees of them,
//! what becomes of a score, and what is written in the end.

pub(crate) mod careful;
pub mod check;
pub(crate) mod group_products;
pub mod item;
pub(crate) mod line;
pub mod lse;
pub mod mask;
pub(crate) mod out;
pub mod paged_kv;
pub(crate) mod pieces;
pub mod query;
pub mod schedule;
pub mod score_mods;
pub(crate) mod sequence;
pub mod tile;
