//! What a kernel computes, and how that is spelt as a symbol.

use core::fmt;

use crate::dtype::{CacheDtype, Dtype, HalfDtype};
use crate::mla::MlaTile;
use crate::mla::cache_format::EntryForm;
use crate::prefill::MmaKind;

/// What a compiled kernel computes, and for which shapes: the planner looks a row up by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// Stage 1 of decode attention.
    DecodeGqa {
        /// Of the cache; query and output have it too if it is of 16 bits.
        cache: CacheDtype,
        /// Values per query and key head.
        head_size: u32,
        /// Values per value head.
        head_size_v: u32,
        /// Most query heads of one KV head that a thread block takes.
        heads_per_cta: u32,
        /// Whether it takes a sliding window, a softcap, ALiBi, sinks and rows that are not sequences.
        ruled: bool,
    },
    /// Stage 1 of decode attention over a latent cache.
    DecodeMla {
        /// Of the cache; query and output have it too if it is of 16 bits.
        cache: CacheDtype,
        /// Values per query head and cache row.
        head_size: u32,
        /// How a thread block is cut, with the values per output row.
        cut: MlaTile,
    },
    /// Stage 1 of decode attention over a latent cache of FP8 entries; query and output are bf16.
    DecodeMlaEntry {
        /// Of the cache.
        form: EntryForm,
        /// How a thread block is cut, with the values per output row.
        cut: MlaTile,
    },
    /// Stage 2 of decode attention, of rows of few parts.
    MergeFew {
        /// Of the output.
        dtype: HalfDtype,
    },
    /// The same, of rows of more parts.
    MergeSplits {
        /// Of the output.
        dtype: HalfDtype,
    },
    /// The same, of rows of any number of parts.
    MergeMany {
        /// Of the output.
        dtype: HalfDtype,
    },
    /// The same, by a schedule.
    MergeScheduled {
        /// Of the output.
        dtype: HalfDtype,
    },
    /// Attention of any number of query tokens per sequence.
    PrefillGqa {
        /// Of the cache; queries have it too if it is of 16 bits.
        cache: CacheDtype,
        /// Values per query and key head.
        head_size: u32,
        /// Values per value head.
        head_size_v: u32,
        /// Who multiplies.
        products: MmaKind,
    },
    /// Merges the parts of rows whose keys were split.
    MergeRows,
    /// Writes new tokens into a paged cache of the same dtype.
    CacheCopy,
    /// Writes new tokens into a paged FP8 cache, divided by given scales.
    CacheScaled {
        /// Of the tokens.
        source: Dtype,
        /// Of the cache.
        cache: Dtype,
        /// Whether eight values lie side by side everywhere.
        vec8: bool,
    },
    /// Writes new tokens into a paged 8-bit cache, each head of each token with a scale of its own.
    CachePerTokenHead {
        /// Of the tokens.
        source: Dtype,
        /// Of the cache.
        cache: Dtype,
        /// Whether eight values lie side by side everywhere.
        vec8: bool,
    },
    /// Rotates queries and keys and writes a paged cache.
    RopeAndCache {
        /// Of queries, keys and values.
        source: Dtype,
        /// Of the cache.
        cache: Dtype,
        /// Of the rotated queries.
        query: Dtype,
    },
    /// Writes MLA tokens as 656-byte entries.
    ConcatAndCacheMlaFp8Ds,
    /// Writes MLA tokens as 584-byte entries.
    ConcatAndCacheMlaV4,
    /// Gathers rows byte for byte.
    GatherCopy,
    /// Gathers rows of FP8 values with one scale.
    GatherScaled {
        /// Of the cache.
        cache: Dtype,
        /// Of the output.
        out: Dtype,
        /// Whether eight values lie side by side everywhere.
        vec8: bool,
    },
    /// Gathers 656-byte entries as bf16.
    GatherMlaFp8Ds,
    /// Gathers 584-byte entries as bf16.
    GatherMlaV4,
    /// Checks block tables and sequence lengths.
    CheckPaged,
    /// Checks a slot mapping.
    CheckSlots,
    /// Checks what the rows of a gather refer to.
    CheckGather,
    /// Reads memory as fast as it goes.
    ReadCeiling,
    /// The only kernel of its kind: there is nothing to choose it by but its symbol.
    Only(&'static str),
}

/// The PTX symbol.
impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::DecodeGqa {
                cache,
                head_size,
                head_size_v,
                heads_per_cta,
                ruled,
            } => {
                let rule = if ruled { "_rule" } else { "" };
                write!(
                    f,
                    "decode_gqa_{}_{}_h{heads_per_cta}{rule}",
                    cache,
                    Sizes(head_size, head_size_v)
                )
            }
            Self::DecodeMla {
                cache,
                head_size,
                cut,
            } => {
                let sizes = Sizes(head_size, cut.head_size_v);
                let arch = group_arch(cut);
                write!(f, "decode_mla_{cache}_{sizes}_h{}{arch}", cut.heads)
            }
            Self::DecodeMlaEntry { form, cut } => {
                let (form, arch) = (form_name(form), group_arch(cut));
                write!(f, "decode_mla_entry_{form}_h{}{arch}", cut.heads)
            }
            Self::MergeFew { dtype } => {
                write!(f, "merge_few_{}", dtype.dtype().symbol())
            }
            Self::MergeSplits { dtype } => {
                write!(f, "merge_splits_{}", dtype.dtype().symbol())
            }
            Self::MergeMany { dtype } => {
                write!(f, "merge_many_{}", dtype.dtype().symbol())
            }
            Self::MergeScheduled { dtype } => {
                write!(f, "merge_scheduled_{}", dtype.dtype().symbol())
            }
            Self::PrefillGqa {
                cache,
                head_size,
                head_size_v,
                products,
            } => {
                let (query, arch) = match products {
                    MmaKind::Warp => ("", ""),
                    MmaKind::WarpGroup => ("", "_sm90a"),
                    MmaKind::WarpGroupOfBytes => ("_qe4m3", "_sm90a"),
                };
                let sizes = Sizes(head_size, head_size_v);
                write!(f, "prefill_gqa_{}{query}_{sizes}{arch}", cache)
            }
            Self::MergeRows => f.write_str("merge_rows"),
            Self::CacheCopy => f.write_str("reshape_and_cache_copy"),
            Self::CacheScaled {
                source,
                cache,
                vec8,
            } => write!(
                f,
                "reshape_and_cache_scaled_{}_{}{}",
                source.symbol(),
                cache.symbol(),
                odd(vec8)
            ),
            Self::CachePerTokenHead {
                source,
                cache,
                vec8,
            } => write!(
                f,
                "reshape_and_cache_per_token_head_{}_{}{}",
                source.symbol(),
                cache.symbol(),
                odd(vec8)
            ),
            Self::RopeAndCache {
                source,
                cache,
                query,
            } => write!(
                f,
                "rope_and_cache_{}_{}_{}",
                source.symbol(),
                cache.symbol(),
                query.symbol()
            ),
            Self::ConcatAndCacheMlaFp8Ds => f.write_str("concat_and_cache_mla_fp8_ds"),
            Self::ConcatAndCacheMlaV4 => f.write_str("concat_and_cache_mla_v4"),
            Self::GatherCopy => f.write_str("gather_copy"),
            Self::GatherScaled { cache, out, vec8 } => write!(
                f,
                "gather_scaled_{}_{}{}",
                cache.symbol(),
                out.symbol(),
                odd(vec8)
            ),
            Self::GatherMlaFp8Ds => f.write_str("gather_mla_fp8_ds"),
            Self::GatherMlaV4 => f.write_str("gather_mla_v4"),
            Self::CheckPaged => f.write_str("check_paged"),
            Self::CheckSlots => f.write_str("check_slots"),
            Self::CheckGather => f.write_str("check_gather"),
            Self::ReadCeiling => f.write_str("read_ceiling"),
            Self::Only(symbol) => f.write_str(symbol),
        }
    }
}

/// Head sizes, of keys and of values.
struct Sizes(u32, u32);

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self(keys, values) if keys == values => write!(f, "d{keys}"),
            Self(keys, values) => write!(f, "d{keys}v{values}"),
        }
    }
}

/// What is said of a kernel that takes values one by one.
const fn odd(vec8: bool) -> &'static str {
    if vec8 { "" } else { "_odd" }
}

/// What is said of a kernel whose warp groups multiply.
const fn group_arch(cut: MlaTile) -> &'static str {
    if cut.products.is_group() {
        "_sm90a"
    } else {
        ""
    }
}

const fn form_name(form: EntryForm) -> &'static str {
    match form {
        EntryForm::Fp8Ds => "fp8_ds",
        EntryForm::V4 => "v4",
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::collections::BTreeSet;
    use std::string::ToString;

    use crate::entry::{Arch, ENTRIES, Entry};

    #[test]
    fn a_symbol_is_what_its_variant_spells() {
        for entry in ENTRIES {
            assert_eq!(entry.variant.to_string(), entry.name);
            assert_eq!(
                entry.name.ends_with("_sm90a"),
                entry.archs.contains(Arch::Sm90a),
                "{}",
                entry.name
            );
        }
    }

    #[test]
    fn a_variant_is_there_once() {
        let names: BTreeSet<&str> = ENTRIES.iter().map(|entry| entry.name).collect();
        assert_eq!(names.len(), ENTRIES.len());
        for (at, entry) in ENTRIES.iter().enumerate() {
            assert_eq!(entry.id as usize, at);
            let found = Entry::find(entry.variant).expect("its own row");
            assert_eq!(found.name, entry.name);
            assert!(entry.archs.iter().next().is_some());
        }
    }
}
