//! Writes into the MLA caches of many layers in one launch: parameters, tensors, and what they have to become.

use std::fmt;

use rand_chacha::ChaCha8Rng;

use super::mistakes::bad_slots;
use super::mla_rows::write_rows;
use super::slots::{given_scales, poison_unwritten, slot_mapping, written_role};
use crate::cases::base::compare::Accuracy;
use crate::cases::base::device_case::{Described, DeviceCase, Runnable, Workspaces, all_same};
use crate::cases::base::fill::{Fill, Painter};
use crate::cases::base::memory_mistake::MemoryMistake;
use crate::cases::base::mismatch::Mismatch;
use crate::cases::base::options::{read_cache_dtype, read_check, read_flag, write_check};
use crate::cases::base::tensors::{Amount, noise, pattern_blocks, random, whole};
use crate::cases::base::text::{CaseError, Fields, MAX_BLOCK_SIZE, MAX_HEADS, MAX_TOKENS};
use crate::cases::base::uploads::Uploads;
use crate::error::{RequestError, Result};
use crate::ops::{CacheTable, CheckMode, ConcatAndCacheMlaGroupedRequest};
use crate::reference::{HostTensor, Storage};
use crate::runtime::{Launcher, Runtime};
use crate::tensor::{Dtype, TensorView};

/// Most layers.
const MAX_LAYERS: usize = 128;

/// Parameters of a write into the MLA caches of many layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MlaWriteGroupedCase {
    /// Of latents and RoPE keys.
    pub dtype: Dtype,
    /// Of the caches: the same, or FP8 with a scale for each layer.
    pub cache_dtype: Dtype,
    /// Layers, each with a cache of its own.
    pub num_layers: usize,
    /// Latents of a token.
    pub kv_lora_rank: usize,
    /// RoPE values of a token.
    pub qk_rope_head_dim: usize,
    /// Tokens per block.
    pub block_size: usize,
    /// Tokens: slots of a layer.
    pub num_tokens: usize,
    /// Rows of latents and RoPE keys beyond the slots, as a captured graph has.
    pub extra_rows: usize,
    /// Whether all layers have the same slots.
    pub shares_slots: bool,
    /// Every so many tokens one is padding, with slot −1; 0 for none.
    pub skip_every: usize,
    /// Whether slots and scales are checked on the device.
    pub check: CheckMode,
    /// What the numbers are like.
    pub fill: Fill,
}

impl MlaWriteGroupedCase {
    /// Whether the caches are FP8.
    pub fn is_scaled(&self) -> bool {
        self.cache_dtype != self.dtype
    }

    /// Values of a token.
    fn entry(&self) -> usize {
        self.kv_lora_rank + self.qk_rope_head_dim
    }

    pub(crate) fn read(fields: &mut Fields<'_>) -> Result<Self, CaseError> {
        let dtype = fields.dtype();
        let case = Self {
            dtype,
            cache_dtype: read_cache_dtype(fields, dtype)?,
            num_layers: fields.size("layers", MAX_LAYERS)?,
            kv_lora_rank: fields.size("latents", MAX_HEADS)?,
            qk_rope_head_dim: fields.size("rope", MAX_HEADS)?,
            block_size: fields.size("page", MAX_BLOCK_SIZE)?,
            num_tokens: fields.required("tokens")?,
            extra_rows: fields.optional("extra_rows")?.unwrap_or(0),
            shares_slots: read_flag(fields, "slots", "shared")?,
            skip_every: fields.optional("skip")?.unwrap_or(0),
            check: read_check(fields)?,
            fill: fields.optional("fill")?.unwrap_or_default(),
        };
        if case.cache_dtype == Dtype::I8 {
            return Err(CaseError("`kv=i8`: MLA caches of bytes are FP8".into()));
        }
        if case.num_tokens > MAX_TOKENS || case.extra_rows > MAX_TOKENS {
            return Err(CaseError(format!("tokens go up to {MAX_TOKENS}")));
        }
        Ok(case)
    }
}

impl Described for MlaWriteGroupedCase {
    fn peer_name(&self) -> String {
        let kv = match self.cache_dtype {
            Dtype::F8E4m3 => "fp8".to_owned(),
            other => other.to_string(),
        };
        let (layers, tokens) = (self.num_layers, self.num_tokens);
        format!("mla write grouped {kv} layers={layers} n={tokens}")
    }

    /// Tokens that are not padding, in and out, and the slots.
    fn unavoidable_bytes(&self, _seed: u64) -> u64 {
        let skipped = self.num_tokens.checked_div(self.skip_every).unwrap_or(0);
        let written = self.num_layers * (self.num_tokens - skipped);
        let token = self.entry() * (self.dtype.size() + self.cache_dtype.size());
        let rows_of_slots = if self.shares_slots {
            1
        } else {
            self.num_layers
        };
        (written * token + 8 * rows_of_slots * self.num_tokens) as u64
    }
}

impl fmt::Display for MlaWriteGroupedCase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "concat_and_cache_mla_grouped {}", self.dtype)?;
        if self.is_scaled() {
            write!(f, " kv={}", self.cache_dtype)?;
        }
        write!(
            f,
            " layers={} latents={} rope={} page={} tokens={}",
            self.num_layers,
            self.kv_lora_rank,
            self.qk_rope_head_dim,
            self.block_size,
            self.num_tokens
        )?;
        if self.extra_rows > 0 {
            write!(f, " extra_rows={}", self.extra_rows)?;
        }
        if self.shares_slots {
            write!(f, " slots=shared")?;
        }
        if self.skip_every > 0 {
            write!(f, " skip={}", self.skip_every)?;
        }
        write_check(self.check, f)?;
        self.fill.write(f)
    }
}

/// The case on a machine.
struct GroupedRun<'m> {
    case: MlaWriteGroupedCase,
    /// `[num_layers, sets * num_tokens + extra_rows, kv_lora_rank]`
    kv_c: HostTensor,
    /// `[num_layers, sets * num_tokens + extra_rows, qk_rope_head_dim]`
    k_pe: HostTensor,
    /// `[num_blocks, block_size, kv_lora_rank + qk_rope_head_dim]` of each layer.
    kv_caches: Vec<HostTensor>,
    /// Where they are: `[num_layers]`, i64.
    addresses: HostTensor,
    /// `[num_layers, sets * num_tokens]`
    slots: HostTensor,
    /// `[num_layers]`
    scales: HostTensor,
    uploads: Uploads<'m>,
    workspaces: Workspaces<'m>,
}

impl Runnable for MlaWriteGroupedCase {
    fn check(&self) -> CheckMode {
        self.check
    }

    fn on<'m>(
        &self,
        runtime: &'m dyn Runtime,
        seed: u64,
        amount: Amount,
    ) -> Result<Box<dyn DeviceCase<'m> + 'm>> {
        let (layers, page) = (self.num_layers, self.block_size);
        let num_tokens = self.num_tokens * amount.sets;
        let num_blocks = num_tokens.div_ceil(page) * 5 / 4 + 2;
        let slots = self.slots(num_tokens, num_blocks * page, seed);
        let new = |name, size, spread, stream: u64| {
            let shape = [layers, num_tokens + self.extra_rows, size];
            let mut new = random(name, self.dtype, &shape, spread, (seed, stream));
            self.special(&mut new, &slots, seed, stream);
            new
        };
        let kv_c = new("kv_c", self.kv_lora_rank, 1.5, 40);
        let k_pe = new("k_pe", self.qk_rope_head_dim, 0.75, 41);
        let kv_caches: Vec<HostTensor> = (0..layers as u64)
            .map(|layer| {
                let shape = [num_blocks, page, self.entry()];
                let block_bytes = page * self.entry() * self.cache_dtype.size();
                let pattern = pattern_blocks(num_blocks, block_bytes, amount.pattern_bytes);
                let bytes = noise(pattern * block_bytes, seed ^ (layer + 1) << 20, "kv_cache");
                let mut cache =
                    HostTensor::contiguous("kv_cache", self.cache_dtype, &shape, Vec::new());
                cache.storage = Storage::repeating("kv_cache", bytes, num_blocks * block_bytes);
                cache
            })
            .collect();
        let scales = given_scales("scales", layers, 0.013);
        let all = [&kv_c, &k_pe, &slots, &scales].into_iter();
        let mut uploads = Uploads::new(runtime, all.chain(&kv_caches))?;
        let addresses = kv_caches.iter().map(|cache| uploads.address(cache));
        let addresses = addresses.flat_map(u64::to_le_bytes).collect();
        let addresses = HostTensor::contiguous("kv_caches", Dtype::I64, &[layers], addresses);
        uploads.add(&addresses.storage)?;
        Ok(Box::new(GroupedRun {
            case: self.clone(),
            workspaces: Workspaces::new(runtime, self.check),
            kv_c,
            k_pe,
            kv_caches,
            addresses,
            slots,
            scales,
            uploads,
        }))
    }
}

impl MlaWriteGroupedCase {
    /// `[num_layers, num_tokens]`; layers that share their slots are 0 apart.
    fn slots(&self, num_tokens: usize, num_slots: usize, seed: u64) -> HostTensor {
        let rows = if self.shares_slots {
            1
        } else {
            self.num_layers
        };
        let bytes = (0..rows as u64).flat_map(|layer| {
            let slots = slot_mapping(num_tokens, num_slots, self.skip_every, seed ^ layer << 30);
            slots.storage.bytes.clone()
        });
        let shape = [rows, num_tokens];
        let mut slots = HostTensor::contiguous("slot_mapping", Dtype::I64, &shape, bytes.collect());
        if self.shares_slots {
            (slots.shape[0], slots.strides[0]) = (self.num_layers, 0);
        }
        slots
    }

    /// New tokens as the fill wants them.
    fn special(&self, new: &mut HostTensor, slots: &HostTensor, seed: u64, stream: u64) {
        if self.fill != Fill::Poison {
            Painter::new(self.fill, seed, stream).paint_all(written_role(self.fill), new);
            return;
        }
        for layer in 0..self.num_layers {
            let mut part = layer_of(new, layer);
            poison_unwritten(&mut part, &layer_of(slots, layer));
            new.storage = part.storage;
        }
    }
}

/// The rows of one layer.
fn layer_of(tensor: &HostTensor, layer: usize) -> HostTensor {
    let mut part = tensor.slice(layer, 1);
    part.shape.remove(0);
    part.strides.remove(0);
    part
}

/// The rows `start .. start + rows` of every layer.
fn tokens_of(tensor: &HostTensor, start: usize, rows: usize) -> HostTensor {
    let mut part = tensor.clone();
    part.offset += start * part.strides[1];
    part.shape[1] = rows;
    part
}

impl<'m> DeviceCase<'m> for GroupedRun<'m> {
    fn launch(&mut self, set: usize, launcher: &dyn Launcher) -> Result<String> {
        let (case, uploads) = (&self.case, &self.uploads);
        let (start, n) = (set * case.num_tokens, case.num_tokens);
        let rows = self.kv_c.shape[1] - start;
        let checked = ConcatAndCacheMlaGroupedRequest {
            kv_c: uploads.view(&tokens_of(&self.kv_c, start, rows))?,
            k_pe: uploads.view(&tokens_of(&self.k_pe, start, rows))?,
            kv_caches: self.cache_table(uploads.view(&self.addresses)?)?,
            slot_mapping: uploads.view(&tokens_of(&self.slots, start, n))?,
            block_size: case.block_size,
            scales: match case.is_scaled() {
                true => Some(uploads.view(&self.scales)?),
                false => None,
            },
            check: case.check,
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
        let caches = self.kv_caches.iter();
        caches.map(|cache| self.uploads.read(cache)).collect()
    }

    fn judge(&self, outputs: &[HostTensor], _budget: u64) -> Result<Accuracy, Mismatch> {
        let layers = 0..self.case.num_layers;
        let expected: Vec<Vec<u8>> = layers.map(|layer| self.expected(layer)).collect();
        all_same(outputs, &expected)
    }

    fn mistakes(&self, random: &mut ChaCha8Rng) -> Vec<MemoryMistake> {
        let case = &self.case;
        if case.num_tokens == 0 {
            return Vec::new();
        }
        let slots = tokens_of(&self.slots, 0, case.num_tokens);
        let num_slots = self.kv_caches[0].shape[0] * case.block_size;
        let mut mistakes = bad_slots(&slots, num_slots, random);
        if case.is_scaled() {
            mistakes.push(MemoryMistake::one_scale(&self.scales, random));
        }
        mistakes
    }
}

impl GroupedRun<'_> {
    fn cache_table<'v>(&self, addresses: TensorView<'v>) -> Result<CacheTable<'v>, RequestError> {
        let cache = &self.kv_caches[0];
        let strides: Vec<i64> = cache.strides.iter().map(|&stride| stride as i64).collect();
        // SAFETY: the table holds the addresses of `kv_caches`, which have this shape and live as long as `self`;
        // launches of one stream run in order. Whoever breaks the view of the table has an emulator look at every
        // access.
        unsafe { CacheTable::from_raw(addresses, cache.dtype, &cache.shape, &strides) }
    }

    /// The bytes of a layer's cache after one launch of every set.
    fn expected(&self, layer: usize) -> Vec<u8> {
        let new = [&self.kv_c, &self.k_pe].map(|new| layer_of(new, layer));
        let cache = &self.kv_caches[layer];
        #[allow(clippy::cast_possible_truncation, reason = "it came from an f32")]
        let scale = self.scales.float(&[layer]) as f32;
        let scale = self.case.is_scaled().then_some(scale);
        let mut bytes = whole(cache);
        let slots = layer_of(&self.slots, layer);
        write_rows(new.each_ref(), &slots, scale, cache, &mut bytes);
        bytes
    }
}
