//! What each compiled kernel adds to the support matrix. A new variant, or a new member of one, has to be described here
//! before anything compiles.

use gpu_kernels::cache::reshape_and_cache_per_token_head::MAX_HEAD_SIZE;
use gpu_kernels::dtype::{CacheDtype, QueryDtype};
use gpu_kernels::entry::{EntryId, Variant};
use gpu_kernels::mla::cache_format::{EntryForm, fp8_ds, v4};
use gpu_kernels::prefill::MmaKind;

use super::operation::only;
use super::{Cache, Operation, Output, Scales, Sizes, Support, Tensors};
use crate::plan::{dtypes, variants};
use crate::tensor::Dtype;

/// What a kernel is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Role {
    /// Without it, these combinations would be refused.
    Supports(Vec<Support>),
    /// It takes part in these operations; what they support, other kernels decide.
    Assists(&'static [Operation]),
    /// It measures a machine.
    Measures,
}

/// What a kernel is for.
pub fn role(variant: Variant) -> Role {
    match variant {
        Variant::DecodeGqa {
            cache,
            head_size,
            head_size_v,
            heads_per_cta: _,
            ruled: false,
        } => supports(
            Operation::Decode,
            attention(cache, outputs),
            heads(head_size, head_size_v),
        ),
        Variant::DecodeGqa { ruled: true, .. } => {
            Role::Assists(&[Operation::Decode, Operation::UnifiedAttention])
        }
        Variant::PrefillGqa {
            cache,
            head_size,
            head_size_v,
            products: MmaKind::Warp,
        } => supports(
            Operation::UnifiedAttention,
            attention(cache, outputs_and_fp8),
            heads(head_size, head_size_v),
        ),
        // Faster, where they run.
        Variant::PrefillGqa {
            products: MmaKind::WarpGroup | MmaKind::WarpGroupOfBytes,
            ..
        } => Role::Assists(&[Operation::UnifiedAttention]),
        // Faster, where they run.
        Variant::DecodeMla { cut, .. } if cut.products.is_group() => {
            Role::Assists(&[Operation::DecodeMla])
        }
        Variant::DecodeMla {
            cache,
            head_size,
            cut,
        } => {
            let mut over = attention(cache, outputs);
            // Latent and rotary part are one tensor.
            over.scales.retain(|&scales| scales != Scales::PerHead);
            supports(
                Operation::DecodeMla,
                over,
                heads(head_size, cut.head_size_v),
            )
        }
        Variant::DecodeMlaEntry { form, cut } => supports(
            Operation::DecodeMlaEntry,
            Over {
                tensors: vec![tensors(Dtype::Bf16, Output::Dtype(Dtype::Bf16))],
                ..entries(form)
            },
            heads(row_size(form), cut.head_size_v),
        ),
        Variant::MergeFew { dtype: _ }
        | Variant::MergeSplits { dtype: _ }
        | Variant::MergeMany { dtype: _ } => Role::Assists(&[
            Operation::Decode,
            Operation::UnifiedAttention,
            Operation::DecodeMla,
            Operation::DecodeMlaEntry,
        ]),
        // Whatever takes a schedule.
        Variant::MergeScheduled { dtype: _ } => only(EntryId::schedule),
        Variant::MergeRows => Role::Assists(&[Operation::UnifiedAttention]),
        Variant::CacheCopy => copies(),
        Variant::CacheScaled {
            source,
            cache,
            vec8: _,
        } => {
            let over = |scales: &[Scales]| Over {
                tensors: vec![tensors(source, Output::None)],
                cache: Cache::Dtype(cache),
                scales: scales.to_vec(),
            };
            Role::Supports(vec![
                over(&[Scales::PerTensor, Scales::PerHead])
                    .of(Operation::ReshapeAndCacheFlash, Sizes::Any),
                over(&[Scales::PerTensor, Scales::PerLayer])
                    .of(Operation::ConcatAndCacheMla, Sizes::Any),
            ])
        }
        Variant::CachePerTokenHead {
            source,
            cache,
            vec8: _,
        } => supports(
            Operation::ReshapeAndCacheFlash,
            Over {
                tensors: vec![tensors(source, Output::None)],
                cache: Cache::Dtype(cache),
                scales: vec![Scales::PerTokenHead],
            },
            Sizes::UpTo(MAX_HEAD_SIZE),
        ),
        Variant::RopeAndCache {
            source,
            cache,
            query,
        } => {
            let is_copied = source == cache;
            supports(
                Operation::RopeAndCache,
                Over {
                    tensors: vec![tensors(source, Output::Dtype(query))],
                    cache: if is_copied {
                        Cache::Input
                    } else {
                        Cache::Dtype(cache)
                    },
                    scales: if is_copied {
                        vec![Scales::None]
                    } else {
                        vec![Scales::PerTensor, Scales::PerHead]
                    },
                },
                Sizes::Any,
            )
        }
        Variant::ConcatAndCacheMlaFp8Ds => concat_entries(EntryForm::Fp8Ds),
        Variant::ConcatAndCacheMlaV4 => concat_entries(EntryForm::V4),
        Variant::GatherCopy => Role::Supports(vec![
            any().of(Operation::Gather, Sizes::Any),
            any().of(Operation::Compact, Sizes::Any),
        ]),
        Variant::GatherScaled {
            cache,
            out,
            vec8: _,
        } => supports(
            Operation::Gather,
            Over {
                tensors: vec![gathered(out)],
                cache: Cache::Dtype(cache),
                scales: vec![Scales::PerTensor],
            },
            Sizes::Any,
        ),
        Variant::GatherMlaFp8Ds => gather_entries(EntryForm::Fp8Ds),
        Variant::GatherMlaV4 => gather_entries(EntryForm::V4),
        Variant::CheckPaged => Role::Assists(&[
            Operation::Decode,
            Operation::UnifiedAttention,
            Operation::DecodeMla,
            Operation::DecodeMlaEntry,
        ]),
        Variant::CheckSlots => Role::Assists(&[
            Operation::ReshapeAndCacheFlash,
            Operation::RopeAndCache,
            Operation::ConcatAndCacheMla,
        ]),
        Variant::CheckGather => Role::Assists(&[Operation::Gather]),
        Variant::ReadCeiling => Role::Measures,
        Variant::Only(_) => only(variants::entry(variant).id),
    }
}

/// What goes with one kind of cache.
pub(super) struct Over {
    tensors: Vec<Tensors>,
    cache: Cache,
    scales: Vec<Scales>,
}

impl Over {
    fn of(self, operation: Operation, sizes: Sizes) -> Support {
        Support {
            operation,
            tensors: self.tensors,
            caches: vec![self.cache],
            scales: self.scales,
            sizes: vec![sizes],
        }
    }
}

pub(super) fn supports(operation: Operation, over: Over, sizes: Sizes) -> Role {
    Role::Supports(vec![over.of(operation, sizes)])
}

/// Attention over keys and values; `outputs` of a query's dtype.
fn attention(cache: CacheDtype, outputs: fn(Dtype) -> Vec<Dtype>) -> Over {
    if cache.dtype.size() > 1 {
        return Over {
            tensors: pairs(cache.dtype, outputs),
            cache: Cache::Input,
            scales: vec![Scales::None],
        };
    }
    Over {
        // Such kernels learn the query's dtype when they run.
        tensors: QueryDtype::ALL
            .iter()
            .flat_map(|query| pairs(query.dtype(), outputs))
            .collect(),
        cache: Cache::Dtype(cache.dtype),
        scales: if cache.token_scales {
            vec![Scales::PerTokenHead]
        } else {
            vec![Scales::PerTensor, Scales::PerHead]
        },
    }
}

fn pairs(query: Dtype, outputs: fn(Dtype) -> Vec<Dtype>) -> Vec<Tensors> {
    let pair = |output| tensors(query, Output::Dtype(output));
    outputs(query).into_iter().map(pair).collect()
}

/// The query's dtype; either of 16 bits for a query of bytes.
fn outputs(query: Dtype) -> Vec<Dtype> {
    if query.size() == 1 {
        vec![Dtype::Bf16, Dtype::F16]
    } else {
        vec![query]
    }
}

/// The same, and FP8.
fn outputs_and_fp8(query: Dtype) -> Vec<Dtype> {
    let mut all = outputs(query);
    all.push(Dtype::F8E4m3);
    all
}

/// Writes that store what they read: keys and values, latents and RoPE keys.
fn copies() -> Role {
    let over = |inputs: &[Dtype], scales: &[Scales]| Over {
        tensors: inputs
            .iter()
            .map(|&input| tensors(input, Output::None))
            .collect(),
        cache: Cache::Input,
        scales: scales.to_vec(),
    };
    let (floats, fp8) = (dtypes::scaled_sources(), dtypes::scaled_caches());
    Role::Supports(vec![
        over(floats, &[Scales::None]).of(Operation::ReshapeAndCacheFlash, Sizes::Any),
        over(fp8, &[Scales::None, Scales::Unused]).of(Operation::ReshapeAndCacheFlash, Sizes::Any),
        over(floats, &[Scales::None]).of(Operation::ConcatAndCacheMla, Sizes::Any),
    ])
}

fn concat_entries(form: EntryForm) -> Role {
    let (kv_lora_rank, qk_rope_head_dim) = match form {
        EntryForm::Fp8Ds => (fp8_ds::LATENTS, fp8_ds::ROPE),
        EntryForm::V4 => (v4::VALUES, v4::ROPE),
    };
    let sizes = Sizes::Latent {
        kv_lora_rank,
        qk_rope_head_dim,
    };
    let over = Over {
        tensors: vec![tensors(Dtype::Bf16, Output::None)],
        ..entries(form)
    };
    supports(Operation::ConcatAndCacheMla, over, sizes)
}

fn gather_entries(form: EntryForm) -> Role {
    let over = Over {
        tensors: vec![gathered(Dtype::Bf16)],
        ..entries(form)
    };
    supports(
        Operation::Gather,
        over,
        heads(row_size(form), row_size(form)),
    )
}

fn entries(form: EntryForm) -> Over {
    Over {
        tensors: Vec::new(),
        cache: Cache::Entries(form),
        scales: vec![Scales::InEntries],
    }
}

/// Values of an entry.
fn row_size(form: EntryForm) -> u32 {
    match form {
        EntryForm::Fp8Ds => fp8_ds::LATENTS + fp8_ds::ROPE,
        EntryForm::V4 => v4::VALUES + v4::ROPE,
    }
}

/// Bytes that are copied, whatever they mean.
pub(super) fn any() -> Over {
    Over {
        tensors: vec![Tensors {
            input: None,
            output: Output::Cache,
        }],
        cache: Cache::Any,
        scales: vec![Scales::None],
    }
}

fn gathered(output: Dtype) -> Tensors {
    Tensors {
        input: None,
        output: Output::Dtype(output),
    }
}

fn tensors(input: Dtype, output: Output) -> Tensors {
    Tensors {
        input: Some(input),
        output,
    }
}

fn heads(head_size: u32, head_size_v: u32) -> Sizes {
    Sizes::Heads {
        head_size,
        head_size_v,
    }
}
