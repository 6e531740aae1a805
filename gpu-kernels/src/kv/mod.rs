//! Where a token's keys and values lie, and how they are stored.

mod format;
mod paged;

pub use format::{CacheDtype, CacheFormat, E4m3, E4m3PerToken, E5m2, I8PerToken};
pub use paged::{BlockWindow, CacheHead, TokenScales};
