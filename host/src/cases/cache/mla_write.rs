//! Writes into MLA caches: parameters, tensors, and what they have to become.

use std::fmt;

use rand_chacha::ChaCha8Rng;

use super::mistakes::bad_slots;
use super::mla_form::MlaForm;
use super::mla_rows::write_rows;
use super::slots::{given_scales, poison_unwritten, slot_mapping, written_role};
use crate::cases::base::compare::Accuracy;
use crate::cases::base::device_case::{Described, DeviceCase, Runnable, Workspaces, all_same};
use crate::cases::base::fill::{Fill, Painter};
use crate::cases::base::memory_mistake::MemoryMistake;
use crate::cases::base::mismatch::Mismatch;
use crate::cases::base::mla_entry::ROPE;
use crate::cases::base::options::{read_check, write_check};
use crate::cases::base::tensors::{Amount, noise, pattern_blocks, random, whole};
use crate::cases::base::text::{CaseError, Fields, MAX_BLOCK_SIZE, MAX_TOKENS};
use crate::cases::base::uploads::Uploads;
use crate::error::Result;
use crate::ops::{CheckMode, ConcatAndCacheMlaRequest, MlaCacheForm, ScaleRule};
use crate::reference::{HostTensor, mla_fp8_ds_entry, mla_v4_entry};
use crate::runtime::{Launcher, Runtime};
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
    /// Whether slots and scale are checked on the device.
    pub check: CheckMode,
    /// What the numbers are like.
    pub fill: Fill,
}

impl MlaWriteCase {
    pub(crate) fn read(fields: &mut Fields<'_>) -> Result<Self, CaseError> {
        let case = Self {
            dtype: fields.dtype(),
            form: fields.required("form")?,
            block_size: fields.size("page", MAX_BLOCK_SIZE)?,
            num_tokens: fields.required("tokens")?,
            skip_every: fields.optional("skip")?.unwrap_or(0),
            check: read_check(fields)?,
            fill: fields.optional("fill")?.unwrap_or_default(),
        };
        if case.num_tokens > MAX_TOKENS {
            return Err(CaseError(format!("tokens go up to {MAX_TOKENS}")));
        }
        Ok(case)
    }
}

impl Described for MlaWriteCase {
    fn peer_name(&self) -> String {
        let n = self.num_tokens;
        match self.form {
            MlaForm::Plain => format!("mla write {} n={n}", self.dtype),
            MlaForm::V4 => format!("dsv4 insert v4_584 n={n}"),
            form @ (MlaForm::Fp8 | MlaForm::Ds656) => format!("mla write {form} n={n}"),
        }
    }

    /// Tokens that are not padding, in and out, and the slots.
    fn unavoidable_bytes(&self, _seed: u64) -> u64 {
        let skipped = self.num_tokens.checked_div(self.skip_every).unwrap_or(0);
        let written = self.num_tokens - skipped;
        let token = 2 * self.form.values() + self.form.stored_bytes();
        (written * token + 8 * self.num_tokens) as u64
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
            check,
            fill,
        } = self;
        write!(
            f,
            "concat_and_cache_mla {dtype} form={form} page={block_size} tokens={num_tokens}"
        )?;
        if *skip_every > 0 {
            write!(f, " skip={skip_every}")?;
        }
        write_check(*check, f)?;
        fill.write(f)
    }
}

/// The case on a machine.
struct MlaWriteRun<'m> {
    case: MlaWriteCase,
    kv_c: HostTensor,
    k_pe: HostTensor,
    kv_cache: HostTensor,
    num_blocks: usize,
    slots: HostTensor,
    scale: HostTensor,
    uploads: Uploads<'m>,
    workspaces: Workspaces<'m>,
}

impl Runnable for MlaWriteCase {
    fn check(&self) -> CheckMode {
        self.check
    }

    fn on<'m>(
        &self,
        runtime: &'m dyn Runtime,
        seed: u64,
        amount: Amount,
    ) -> Result<Box<dyn DeviceCase<'m> + 'm>> {
        let (form, rows) = (self.form, self.num_tokens * amount.sets);
        let num_blocks = rows.div_ceil(self.block_size) * 5 / 4 + 2;
        let mut kv_c = random("kv_c", self.dtype, &[rows, form.rank()], 1.5, (seed, 30));
        let mut k_pe = random("k_pe", self.dtype, &[rows, ROPE], 0.75, (seed, 31));
        let kv_cache = form.cache(self.dtype, num_blocks, self.block_size, |block_bytes| {
            let pattern = pattern_blocks(num_blocks, block_bytes, amount.pattern_bytes);
            noise(pattern * block_bytes, seed, "kv_cache")
        });
        let slots = slot_mapping(rows, num_blocks * self.block_size, self.skip_every, seed);
        for (stream, new) in [(30, &mut kv_c), (31, &mut k_pe)] {
            if self.fill == Fill::Poison {
                poison_unwritten(new, &slots);
            } else {
                Painter::new(self.fill, seed, stream).paint_all(written_role(self.fill), new);
            }
        }
        let scale = given_scales("scale", 1, 0.013);
        let all = [&kv_c, &k_pe, &kv_cache, &slots, &scale];
        Ok(Box::new(MlaWriteRun {
            case: self.clone(),
            uploads: Uploads::new(runtime, all)?,
            workspaces: Workspaces::new(runtime, self.check),
            kv_c,
            k_pe,
            kv_cache,
            num_blocks,
            slots,
            scale,
        }))
    }
}

impl<'m> DeviceCase<'m> for MlaWriteRun<'m> {
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
            check: self.case.check,
        }
        .check()?;
        let plan = checked.plan();
        let workspace = self.workspaces.of(set, plan.workspace_bytes())?;
        checked.launch(&plan, &mut workspace.view_mut(), launcher)?;
        Ok(plan.to_string())
    }

    fn uploads(&self) -> &Uploads<'m> {
        &self.uploads
    }

    fn find_fault(&self) -> Result<()> {
        self.workspaces.find_fault()
    }

    fn outputs(&self) -> Result<Vec<HostTensor>> {
        Ok(vec![self.uploads.read(&self.kv_cache)?])
    }

    fn judge(&self, outputs: &[HostTensor], _budget: u64) -> Result<Accuracy, Mismatch> {
        all_same(outputs, &[self.expected()])
    }

    fn mistakes(&self, random: &mut ChaCha8Rng) -> Vec<MemoryMistake> {
        let case = &self.case;
        if case.num_tokens == 0 {
            return Vec::new();
        }
        let slots = self.slots.slice(0, case.num_tokens);
        let mut mistakes = bad_slots(&slots, self.num_blocks * case.block_size, random);
        if case.form == MlaForm::Fp8 {
            mistakes.push(MemoryMistake::one_scale(&self.scale, random));
        }
        mistakes
    }
}

impl MlaWriteRun<'_> {
    /// The bytes of the cache after one launch of every set.
    fn expected(&self) -> Vec<u8> {
        let (new, slots) = ([&self.kv_c, &self.k_pe], &self.slots);
        let mut bytes = whole(&self.kv_cache);
        match self.case.form {
            MlaForm::Plain => write_rows(new, slots, None, &self.kv_cache, &mut bytes),
            MlaForm::Fp8 => {
                #[allow(clippy::cast_possible_truncation, reason = "it came from an f32")]
                let scale = self.scale.float(&[0]) as f32;
                write_rows(new, slots, Some(scale), &self.kv_cache, &mut bytes);
            }
            MlaForm::Ds656 | MlaForm::V4 => self.write_entries(&mut bytes),
        }
        bytes
    }

    fn write_entries(&self, bytes: &mut [u8]) {
        let (form, page) = (self.case.form, self.case.block_size);
        for token in 0..self.slots.shape[0] {
            let Ok(slot) = usize::try_from(self.slots.integer(&[token])) else {
                continue;
            };
            let block = slot / page * self.kv_cache.strides[0];
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
            for (part, run) in [entry, scales].iter().zip(form.runs(slot % page, page)) {
                bytes[block + run.start..block + run.end].copy_from_slice(part);
            }
        }
    }
}
