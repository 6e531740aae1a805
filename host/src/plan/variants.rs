//! From a request's properties to the compiled kernel, and the support matrix.
//!
//! The table of kernels is indexed once, by variant and by what an operation asks for: requests are checked, and planned,
//! while a GPU waits. Only the lists of what is supported, which errors and `info` print, go through all of it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::LazyLock;

use gpu_kernels::dtype::CacheDtype;
use gpu_kernels::entry::{ENTRIES, Entry, Variant};
use gpu_kernels::mla::MlaTile;
use gpu_kernels::mla::cache_format::EntryForm;
use gpu_kernels::prefill::MmaKind;

use crate::error::{Error, Result};

/// The row of a variant that is always compiled.
///
/// # Panics
/// If the table lacks it, which is a broken build.
pub fn entry(variant: Variant) -> &'static Entry {
    find(variant).expect("the entry table has every variant that takes no shape")
}

/// The row of a variant, if it was compiled.
fn find(variant: Variant) -> Option<&'static Entry> {
    static ROWS: LazyLock<HashMap<Variant, &'static Entry>> = LazyLock::new(|| {
        ENTRIES
            .iter()
            .rev()
            .map(|entry| (entry.variant, entry))
            .collect()
    });
    ROWS.get(&variant).copied()
}

/// Kernels of one operation, as `of` knows them: by what they are for, those for few query heads first.
type Rows<Key, Row> = HashMap<Key, Vec<Row>>;

/// Sorts the table's rows of one operation.
fn rows<Key: Eq + Hash, Row>(
    of: impl Fn(&'static Entry) -> Option<(Key, u32, Row)>,
) -> Rows<Key, Row> {
    let mut all: Vec<_> = ENTRIES.iter().filter_map(of).collect();
    all.sort_by_key(|&(_, heads, _)| heads);
    let mut rows = Rows::new();
    for (key, _, row) in all {
        rows.entry(key).or_insert_with(Vec::new).push(row);
    }
    rows
}

/// Those that are for `key`; none if nothing was compiled.
fn rows_for<'r, Key: Eq + Hash, Row>(rows: &'r Rows<Key, Row>, key: &Key) -> &'r [Row] {
    rows.get(key).map_or(&[], Vec::as_slice)
}

/// The decode kernel for head sizes (of keys, of values) and a group: the one that takes the whole group in one thread
/// block if there is one, else the widest. `ruled` if it has to take a sliding window, a softcap, ALiBi, sinks or rows
/// that are not sequences.
///
/// # Errors
/// [`Error::Unsupported`] with the list of head sizes.
pub fn decode_entry(
    cache: CacheDtype,
    head_sizes: (u32, u32),
    num_queries_per_kv: u32,
    ruled: bool,
) -> Result<&'static Entry> {
    type Key = (CacheDtype, (u32, u32), bool);
    static ROWS: LazyLock<Rows<Key, (u32, &Entry)>> = LazyLock::new(|| {
        rows(|entry| match entry.variant {
            Variant::DecodeGqa {
                cache,
                head_size,
                head_size_v,
                heads_per_cta: heads,
                ruled,
            } => Some((
                (cache, (head_size, head_size_v), ruled),
                heads,
                (heads, entry),
            )),
            _ => None,
        })
    });
    let rows = rows_for(&ROWS, &(cache, head_sizes, ruled));
    let fits = rows
        .iter()
        .find(|&&(heads, _)| heads >= num_queries_per_kv)
        .or(rows.last());
    fits.map(|&(_, entry)| entry)
        .ok_or_else(|| Error::Unsupported {
            operation: "decode",
            what: "head sizes (of keys, of values)",
            got: format!("{head_sizes:?}"),
            supported: decode_sizes(|compiled| compiled == cache)
                .iter()
                .map(|shape| format!("{shape:?}"))
                .collect::<Vec<_>>()
                .join(", "),
        })
}

/// The `(head_size, head_size_v)` pairs that decode was compiled for, each for bf16 and f16 and any number
/// of query heads per KV head.
pub fn decode_support() -> Vec<(u32, u32)> {
    decode_sizes(|_| true)
}

/// Those of the caches that `wanted` takes.
fn decode_sizes(wanted: impl Fn(CacheDtype) -> bool) -> Vec<(u32, u32)> {
    let mut shapes: Vec<_> = ENTRIES
        .iter()
        .filter_map(|entry| match entry.variant {
            Variant::DecodeGqa {
                cache,
                head_size,
                head_size_v,
                ..
            } if wanted(cache) => Some((head_size, head_size_v)),
            _ => None,
        })
        .collect();
    shapes.sort_unstable();
    shapes.dedup();
    shapes
}

/// The MLA decode kernels for a row size, those for few query heads first.
///
/// # Errors
/// [`Error::Unsupported`] with the list of row sizes.
pub fn decode_mla_entries(
    cache: CacheDtype,
    head_size: u32,
    head_size_v: u32,
) -> Result<&'static [(&'static Entry, MlaTile)]> {
    type Key = (CacheDtype, u32, u32);
    static ROWS: LazyLock<Rows<Key, (&Entry, MlaTile)>> = LazyLock::new(|| {
        rows(|entry| match entry.variant {
            Variant::DecodeMla {
                cache,
                head_size,
                cut,
            } => Some(((cache, head_size, cut.head_size_v), cut.heads, (entry, cut))),
            _ => None,
        })
    });
    let rows = rows_for(&ROWS, &(cache, head_size, head_size_v));
    if rows.is_empty() {
        return Err(Error::Unsupported {
            operation: "decode_mla",
            what: "row sizes (of keys, of values)",
            got: format!("({head_size}, {head_size_v})"),
            supported: decode_mla_support()
                .iter()
                .map(|shape| format!("{shape:?}"))
                .collect::<Vec<_>>()
                .join(", "),
        });
    }
    Ok(rows)
}

/// The `(head_size, head_size_v)` pairs that MLA decode was compiled for, each for bf16, f16 and FP8 caches and any
/// number of query heads.
pub fn decode_mla_support() -> Vec<(u32, u32)> {
    let mut shapes: Vec<_> = ENTRIES
        .iter()
        .filter_map(|entry| match entry.variant {
            Variant::DecodeMla { head_size, cut, .. } => Some((head_size, cut.head_size_v)),
            _ => None,
        })
        .collect();
    shapes.sort_unstable();
    shapes.dedup();
    shapes
}

/// The MLA decode kernels over entries of a form, those for few query heads first.
pub fn decode_mla_entry_entries(form: EntryForm) -> &'static [(&'static Entry, MlaTile)] {
    static ROWS: LazyLock<Rows<EntryForm, (&Entry, MlaTile)>> = LazyLock::new(|| {
        rows(|entry| match entry.variant {
            Variant::DecodeMlaEntry { form, cut } => Some((form, cut.heads, (entry, cut))),
            _ => None,
        })
    });
    rows_for(&ROWS, &form)
}

/// The kernel for any number of query tokens per sequence, in which `products` multiply.
pub fn find_prefill(
    cache: CacheDtype,
    head_size: u32,
    head_size_v: u32,
    products: MmaKind,
) -> Option<&'static Entry> {
    find(Variant::PrefillGqa {
        cache,
        head_size,
        head_size_v,
        products,
    })
}

/// The kernel for any number of query tokens per sequence that runs on every device.
///
/// # Errors
/// [`Error::Unsupported`] with the list of head sizes.
pub fn prefill_entry(
    cache: CacheDtype,
    head_size: u32,
    head_size_v: u32,
) -> Result<&'static Entry> {
    let shape = |&(cache, head_size, head_size_v): &(CacheDtype, u32, u32)| {
        let scales = if cache.token_scales {
            " with scales per token"
        } else {
            ""
        };
        format!("{}{scales} ({head_size}, {head_size_v})", cache.dtype)
    };
    find_prefill(cache, head_size, head_size_v, MmaKind::Warp).ok_or_else(|| Error::Unsupported {
        operation: "unified_attention",
        what: "cache dtype and head sizes (of keys, of values)",
        got: shape(&(cache, head_size, head_size_v)),
        supported: prefill_support()
            .iter()
            .map(shape)
            .collect::<Vec<_>>()
            .join(", "),
    })
}

/// The cache dtypes and `(head_size, head_size_v)` pairs that unified attention was compiled for, each for
/// any number of query heads per KV head.
pub fn prefill_support() -> Vec<(CacheDtype, u32, u32)> {
    ENTRIES
        .iter()
        .filter_map(|entry| match entry.variant {
            Variant::PrefillGqa {
                cache,
                head_size,
                head_size_v,
                products: MmaKind::Warp,
            } => Some((cache, head_size, head_size_v)),
            _ => None,
        })
        .collect()
}
