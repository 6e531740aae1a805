//! Every compiled kernel, from one table.
//!
//! `entries!` turns the table into the PTX symbols (on a PTX target), and on the host into [`EntryId`], the
//! rows of [`ENTRIES`] that the planner chooses from, and [`run`], by which the emulator calls a kernel.
//!
//! The table has two sections. What is `everywhere` is in the PTX of every architecture but [`HOPPER`], which runs on
//! every later GPU; what compute capability 9.0 alone has instructions for is in the PTX of [`HOPPER`], and nothing
//! else is.

use crate::dtype::{Bf16, ElementDtype, F16, F32, HalfDtype, I8};
use crate::kernels::reshape_and_cache_flash as cache_write;
use crate::kernels::reshape_and_cache_per_token_head as per_token_head;
use crate::kernels::rope_and_cache::rope_and_cache;
use crate::kernels::{
    check, compact, concat_and_cache_mla, copy_blocks, decode_gqa, decode_mla, decode_mla_entry,
    gather, merge_rows, merge_splits, prefill_gqa, prefill_gqa_group, read_ceiling,
};
use crate::kv::{CacheDtype, CacheFormat, E4m3, E4m3PerToken, E5m2, I8PerToken};
use crate::latent::{Cut, Fp8Ds, MlaEntry, V4};
use crate::mla_entry::EntryForm;
use crate::params::{
    CheckPagedParams, CheckSlotsParams, CompactParams, CopyBlocksParams, DecodeMlaEntryParams,
    DecodeMlaParams, DecodeParams, GatherParams, KernelParams, MergeParams, MlaEntryParams,
    PerTokenHeadParams, PrefillParams, ReadCeilingParams, ReshapeAndCacheParams,
    RopeAndCacheParams,
};
use crate::tile::rows::Products;

/// The architecture of kernels that run on compute capability 9.0 and on no other.
pub const HOPPER: &str = "sm_90a";

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
        cut: Cut,
    },
    /// Stage 1 of decode attention over a latent cache of FP8 entries; query and output are bf16.
    DecodeMlaEntry {
        /// Of the cache.
        form: EntryForm,
        /// How a thread block is cut, with the values per output row.
        cut: Cut,
    },
    /// Stage 2 of decode attention.
    MergeSplits {
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
        products: Products,
    },
    /// Merges the parts of rows whose keys were split.
    MergeRows,
    /// Writes new tokens into a paged cache of the same dtype.
    CacheCopy,
    /// Writes new tokens into a paged FP8 cache, divided by given scales.
    CacheScaled {
        /// Of the tokens.
        source: ElementDtype,
        /// Of the cache.
        cache: ElementDtype,
        /// Whether eight values lie side by side everywhere.
        eights: bool,
    },
    /// Writes new tokens into a paged 8-bit cache, each head of each token with a scale of its own.
    CachePerTokenHead {
        /// Of the tokens.
        source: ElementDtype,
        /// Of the cache.
        cache: ElementDtype,
        /// Whether eight values lie side by side everywhere.
        eights: bool,
    },
    /// Rotates queries and keys and writes a paged cache.
    RopeAndCache {
        /// Of queries, keys and values.
        source: ElementDtype,
        /// Of the cache.
        cache: ElementDtype,
        /// Of the rotated queries.
        query: ElementDtype,
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
        cache: ElementDtype,
        /// Of the output.
        out: ElementDtype,
        /// Whether eight values lie side by side everywhere.
        eights: bool,
    },
    /// Gathers 656-byte entries as bf16.
    GatherMlaFp8Ds,
    /// Gathers 584-byte entries as bf16.
    GatherMlaV4,
    /// Copies whole blocks.
    CopyBlocks,
    /// Marks the blocks that are referred to.
    CompactMark,
    /// Numbers the blocks that are marked.
    CompactNumber,
    /// Renames what refers to them.
    CompactRename,
    /// Checks block tables and sequence lengths.
    CheckPaged,
    /// Checks a slot mapping.
    CheckSlots,
    /// Checks what the rows of a gather refer to.
    CheckGather,
    /// Checks pairs of blocks.
    CheckPairs,
    /// Reads memory as fast as it goes.
    ReadCeiling,
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Which one.
    pub id: EntryId,
    /// The PTX symbol.
    pub name: &'static str,
    /// What it computes.
    pub variant: Variant,
    /// Threads per thread block (`.maxntid`).
    pub threads: u32,
    /// Thread blocks that must fit on a multiprocessor (`.minnctapersm`).
    pub min_ctas: u32,
    /// Size of its parameter block.
    pub params_bytes: usize,
    /// Whether registers must not spill to memory.
    pub hot: bool,
    /// Only in the file of [`HOPPER`]: it uses what compute capability 9.0 alone has.
    pub hopper: bool,
}

impl EntryId {
    /// This kernel's row.
    pub fn entry(self) -> &'static Entry {
        &ENTRIES[self as usize]
    }
}

impl Entry {
    /// The row of a variant, if it was compiled.
    pub fn find(variant: Variant) -> Option<&'static Entry> {
        ENTRIES.iter().find(|entry| entry.variant == variant)
    }

    /// Whether the PTX of an architecture, such as "sm_90", holds it.
    pub fn is_in(&self, arch: &str) -> bool {
        self.hopper == (arch == HOPPER)
    }
}

/// What sets the sections of the table apart: [`Entry::hopper`], and which architectures an item is compiled for.
macro_rules! section {
    (everywhere) => {
        false
    };
    (sm_90a) => {
        true
    };
    (everywhere: $item:item) => {
        #[cfg(not(any(target_feature = "sm_90a", target_feature = "compute_90a")))]
        $item
    };
    (sm_90a: $item:item) => {
        #[cfg(any(target_feature = "sm_90a", target_feature = "compute_90a"))]
        $item
    };
}

macro_rules! entries {
    ($([$section:ident] $(
        $name:ident($params:ty) = $kernel:expr, $variant:expr, $threads:expr, $min_ctas:expr, $hot:expr;
    )*)*) => {
        /// Identifies a compiled kernel.
        #[allow(non_camel_case_types, reason = "each is a PTX symbol")]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum EntryId {
            $($(#[doc = concat!("`", stringify!($name), "`")] $name,)*)*
        }

        /// All compiled kernels.
        pub static ENTRIES: &[Entry] = &[$($(Entry {
            id: EntryId::$name,
            name: stringify!($name),
            variant: $variant,
            threads: $threads,
            min_ctas: $min_ctas,
            params_bytes: size_of::<$params>(),
            hot: $hot,
            hopper: section!($section),
        },)*)*];

        /// Runs one lane of kernel `id` on `gpu`: what the emulator calls.
        ///
        /// # Safety
        /// `params` points to the kernel's parameter block, and the launch keeps the kernel's conditions.
        #[cfg(not(target_arch = "nvptx64"))]
        pub unsafe fn run<G: crate::gpu::Gpu>(id: EntryId, gpu: G, params: *const u8) {
            match id {
                $($(EntryId::$name => {
                    // A function and a stack frame for each: all in one would be more than a compiler, or a
                    // lane's stack, can take.
                    #[inline(never)]
                    unsafe fn lane<G: crate::gpu::Gpu>(gpu: G, params: *const u8) {
                        // SAFETY: the caller promises a readable parameter block of this type.
                        let params = unsafe { params.cast::<$params>().read_unaligned() };
                        // SAFETY: the caller promises the kernel's conditions.
                        unsafe { $kernel(gpu, &params) }
                    }
                    // SAFETY: as the caller promises.
                    unsafe { lane(gpu, params) }
                })*)*
            }
        }

        $($(section! { $section:
            /// PTX entry point.
            #[cfg(target_arch = "nvptx64")]
            #[cfg_attr(gpu_route = "nvvm", nvvm_internal::kernel)]
            #[unsafe(no_mangle)]
            pub unsafe extern "ptx-kernel" fn $name(params: $params) {
                // SAFETY: whoever launches keeps the kernel's conditions.
                unsafe { $kernel(crate::gpu::PtxLane, &params) }
            }
        })*)*

        // Every parameter block travels as bytes.
        const _: () = {
            const fn travels<P: KernelParams>() {}
            $($(travels::<$params>();)*)*
        };
    };
}

const fn decode(
    cache: CacheDtype,
    head_size: u32,
    head_size_v: u32,
    heads_per_cta: u32,
    ruled: bool,
) -> Variant {
    Variant::DecodeGqa {
        cache,
        head_size,
        head_size_v,
        heads_per_cta,
        ruled,
    }
}

/// The variant of a `decode_mla` kernel, by its generics.
const fn mla<
    C: CacheFormat,
    const K_STEPS: usize,
    const V_STEPS: usize,
    const HEAD_TILES: usize,
    const WARP_HEAD_TILES: usize,
    const WARP_TOKEN_TILES: usize,
    const WARP_DIM_TILES: usize,
>() -> Variant {
    Variant::DecodeMla {
        cache: C::CACHE,
        head_size: K_STEPS as u32 * 16,
        cut: Cut::of_kernel::<
            C,
            K_STEPS,
            HEAD_TILES,
            WARP_HEAD_TILES,
            WARP_TOKEN_TILES,
            WARP_DIM_TILES,
        >(V_STEPS as u32 * 16),
    }
}

/// The variant of a `decode_mla_entry` kernel, by its generics.
const fn mla_entry<
    E: MlaEntry,
    const K_STEPS: usize,
    const HEAD_TILES: usize,
    const WARP_HEAD_TILES: usize,
    const WARP_TOKEN_TILES: usize,
    const WARP_DIM_TILES: usize,
>() -> Variant {
    Variant::DecodeMlaEntry {
        form: E::FORM,
        cut: Cut::of_kernel::<
            Bf16,
            K_STEPS,
            HEAD_TILES,
            WARP_HEAD_TILES,
            WARP_TOKEN_TILES,
            WARP_DIM_TILES,
        >(decode_mla_entry::HEAD_SIZE_V),
    }
}

// Those of 96 and 128 values per head keep a few words of state in local memory, read once per tile: two row
// tiles of accumulators and scores leave them no register. Halving the row tiles would cost far more, in reads
// of shared memory.
const fn prefill(cache: CacheDtype, head_size: u32, head_size_v: u32) -> Variant {
    Variant::PrefillGqa {
        cache,
        head_size,
        head_size_v,
        products: Products::Warp,
    }
}

const fn prefill_together(
    cache: CacheDtype,
    head_size: u32,
    head_size_v: u32,
    products: Products,
) -> Variant {
    Variant::PrefillGqa {
        cache,
        head_size,
        head_size_v,
        products,
    }
}

// Three `decode_mla` kernels do so, for a few words, on GPUs that they were not tuned on: those of 16-bit rows and 64
// heads on sm_100, that of e4m3 rows and 16 heads on sm_80.
use CacheDtype as C;
use ElementDtype as E;
use HalfDtype as D;

#[rustfmt::skip]
entries! {
    [everywhere]
    decode_gqa_bf16_d64_h8(DecodeParams) = decode_gqa::decode_gqa::<_, Bf16, 4, 4, 1, false>, decode(C::Bf16, 64, 64, 8, false), decode_gqa::threads::<Bf16, 4, 4>(), 1, true;
    decode_gqa_bf16_d64_h16(DecodeParams) = decode_gqa::decode_gqa::<_, Bf16, 4, 4, 2, false>, decode(C::Bf16, 64, 64, 16, false), decode_gqa::threads::<Bf16, 4, 4>(), 1, true;
    decode_gqa_bf16_d96_h8(DecodeParams) = decode_gqa::decode_gqa::<_, Bf16, 6, 6, 1, false>, decode(C::Bf16, 96, 96, 8, false), decode_gqa::threads::<Bf16, 6, 6>(), 1, true;
    decode_gqa_bf16_d96_h16(DecodeParams) = decode_gqa::decode_gqa::<_, Bf16, 6, 6, 2, false>, decode(C::Bf16, 96, 96, 16, false), decode_gqa::threads::<Bf16, 6, 6>(), 1, true;
    decode_gqa_bf16_d128_h8(DecodeParams) = decode_gqa::decode_gqa::<_, Bf16, 8, 8, 1, false>, decode(C::Bf16, 128, 128, 8, false), decode_gqa::threads::<Bf16, 8, 8>(), 1, true;
    decode_gqa_bf16_d128_h16(DecodeParams) = decode_gqa::decode_gqa::<_, Bf16, 8, 8, 2, false>, decode(C::Bf16, 128, 128, 16, false), decode_gqa::threads::<Bf16, 8, 8>(), 1, true;
    decode_gqa_bf16_d192v128_h8(DecodeParams) = decode_gqa::decode_gqa::<_, Bf16, 12, 8, 1, false>, decode(C::Bf16, 192, 128, 8, false), decode_gqa::threads::<Bf16, 12, 8>(), 1, true;
    decode_gqa_bf16_d192v128_h16(DecodeParams) = decode_gqa::decode_gqa::<_, Bf16, 12, 8, 2, false>, decode(C::Bf16, 192, 128, 16, false), decode_gqa::threads::<Bf16, 12, 8>(), 1, true;
    decode_gqa_bf16_d192_h8(DecodeParams) = decode_gqa::decode_gqa::<_, Bf16, 12, 12, 1, false>, decode(C::Bf16, 192, 192, 8, false), decode_gqa::threads::<Bf16, 12, 12>(), 1, true;
    decode_gqa_bf16_d256_h8(DecodeParams) = decode_gqa::decode_gqa::<_, Bf16, 16, 16, 1, false>, decode(C::Bf16, 256, 256, 8, false), decode_gqa::threads::<Bf16, 16, 16>(), 1, true;
    decode_gqa_f16_d64_h8(DecodeParams) = decode_gqa::decode_gqa::<_, F16, 4, 4, 1, false>, decode(C::F16, 64, 64, 8, false), decode_gqa::threads::<F16, 4, 4>(), 1, true;
    decode_gqa_f16_d64_h16(DecodeParams) = decode_gqa::decode_gqa::<_, F16, 4, 4, 2, false>, decode(C::F16, 64, 64, 16, false), decode_gqa::threads::<F16, 4, 4>(), 1, true;
    decode_gqa_f16_d96_h8(DecodeParams) = decode_gqa::decode_gqa::<_, F16, 6, 6, 1, false>, decode(C::F16, 96, 96, 8, false), decode_gqa::threads::<F16, 6, 6>(), 1, true;
    decode_gqa_f16_d96_h16(DecodeParams) = decode_gqa::decode_gqa::<_, F16, 6, 6, 2, false>, decode(C::F16, 96, 96, 16, false), decode_gqa::threads::<F16, 6, 6>(), 1, true;
    decode_gqa_f16_d128_h8(DecodeParams) = decode_gqa::decode_gqa::<_, F16, 8, 8, 1, false>, decode(C::F16, 128, 128, 8, false), decode_gqa::threads::<F16, 8, 8>(), 1, true;
    decode_gqa_f16_d128_h16(DecodeParams) = decode_gqa::decode_gqa::<_, F16, 8, 8, 2, false>, decode(C::F16, 128, 128, 16, false), decode_gqa::threads::<F16, 8, 8>(), 1, true;
    decode_gqa_f16_d192v128_h8(DecodeParams) = decode_gqa::decode_gqa::<_, F16, 12, 8, 1, false>, decode(C::F16, 192, 128, 8, false), decode_gqa::threads::<F16, 12, 8>(), 1, true;
    decode_gqa_f16_d192v128_h16(DecodeParams) = decode_gqa::decode_gqa::<_, F16, 12, 8, 2, false>, decode(C::F16, 192, 128, 16, false), decode_gqa::threads::<F16, 12, 8>(), 1, true;
    decode_gqa_f16_d192_h8(DecodeParams) = decode_gqa::decode_gqa::<_, F16, 12, 12, 1, false>, decode(C::F16, 192, 192, 8, false), decode_gqa::threads::<F16, 12, 12>(), 1, true;
    decode_gqa_f16_d256_h8(DecodeParams) = decode_gqa::decode_gqa::<_, F16, 16, 16, 1, false>, decode(C::F16, 256, 256, 8, false), decode_gqa::threads::<F16, 16, 16>(), 1, true;
    decode_gqa_e4m3_d64_h8(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3, 4, 4, 1, false>, decode(C::E4m3, 64, 64, 8, false), decode_gqa::threads::<E4m3, 4, 4>(), 1, true;
    decode_gqa_e4m3_d64_h16(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3, 4, 4, 2, false>, decode(C::E4m3, 64, 64, 16, false), decode_gqa::threads::<E4m3, 4, 4>(), 1, true;
    decode_gqa_e4m3_d96_h8(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3, 6, 6, 1, false>, decode(C::E4m3, 96, 96, 8, false), decode_gqa::threads::<E4m3, 6, 6>(), 1, true;
    decode_gqa_e4m3_d96_h16(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3, 6, 6, 2, false>, decode(C::E4m3, 96, 96, 16, false), decode_gqa::threads::<E4m3, 6, 6>(), 1, true;
    decode_gqa_e4m3_d128_h8(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3, 8, 8, 1, false>, decode(C::E4m3, 128, 128, 8, false), decode_gqa::threads::<E4m3, 8, 8>(), 1, true;
    decode_gqa_e4m3_d128_h16(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3, 8, 8, 2, false>, decode(C::E4m3, 128, 128, 16, false), decode_gqa::threads::<E4m3, 8, 8>(), 1, true;
    decode_gqa_e4m3_d192v128_h8(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3, 12, 8, 1, false>, decode(C::E4m3, 192, 128, 8, false), decode_gqa::threads::<E4m3, 12, 8>(), 1, true;
    decode_gqa_e4m3_d192v128_h16(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3, 12, 8, 2, false>, decode(C::E4m3, 192, 128, 16, false), decode_gqa::threads::<E4m3, 12, 8>(), 1, true;
    decode_gqa_e4m3_d192_h8(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3, 12, 12, 1, false>, decode(C::E4m3, 192, 192, 8, false), decode_gqa::threads::<E4m3, 12, 12>(), 1, true;
    decode_gqa_e4m3_d256_h8(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3, 16, 16, 1, false>, decode(C::E4m3, 256, 256, 8, false), decode_gqa::threads::<E4m3, 16, 16>(), 1, true;
    decode_gqa_e5m2_d64_h8(DecodeParams) = decode_gqa::decode_gqa::<_, E5m2, 4, 4, 1, false>, decode(C::E5m2, 64, 64, 8, false), decode_gqa::threads::<E5m2, 4, 4>(), 1, true;
    decode_gqa_e5m2_d64_h16(DecodeParams) = decode_gqa::decode_gqa::<_, E5m2, 4, 4, 2, false>, decode(C::E5m2, 64, 64, 16, false), decode_gqa::threads::<E5m2, 4, 4>(), 1, true;
    decode_gqa_e5m2_d96_h8(DecodeParams) = decode_gqa::decode_gqa::<_, E5m2, 6, 6, 1, false>, decode(C::E5m2, 96, 96, 8, false), decode_gqa::threads::<E5m2, 6, 6>(), 1, true;
    decode_gqa_e5m2_d96_h16(DecodeParams) = decode_gqa::decode_gqa::<_, E5m2, 6, 6, 2, false>, decode(C::E5m2, 96, 96, 16, false), decode_gqa::threads::<E5m2, 6, 6>(), 1, true;
    decode_gqa_e5m2_d128_h8(DecodeParams) = decode_gqa::decode_gqa::<_, E5m2, 8, 8, 1, false>, decode(C::E5m2, 128, 128, 8, false), decode_gqa::threads::<E5m2, 8, 8>(), 1, true;
    decode_gqa_e5m2_d128_h16(DecodeParams) = decode_gqa::decode_gqa::<_, E5m2, 8, 8, 2, false>, decode(C::E5m2, 128, 128, 16, false), decode_gqa::threads::<E5m2, 8, 8>(), 1, true;
    decode_gqa_e5m2_d192v128_h8(DecodeParams) = decode_gqa::decode_gqa::<_, E5m2, 12, 8, 1, false>, decode(C::E5m2, 192, 128, 8, false), decode_gqa::threads::<E5m2, 12, 8>(), 1, true;
    decode_gqa_e5m2_d192v128_h16(DecodeParams) = decode_gqa::decode_gqa::<_, E5m2, 12, 8, 2, false>, decode(C::E5m2, 192, 128, 16, false), decode_gqa::threads::<E5m2, 12, 8>(), 1, true;
    decode_gqa_e5m2_d192_h8(DecodeParams) = decode_gqa::decode_gqa::<_, E5m2, 12, 12, 1, false>, decode(C::E5m2, 192, 192, 8, false), decode_gqa::threads::<E5m2, 12, 12>(), 1, true;
    decode_gqa_e5m2_d256_h8(DecodeParams) = decode_gqa::decode_gqa::<_, E5m2, 16, 16, 1, false>, decode(C::E5m2, 256, 256, 8, false), decode_gqa::threads::<E5m2, 16, 16>(), 1, true;
    decode_gqa_e4m3_token_d64_h8(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3PerToken, 4, 4, 1, false>, decode(C::E4m3PerToken, 64, 64, 8, false), decode_gqa::threads::<E4m3PerToken, 4, 4>(), 1, true;
    decode_gqa_e4m3_token_d64_h16(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3PerToken, 4, 4, 2, false>, decode(C::E4m3PerToken, 64, 64, 16, false), decode_gqa::threads::<E4m3PerToken, 4, 4>(), 1, true;
    decode_gqa_e4m3_token_d96_h8(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3PerToken, 6, 6, 1, false>, decode(C::E4m3PerToken, 96, 96, 8, false), decode_gqa::threads::<E4m3PerToken, 6, 6>(), 1, true;
    decode_gqa_e4m3_token_d96_h16(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3PerToken, 6, 6, 2, false>, decode(C::E4m3PerToken, 96, 96, 16, false), decode_gqa::threads::<E4m3PerToken, 6, 6>(), 1, true;
    decode_gqa_e4m3_token_d128_h8(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3PerToken, 8, 8, 1, false>, decode(C::E4m3PerToken, 128, 128, 8, false), decode_gqa::threads::<E4m3PerToken, 8, 8>(), 1, true;
    decode_gqa_e4m3_token_d128_h16(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3PerToken, 8, 8, 2, false>, decode(C::E4m3PerToken, 128, 128, 16, false), decode_gqa::threads::<E4m3PerToken, 8, 8>(), 1, true;
    decode_gqa_e4m3_token_d192v128_h8(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3PerToken, 12, 8, 1, false>, decode(C::E4m3PerToken, 192, 128, 8, false), decode_gqa::threads::<E4m3PerToken, 12, 8>(), 1, true;
    decode_gqa_e4m3_token_d192v128_h16(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3PerToken, 12, 8, 2, false>, decode(C::E4m3PerToken, 192, 128, 16, false), decode_gqa::threads::<E4m3PerToken, 12, 8>(), 1, true;
    decode_gqa_e4m3_token_d192_h8(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3PerToken, 12, 12, 1, false>, decode(C::E4m3PerToken, 192, 192, 8, false), decode_gqa::threads::<E4m3PerToken, 12, 12>(), 1, true;
    decode_gqa_e4m3_token_d256_h8(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3PerToken, 16, 16, 1, false>, decode(C::E4m3PerToken, 256, 256, 8, false), decode_gqa::threads::<E4m3PerToken, 16, 16>(), 1, true;
    decode_gqa_i8_token_d64_h8(DecodeParams) = decode_gqa::decode_gqa::<_, I8PerToken, 4, 4, 1, false>, decode(C::I8PerToken, 64, 64, 8, false), decode_gqa::threads::<I8PerToken, 4, 4>(), 1, true;
    decode_gqa_i8_token_d64_h16(DecodeParams) = decode_gqa::decode_gqa::<_, I8PerToken, 4, 4, 2, false>, decode(C::I8PerToken, 64, 64, 16, false), decode_gqa::threads::<I8PerToken, 4, 4>(), 1, true;
    decode_gqa_i8_token_d96_h8(DecodeParams) = decode_gqa::decode_gqa::<_, I8PerToken, 6, 6, 1, false>, decode(C::I8PerToken, 96, 96, 8, false), decode_gqa::threads::<I8PerToken, 6, 6>(), 1, true;
    decode_gqa_i8_token_d96_h16(DecodeParams) = decode_gqa::decode_gqa::<_, I8PerToken, 6, 6, 2, false>, decode(C::I8PerToken, 96, 96, 16, false), decode_gqa::threads::<I8PerToken, 6, 6>(), 1, true;
    decode_gqa_i8_token_d128_h8(DecodeParams) = decode_gqa::decode_gqa::<_, I8PerToken, 8, 8, 1, false>, decode(C::I8PerToken, 128, 128, 8, false), decode_gqa::threads::<I8PerToken, 8, 8>(), 1, true;
    decode_gqa_i8_token_d128_h16(DecodeParams) = decode_gqa::decode_gqa::<_, I8PerToken, 8, 8, 2, false>, decode(C::I8PerToken, 128, 128, 16, false), decode_gqa::threads::<I8PerToken, 8, 8>(), 1, true;
    decode_gqa_i8_token_d192v128_h8(DecodeParams) = decode_gqa::decode_gqa::<_, I8PerToken, 12, 8, 1, false>, decode(C::I8PerToken, 192, 128, 8, false), decode_gqa::threads::<I8PerToken, 12, 8>(), 1, true;
    decode_gqa_i8_token_d192v128_h16(DecodeParams) = decode_gqa::decode_gqa::<_, I8PerToken, 12, 8, 2, false>, decode(C::I8PerToken, 192, 128, 16, false), decode_gqa::threads::<I8PerToken, 12, 8>(), 1, true;
    decode_gqa_i8_token_d192_h8(DecodeParams) = decode_gqa::decode_gqa::<_, I8PerToken, 12, 12, 1, false>, decode(C::I8PerToken, 192, 192, 8, false), decode_gqa::threads::<I8PerToken, 12, 12>(), 1, true;
    decode_gqa_i8_token_d256_h8(DecodeParams) = decode_gqa::decode_gqa::<_, I8PerToken, 16, 16, 1, false>, decode(C::I8PerToken, 256, 256, 8, false), decode_gqa::threads::<I8PerToken, 16, 16>(), 1, true;
    decode_gqa_bf16_d64_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, Bf16, 4, 4, 1, true>, decode(C::Bf16, 64, 64, 8, true), decode_gqa::threads::<Bf16, 4, 4>(), 1, true;
    decode_gqa_bf16_d96_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, Bf16, 6, 6, 1, true>, decode(C::Bf16, 96, 96, 8, true), decode_gqa::threads::<Bf16, 6, 6>(), 1, true;
    decode_gqa_bf16_d128_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, Bf16, 8, 8, 1, true>, decode(C::Bf16, 128, 128, 8, true), decode_gqa::threads::<Bf16, 8, 8>(), 1, true;
    decode_gqa_bf16_d192v128_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, Bf16, 12, 8, 1, true>, decode(C::Bf16, 192, 128, 8, true), decode_gqa::threads::<Bf16, 12, 8>(), 1, true;
    decode_gqa_bf16_d192_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, Bf16, 12, 12, 1, true>, decode(C::Bf16, 192, 192, 8, true), decode_gqa::threads::<Bf16, 12, 12>(), 1, true;
    decode_gqa_bf16_d256_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, Bf16, 16, 16, 1, true>, decode(C::Bf16, 256, 256, 8, true), decode_gqa::threads::<Bf16, 16, 16>(), 1, true;
    decode_gqa_f16_d64_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, F16, 4, 4, 1, true>, decode(C::F16, 64, 64, 8, true), decode_gqa::threads::<F16, 4, 4>(), 1, true;
    decode_gqa_f16_d96_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, F16, 6, 6, 1, true>, decode(C::F16, 96, 96, 8, true), decode_gqa::threads::<F16, 6, 6>(), 1, true;
    decode_gqa_f16_d128_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, F16, 8, 8, 1, true>, decode(C::F16, 128, 128, 8, true), decode_gqa::threads::<F16, 8, 8>(), 1, true;
    decode_gqa_f16_d192v128_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, F16, 12, 8, 1, true>, decode(C::F16, 192, 128, 8, true), decode_gqa::threads::<F16, 12, 8>(), 1, true;
    decode_gqa_f16_d192_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, F16, 12, 12, 1, true>, decode(C::F16, 192, 192, 8, true), decode_gqa::threads::<F16, 12, 12>(), 1, true;
    decode_gqa_f16_d256_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, F16, 16, 16, 1, true>, decode(C::F16, 256, 256, 8, true), decode_gqa::threads::<F16, 16, 16>(), 1, true;
    decode_gqa_e4m3_d64_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3, 4, 4, 1, true>, decode(C::E4m3, 64, 64, 8, true), decode_gqa::threads::<E4m3, 4, 4>(), 1, true;
    decode_gqa_e4m3_d96_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3, 6, 6, 1, true>, decode(C::E4m3, 96, 96, 8, true), decode_gqa::threads::<E4m3, 6, 6>(), 1, true;
    decode_gqa_e4m3_d128_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3, 8, 8, 1, true>, decode(C::E4m3, 128, 128, 8, true), decode_gqa::threads::<E4m3, 8, 8>(), 1, true;
    decode_gqa_e4m3_d192v128_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3, 12, 8, 1, true>, decode(C::E4m3, 192, 128, 8, true), decode_gqa::threads::<E4m3, 12, 8>(), 1, true;
    decode_gqa_e4m3_d192_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3, 12, 12, 1, true>, decode(C::E4m3, 192, 192, 8, true), decode_gqa::threads::<E4m3, 12, 12>(), 1, true;
    decode_gqa_e4m3_d256_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3, 16, 16, 1, true>, decode(C::E4m3, 256, 256, 8, true), decode_gqa::threads::<E4m3, 16, 16>(), 1, true;
    decode_gqa_e5m2_d64_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, E5m2, 4, 4, 1, true>, decode(C::E5m2, 64, 64, 8, true), decode_gqa::threads::<E5m2, 4, 4>(), 1, true;
    decode_gqa_e5m2_d96_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, E5m2, 6, 6, 1, true>, decode(C::E5m2, 96, 96, 8, true), decode_gqa::threads::<E5m2, 6, 6>(), 1, true;
    decode_gqa_e5m2_d128_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, E5m2, 8, 8, 1, true>, decode(C::E5m2, 128, 128, 8, true), decode_gqa::threads::<E5m2, 8, 8>(), 1, true;
    decode_gqa_e5m2_d192v128_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, E5m2, 12, 8, 1, true>, decode(C::E5m2, 192, 128, 8, true), decode_gqa::threads::<E5m2, 12, 8>(), 1, true;
    decode_gqa_e5m2_d192_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, E5m2, 12, 12, 1, true>, decode(C::E5m2, 192, 192, 8, true), decode_gqa::threads::<E5m2, 12, 12>(), 1, true;
    decode_gqa_e5m2_d256_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, E5m2, 16, 16, 1, true>, decode(C::E5m2, 256, 256, 8, true), decode_gqa::threads::<E5m2, 16, 16>(), 1, true;
    decode_gqa_e4m3_token_d64_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3PerToken, 4, 4, 1, true>, decode(C::E4m3PerToken, 64, 64, 8, true), decode_gqa::threads::<E4m3PerToken, 4, 4>(), 1, true;
    decode_gqa_e4m3_token_d96_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3PerToken, 6, 6, 1, true>, decode(C::E4m3PerToken, 96, 96, 8, true), decode_gqa::threads::<E4m3PerToken, 6, 6>(), 1, true;
    decode_gqa_e4m3_token_d128_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3PerToken, 8, 8, 1, true>, decode(C::E4m3PerToken, 128, 128, 8, true), decode_gqa::threads::<E4m3PerToken, 8, 8>(), 1, true;
    decode_gqa_e4m3_token_d192v128_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3PerToken, 12, 8, 1, true>, decode(C::E4m3PerToken, 192, 128, 8, true), decode_gqa::threads::<E4m3PerToken, 12, 8>(), 1, true;
    decode_gqa_e4m3_token_d192_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3PerToken, 12, 12, 1, true>, decode(C::E4m3PerToken, 192, 192, 8, true), decode_gqa::threads::<E4m3PerToken, 12, 12>(), 1, true;
    decode_gqa_e4m3_token_d256_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, E4m3PerToken, 16, 16, 1, true>, decode(C::E4m3PerToken, 256, 256, 8, true), decode_gqa::threads::<E4m3PerToken, 16, 16>(), 1, true;
    decode_gqa_i8_token_d64_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, I8PerToken, 4, 4, 1, true>, decode(C::I8PerToken, 64, 64, 8, true), decode_gqa::threads::<I8PerToken, 4, 4>(), 1, true;
    decode_gqa_i8_token_d96_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, I8PerToken, 6, 6, 1, true>, decode(C::I8PerToken, 96, 96, 8, true), decode_gqa::threads::<I8PerToken, 6, 6>(), 1, true;
    decode_gqa_i8_token_d128_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, I8PerToken, 8, 8, 1, true>, decode(C::I8PerToken, 128, 128, 8, true), decode_gqa::threads::<I8PerToken, 8, 8>(), 1, true;
    decode_gqa_i8_token_d192v128_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, I8PerToken, 12, 8, 1, true>, decode(C::I8PerToken, 192, 128, 8, true), decode_gqa::threads::<I8PerToken, 12, 8>(), 1, true;
    decode_gqa_i8_token_d192_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, I8PerToken, 12, 12, 1, true>, decode(C::I8PerToken, 192, 192, 8, true), decode_gqa::threads::<I8PerToken, 12, 12>(), 1, true;
    decode_gqa_i8_token_d256_h8_rule(DecodeParams) = decode_gqa::decode_gqa::<_, I8PerToken, 16, 16, 1, true>, decode(C::I8PerToken, 256, 256, 8, true), decode_gqa::threads::<I8PerToken, 16, 16>(), 1, true;
    decode_mla_bf16_d576v512_h16(DecodeMlaParams) = decode_mla::decode_mla::<_, Bf16, 36, 32, 2, 1, 1, 8, 1>, mla::<Bf16, 36, 32, 2, 1, 1, 8>(), 128, 2, true;
    decode_mla_bf16_d576v512_h64(DecodeMlaParams) = decode_mla::decode_mla::<_, Bf16, 36, 32, 8, 2, 2, 4, 1>, mla::<Bf16, 36, 32, 8, 2, 2, 4>(), 256, 1, false;
    decode_mla_bf16_d288v256_h16(DecodeMlaParams) = decode_mla::decode_mla::<_, Bf16, 18, 16, 2, 1, 1, 4, 1>, mla::<Bf16, 18, 16, 2, 1, 1, 4>(), 128, 2, true;
    decode_mla_bf16_d288v256_h64(DecodeMlaParams) = decode_mla::decode_mla::<_, Bf16, 18, 16, 8, 2, 2, 2, 1>, mla::<Bf16, 18, 16, 8, 2, 2, 2>(), 256, 1, true;
    decode_mla_f16_d576v512_h16(DecodeMlaParams) = decode_mla::decode_mla::<_, F16, 36, 32, 2, 1, 1, 8, 1>, mla::<F16, 36, 32, 2, 1, 1, 8>(), 128, 2, true;
    decode_mla_f16_d576v512_h64(DecodeMlaParams) = decode_mla::decode_mla::<_, F16, 36, 32, 8, 2, 2, 4, 1>, mla::<F16, 36, 32, 8, 2, 2, 4>(), 256, 1, false;
    decode_mla_f16_d288v256_h16(DecodeMlaParams) = decode_mla::decode_mla::<_, F16, 18, 16, 2, 1, 1, 4, 1>, mla::<F16, 18, 16, 2, 1, 1, 4>(), 128, 2, true;
    decode_mla_f16_d288v256_h64(DecodeMlaParams) = decode_mla::decode_mla::<_, F16, 18, 16, 8, 2, 2, 2, 1>, mla::<F16, 18, 16, 8, 2, 2, 2>(), 256, 1, true;
    decode_mla_e4m3_d576v512_h16(DecodeMlaParams) = decode_mla::decode_mla::<_, E4m3, 36, 32, 2, 1, 2, 8, 2>, mla::<E4m3, 36, 32, 2, 1, 2, 8>(), 128, 2, false;
    decode_mla_e4m3_d576v512_h64(DecodeMlaParams) = decode_mla::decode_mla::<_, E4m3, 36, 32, 8, 4, 1, 4, 1>, mla::<E4m3, 36, 32, 8, 4, 1, 4>(), 256, 1, false;
    decode_mla_e4m3_d288v256_h16(DecodeMlaParams) = decode_mla::decode_mla::<_, E4m3, 18, 16, 2, 1, 2, 4, 2>, mla::<E4m3, 18, 16, 2, 1, 2, 4>(), 128, 2, true;
    decode_mla_e4m3_d288v256_h64(DecodeMlaParams) = decode_mla::decode_mla::<_, E4m3, 18, 16, 8, 4, 1, 2, 1>, mla::<E4m3, 18, 16, 8, 4, 1, 2>(), 256, 1, true;
    decode_mla_e5m2_d576v512_h16(DecodeMlaParams) = decode_mla::decode_mla::<_, E5m2, 36, 32, 2, 1, 2, 8, 2>, mla::<E5m2, 36, 32, 2, 1, 2, 8>(), 128, 2, true;
    decode_mla_e5m2_d576v512_h64(DecodeMlaParams) = decode_mla::decode_mla::<_, E5m2, 36, 32, 8, 4, 1, 4, 1>, mla::<E5m2, 36, 32, 8, 4, 1, 4>(), 256, 1, false;
    decode_mla_e5m2_d288v256_h16(DecodeMlaParams) = decode_mla::decode_mla::<_, E5m2, 18, 16, 2, 1, 2, 4, 2>, mla::<E5m2, 18, 16, 2, 1, 2, 4>(), 128, 2, true;
    decode_mla_e5m2_d288v256_h64(DecodeMlaParams) = decode_mla::decode_mla::<_, E5m2, 18, 16, 8, 4, 1, 2, 1>, mla::<E5m2, 18, 16, 8, 4, 1, 2>(), 256, 1, true;
    decode_mla_entry_fp8_ds_h16(DecodeMlaEntryParams) = decode_mla_entry::decode_mla_entry::<_, Fp8Ds, 36, 2, 1, 1, 8>, mla_entry::<Fp8Ds, 36, 2, 1, 1, 8>(), 128, 2, true;
    decode_mla_entry_fp8_ds_h64(DecodeMlaEntryParams) = decode_mla_entry::decode_mla_entry::<_, Fp8Ds, 36, 8, 2, 2, 4>, mla_entry::<Fp8Ds, 36, 8, 2, 2, 4>(), 256, 1, true;
    decode_mla_entry_v4_h16(DecodeMlaEntryParams) = decode_mla_entry::decode_mla_entry::<_, V4, 32, 2, 1, 1, 8>, mla_entry::<V4, 32, 2, 1, 1, 8>(), 128, 2, true;
    decode_mla_entry_v4_h64(DecodeMlaEntryParams) = decode_mla_entry::decode_mla_entry::<_, V4, 32, 8, 2, 2, 4>, mla_entry::<V4, 32, 8, 2, 2, 4>(), 256, 1, true;
    prefill_gqa_bf16_d64(PrefillParams) = prefill_gqa::prefill_gqa::<_, Bf16, 4, 4, 2, 4>, prefill(C::Bf16, 64, 64), prefill_gqa::threads::<Bf16, 4, 4>(), 2, true;
    prefill_gqa_bf16_d96(PrefillParams) = prefill_gqa::prefill_gqa::<_, Bf16, 6, 6, 2, 4>, prefill(C::Bf16, 96, 96), prefill_gqa::threads::<Bf16, 6, 6>(), 2, false;
    prefill_gqa_bf16_d128(PrefillParams) = prefill_gqa::prefill_gqa::<_, Bf16, 8, 8, 2, 4>, prefill(C::Bf16, 128, 128), prefill_gqa::threads::<Bf16, 8, 8>(), 2, false;
    prefill_gqa_bf16_d192v128(PrefillParams) = prefill_gqa::prefill_gqa::<_, Bf16, 12, 8, 2, 2>, prefill(C::Bf16, 192, 128), prefill_gqa::threads::<Bf16, 12, 8>(), 2, false;
    prefill_gqa_bf16_d192(PrefillParams) = prefill_gqa::prefill_gqa::<_, Bf16, 12, 12, 1, 2>, prefill(C::Bf16, 192, 192), prefill_gqa::threads::<Bf16, 12, 12>(), 2, true;
    prefill_gqa_bf16_d256(PrefillParams) = prefill_gqa::prefill_gqa::<_, Bf16, 16, 16, 1, 2>, prefill(C::Bf16, 256, 256), prefill_gqa::threads::<Bf16, 16, 16>(), 2, true;
    prefill_gqa_f16_d64(PrefillParams) = prefill_gqa::prefill_gqa::<_, F16, 4, 4, 2, 4>, prefill(C::F16, 64, 64), prefill_gqa::threads::<F16, 4, 4>(), 2, true;
    prefill_gqa_f16_d96(PrefillParams) = prefill_gqa::prefill_gqa::<_, F16, 6, 6, 2, 4>, prefill(C::F16, 96, 96), prefill_gqa::threads::<F16, 6, 6>(), 2, false;
    prefill_gqa_f16_d128(PrefillParams) = prefill_gqa::prefill_gqa::<_, F16, 8, 8, 2, 4>, prefill(C::F16, 128, 128), prefill_gqa::threads::<F16, 8, 8>(), 2, false;
    prefill_gqa_f16_d192v128(PrefillParams) = prefill_gqa::prefill_gqa::<_, F16, 12, 8, 2, 2>, prefill(C::F16, 192, 128), prefill_gqa::threads::<F16, 12, 8>(), 2, false;
    prefill_gqa_f16_d192(PrefillParams) = prefill_gqa::prefill_gqa::<_, F16, 12, 12, 1, 2>, prefill(C::F16, 192, 192), prefill_gqa::threads::<F16, 12, 12>(), 2, true;
    prefill_gqa_f16_d256(PrefillParams) = prefill_gqa::prefill_gqa::<_, F16, 16, 16, 1, 2>, prefill(C::F16, 256, 256), prefill_gqa::threads::<F16, 16, 16>(), 2, true;
    prefill_gqa_e4m3_d64(PrefillParams) = prefill_gqa::prefill_gqa::<_, E4m3, 4, 4, 2, 4>, prefill(C::E4m3, 64, 64), prefill_gqa::threads::<E4m3, 4, 4>(), 2, true;
    prefill_gqa_e4m3_d96(PrefillParams) = prefill_gqa::prefill_gqa::<_, E4m3, 6, 6, 2, 4>, prefill(C::E4m3, 96, 96), prefill_gqa::threads::<E4m3, 6, 6>(), 2, false;
    prefill_gqa_e4m3_d128(PrefillParams) = prefill_gqa::prefill_gqa::<_, E4m3, 8, 8, 2, 4>, prefill(C::E4m3, 128, 128), prefill_gqa::threads::<E4m3, 8, 8>(), 2, false;
    prefill_gqa_e4m3_d192v128(PrefillParams) = prefill_gqa::prefill_gqa::<_, E4m3, 12, 8, 2, 2>, prefill(C::E4m3, 192, 128), prefill_gqa::threads::<E4m3, 12, 8>(), 2, false;
    prefill_gqa_e4m3_d192(PrefillParams) = prefill_gqa::prefill_gqa::<_, E4m3, 12, 12, 1, 2>, prefill(C::E4m3, 192, 192), prefill_gqa::threads::<E4m3, 12, 12>(), 2, true;
    prefill_gqa_e4m3_d256(PrefillParams) = prefill_gqa::prefill_gqa::<_, E4m3, 16, 16, 1, 2>, prefill(C::E4m3, 256, 256), prefill_gqa::threads::<E4m3, 16, 16>(), 2, true;
    prefill_gqa_e5m2_d64(PrefillParams) = prefill_gqa::prefill_gqa::<_, E5m2, 4, 4, 2, 4>, prefill(C::E5m2, 64, 64), prefill_gqa::threads::<E5m2, 4, 4>(), 2, true;
    prefill_gqa_e5m2_d96(PrefillParams) = prefill_gqa::prefill_gqa::<_, E5m2, 6, 6, 2, 4>, prefill(C::E5m2, 96, 96), prefill_gqa::threads::<E5m2, 6, 6>(), 2, false;
    prefill_gqa_e5m2_d128(PrefillParams) = prefill_gqa::prefill_gqa::<_, E5m2, 8, 8, 2, 4>, prefill(C::E5m2, 128, 128), prefill_gqa::threads::<E5m2, 8, 8>(), 2, false;
    prefill_gqa_e5m2_d192v128(PrefillParams) = prefill_gqa::prefill_gqa::<_, E5m2, 12, 8, 2, 2>, prefill(C::E5m2, 192, 128), prefill_gqa::threads::<E5m2, 12, 8>(), 2, false;
    prefill_gqa_e5m2_d192(PrefillParams) = prefill_gqa::prefill_gqa::<_, E5m2, 12, 12, 1, 2>, prefill(C::E5m2, 192, 192), prefill_gqa::threads::<E5m2, 12, 12>(), 2, true;
    prefill_gqa_e5m2_d256(PrefillParams) = prefill_gqa::prefill_gqa::<_, E5m2, 16, 16, 1, 2>, prefill(C::E5m2, 256, 256), prefill_gqa::threads::<E5m2, 16, 16>(), 2, true;
    prefill_gqa_e4m3_token_d64(PrefillParams) = prefill_gqa::prefill_gqa::<_, E4m3PerToken, 4, 4, 2, 4>, prefill(C::E4m3PerToken, 64, 64), prefill_gqa::threads::<E4m3PerToken, 4, 4>(), 2, false;
    prefill_gqa_e4m3_token_d96(PrefillParams) = prefill_gqa::prefill_gqa::<_, E4m3PerToken, 6, 6, 2, 4>, prefill(C::E4m3PerToken, 96, 96), prefill_gqa::threads::<E4m3PerToken, 6, 6>(), 2, false;
    prefill_gqa_e4m3_token_d128(PrefillParams) = prefill_gqa::prefill_gqa::<_, E4m3PerToken, 8, 8, 2, 4>, prefill(C::E4m3PerToken, 128, 128), prefill_gqa::threads::<E4m3PerToken, 8, 8>(), 2, false;
    prefill_gqa_e4m3_token_d192v128(PrefillParams) = prefill_gqa::prefill_gqa::<_, E4m3PerToken, 12, 8, 2, 2>, prefill(C::E4m3PerToken, 192, 128), prefill_gqa::threads::<E4m3PerToken, 12, 8>(), 2, false;
    prefill_gqa_e4m3_token_d192(PrefillParams) = prefill_gqa::prefill_gqa::<_, E4m3PerToken, 12, 12, 1, 2>, prefill(C::E4m3PerToken, 192, 192), prefill_gqa::threads::<E4m3PerToken, 12, 12>(), 2, true;
    prefill_gqa_e4m3_token_d256(PrefillParams) = prefill_gqa::prefill_gqa::<_, E4m3PerToken, 16, 16, 1, 2>, prefill(C::E4m3PerToken, 256, 256), prefill_gqa::threads::<E4m3PerToken, 16, 16>(), 2, true;
    prefill_gqa_i8_token_d64(PrefillParams) = prefill_gqa::prefill_gqa::<_, I8PerToken, 4, 4, 2, 4>, prefill(C::I8PerToken, 64, 64), prefill_gqa::threads::<I8PerToken, 4, 4>(), 2, false;
    prefill_gqa_i8_token_d96(PrefillParams) = prefill_gqa::prefill_gqa::<_, I8PerToken, 6, 6, 2, 4>, prefill(C::I8PerToken, 96, 96), prefill_gqa::threads::<I8PerToken, 6, 6>(), 2, false;
    prefill_gqa_i8_token_d128(PrefillParams) = prefill_gqa::prefill_gqa::<_, I8PerToken, 8, 8, 2, 4>, prefill(C::I8PerToken, 128, 128), prefill_gqa::threads::<I8PerToken, 8, 8>(), 2, false;
    prefill_gqa_i8_token_d192v128(PrefillParams) = prefill_gqa::prefill_gqa::<_, I8PerToken, 12, 8, 2, 2>, prefill(C::I8PerToken, 192, 128), prefill_gqa::threads::<I8PerToken, 12, 8>(), 2, false;
    prefill_gqa_i8_token_d192(PrefillParams) = prefill_gqa::prefill_gqa::<_, I8PerToken, 12, 12, 1, 2>, prefill(C::I8PerToken, 192, 192), prefill_gqa::threads::<I8PerToken, 12, 12>(), 2, true;
    prefill_gqa_i8_token_d256(PrefillParams) = prefill_gqa::prefill_gqa::<_, I8PerToken, 16, 16, 1, 2>, prefill(C::I8PerToken, 256, 256), prefill_gqa::threads::<I8PerToken, 16, 16>(), 2, true;
    merge_rows(PrefillParams) = merge_rows::merge_rows, Variant::MergeRows, merge_rows::THREADS, 1, true;
    merge_splits_bf16(MergeParams) = merge_splits::merge_splits::<_, Bf16>, Variant::MergeSplits { dtype: D::Bf16 }, merge_splits::THREADS, 1, true;
    merge_splits_f16(MergeParams) = merge_splits::merge_splits::<_, F16>, Variant::MergeSplits { dtype: D::F16 }, merge_splits::THREADS, 1, true;
    reshape_and_cache_copy(ReshapeAndCacheParams) = cache_write::copy, Variant::CacheCopy, cache_write::THREADS, 16, true;
    reshape_and_cache_scaled_bf16_e4m3(ReshapeAndCacheParams) = cache_write::scaled::<_, Bf16, E4m3>, Variant::CacheScaled { source: E::Bf16, cache: E::E4m3, eights: true }, cache_write::THREADS, 10, true;
    reshape_and_cache_scaled_bf16_e4m3_odd(ReshapeAndCacheParams) = cache_write::scaled_ones::<_, Bf16, E4m3>, Variant::CacheScaled { source: E::Bf16, cache: E::E4m3, eights: false }, cache_write::THREADS, 1, true;
    reshape_and_cache_scaled_f16_e4m3(ReshapeAndCacheParams) = cache_write::scaled::<_, F16, E4m3>, Variant::CacheScaled { source: E::F16, cache: E::E4m3, eights: true }, cache_write::THREADS, 10, true;
    reshape_and_cache_scaled_f16_e4m3_odd(ReshapeAndCacheParams) = cache_write::scaled_ones::<_, F16, E4m3>, Variant::CacheScaled { source: E::F16, cache: E::E4m3, eights: false }, cache_write::THREADS, 1, true;
    reshape_and_cache_scaled_f32_e4m3(ReshapeAndCacheParams) = cache_write::scaled::<_, F32, E4m3>, Variant::CacheScaled { source: E::F32, cache: E::E4m3, eights: true }, cache_write::THREADS, 1, true;
    reshape_and_cache_scaled_f32_e4m3_odd(ReshapeAndCacheParams) = cache_write::scaled_ones::<_, F32, E4m3>, Variant::CacheScaled { source: E::F32, cache: E::E4m3, eights: false }, cache_write::THREADS, 1, true;
    reshape_and_cache_scaled_bf16_e5m2(ReshapeAndCacheParams) = cache_write::scaled::<_, Bf16, E5m2>, Variant::CacheScaled { source: E::Bf16, cache: E::E5m2, eights: true }, cache_write::THREADS, 10, true;
    reshape_and_cache_scaled_bf16_e5m2_odd(ReshapeAndCacheParams) = cache_write::scaled_ones::<_, Bf16, E5m2>, Variant::CacheScaled { source: E::Bf16, cache: E::E5m2, eights: false }, cache_write::THREADS, 1, true;
    reshape_and_cache_scaled_f16_e5m2(ReshapeAndCacheParams) = cache_write::scaled::<_, F16, E5m2>, Variant::CacheScaled { source: E::F16, cache: E::E5m2, eights: true }, cache_write::THREADS, 10, true;
    reshape_and_cache_scaled_f16_e5m2_odd(ReshapeAndCacheParams) = cache_write::scaled_ones::<_, F16, E5m2>, Variant::CacheScaled { source: E::F16, cache: E::E5m2, eights: false }, cache_write::THREADS, 1, true;
    reshape_and_cache_scaled_f32_e5m2(ReshapeAndCacheParams) = cache_write::scaled::<_, F32, E5m2>, Variant::CacheScaled { source: E::F32, cache: E::E5m2, eights: true }, cache_write::THREADS, 1, true;
    reshape_and_cache_scaled_f32_e5m2_odd(ReshapeAndCacheParams) = cache_write::scaled_ones::<_, F32, E5m2>, Variant::CacheScaled { source: E::F32, cache: E::E5m2, eights: false }, cache_write::THREADS, 1, true;
    reshape_and_cache_per_token_head_bf16_e4m3(PerTokenHeadParams) = per_token_head::eights::<_, Bf16, E4m3>, Variant::CachePerTokenHead { source: E::Bf16, cache: E::E4m3, eights: true }, per_token_head::THREADS, 1, true;
    reshape_and_cache_per_token_head_bf16_e4m3_odd(PerTokenHeadParams) = per_token_head::ones::<_, Bf16, E4m3>, Variant::CachePerTokenHead { source: E::Bf16, cache: E::E4m3, eights: false }, per_token_head::THREADS, 1, true;
    reshape_and_cache_per_token_head_f16_e4m3(PerTokenHeadParams) = per_token_head::eights::<_, F16, E4m3>, Variant::CachePerTokenHead { source: E::F16, cache: E::E4m3, eights: true }, per_token_head::THREADS, 1, true;
    reshape_and_cache_per_token_head_f16_e4m3_odd(PerTokenHeadParams) = per_token_head::ones::<_, F16, E4m3>, Variant::CachePerTokenHead { source: E::F16, cache: E::E4m3, eights: false }, per_token_head::THREADS, 1, true;
    reshape_and_cache_per_token_head_f32_e4m3(PerTokenHeadParams) = per_token_head::eights::<_, F32, E4m3>, Variant::CachePerTokenHead { source: E::F32, cache: E::E4m3, eights: true }, per_token_head::THREADS, 1, true;
    reshape_and_cache_per_token_head_f32_e4m3_odd(PerTokenHeadParams) = per_token_head::ones::<_, F32, E4m3>, Variant::CachePerTokenHead { source: E::F32, cache: E::E4m3, eights: false }, per_token_head::THREADS, 1, true;
    reshape_and_cache_per_token_head_bf16_i8(PerTokenHeadParams) = per_token_head::eights::<_, Bf16, I8>, Variant::CachePerTokenHead { source: E::Bf16, cache: E::I8, eights: true }, per_token_head::THREADS, 1, true;
    reshape_and_cache_per_token_head_bf16_i8_odd(PerTokenHeadParams) = per_token_head::ones::<_, Bf16, I8>, Variant::CachePerTokenHead { source: E::Bf16, cache: E::I8, eights: false }, per_token_head::THREADS, 1, true;
    reshape_and_cache_per_token_head_f16_i8(PerTokenHeadParams) = per_token_head::eights::<_, F16, I8>, Variant::CachePerTokenHead { source: E::F16, cache: E::I8, eights: true }, per_token_head::THREADS, 1, true;
    reshape_and_cache_per_token_head_f16_i8_odd(PerTokenHeadParams) = per_token_head::ones::<_, F16, I8>, Variant::CachePerTokenHead { source: E::F16, cache: E::I8, eights: false }, per_token_head::THREADS, 1, true;
    reshape_and_cache_per_token_head_f32_i8(PerTokenHeadParams) = per_token_head::eights::<_, F32, I8>, Variant::CachePerTokenHead { source: E::F32, cache: E::I8, eights: true }, per_token_head::THREADS, 1, true;
    reshape_and_cache_per_token_head_f32_i8_odd(PerTokenHeadParams) = per_token_head::ones::<_, F32, I8>, Variant::CachePerTokenHead { source: E::F32, cache: E::I8, eights: false }, per_token_head::THREADS, 1, true;
    rope_and_cache_bf16_bf16_bf16(RopeAndCacheParams) = rope_and_cache::<_, Bf16, Bf16, Bf16>, Variant::RopeAndCache { source: E::Bf16, cache: E::Bf16, query: E::Bf16 }, cache_write::THREADS, 1, true;
    rope_and_cache_bf16_e4m3_bf16(RopeAndCacheParams) = rope_and_cache::<_, Bf16, E4m3, Bf16>, Variant::RopeAndCache { source: E::Bf16, cache: E::E4m3, query: E::Bf16 }, cache_write::THREADS, 1, true;
    rope_and_cache_bf16_e4m3_e4m3(RopeAndCacheParams) = rope_and_cache::<_, Bf16, E4m3, E4m3>, Variant::RopeAndCache { source: E::Bf16, cache: E::E4m3, query: E::E4m3 }, cache_write::THREADS, 1, true;
    rope_and_cache_bf16_e5m2_bf16(RopeAndCacheParams) = rope_and_cache::<_, Bf16, E5m2, Bf16>, Variant::RopeAndCache { source: E::Bf16, cache: E::E5m2, query: E::Bf16 }, cache_write::THREADS, 1, true;
    rope_and_cache_bf16_e5m2_e4m3(RopeAndCacheParams) = rope_and_cache::<_, Bf16, E5m2, E4m3>, Variant::RopeAndCache { source: E::Bf16, cache: E::E5m2, query: E::E4m3 }, cache_write::THREADS, 1, true;
    rope_and_cache_f16_f16_f16(RopeAndCacheParams) = rope_and_cache::<_, F16, F16, F16>, Variant::RopeAndCache { source: E::F16, cache: E::F16, query: E::F16 }, cache_write::THREADS, 1, true;
    rope_and_cache_f16_e4m3_f16(RopeAndCacheParams) = rope_and_cache::<_, F16, E4m3, F16>, Variant::RopeAndCache { source: E::F16, cache: E::E4m3, query: E::F16 }, cache_write::THREADS, 1, true;
    rope_and_cache_f16_e4m3_e4m3(RopeAndCacheParams) = rope_and_cache::<_, F16, E4m3, E4m3>, Variant::RopeAndCache { source: E::F16, cache: E::E4m3, query: E::E4m3 }, cache_write::THREADS, 1, true;
    rope_and_cache_f16_e5m2_f16(RopeAndCacheParams) = rope_and_cache::<_, F16, E5m2, F16>, Variant::RopeAndCache { source: E::F16, cache: E::E5m2, query: E::F16 }, cache_write::THREADS, 1, true;
    rope_and_cache_f16_e5m2_e4m3(RopeAndCacheParams) = rope_and_cache::<_, F16, E5m2, E4m3>, Variant::RopeAndCache { source: E::F16, cache: E::E5m2, query: E::E4m3 }, cache_write::THREADS, 1, true;
    concat_and_cache_mla_fp8_ds(MlaEntryParams) = concat_and_cache_mla::fp8_ds, Variant::ConcatAndCacheMlaFp8Ds, concat_and_cache_mla::THREADS, 1, true;
    concat_and_cache_mla_v4(MlaEntryParams) = concat_and_cache_mla::v4, Variant::ConcatAndCacheMlaV4, concat_and_cache_mla::THREADS, 1, true;
    gather_copy(GatherParams) = gather::copy, Variant::GatherCopy, gather::THREADS, 1, true;
    gather_scaled_e4m3_bf16(GatherParams) = gather::scaled::<_, E4m3, Bf16>, Variant::GatherScaled { cache: E::E4m3, out: E::Bf16, eights: true }, gather::THREADS, 1, true;
    gather_scaled_e4m3_bf16_odd(GatherParams) = gather::scaled_ones::<_, E4m3, Bf16>, Variant::GatherScaled { cache: E::E4m3, out: E::Bf16, eights: false }, gather::THREADS, 1, true;
    gather_scaled_e4m3_f16(GatherParams) = gather::scaled::<_, E4m3, F16>, Variant::GatherScaled { cache: E::E4m3, out: E::F16, eights: true }, gather::THREADS, 1, true;
    gather_scaled_e4m3_f16_odd(GatherParams) = gather::scaled_ones::<_, E4m3, F16>, Variant::GatherScaled { cache: E::E4m3, out: E::F16, eights: false }, gather::THREADS, 1, true;
    gather_scaled_e4m3_f32(GatherParams) = gather::scaled::<_, E4m3, F32>, Variant::GatherScaled { cache: E::E4m3, out: E::F32, eights: true }, gather::THREADS, 1, true;
    gather_scaled_e4m3_f32_odd(GatherParams) = gather::scaled_ones::<_, E4m3, F32>, Variant::GatherScaled { cache: E::E4m3, out: E::F32, eights: false }, gather::THREADS, 1, true;
    gather_scaled_e5m2_bf16(GatherParams) = gather::scaled::<_, E5m2, Bf16>, Variant::GatherScaled { cache: E::E5m2, out: E::Bf16, eights: true }, gather::THREADS, 1, true;
    gather_scaled_e5m2_bf16_odd(GatherParams) = gather::scaled_ones::<_, E5m2, Bf16>, Variant::GatherScaled { cache: E::E5m2, out: E::Bf16, eights: false }, gather::THREADS, 1, true;
    gather_scaled_e5m2_f16(GatherParams) = gather::scaled::<_, E5m2, F16>, Variant::GatherScaled { cache: E::E5m2, out: E::F16, eights: true }, gather::THREADS, 1, true;
    gather_scaled_e5m2_f16_odd(GatherParams) = gather::scaled_ones::<_, E5m2, F16>, Variant::GatherScaled { cache: E::E5m2, out: E::F16, eights: false }, gather::THREADS, 1, true;
    gather_scaled_e5m2_f32(GatherParams) = gather::scaled::<_, E5m2, F32>, Variant::GatherScaled { cache: E::E5m2, out: E::F32, eights: true }, gather::THREADS, 1, true;
    gather_scaled_e5m2_f32_odd(GatherParams) = gather::scaled_ones::<_, E5m2, F32>, Variant::GatherScaled { cache: E::E5m2, out: E::F32, eights: false }, gather::THREADS, 1, true;
    gather_mla_fp8_ds(GatherParams) = gather::mla_fp8_ds, Variant::GatherMlaFp8Ds, gather::THREADS, 1, true;
    gather_mla_v4(GatherParams) = gather::mla_v4, Variant::GatherMlaV4, gather::THREADS, 1, true;
    copy_blocks(CopyBlocksParams) = copy_blocks::copy_blocks, Variant::CopyBlocks, copy_blocks::THREADS, 1, true;
    compact_mark(CompactParams) = compact::mark, Variant::CompactMark, compact::THREADS, 1, false;
    compact_number(CompactParams) = compact::number, Variant::CompactNumber, compact::THREADS, 1, false;
    compact_rename(CompactParams) = compact::rename, Variant::CompactRename, compact::THREADS, 1, false;
    check_paged(CheckPagedParams) = check::check_paged, Variant::CheckPaged, check::THREADS, 1, false;
    check_slots(CheckSlotsParams) = check::check_slots, Variant::CheckSlots, check::THREADS, 1, false;
    check_gather(GatherParams) = gather::check_gather, Variant::CheckGather, gather::THREADS, 1, false;
    check_pairs(CopyBlocksParams) = copy_blocks::check_pairs, Variant::CheckPairs, copy_blocks::THREADS, 1, false;
    read_ceiling(ReadCeilingParams) = read_ceiling::read_ceiling, Variant::ReadCeiling, read_ceiling::THREADS, 1, false;

    [sm_90a]
    prefill_gqa_bf16_d128_sm90a(PrefillParams) = prefill_gqa_group::prefill_gqa_group::<_, Bf16, 8, 8, false>, prefill_together(C::Bf16, 128, 128, Products::WarpGroup), prefill_gqa_group::threads::<Bf16, 8, 8, false>(), 1, false;
    prefill_gqa_f16_d128_sm90a(PrefillParams) = prefill_gqa_group::prefill_gqa_group::<_, F16, 8, 8, false>, prefill_together(C::F16, 128, 128, Products::WarpGroup), prefill_gqa_group::threads::<F16, 8, 8, false>(), 1, false;
    prefill_gqa_bf16_d64_sm90a(PrefillParams) = prefill_gqa_group::prefill_gqa_group::<_, Bf16, 4, 4, false>, prefill_together(C::Bf16, 64, 64, Products::WarpGroup), prefill_gqa_group::threads::<Bf16, 4, 4, false>(), 1, true;
    prefill_gqa_f16_d64_sm90a(PrefillParams) = prefill_gqa_group::prefill_gqa_group::<_, F16, 4, 4, false>, prefill_together(C::F16, 64, 64, Products::WarpGroup), prefill_gqa_group::threads::<F16, 4, 4, false>(), 1, true;
    prefill_gqa_e4m3_d128_sm90a(PrefillParams) = prefill_gqa_group::prefill_gqa_group::<_, E4m3, 8, 8, false>, prefill_together(C::E4m3, 128, 128, Products::WarpGroup), prefill_gqa_group::threads::<E4m3, 8, 8, false>(), 1, false;
    prefill_gqa_e4m3_qe4m3_d128_sm90a(PrefillParams) = prefill_gqa_group::prefill_gqa_group::<_, E4m3, 8, 8, true>, prefill_together(C::E4m3, 128, 128, Products::WarpGroupOfBytes), prefill_gqa_group::threads::<E4m3, 8, 8, true>(), 1, false;
    prefill_gqa_e4m3_d64_sm90a(PrefillParams) = prefill_gqa_group::prefill_gqa_group::<_, E4m3, 4, 4, false>, prefill_together(C::E4m3, 64, 64, Products::WarpGroup), prefill_gqa_group::threads::<E4m3, 4, 4, false>(), 1, true;
    prefill_gqa_e4m3_qe4m3_d64_sm90a(PrefillParams) = prefill_gqa_group::prefill_gqa_group::<_, E4m3, 4, 4, true>, prefill_together(C::E4m3, 64, 64, Products::WarpGroupOfBytes), prefill_gqa_group::threads::<E4m3, 4, 4, true>(), 1, true;
}
