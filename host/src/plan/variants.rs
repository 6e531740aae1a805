//! From a request's properties to the compiled kernel, and the support matrix.

use gpu_kernels::entry::{ENTRIES, Entry, Variant};
use gpu_kernels::kv::CacheDtype;

use crate::error::{Error, Result};

/// The row of a variant that is always compiled.
///
/// # Panics
/// If the table lacks it, which is a broken build.
pub fn entry(variant: Variant) -> &'static Entry {
    Entry::find(variant).expect("the entry table has every variant that takes no shape")
}

/// The decode kernel for a head size and group: the one that takes the whole group in one thread block if
/// there is one, else the widest.
///
/// # Errors
/// [`Error::Unsupported`] with the list of head sizes.
pub fn decode_entry(
    cache: CacheDtype,
    head_size: u32,
    head_size_v: u32,
    num_queries_per_kv: u32,
) -> Result<&'static Entry> {
    let mut rows: Vec<_> = ENTRIES
        .iter()
        .filter_map(|entry| match entry.variant {
            Variant::DecodeGqa {
                cache: c,
                head_size: k,
                head_size_v: v,
                heads_per_cta,
            } if (c, k, v) == (cache, head_size, head_size_v) => Some((heads_per_cta, entry)),
            _ => None,
        })
        .collect();
    rows.sort_by_key(|&(heads, _)| heads);
    let fits = rows
        .iter()
        .find(|&&(heads, _)| heads >= num_queries_per_kv)
        .or(rows.last());
    fits.map(|&(_, entry)| entry)
        .ok_or_else(|| Error::Unsupported {
            operation: "decode",
            what: "head sizes (of keys, of values)",
            got: format!("({head_size}, {head_size_v})"),
            supported: decode_support()
                .iter()
                .map(|shape| format!("{shape:?}"))
                .collect::<Vec<_>>()
                .join(", "),
        })
}

/// The `(head_size, head_size_v)` pairs that decode was compiled for, each for bf16 and f16 and any number
/// of query heads per KV head.
pub fn decode_support() -> Vec<(u32, u32)> {
    let mut shapes: Vec<_> = ENTRIES
        .iter()
        .filter_map(|entry| match entry.variant {
            Variant::DecodeGqa {
                head_size,
                head_size_v,
                ..
            } => Some((head_size, head_size_v)),
            _ => None,
        })
        .collect();
    shapes.sort_unstable();
    shapes.dedup();
    shapes
}
