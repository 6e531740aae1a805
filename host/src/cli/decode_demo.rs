//! The main job in small: a paged cache is filled, then a batch decodes step by step.
//!
//! Each step appends one token per sequence to the cache ([`CacheWriteRequest`]) and attends to all of them
//! ([`DecodeRequest`]), as one attention layer of a model does. The last step's output is compared with the
//! reference.

use std::fmt;
use std::time::{Duration, Instant};

use crate::cases::fill::{self, POISON};
use crate::cases::{Accuracy, Mismatch, Uploads, compare};
use crate::error::{RequestError, Result};
use crate::ops::{
    CacheScales, CacheWriteRequest, CheckMode, CheckedDecode, DecodeOptions, DecodePlan,
    DecodeRequest,
};
use crate::reference::{self, DecodeInputs, HostTensor};
use crate::runtime::{Buffer, Runtime};
use crate::tensor::Dtype;

/// Sizes of the demonstration.
#[derive(Clone, Copy, Debug)]
pub struct DecodeDemo {
    /// Sequences.
    pub num_seqs: usize,
    /// Tokens in the cache before the first step.
    pub context_len: usize,
    /// Steps.
    pub steps: usize,
    /// Query heads.
    pub num_query_heads: usize,
    /// KV heads.
    pub num_kv_heads: usize,
    /// Values per head.
    pub head_size: usize,
    /// Tokens per block.
    pub block_size: usize,
    /// Seeds the values and the order of blocks.
    pub seed: u64,
}

impl DecodeDemo {
    /// One layer of an 8-billion-parameter model, for a GPU.
    pub const GPU: Self = Self {
        num_seqs: 32,
        context_len: 4096,
        steps: 64,
        num_query_heads: 32,
        num_kv_heads: 8,
        head_size: 128,
        block_size: 16,
        seed: 0,
    };
    /// The same in small, for the emulator.
    pub const EMULATOR: Self = Self {
        num_seqs: 3,
        context_len: 100,
        steps: 8,
        ..Self::GPU
    };

    /// The defaults for a machine.
    pub fn for_machine(runtime: &dyn Runtime) -> Self {
        if runtime.is_emulator() {
            Self::EMULATOR
        } else {
            Self::GPU
        }
    }
}

/// What the demonstration did.
#[derive(Clone, Debug)]
pub struct DecodeDemoOutcome {
    /// The machine.
    pub runtime: String,
    /// The plan of all steps, made for the last one.
    pub plan: String,
    /// Tokens decoded.
    pub tokens: usize,
    /// Time of all steps.
    pub elapsed: Duration,
    /// Bytes of keys and values that the steps attended to.
    pub kv_bytes: u64,
    /// How near the last step's output came to the reference, or where it is wrong.
    pub verdict: Result<Accuracy, Mismatch>,
}

/// Runs the demonstration.
///
/// # Errors
/// The sizes are not supported; or the machine failed.
pub fn run(demo: &DecodeDemo, runtime: &dyn Runtime) -> Result<DecodeDemoOutcome> {
    let host = Tensors::new(demo)?;
    let uploads = Uploads::new(runtime, host.all())?;
    // One plan for all steps: the longest one's fits the others.
    let plan = host
        .decode(demo.steps - 1, &uploads)?
        .plan(&runtime.device())?;
    let mut workspace = Buffer::uninit(runtime, "workspace", Dtype::U8, &[plan.workspace_bytes()])?;

    // The prompt: all its tokens at once.
    host.write(&uploads, 0..host.prompt_tokens(), runtime)?;
    runtime.synchronize()?;

    // The first step once ahead, so that loading kernels is not timed: it writes what it will write again.
    host.step(0, &plan, &uploads, &mut workspace, runtime)?;
    runtime.synchronize()?;
    let start = Instant::now();
    for step in 0..demo.steps {
        host.step(step, &plan, &uploads, &mut workspace, runtime)?;
    }
    runtime.synchronize()?;
    let elapsed = start.elapsed();

    let lens = (1..=demo.steps).map(|step| demo.context_len + step);
    let token_bytes = 4 * demo.num_kv_heads * demo.head_size;
    Ok(DecodeDemoOutcome {
        runtime: runtime.name(),
        plan: plan.to_string(),
        tokens: demo.num_seqs * demo.steps,
        elapsed,
        kv_bytes: (lens.sum::<usize>() * demo.num_seqs * token_bytes) as u64,
        verdict: host.compare(&uploads.read(&host.out)?),
    })
}

/// Everything on the host. Tokens are rows: first the prompts', one sequence after the other, then each
/// step's, one per sequence.
struct Tensors {
    demo: DecodeDemo,
    key: HostTensor,
    value: HostTensor,
    slot_mapping: HostTensor,
    key_cache: HostTensor,
    value_cache: HostTensor,
    /// `[steps * num_seqs, num_query_heads, head_size]`
    query: HostTensor,
    /// `[steps * num_seqs]`
    seq_lens: HostTensor,
    block_table: HostTensor,
    out: HostTensor,
}

impl Tensors {
    fn new(demo: &DecodeDemo) -> Result<Self> {
        let sizes = [
            ("num_seqs", demo.num_seqs, 4096),
            ("steps", demo.steps, 65_536),
            ("context_len", demo.context_len.max(1), 1 << 20),
            ("num_query_heads", demo.num_query_heads, 1024),
            ("num_kv_heads", demo.num_kv_heads, 1024),
            ("head_size", demo.head_size, 1024),
            ("block_size", demo.block_size, 4096),
        ];
        for (name, size, max) in sizes {
            if size == 0 || size > max {
                return Err(RequestError::Value {
                    name,
                    expected: format!("1 to {max}"),
                    got: size.to_string(),
                }
                .into());
            }
        }
        let (num_seqs, steps) = (demo.num_seqs, demo.steps);
        let last_len = demo.context_len + steps;
        let width = last_len.div_ceil(demo.block_size);
        let blocks = fill::shuffled(num_seqs * width, demo.seed);
        let slot = |seq: usize, token: usize| {
            blocks[seq * width + token / demo.block_size] * demo.block_size
                + token % demo.block_size
        };
        let prompts =
            (0..num_seqs).flat_map(|seq| (0..demo.context_len).map(move |token| (seq, token)));
        let steps_tokens = (0..steps)
            .flat_map(|step| (0..num_seqs).map(move |seq| (seq, demo.context_len + step)));
        let slots: Vec<u8> = prompts
            .chain(steps_tokens)
            .flat_map(|(seq, token)| (slot(seq, token) as i64).to_le_bytes())
            .collect();
        let rows = slots.len() / 8;
        let ids = blocks
            .iter()
            .flat_map(|&id| i32::try_from(id).unwrap_or(i32::MAX).to_le_bytes())
            .collect();
        let lens = (0..steps).flat_map(|step| {
            let len = i32::try_from(demo.context_len + step + 1).unwrap_or(i32::MAX);
            std::iter::repeat_n(len.to_le_bytes(), num_seqs).flatten()
        });

        let new_shape = [rows, demo.num_kv_heads, demo.head_size];
        let cache_shape = [
            blocks.len(),
            demo.block_size,
            demo.num_kv_heads,
            demo.head_size,
        ];
        let random = |name, shape: &[usize], spread, stream| {
            fill::random(name, Dtype::Bf16, shape, spread, (demo.seed, stream))
        };
        let poisoned = |name, shape: &[usize]| {
            let bytes = vec![POISON; 2 * shape.iter().product::<usize>()];
            HostTensor::contiguous(name, Dtype::Bf16, shape, bytes)
        };
        let query_shape = [steps * num_seqs, demo.num_query_heads, demo.head_size];
        Ok(Self {
            demo: *demo,
            key: random("key", &new_shape, 1.25, 1),
            value: random("value", &new_shape, 0.75, 2),
            slot_mapping: HostTensor::contiguous("slot_mapping", Dtype::I64, &[rows], slots),
            key_cache: poisoned("key_cache", &cache_shape),
            value_cache: poisoned("value_cache", &cache_shape),
            query: random("query", &query_shape, 1.5, 3),
            seq_lens: HostTensor::contiguous(
                "seq_lens",
                Dtype::I32,
                &[steps * num_seqs],
                lens.collect(),
            ),
            block_table: HostTensor::contiguous("block_table", Dtype::I32, &[num_seqs, width], ids),
            out: poisoned("out", &[num_seqs, demo.num_query_heads, demo.head_size]),
        })
    }

    fn all(&self) -> [&HostTensor; 9] {
        [
            &self.key,
            &self.value,
            &self.slot_mapping,
            &self.key_cache,
            &self.value_cache,
            &self.query,
            &self.seq_lens,
            &self.block_table,
            &self.out,
        ]
    }

    fn prompt_tokens(&self) -> usize {
        self.demo.num_seqs * self.demo.context_len
    }

    /// Enqueues writing the tokens `rows` into the cache.
    fn write(
        &self,
        uploads: &Uploads<'_>,
        rows: std::ops::Range<usize>,
        runtime: &dyn Runtime,
    ) -> Result<()> {
        let part = |tensor: &HostTensor| tensor.slice(rows.start, rows.len());
        let request = CacheWriteRequest {
            key: uploads.view(&part(&self.key))?,
            value: uploads.view(&part(&self.value))?,
            // SAFETY: the machine runs launches in order, and of each cache this function makes the only view that
            // writes.
            key_cache: unsafe { uploads.view_mut(&self.key_cache)? },
            // SAFETY: see `key_cache`, which is another tensor.
            value_cache: unsafe { uploads.view_mut(&self.value_cache)? },
            slot_mapping: uploads.view(&part(&self.slot_mapping))?,
            block_size: self.key_cache.shape[1],
            scales: CacheScales::None,
            check: CheckMode::Off,
        };
        let checked = request.check()?;
        let plan = checked.plan();
        let bytes = plan.workspace_bytes();
        let mut workspace = Buffer::uninit(runtime, "workspace", Dtype::U8, &[bytes])?;
        checked.launch(&plan, &mut workspace.view_mut(), runtime)
    }

    /// Enqueues one step: the new tokens into the cache, then attention.
    fn step(
        &self,
        step: usize,
        plan: &DecodePlan,
        uploads: &Uploads<'_>,
        workspace: &mut Buffer<'_>,
        runtime: &dyn Runtime,
    ) -> Result<()> {
        let num_seqs = self.demo.num_seqs;
        let first = self.prompt_tokens() + step * num_seqs;
        self.write(uploads, first..first + num_seqs, runtime)?;
        self.decode(step, uploads)?
            .launch(plan, &mut workspace.view_mut(), runtime)
    }

    /// One step's attention, checked.
    fn decode<'u>(&self, step: usize, uploads: &'u Uploads<'_>) -> Result<CheckedDecode<'u>> {
        let num_seqs = self.demo.num_seqs;
        let part = |tensor: &HostTensor| tensor.slice(step * num_seqs, num_seqs);
        let len = u32::try_from(self.demo.context_len + step + 1).unwrap_or(u32::MAX);
        DecodeRequest {
            query: uploads.view(&part(&self.query))?,
            key_cache: uploads.view(&self.key_cache)?,
            value_cache: uploads.view(&self.value_cache)?,
            block_table: uploads.view(&self.block_table)?,
            seq_lens: uploads.view(&part(&self.seq_lens))?,
            // SAFETY: the machine runs launches in order, and this function makes the only view that writes.
            out: unsafe { uploads.view_mut(&self.out)? },
            lse: None,
            softmax_scale: self.softmax_scale(),
            scales: None,
            options: DecodeOptions::default().max_seq_len(len),
        }
        .check()
    }

    #[allow(clippy::cast_precision_loss, reason = "head sizes are small")]
    fn softmax_scale(&self) -> f32 {
        1.0 / (self.demo.head_size as f32).sqrt()
    }

    /// Compares a few sequences of the last step with the reference, which writes a cache of its own.
    fn compare(&self, out: &HostTensor) -> Result<Accuracy, Mismatch> {
        let written = |new: &HostTensor, cache: &HostTensor| {
            let mut bytes = cache.storage.bytes.clone();
            reference::reshape_and_cache_flash(new, &self.slot_mapping, cache, &mut bytes);
            cache.with_bytes(bytes)
        };
        let (key_cache, value_cache) = (
            written(&self.key, &self.key_cache),
            written(&self.value, &self.value_cache),
        );
        let num_seqs = self.demo.num_seqs;
        let last = (self.demo.steps - 1) * num_seqs;
        let (query, seq_lens) = (
            self.query.slice(last, num_seqs),
            self.seq_lens.slice(last, num_seqs),
        );
        let inputs = DecodeInputs {
            scales: None,
            query: &query,
            key_cache: &key_cache,
            value_cache: &value_cache,
            block_table: &self.block_table,
            seq_lens: &seq_lens,
            softmax_scale: f64::from(self.softmax_scale()),
            max_seq_len: None,
        };
        let seqs: Vec<usize> = (0..num_seqs).step_by(num_seqs.div_ceil(4)).collect();
        compare::decode(out, None, &seqs, &reference::decode(&inputs, &seqs))
    }
}

impl fmt::Display for DecodeDemoOutcome {
    #[allow(clippy::cast_precision_loss, reason = "for people to read")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.elapsed.as_secs_f64();
        writeln!(f, "on {}", self.runtime)?;
        writeln!(f, "plan: {}", self.plan)?;
        writeln!(
            f,
            "{} tokens in {:.3} ms: {:.0} tokens/s, {:.2} GB/s of keys and values",
            self.tokens,
            seconds * 1e3,
            self.tokens as f64 / seconds,
            self.kv_bytes as f64 / seconds * 1e-9,
        )?;
        match &self.verdict {
            Ok(accuracy) => write!(
                f,
                "agrees with the reference: relative error {:.1e}, at most {:.2} ulp",
                accuracy.rel_frobenius, accuracy.ulps
            ),
            Err(mismatch) => write!(f, "DIFFERS from the reference: {mismatch}"),
        }
    }
}
