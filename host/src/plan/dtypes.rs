//! Which dtypes kernels were compiled for: what checks of requests allow, and what cases try.
//!
//! Each list comes from the table of kernels, in its order. A dtype that the table gains is taken from then on.

use std::sync::LazyLock;

use gpu_kernels::dtype::CacheDtype;
use gpu_kernels::entry::{ENTRIES, Variant};

use crate::tensor::Dtype;

/// What `of` finds in the table, each once.
fn listed<T: PartialEq>(of: impl Fn(Variant) -> Option<T>) -> Vec<T> {
    let mut all = Vec::new();
    for found in ENTRIES.iter().filter_map(|entry| of(entry.variant)) {
        if !all.contains(&found) {
            all.push(found);
        }
    }
    all
}

macro_rules! lists {
    ($($(#[$doc:meta])* $list:ident: $of:ty = $pattern:pat $(if $guard:expr)? => $found:expr;)*) => {$(
        $(#[$doc])*
        pub fn $list() -> &'static [$of] {
            static LIST: LazyLock<Vec<$of>> = LazyLock::new(|| {
                listed(|variant| match variant {
                    $pattern $(if $guard)? => Some($found),
                    _ => None,
                })
            });
            &LIST
        }
    )*};
}

lists! {
    /// Caches of keys and values that attention reads.
    attention_caches: CacheDtype = Variant::DecodeGqa { cache, .. } => cache;
    /// Latent caches that attention reads.
    latent_caches: CacheDtype = Variant::DecodeMla { cache, .. } => cache;
    /// New keys and values that are divided by given scales.
    scaled_sources: Dtype = Variant::CacheScaled { source, .. } => source;
    /// Caches that they are written to.
    scaled_caches: Dtype = Variant::CacheScaled { cache, .. } => cache;
    /// Caches that are written with a scale for each token and head.
    token_scaled_caches: Dtype = Variant::CachePerTokenHead { cache, .. } => cache;
    /// Keys and values that are rotated and written.
    rotated_sources: Dtype = Variant::RopeAndCache { source, .. } => source;
    /// Caches that they are written to; each source can be written to one of its own dtype besides.
    rotated_caches: Dtype = Variant::RopeAndCache { source, cache, .. } if source != cache => cache;
    /// Caches that are gathered as values, multiplied by a scale.
    gathered_caches: Dtype = Variant::GatherScaled { cache, .. } => cache;
    /// What they are gathered as.
    gathered_outputs: Dtype = Variant::GatherScaled { out, .. } => out;
}

/// New keys and values that are written at all: those that are divided, and those that a cache has already.
pub fn written_sources() -> &'static [Dtype] {
    static LIST: LazyLock<Vec<Dtype>> =
        LazyLock::new(|| [scaled_sources(), scaled_caches()].concat());
    &LIST
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpu_kernels::entry::Entry;

    /// Checks look at one tensor after the other, so that every combination of what they allow has to be there.
    #[test]
    fn the_table_has_every_combination() {
        let is_there = |variant| assert!(Entry::find(variant).is_some(), "{variant:?}");
        for vec8 in [false, true] {
            for &source in scaled_sources() {
                for &cache in scaled_caches() {
                    is_there(Variant::CacheScaled {
                        source,
                        cache,
                        vec8,
                    });
                }
                for &cache in token_scaled_caches() {
                    is_there(Variant::CachePerTokenHead {
                        source,
                        cache,
                        vec8,
                    });
                }
            }
            for &cache in gathered_caches() {
                for &out in gathered_outputs() {
                    is_there(Variant::GatherScaled { cache, out, vec8 });
                }
            }
        }
        for &source in rotated_sources() {
            let query = source;
            is_there(Variant::RopeAndCache {
                source,
                cache: source,
                query,
            });
            for &cache in rotated_caches() {
                for query in [source, Dtype::F8E4m3] {
                    is_there(Variant::RopeAndCache {
                        source,
                        cache,
                        query,
                    });
                }
            }
        }
    }
}
