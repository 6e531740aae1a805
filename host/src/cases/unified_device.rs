//! The tensors of a step of unified attention, and the request over them on a machine.

use super::fill::{self, Amount, DecodeTensors, HostScales, POISON};
use super::{CaseError, Causal, LseForm, UnifiedCase, Uploads};
use crate::error::{RequestError, Result};
use crate::ops::{KvScales, UnifiedOptions, UnifiedRequest};
use crate::reference::{HostTensor, Storage, UnifiedInputs};
use crate::runtime::Runtime;
use crate::tensor::{Dtype, TensorView};

/// Tensors of a step of unified attention.
#[derive(Clone, Debug)]
pub struct UnifiedTensors {
    /// Caches, block table and lengths are those of a decode step; query, output and lse have a row for each
    /// query token.
    pub base: DecodeTensors,
    /// Query tokens of one set, those past the last sequence's included.
    pub num_tokens: usize,
    /// `[sets * (num_seqs + 1)]`
    pub query_start_loc: HostTensor,
    /// `[sets * num_seqs]`
    pub causal_flags: Option<HostTensor>,
    /// `[1]`
    pub output_scale: Option<HostTensor>,
}

impl UnifiedTensors {
    /// The tensors of a case.
    ///
    /// # Errors
    /// A sequence has more query tokens than there is room for positions.
    pub fn new(case: &UnifiedCase, seed: u64, amount: Amount) -> Result<Self, CaseError> {
        let base = fill::plain(&case.base, seed, amount);
        let (heads, cache) = (case.base.num_query_heads, &case.base.cache);
        let query_lens = case.query_lens(seed);
        let num_tokens = case.num_query_tokens(seed) + case.extra_tokens;
        let rows = num_tokens * amount.sets;
        let mut starts = vec![0i32];
        for len in query_lens {
            let next = i32::try_from(len)
                .ok()
                .and_then(|len| starts[starts.len() - 1].checked_add(len));
            starts.push(next.ok_or_else(|| CaseError("too many query tokens".into()))?);
        }
        let starts =
            (0..amount.sets).flat_map(|_| starts.iter().flat_map(|start| start.to_le_bytes()));
        let starts: Vec<u8> = starts.collect();

        let out_dtype = match case.output_scale {
            Some(_) => Dtype::F8E4m3,
            None => case.base.dtype,
        };
        let lse = |strides: [usize; 2]| HostTensor {
            storage: Storage::new("lse", vec![POISON; rows * heads * 4]),
            offset: 0,
            dtype: Dtype::F32,
            shape: vec![rows, heads],
            strides: strides.to_vec(),
        };
        Ok(Self {
            output_scale: case.output_scale.map(|scale| {
                HostTensor::contiguous(
                    "output_scale",
                    Dtype::F32,
                    &[1],
                    scale.to_le_bytes().to_vec(),
                )
            }),
            causal_flags: (case.causal == Causal::Mixed).then(|| {
                let num_seqs = base.num_seqs;
                // Not 0 is enough.
                let flag = |row: usize| {
                    if case.causal.is_on(row % num_seqs) {
                        7
                    } else {
                        0
                    }
                };
                let flags: Vec<u8> = (0..amount.sets * num_seqs).map(flag).collect();
                HostTensor::contiguous("causal_flags", Dtype::U8, &[flags.len()], flags)
            }),
            query_start_loc: HostTensor::contiguous(
                "query_start_loc",
                Dtype::I32,
                &[starts.len() / 4],
                starts,
            ),
            num_tokens,
            base: DecodeTensors {
                query: fill::query(&case.base, rows, seed),
                out: fill::padded(
                    "out",
                    out_dtype,
                    [rows, heads, cache.head_size_v],
                    case.base.pad_out,
                ),
                lse: match case.base.lse {
                    LseForm::Off => None,
                    LseForm::On => Some(lse([heads, 1])),
                    LseForm::HeadsFirst => Some(lse([1, rows])),
                },
                ..base
            }
            .special_unified(case, seed),
        })
    }

    /// What the reference needs of the first set.
    pub fn inputs(&self, case: &UnifiedCase) -> UnifiedInputs<'_> {
        UnifiedInputs {
            causal: case.causal == Causal::On,
            causal_flags: self.causal_flags.as_ref(),
            output_scale: self.output_scale.as_ref(),
            ..self.base.inputs(&case.base, &self.query_start_loc)
        }
    }
}

/// A case of unified attention on a machine.
pub struct DeviceUnified<'m> {
    tensors: UnifiedTensors,
    uploads: Uploads<'m>,
}

impl<'m> DeviceUnified<'m> {
    /// Copies the tensors to the machine.
    ///
    /// # Errors
    /// Out of memory.
    pub fn new(runtime: &'m dyn Runtime, tensors: UnifiedTensors) -> Result<Self> {
        let base = &tensors.base;
        let all = [
            &base.query,
            &base.key_cache,
            &base.value_cache,
            &base.block_table,
            &base.seq_lens,
            &base.out,
            &tensors.query_start_loc,
        ];
        let uploads = Uploads::new(
            runtime,
            all.into_iter()
                .chain(&base.lse)
                .chain(base.scales.iter().flat_map(HostScales::tensors))
                .chain(base.scores.tensors())
                .chain(&tensors.causal_flags)
                .chain(&tensors.output_scale),
        )?;
        Ok(Self { tensors, uploads })
    }

    /// The tensors as they were before any launch.
    pub fn tensors(&self) -> &UnifiedTensors {
        &self.tensors
    }

    pub(super) fn uploads(&self) -> &Uploads<'m> {
        &self.uploads
    }

    /// The request over copy `set` of the batch. `seed` is the one that the tensors were made with.
    ///
    /// # Errors
    /// None: the views fit.
    pub fn request(
        &mut self,
        case: &UnifiedCase,
        seed: u64,
        set: usize,
    ) -> Result<UnifiedRequest<'_>, RequestError> {
        let (tensors, uploads) = (&self.tensors, &self.uploads);
        let (base, num_seqs, num_tokens) =
            (&tensors.base, tensors.base.num_seqs, tensors.num_tokens);
        let by_seq = |tensor: &HostTensor| tensor.slice(set * num_seqs, num_seqs);
        let by_token = |tensor: &HostTensor| tensor.slice(set * num_tokens, num_tokens);
        let view = |tensor: &Option<HostTensor>| -> Result<Option<TensorView<'_>>, RequestError> {
            tensor
                .as_ref()
                .map(|tensor| uploads.view(tensor))
                .transpose()
        };
        let (alibi, sinks) = base.scores.views(uploads)?;
        let options = UnifiedOptions {
            causal: case.causal == Causal::On,
            causal_flags: match &tensors.causal_flags {
                Some(flags) => Some(uploads.view(&by_seq(flags))?),
                None => None,
            },
            sliding_window: case.base.scores.sliding_window,
            softcap: case.base.scores.softcap,
            alibi,
            sinks,
            output_scale: view(&tensors.output_scale)?,
            num_decodes: case.num_decodes(seed),
            max_query_len: case.max_query_len,
            max_seq_len: case.base.max_seq_len,
            f32_scores: case.f32_scores,
            split_policy: case.base.split_policy,
            check: case.base.check,
        };
        Ok(UnifiedRequest {
            scales: match &base.scales {
                Some(scales) => Some(KvScales {
                    q_scale: view(&scales.q_scale)?,
                    k_scale: uploads.view(&scales.k_scale)?,
                    v_scale: uploads.view(&scales.v_scale)?,
                }),
                None => None,
            },
            query: uploads.view(&by_token(&base.query))?,
            key_cache: uploads.view(&base.key_cache)?,
            value_cache: uploads.view(&base.value_cache)?,
            block_table: uploads.view(&by_seq(&base.block_table))?,
            query_start_loc: uploads.view(
                &tensors
                    .query_start_loc
                    .slice(set * (num_seqs + 1), num_seqs + 1),
            )?,
            seq_lens: uploads.view(&by_seq(&base.seq_lens))?,
            // SAFETY: `self` is borrowed exclusively, and launches of one stream run in order.
            out: unsafe { uploads.view_mut(&by_token(&base.out))? },
            lse: match &base.lse {
                // SAFETY: as above.
                Some(lse) => Some(unsafe { uploads.view_mut(&by_token(lse))? }),
                None => None,
            },
            softmax_scale: case.base.scale(),
            options,
        })
    }

    /// Waits, and reads output and lse.
    ///
    /// # Errors
    /// Something enqueued failed.
    pub fn results(&self) -> Result<(HostTensor, Option<HostTensor>)> {
        let lse = self.tensors.base.lse.as_ref();
        Ok((
            self.uploads.read(&self.tensors.base.out)?,
            lse.map(|lse| self.uploads.read(lse)).transpose()?,
        ))
    }
}
