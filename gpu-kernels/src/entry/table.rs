//! The rows: a symbol, the kernel it stands for, and whether that one may keep registers in memory.
//!
//! Why some may: prefill kernels of 96 and 128 values per head keep a few words of state there, read once per tile, since
//! two row tiles of accumulators and scores leave them no register, and halving the row tiles would cost far more, in
//! reads of shared memory. Of the MLA kernels it is those of 64 heads, and that of e4m3 rows and 16 heads on sm_80, by a
//! few words on GPUs that they were not tuned on, or as one of the two compilers has them; so do decode kernels of 256
//! values with score mods, before sm_90, as stock rustc has them. `merge_splits` keeps four words there as rust-cuda
//! compiles it: with a register more for each, fewer thread blocks would wait for memory side by side.

use super::{Arch, ArchSet, Entry, section};
use crate::attention::check::{CheckPaged, CheckSlots};
use crate::attention::schedule::Schedule;
use crate::bench::read_ceiling::ReadCeiling;
use crate::cache::compact::{CompactMark, CompactNumber, CompactRename};
use crate::cache::concat_and_cache_mla::{ConcatAndCacheMlaFp8Ds, ConcatAndCacheMlaV4};
use crate::cache::copy_blocks::{CheckPairs, CopyBlocks};
use crate::cache::reshape_and_cache_flash::{CacheCopy, CacheScaled};
use crate::cache::reshape_and_cache_per_token_head::CachePerTokenHead;
use crate::cache::rope_and_cache::RopeAndCache;
use crate::decode::kernel::DecodeGqa;
use crate::decode::merge::{MergeScheduled, MergeSplits};
use crate::dtype::{Bf16, E4m3, E4m3PerToken, E5m2, F16, F32, I8, I8PerToken};
use crate::gather::kernel::{CheckGather, GatherCopy, GatherMlaFp8Ds, GatherMlaV4, GatherScaled};
use crate::kernel::{D64, D96, D128, D192, D192V128, D256, D288V256, D576V512, H8, H16, Kernel};
use crate::mla::kernel::{DecodeMla, MlaTiling};
use crate::mla::kernel_fp8::DecodeMlaEntry;
use crate::mla::kernel_sm90a::DecodeMlaSm90a;
use crate::mla::{Fp8Ds, V4};
use crate::prefill::kernel::PrefillGqa;
use crate::prefill::kernel_sm90a::PrefillGqaSm90a;
use crate::prefill::merge::MergeRows;

/// A lane of a kernel, with a function and a stack frame for each: all in one would be more than a compiler, or a lane's
/// stack, can take.
///
/// # Safety
/// `params` points to the kernel's parameter block, and the launch keeps the kernel's conditions.
#[cfg(not(target_arch = "nvptx64"))]
#[inline(never)]
unsafe fn lane<K: Kernel, G: crate::gpu::Gpu>(gpu: G, params: *const u8) {
    // SAFETY: `params` points to a block of this kernel: this function's contract.
    let params = unsafe { params.cast::<K::Params>().read_unaligned() };
    // SAFETY: the launch keeps the kernel's conditions: this function's contract.
    unsafe { K::run(gpu, &params) }
}

entries! {
    [everywhere]
    decode_gqa_bf16_d64_h8: DecodeGqa<Bf16, D64, H8>;
    decode_gqa_bf16_d64_h16: DecodeGqa<Bf16, D64, H16>;
    decode_gqa_bf16_d96_h8: DecodeGqa<Bf16, D96, H8>;
    decode_gqa_bf16_d96_h16: DecodeGqa<Bf16, D96, H16>;
    decode_gqa_bf16_d128_h8: DecodeGqa<Bf16, D128, H8>;
    decode_gqa_bf16_d128_h16: DecodeGqa<Bf16, D128, H16>;
    decode_gqa_bf16_d192v128_h8: DecodeGqa<Bf16, D192V128, H8>;
    decode_gqa_bf16_d192v128_h16: DecodeGqa<Bf16, D192V128, H16>;
    decode_gqa_bf16_d192_h8: DecodeGqa<Bf16, D192, H8>;
    decode_gqa_bf16_d256_h8: DecodeGqa<Bf16, D256, H8>;
    decode_gqa_f16_d64_h8: DecodeGqa<F16, D64, H8>;
    decode_gqa_f16_d64_h16: DecodeGqa<F16, D64, H16>;
    decode_gqa_f16_d96_h8: DecodeGqa<F16, D96, H8>;
    decode_gqa_f16_d96_h16: DecodeGqa<F16, D96, H16>;
    decode_gqa_f16_d128_h8: DecodeGqa<F16, D128, H8>;
    decode_gqa_f16_d128_h16: DecodeGqa<F16, D128, H16>;
    decode_gqa_f16_d192v128_h8: DecodeGqa<F16, D192V128, H8>;
    decode_gqa_f16_d192v128_h16: DecodeGqa<F16, D192V128, H16>;
    decode_gqa_f16_d192_h8: DecodeGqa<F16, D192, H8>;
    decode_gqa_f16_d256_h8: DecodeGqa<F16, D256, H8>;
    decode_gqa_e4m3_d64_h8: DecodeGqa<E4m3, D64, H8>;
    decode_gqa_e4m3_d64_h16: DecodeGqa<E4m3, D64, H16>;
    decode_gqa_e4m3_d96_h8: DecodeGqa<E4m3, D96, H8>;
    decode_gqa_e4m3_d96_h16: DecodeGqa<E4m3, D96, H16>;
    decode_gqa_e4m3_d128_h8: DecodeGqa<E4m3, D128, H8>;
    decode_gqa_e4m3_d128_h16: DecodeGqa<E4m3, D128, H16>;
    decode_gqa_e4m3_d192v128_h8: DecodeGqa<E4m3, D192V128, H8>;
    decode_gqa_e4m3_d192v128_h16: DecodeGqa<E4m3, D192V128, H16>;
    decode_gqa_e4m3_d192_h8: DecodeGqa<E4m3, D192, H8>;
    decode_gqa_e4m3_d256_h8: DecodeGqa<E4m3, D256, H8>;
    decode_gqa_e5m2_d64_h8: DecodeGqa<E5m2, D64, H8>;
    decode_gqa_e5m2_d64_h16: DecodeGqa<E5m2, D64, H16>;
    decode_gqa_e5m2_d96_h8: DecodeGqa<E5m2, D96, H8>;
    decode_gqa_e5m2_d96_h16: DecodeGqa<E5m2, D96, H16>;
    decode_gqa_e5m2_d128_h8: DecodeGqa<E5m2, D128, H8>;
    decode_gqa_e5m2_d128_h16: DecodeGqa<E5m2, D128, H16>;
    decode_gqa_e5m2_d192v128_h8: DecodeGqa<E5m2, D192V128, H8>;
    decode_gqa_e5m2_d192v128_h16: DecodeGqa<E5m2, D192V128, H16>;
    decode_gqa_e5m2_d192_h8: DecodeGqa<E5m2, D192, H8>;
    decode_gqa_e5m2_d256_h8: DecodeGqa<E5m2, D256, H8>;
    decode_gqa_e4m3_token_d64_h8: DecodeGqa<E4m3PerToken, D64, H8>;
    decode_gqa_e4m3_token_d64_h16: DecodeGqa<E4m3PerToken, D64, H16>;
    decode_gqa_e4m3_token_d96_h8: DecodeGqa<E4m3PerToken, D96, H8>;
    decode_gqa_e4m3_token_d96_h16: DecodeGqa<E4m3PerToken, D96, H16>;
    decode_gqa_e4m3_token_d128_h8: DecodeGqa<E4m3PerToken, D128, H8>;
    decode_gqa_e4m3_token_d128_h16: DecodeGqa<E4m3PerToken, D128, H16>;
    decode_gqa_e4m3_token_d192v128_h8: DecodeGqa<E4m3PerToken, D192V128, H8>;
    decode_gqa_e4m3_token_d192v128_h16: DecodeGqa<E4m3PerToken, D192V128, H16>;
    decode_gqa_e4m3_token_d192_h8: DecodeGqa<E4m3PerToken, D192, H8>;
    decode_gqa_e4m3_token_d256_h8: DecodeGqa<E4m3PerToken, D256, H8>;
    decode_gqa_i8_token_d64_h8: DecodeGqa<I8PerToken, D64, H8>;
    decode_gqa_i8_token_d64_h16: DecodeGqa<I8PerToken, D64, H16>;
    decode_gqa_i8_token_d96_h8: DecodeGqa<I8PerToken, D96, H8>;
    decode_gqa_i8_token_d96_h16: DecodeGqa<I8PerToken, D96, H16>;
    decode_gqa_i8_token_d128_h8: DecodeGqa<I8PerToken, D128, H8>;
    decode_gqa_i8_token_d128_h16: DecodeGqa<I8PerToken, D128, H16>;
    decode_gqa_i8_token_d192v128_h8: DecodeGqa<I8PerToken, D192V128, H8>;
    decode_gqa_i8_token_d192v128_h16: DecodeGqa<I8PerToken, D192V128, H16>;
    decode_gqa_i8_token_d192_h8: DecodeGqa<I8PerToken, D192, H8>;
    decode_gqa_i8_token_d256_h8: DecodeGqa<I8PerToken, D256, H8>;
    decode_gqa_bf16_d64_h8_rule: DecodeGqa<Bf16, D64, H8, true>;
    decode_gqa_bf16_d96_h8_rule: DecodeGqa<Bf16, D96, H8, true>;
    decode_gqa_bf16_d128_h8_rule: DecodeGqa<Bf16, D128, H8, true>;
    decode_gqa_bf16_d192v128_h8_rule: DecodeGqa<Bf16, D192V128, H8, true>;
    decode_gqa_bf16_d192_h8_rule: DecodeGqa<Bf16, D192, H8, true>;
    decode_gqa_bf16_d256_h8_rule: DecodeGqa<Bf16, D256, H8, true>, may_spill;
    decode_gqa_f16_d64_h8_rule: DecodeGqa<F16, D64, H8, true>;
    decode_gqa_f16_d96_h8_rule: DecodeGqa<F16, D96, H8, true>;
    decode_gqa_f16_d128_h8_rule: DecodeGqa<F16, D128, H8, true>;
    decode_gqa_f16_d192v128_h8_rule: DecodeGqa<F16, D192V128, H8, true>;
    decode_gqa_f16_d192_h8_rule: DecodeGqa<F16, D192, H8, true>;
    decode_gqa_f16_d256_h8_rule: DecodeGqa<F16, D256, H8, true>, may_spill;
    decode_gqa_e4m3_d64_h8_rule: DecodeGqa<E4m3, D64, H8, true>;
    decode_gqa_e4m3_d96_h8_rule: DecodeGqa<E4m3, D96, H8, true>;
    decode_gqa_e4m3_d128_h8_rule: DecodeGqa<E4m3, D128, H8, true>;
    decode_gqa_e4m3_d192v128_h8_rule: DecodeGqa<E4m3, D192V128, H8, true>;
    decode_gqa_e4m3_d192_h8_rule: DecodeGqa<E4m3, D192, H8, true>;
    decode_gqa_e4m3_d256_h8_rule: DecodeGqa<E4m3, D256, H8, true>;
    decode_gqa_e5m2_d64_h8_rule: DecodeGqa<E5m2, D64, H8, true>;
    decode_gqa_e5m2_d96_h8_rule: DecodeGqa<E5m2, D96, H8, true>;
    decode_gqa_e5m2_d128_h8_rule: DecodeGqa<E5m2, D128, H8, true>;
    decode_gqa_e5m2_d192v128_h8_rule: DecodeGqa<E5m2, D192V128, H8, true>;
    decode_gqa_e5m2_d192_h8_rule: DecodeGqa<E5m2, D192, H8, true>;
    decode_gqa_e5m2_d256_h8_rule: DecodeGqa<E5m2, D256, H8, true>;
    decode_gqa_e4m3_token_d64_h8_rule: DecodeGqa<E4m3PerToken, D64, H8, true>;
    decode_gqa_e4m3_token_d96_h8_rule: DecodeGqa<E4m3PerToken, D96, H8, true>;
    decode_gqa_e4m3_token_d128_h8_rule: DecodeGqa<E4m3PerToken, D128, H8, true>;
    decode_gqa_e4m3_token_d192v128_h8_rule: DecodeGqa<E4m3PerToken, D192V128, H8, true>;
    decode_gqa_e4m3_token_d192_h8_rule: DecodeGqa<E4m3PerToken, D192, H8, true>;
    decode_gqa_e4m3_token_d256_h8_rule: DecodeGqa<E4m3PerToken, D256, H8, true>;
    decode_gqa_i8_token_d64_h8_rule: DecodeGqa<I8PerToken, D64, H8, true>;
    decode_gqa_i8_token_d96_h8_rule: DecodeGqa<I8PerToken, D96, H8, true>;
    decode_gqa_i8_token_d128_h8_rule: DecodeGqa<I8PerToken, D128, H8, true>;
    decode_gqa_i8_token_d192v128_h8_rule: DecodeGqa<I8PerToken, D192V128, H8, true>;
    decode_gqa_i8_token_d192_h8_rule: DecodeGqa<I8PerToken, D192, H8, true>;
    decode_gqa_i8_token_d256_h8_rule: DecodeGqa<I8PerToken, D256, H8, true>;
    decode_mla_bf16_d576v512_h16: DecodeMla<Bf16, D576V512, MlaTiling<2, 1, 1, 8>>;
    decode_mla_bf16_d576v512_h64: DecodeMla<Bf16, D576V512, MlaTiling<8, 2, 2, 4>>, may_spill;
    decode_mla_bf16_d288v256_h16: DecodeMla<Bf16, D288V256, MlaTiling<2, 1, 1, 4>>;
    decode_mla_bf16_d288v256_h64: DecodeMla<Bf16, D288V256, MlaTiling<8, 2, 2, 2>>;
    decode_mla_f16_d576v512_h16: DecodeMla<F16, D576V512, MlaTiling<2, 1, 1, 8>>;
    decode_mla_f16_d576v512_h64: DecodeMla<F16, D576V512, MlaTiling<8, 2, 2, 4>>, may_spill;
    decode_mla_f16_d288v256_h16: DecodeMla<F16, D288V256, MlaTiling<2, 1, 1, 4>>;
    decode_mla_f16_d288v256_h64: DecodeMla<F16, D288V256, MlaTiling<8, 2, 2, 2>>;
    decode_mla_e4m3_d576v512_h16: DecodeMla<E4m3, D576V512, MlaTiling<2, 1, 2, 8, 2>>, may_spill;
    decode_mla_e4m3_d576v512_h64: DecodeMla<E4m3, D576V512, MlaTiling<8, 4, 1, 4>>, may_spill;
    decode_mla_e4m3_d288v256_h16: DecodeMla<E4m3, D288V256, MlaTiling<2, 1, 2, 4, 2>>;
    decode_mla_e4m3_d288v256_h64: DecodeMla<E4m3, D288V256, MlaTiling<8, 4, 1, 2>>;
    decode_mla_e5m2_d576v512_h16: DecodeMla<E5m2, D576V512, MlaTiling<2, 1, 2, 8, 2>>;
    decode_mla_e5m2_d576v512_h64: DecodeMla<E5m2, D576V512, MlaTiling<8, 4, 1, 4>>, may_spill;
    decode_mla_e5m2_d288v256_h16: DecodeMla<E5m2, D288V256, MlaTiling<2, 1, 2, 4, 2>>;
    decode_mla_e5m2_d288v256_h64: DecodeMla<E5m2, D288V256, MlaTiling<8, 4, 1, 2>>;
    decode_mla_entry_fp8_ds_h16: DecodeMlaEntry<Fp8Ds, 36, MlaTiling<2, 1, 1, 8>>;
    decode_mla_entry_fp8_ds_h64: DecodeMlaEntry<Fp8Ds, 36, MlaTiling<8, 2, 2, 4>>, may_spill;
    decode_mla_entry_v4_h16: DecodeMlaEntry<V4, 32, MlaTiling<2, 1, 1, 8>>;
    decode_mla_entry_v4_h64: DecodeMlaEntry<V4, 32, MlaTiling<8, 2, 2, 4>>, may_spill;
    prefill_gqa_bf16_d64: PrefillGqa<Bf16, D64, 2, 4>;
    prefill_gqa_bf16_d96: PrefillGqa<Bf16, D96, 2, 4>, may_spill;
    prefill_gqa_bf16_d128: PrefillGqa<Bf16, D128, 2, 4>, may_spill;
    prefill_gqa_bf16_d192v128: PrefillGqa<Bf16, D192V128, 2, 2>, may_spill;
    prefill_gqa_bf16_d192: PrefillGqa<Bf16, D192, 1, 2>;
    prefill_gqa_bf16_d256: PrefillGqa<Bf16, D256, 1, 2>;
    prefill_gqa_f16_d64: PrefillGqa<F16, D64, 2, 4>;
    prefill_gqa_f16_d96: PrefillGqa<F16, D96, 2, 4>, may_spill;
    prefill_gqa_f16_d128: PrefillGqa<F16, D128, 2, 4>, may_spill;
    prefill_gqa_f16_d192v128: PrefillGqa<F16, D192V128, 2, 2>, may_spill;
    prefill_gqa_f16_d192: PrefillGqa<F16, D192, 1, 2>;
    prefill_gqa_f16_d256: PrefillGqa<F16, D256, 1, 2>;
    prefill_gqa_e4m3_d64: PrefillGqa<E4m3, D64, 2, 4>;
    prefill_gqa_e4m3_d96: PrefillGqa<E4m3, D96, 2, 4>, may_spill;
    prefill_gqa_e4m3_d128: PrefillGqa<E4m3, D128, 2, 4>, may_spill;
    prefill_gqa_e4m3_d192v128: PrefillGqa<E4m3, D192V128, 2, 2>, may_spill;
    prefill_gqa_e4m3_d192: PrefillGqa<E4m3, D192, 1, 2>;
    prefill_gqa_e4m3_d256: PrefillGqa<E4m3, D256, 1, 2>;
    prefill_gqa_e5m2_d64: PrefillGqa<E5m2, D64, 2, 4>;
    prefill_gqa_e5m2_d96: PrefillGqa<E5m2, D96, 2, 4>, may_spill;
    prefill_gqa_e5m2_d128: PrefillGqa<E5m2, D128, 2, 4>, may_spill;
    prefill_gqa_e5m2_d192v128: PrefillGqa<E5m2, D192V128, 2, 2>, may_spill;
    prefill_gqa_e5m2_d192: PrefillGqa<E5m2, D192, 1, 2>;
    prefill_gqa_e5m2_d256: PrefillGqa<E5m2, D256, 1, 2>;
    prefill_gqa_e4m3_token_d64: PrefillGqa<E4m3PerToken, D64, 2, 4>, may_spill;
    prefill_gqa_e4m3_token_d96: PrefillGqa<E4m3PerToken, D96, 2, 4>, may_spill;
    prefill_gqa_e4m3_token_d128: PrefillGqa<E4m3PerToken, D128, 2, 4>, may_spill;
    prefill_gqa_e4m3_token_d192v128: PrefillGqa<E4m3PerToken, D192V128, 2, 2>, may_spill;
    prefill_gqa_e4m3_token_d192: PrefillGqa<E4m3PerToken, D192, 1, 2>;
    prefill_gqa_e4m3_token_d256: PrefillGqa<E4m3PerToken, D256, 1, 2>;
    prefill_gqa_i8_token_d64: PrefillGqa<I8PerToken, D64, 2, 4>, may_spill;
    prefill_gqa_i8_token_d96: PrefillGqa<I8PerToken, D96, 2, 4>, may_spill;
    prefill_gqa_i8_token_d128: PrefillGqa<I8PerToken, D128, 2, 4>, may_spill;
    prefill_gqa_i8_token_d192v128: PrefillGqa<I8PerToken, D192V128, 2, 2>, may_spill;
    prefill_gqa_i8_token_d192: PrefillGqa<I8PerToken, D192, 1, 2>;
    prefill_gqa_i8_token_d256: PrefillGqa<I8PerToken, D256, 1, 2>;
    merge_rows: MergeRows;
    merge_splits_bf16: MergeSplits<Bf16>, may_spill;
    merge_splits_f16: MergeSplits<F16>, may_spill;
    merge_scheduled_bf16: MergeScheduled<Bf16>, may_spill;
    merge_scheduled_f16: MergeScheduled<F16>, may_spill;
    reshape_and_cache_copy: CacheCopy;
    reshape_and_cache_scaled_bf16_e4m3: CacheScaled<Bf16, E4m3>;
    reshape_and_cache_scaled_bf16_e4m3_odd: CacheScaled<Bf16, E4m3, false>;
    reshape_and_cache_scaled_f16_e4m3: CacheScaled<F16, E4m3>;
    reshape_and_cache_scaled_f16_e4m3_odd: CacheScaled<F16, E4m3, false>;
    reshape_and_cache_scaled_f32_e4m3: CacheScaled<F32, E4m3>;
    reshape_and_cache_scaled_f32_e4m3_odd: CacheScaled<F32, E4m3, false>;
    reshape_and_cache_scaled_bf16_e5m2: CacheScaled<Bf16, E5m2>;
    reshape_and_cache_scaled_bf16_e5m2_odd: CacheScaled<Bf16, E5m2, false>;
    reshape_and_cache_scaled_f16_e5m2: CacheScaled<F16, E5m2>;
    reshape_and_cache_scaled_f16_e5m2_odd: CacheScaled<F16, E5m2, false>;
    reshape_and_cache_scaled_f32_e5m2: CacheScaled<F32, E5m2>;
    reshape_and_cache_scaled_f32_e5m2_odd: CacheScaled<F32, E5m2, false>;
    reshape_and_cache_per_token_head_bf16_e4m3: CachePerTokenHead<Bf16, E4m3>;
    reshape_and_cache_per_token_head_bf16_e4m3_odd: CachePerTokenHead<Bf16, E4m3, false>;
    reshape_and_cache_per_token_head_f16_e4m3: CachePerTokenHead<F16, E4m3>;
    reshape_and_cache_per_token_head_f16_e4m3_odd: CachePerTokenHead<F16, E4m3, false>;
    reshape_and_cache_per_token_head_f32_e4m3: CachePerTokenHead<F32, E4m3>;
    reshape_and_cache_per_token_head_f32_e4m3_odd: CachePerTokenHead<F32, E4m3, false>;
    reshape_and_cache_per_token_head_bf16_i8: CachePerTokenHead<Bf16, I8>;
    reshape_and_cache_per_token_head_bf16_i8_odd: CachePerTokenHead<Bf16, I8, false>;
    reshape_and_cache_per_token_head_f16_i8: CachePerTokenHead<F16, I8>;
    reshape_and_cache_per_token_head_f16_i8_odd: CachePerTokenHead<F16, I8, false>;
    reshape_and_cache_per_token_head_f32_i8: CachePerTokenHead<F32, I8>;
    reshape_and_cache_per_token_head_f32_i8_odd: CachePerTokenHead<F32, I8, false>;
    rope_and_cache_bf16_bf16_bf16: RopeAndCache<Bf16, Bf16, Bf16>;
    rope_and_cache_bf16_e4m3_bf16: RopeAndCache<Bf16, E4m3, Bf16>;
    rope_and_cache_bf16_e4m3_e4m3: RopeAndCache<Bf16, E4m3, E4m3>;
    rope_and_cache_bf16_e5m2_bf16: RopeAndCache<Bf16, E5m2, Bf16>;
    rope_and_cache_bf16_e5m2_e4m3: RopeAndCache<Bf16, E5m2, E4m3>;
    rope_and_cache_f16_f16_f16: RopeAndCache<F16, F16, F16>;
    rope_and_cache_f16_e4m3_f16: RopeAndCache<F16, E4m3, F16>;
    rope_and_cache_f16_e4m3_e4m3: RopeAndCache<F16, E4m3, E4m3>;
    rope_and_cache_f16_e5m2_f16: RopeAndCache<F16, E5m2, F16>;
    rope_and_cache_f16_e5m2_e4m3: RopeAndCache<F16, E5m2, E4m3>;
    concat_and_cache_mla_fp8_ds: ConcatAndCacheMlaFp8Ds;
    concat_and_cache_mla_v4: ConcatAndCacheMlaV4;
    gather_copy: GatherCopy;
    gather_scaled_e4m3_bf16: GatherScaled<E4m3, Bf16>;
    gather_scaled_e4m3_bf16_odd: GatherScaled<E4m3, Bf16, false>;
    gather_scaled_e4m3_f16: GatherScaled<E4m3, F16>;
    gather_scaled_e4m3_f16_odd: GatherScaled<E4m3, F16, false>;
    gather_scaled_e4m3_f32: GatherScaled<E4m3, F32>;
    gather_scaled_e4m3_f32_odd: GatherScaled<E4m3, F32, false>;
    gather_scaled_e5m2_bf16: GatherScaled<E5m2, Bf16>;
    gather_scaled_e5m2_bf16_odd: GatherScaled<E5m2, Bf16, false>;
    gather_scaled_e5m2_f16: GatherScaled<E5m2, F16>;
    gather_scaled_e5m2_f16_odd: GatherScaled<E5m2, F16, false>;
    gather_scaled_e5m2_f32: GatherScaled<E5m2, F32>;
    gather_scaled_e5m2_f32_odd: GatherScaled<E5m2, F32, false>;
    gather_mla_fp8_ds: GatherMlaFp8Ds;
    gather_mla_v4: GatherMlaV4;
    schedule: Schedule, may_spill;
    copy_blocks: CopyBlocks;
    compact_mark: CompactMark, may_spill;
    compact_number: CompactNumber, may_spill;
    compact_rename: CompactRename, may_spill;
    check_paged: CheckPaged, may_spill;
    check_slots: CheckSlots, may_spill;
    check_gather: CheckGather, may_spill;
    check_pairs: CheckPairs, may_spill;
    read_ceiling: ReadCeiling, may_spill;

    [sm_90a]
    prefill_gqa_bf16_d128_sm90a: PrefillGqaSm90a<Bf16, D128>, may_spill;
    prefill_gqa_f16_d128_sm90a: PrefillGqaSm90a<F16, D128>, may_spill;
    prefill_gqa_bf16_d64_sm90a: PrefillGqaSm90a<Bf16, D64>;
    prefill_gqa_f16_d64_sm90a: PrefillGqaSm90a<F16, D64>;
    prefill_gqa_e4m3_d128_sm90a: PrefillGqaSm90a<E4m3, D128>, may_spill;
    prefill_gqa_e4m3_qe4m3_d128_sm90a: PrefillGqaSm90a<E4m3, D128, true>, may_spill;
    prefill_gqa_e4m3_d64_sm90a: PrefillGqaSm90a<E4m3, D64>;
    prefill_gqa_e4m3_qe4m3_d64_sm90a: PrefillGqaSm90a<E4m3, D64, true>;
    decode_mla_bf16_d576v512_h64_sm90a: DecodeMlaSm90a<Bf16, D576V512>;
    decode_mla_f16_d576v512_h64_sm90a: DecodeMlaSm90a<F16, D576V512>;
}
