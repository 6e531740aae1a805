//! Writes into MLA caches: parameters, tensors, and what they have to become.

use std::fmt;

use super::exact::DeviceCase;
use super::fill::{Amount, noise, random};
use super::fill_cache::{given_scales, poison_unwritten, slot_mapping, written_role};
use super::mla_form::ROPE;
use super::run::workspace;
use super::special::{Fill, Painter};
use super::text::{CaseError, Fields, MAX_BLOCK_SIZE, MAX_TOKENS};
use super::{MlaForm, Uploads};
use crate::error::Result;
use crate::ops::{CheckMode, ConcatAndCacheMlaRequest, MlaCacheForm, ScaleRule};
use crate::reference::{
    HostTensor, mla_fp8_ds_entry, mla_v4_entry, reshape_and_cache_flash, reshape_and_cache_scaled,
};
use crate::runtime::{Buffer, Launcher, Runtime};
use crate::tensor::Dtype;

/// Parameters of a write into an MLA cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MlaWriteCase {
    /// Of latents and RoPE keys.
    pub dtype: Dtype,
    /// What is stored.
    pub form: MlaForm,
    /// Tokens per block.
    pub block_size: usize,
    /// Tokens: the length of the slot mapping.
    pub num_tokens: usize,
    /// Every so many tokens one is padding, with slot −1; 0 for none.
    pub skip_every: usize,
    /// What the numbers are like.
    pub fill: Fill,
}

impl MlaWriteCase {
    /// Tokens that are not padding, in and out, and the slots.
    pub fn unavoidable_bytes(&self) -> u64 {
        let skipped = self.num_tokens.checked_div(self.skip_every).unwrap_or(0);
        let written = self.num_tokens - skipped;
        let token = 2 * self.form.values() + self.form.stored_bytes();
        (written * token + 8 * self.num_tokens) as u64
    }

    /// See [`super::Case::peer_name`].
    pub fn peer_name(&self) -> String {
        let n = self.num_tokens;
        match self.form {
            MlaForm::Plain => format!("mla write {} n={n}", self.dtype),
            MlaForm::V4 => format!("dsv4 insert v4_584 n={n}"),
            form => format!("mla write {form} n={n}"),
        }
    }

    pub(super) fn read(fields: &mut Fields<'_>) -> Result<Self, CaseError> {
        let case = Self {
            dtype: fields.dtype(),
            form: fields.required("form")?,
            block_size: fields.size("page", MAX_BLOCK_SIZE)?,
            num_tokens: fields.required("tokens")?,
            skip_every: fields.optional("skip")?.unwrap_or(0),
            fill: fields.optional("fill")?.unwrap_or_default(),
        };
        if case.num_tokens > MAX_TOKENS {
            return Err(CaseError(format!("tokens go up to {MAX_TOKENS}")));
        }
        Ok(case)
    }
}

impl fmt::Display for MlaWriteCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            dtype,
            form,
            block_size,
            num_tokens,
            skip_every,
            fill,
        } = self;
        write!(
            f,
            "concat_and_cache_mla {dtype} form={form} page={block_size} tokens={num_tokens}"
        )?;
        if *skip_every > 0 {
            write!(f, " skip={skip_every}")?;
        }
        fill.write(f)
    }
}

/// The case on a machine.
pub(super) struct ExactMlaWrite<'m> {
    case: MlaWriteCase,
    kv_c: HostTensor,
    k_pe: HostTensor,
    kv_cache: HostTensor,
    slots: HostTensor,
    scale: HostTensor,
    uploads: Uploads<'m>,
    workspace: Buffer<'m>,
}

impl<'m> ExactMlaWrite<'m> {
    pub(super) fn new(
        case: &MlaWriteCase,
        runtime: &'m dyn Runtime,
        seed: u64,
        amount: Amount,
    ) -> Result<Self> {
        let (form, rows) = (case.form, case.num_tokens * amount.sets);
        let num_blocks = rows.div_ceil(case.block_size) * 5 / 4 + 2;
        let mut kv_c = random("kv_c", case.dtype, &[rows, form.rank()], 1.5, (seed, 30));
        let mut k_pe = random("k_pe", case.dtype, &[rows, ROPE], 0.75, (seed, 31));
        let kv_cache = form.cache(case.dtype, num_blocks, case.block_size, |block_bytes| {
            let pattern =
                super::fill::pattern_blocks(num_blocks, block_bytes, amount.pattern_bytes);
            noise(pattern * block_bytes, seed, "kv_cache")
        });
        let slots = slot_mapping(rows, num_blocks * case.block_size, case.skip_every, seed);
        for (stream, new) in [(30, &mut kv_c), (31, &mut k_pe)] {
            if case.fill == Fill::Poison {
                poison_unwritten(new, &slots);
            } else {
                Painter::new(case.fill, seed, stream).paint_all(written_role(case.fill), new);
            }
        }
        let scale = given_scales("scale", 1, 0.013);
        let all = [&kv_c, &k_pe, &kv_cache, &slots, &scale];
        Ok(Self {
            case: case.clone(),
            uploads: Uploads::new(runtime, all)?,
            workspace: workspace(runtime, 0)?,
            kv_c,
            k_pe,
            kv_cache,
            slots,
            scale,
        })
    }
}

impl<'m> DeviceCase<'m> for ExactMlaWrite<'m> {
    fn uploads(&self) -> &Uploads<'m> {
        &self.uploads
    }

    fn launch(&mut self, set: usize, launcher: &dyn Launcher) -> Result<String> {
        let (uploads, n) = (&self.uploads, self.case.num_tokens);
        let part = |tensor: &HostTensor| uploads.view(&tensor.slice(set * n, n));
        let checked = ConcatAndCacheMlaRequest {
            kv_c: part(&self.kv_c)?,
            k_pe: Some(part(&self.k_pe)?),
            // SAFETY: `self` is borrowed exclusively, and launches of one stream run in order.
            kv_cache: unsafe { uploads.view_mut(&self.kv_cache)? },
            slot_mapping: part(&self.slots)?,
            block_size: self.case.block_size,
            form: match self.case.form {
                MlaForm::Plain => MlaCacheForm::Plain,
                MlaForm::Fp8 => MlaCacheForm::Fp8 {
                    scale: uploads.view(&self.scale)?,
                },
                MlaForm::Ds656 => MlaCacheForm::Fp8Ds {
                    rule: ScaleRule::Exact,
                },
                MlaForm::V4 => MlaCacheForm::V4,
            },
            check: CheckMode::Off,
        }
        .check()?;
        let plan = checked.plan();
        checked.launch(&plan, &mut self.workspace.view_mut(), launcher)?;
        Ok(plan.to_string())
    }

    fn outputs(&self) -> Result<Vec<HostTensor>> {
        Ok(vec![self.uploads.read(&self.kv_cache)?])
    }

    fn expected(&self) -> Vec<Vec<u8>> {
        let (form, n) = (self.case.form, self.case.num_tokens);
        let slots = self.slots.slice(0, n);
        let mut bytes = self.kv_cache.storage.bytes.clone();
        if matches!(form, MlaForm::Plain | MlaForm::Fp8) {
            // A token is a head of latents and a head of RoPE values.
            for (new, first) in [(&self.kv_c, 0), (&self.k_pe, form.rank())] {
                let size = new.shape[1];
                let as_heads = |tensor: &HostTensor, shape: Vec<usize>| HostTensor {
                    strides: [&tensor.strides[..shape.len() - 2], &[size, 1]].concat(),
                    shape,
                    ..tensor.clone()
                };
                let rows = as_heads(new, vec![n, 1, size]);
                let [blocks, block_size, _] = self.kv_cache.shape[..] else {
                    unreachable!("blocks, slots, values")
                };
                let mut cache = as_heads(&self.kv_cache, vec![blocks, block_size, 1, size]);
                cache.offset = first;
                if form == MlaForm::Plain {
                    reshape_and_cache_flash(&rows, &slots, &cache, &mut bytes);
                } else {
                    #[allow(clippy::cast_possible_truncation, reason = "it came from an f32")]
                    let scale = self.scale.float(&[0]) as f32;
                    reshape_and_cache_scaled(&rows, &slots, &[scale], &cache, &mut bytes);
                }
            }
            return vec![bytes];
        }
        for token in 0..n {
            let Ok(slot) = usize::try_from(slots.integer(&[token])) else {
                continue;
            };
            let block = slot / self.case.block_size * self.kv_cache.strides[0];
            let parts = form.entry(slot % self.case.block_size, self.case.block_size);
            #[allow(clippy::cast_possible_truncation, reason = "they came from bf16")]
            let latents: Vec<f32> = (0..form.rank())
                .map(|at| self.kv_c.float(&[token, at]) as f32)
                .collect();
            let rope = &self.k_pe.storage.bytes[2 * ROPE * token..2 * ROPE * (token + 1)];
            let (entry, scales) = if form == MlaForm::V4 {
                mla_v4_entry(&latents, rope)
            } else {
                (mla_fp8_ds_entry(&latents, rope, false), Vec::new())
            };
            for (part, at) in [entry, scales].iter().zip(parts) {
                bytes[block + at..block + at + part.len()].copy_from_slice(part);
            }
        }
        vec![bytes]
    }
}
