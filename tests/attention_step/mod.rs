//! A step of attention in which a row is one number, and so is its output.
#![allow(dead_code, reason = "each test crate uses a part")]

use ferroattn::emulator::Emulator;
use ferroattn::ops::{
    DecodeMlaRequest, DecodeOptions, DecodeRequest, KvScales, MlaScales, UnifiedOptions,
    UnifiedRequest,
};
use ferroattn::plan::SplitPolicy;
use ferroattn::runtime::{Buffer, Launcher, Runtime};
use ferroattn::tensor::Dtype;

use crate::common::emulated;
use crate::tensors::encode;

pub(crate) const BLOCK: usize = 16;

/// Plans a good request of any operation and runs it.
macro_rules! launch {
    ($request:expr, $machine:expr) => {{
        let checked = $request.check().expect("a good request");
        let plan = checked.plan(&$machine.device()).expect("a plan");
        let bytes = plan.workspace_bytes();
        let mut workspace =
            Buffer::uninit($machine, "workspace", Dtype::U8, &[bytes]).expect("memory");
        checked
            .launch(&plan, &mut workspace.view_mut(), $machine)
            .expect("no fault");
    }};
}

/// Who attends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Operation {
    Decode,
    Unified,
    /// Rows of 288, of which 256 are values.
    Mla,
}

/// One sequence, one KV head, the same number in all dims of a row.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) operation: Operation,
    pub(crate) query_dtype: Dtype,
    pub(crate) cache_dtype: Dtype,
    pub(crate) head_size: usize,
    pub(crate) num_heads: usize,
    pub(crate) softmax_scale: f32,
    pub(crate) k_scale: f32,
    /// A number for each query token, key and value.
    pub(crate) queries: Vec<f32>,
    pub(crate) keys: Vec<f32>,
    pub(crate) values: Vec<f32>,
    /// What each token's value is multiplied by, if tokens have scales.
    pub(crate) value_scales: Option<Vec<f32>>,
    pub(crate) window: Option<u32>,
    pub(crate) softcap: Option<f32>,
    pub(crate) policy: SplitPolicy,
}

impl Step {
    pub(crate) fn new(
        operation: Operation,
        cache_dtype: Dtype,
        keys: Vec<f32>,
        values: Vec<f32>,
    ) -> Self {
        Self {
            operation,
            query_dtype: match cache_dtype {
                Dtype::F16 => Dtype::F16,
                _ => Dtype::Bf16,
            },
            cache_dtype,
            head_size: if operation == Operation::Mla { 288 } else { 64 },
            num_heads: 2,
            softmax_scale: 0.125,
            k_scale: 1.0,
            queries: vec![1.0],
            keys,
            values,
            value_scales: None,
            window: None,
            softcap: None,
            policy: SplitPolicy::Auto,
        }
    }

    /// One number for each row of the output, which has to be the same in all its dims, and the lse.
    pub(crate) fn run(&self, machine: &Emulator) -> Vec<(f32, f32)> {
        let (tokens, seq_len) = (self.queries.len(), self.keys.len());
        let (heads, size) = (self.num_heads, self.head_size);
        let blocks = seq_len.div_ceil(BLOCK);
        let is_mla = self.operation == Operation::Mla;
        let size_v = if is_mla { 256 } else { size };
        let rows = |dtype, numbers: &[f32], repeats: usize| -> Vec<u8> {
            let row = |&x| encode(dtype, x).repeat(repeats);
            numbers.iter().flat_map(row).collect()
        };
        let buffer = |name, dtype: Dtype, shape: &[usize], mut bytes: Vec<u8>| {
            bytes.resize(shape.iter().product::<usize>() * dtype.size(), 0xff);
            Buffer::new(machine, name, dtype, shape, &bytes).expect("memory")
        };
        let ints = |name, shape: &[usize], numbers: &[i32]| {
            let bytes = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
            buffer(name, Dtype::I32, shape, bytes)
        };
        let query = rows(self.query_dtype, &self.queries, heads * size);
        let keys = if is_mla {
            // Keys and values are one: a key is the rotary part, of which the latents are the value.
            let row = |(&key, &value): (&f32, &f32)| {
                let mut row = encode(self.cache_dtype, value).repeat(size_v);
                row.extend(encode(self.cache_dtype, key).repeat(size - size_v));
                row
            };
            self.keys.iter().zip(&self.values).flat_map(row).collect()
        } else {
            rows(self.cache_dtype, &self.keys, size)
        };
        let scale = |x: f32| buffer("k_scale", Dtype::F32, &[1], x.to_le_bytes().to_vec());
        let (mut k_scale, mut v_scale) = (scale(self.k_scale), scale(1.0));
        if let Some(scales) = &self.value_scales {
            let shape = [blocks, BLOCK, 1];
            let of_tokens = |name, scales: &[f32]| {
                let bytes = scales.iter().flat_map(|scale| scale.to_le_bytes());
                buffer(name, Dtype::F32, &shape, bytes.collect())
            };
            k_scale = of_tokens("k_scale", &vec![self.k_scale; seq_len]);
            v_scale = of_tokens("v_scale", scales);
        }
        let is_bytes = self.cache_dtype.size() == 1;
        let table: Vec<i32> = (0..).take(blocks).collect();
        let table = ints("block_table", &[1, blocks], &table);
        let lens = ints("seq_lens", &[1], &[i32::try_from(seq_len).expect("few")]);
        let starts = ints(
            "query_start_loc",
            &[2],
            &[0, i32::try_from(tokens).expect("few")],
        );
        let mut options = DecodeOptions::default().split_policy(self.policy);
        options.score_mods.sliding_window = self.window;
        options.score_mods.softcap = self.softcap;
        let (out, lse);
        if is_mla {
            let query_shape = [1, tokens, heads, size];
            let queries = {
                // Only the rotary part is multiplied.
                let row = |&x: &f32| {
                    let mut row = encode(self.query_dtype, 0.0).repeat(size_v);
                    row.extend(encode(self.query_dtype, x).repeat(size - size_v));
                    row.repeat(heads)
                };
                self.queries.iter().flat_map(row).collect()
            };
            let query = buffer("query", self.query_dtype, &query_shape, queries);
            let cache = buffer("cache", self.cache_dtype, &[blocks, BLOCK, size], keys);
            let shape = [1, tokens, heads, size_v];
            let mut out_buffer = buffer("out", self.query_dtype, &shape, Vec::new());
            let mut lse_buffer = buffer("lse", Dtype::F32, &shape[..3], Vec::new());
            let request = DecodeMlaRequest {
                query: query.view(),
                cache: cache.view(),
                block_table: table.view(),
                seq_lens: lens.view(),
                out: out_buffer.view_mut(),
                lse: Some(lse_buffer.view_mut()),
                softmax_scale: self.softmax_scale,
                scales: is_bytes.then(|| MlaScales {
                    q_scale: None,
                    k_scale: k_scale.view(),
                }),
                options,
            };
            launch!(request, machine);
            (out, lse) = (out_buffer.read(), lse_buffer.read());
        } else {
            let shape = [tokens, heads, size];
            let query = buffer("query", self.query_dtype, &shape, query);
            let cache_shape = [blocks, BLOCK, 1, size];
            let values = rows(self.cache_dtype, &self.values, size);
            let key_cache = buffer("key_cache", self.cache_dtype, &cache_shape, keys);
            let value_cache = buffer("value_cache", self.cache_dtype, &cache_shape, values);
            let mut out_buffer = buffer("out", self.query_dtype, &shape, Vec::new());
            let mut lse_buffer = buffer("lse", Dtype::F32, &shape[..2], Vec::new());
            let scales = is_bytes.then(|| KvScales {
                q_scale: None,
                k_scale: k_scale.view(),
                v_scale: v_scale.view(),
            });
            if self.operation == Operation::Decode {
                let request = DecodeRequest {
                    query: query.view(),
                    key_cache: key_cache.view(),
                    value_cache: value_cache.view(),
                    block_table: table.view(),
                    seq_lens: lens.view(),
                    out: out_buffer.view_mut(),
                    lse: Some(lse_buffer.view_mut()),
                    softmax_scale: self.softmax_scale,
                    scales,
                    options,
                };
                launch!(request, machine);
            } else {
                let mut options = UnifiedOptions::default();
                options.score_mods.sliding_window = self.window;
                options.score_mods.softcap = self.softcap;
                options.split_policy = self.policy;
                let request = UnifiedRequest {
                    query: query.view(),
                    key_cache: key_cache.view(),
                    value_cache: value_cache.view(),
                    block_table: table.view(),
                    query_start_loc: starts.view(),
                    seq_lens: lens.view(),
                    out: out_buffer.view_mut(),
                    lse: Some(lse_buffer.view_mut()),
                    softmax_scale: self.softmax_scale,
                    scales,
                    options,
                };
                launch!(request, machine);
            }
            (out, lse) = (out_buffer.read(), lse_buffer.read());
        }
        machine.synchronize().expect("no fault");
        let (out, lse) = (out.expect("written"), lse.expect("written"));
        let out: Vec<f32> = out
            .chunks_exact(2)
            .map(|bytes| match (self.query_dtype, [bytes[0], bytes[1]]) {
                (Dtype::F16, bytes) => half::f16::from_le_bytes(bytes).to_f32(),
                (_, bytes) => half::bf16::from_le_bytes(bytes).to_f32(),
            })
            .collect();
        let lse = lse
            .chunks_exact(4)
            .map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four")));
        out.chunks_exact(size_v)
            .map(|row| {
                let same = |x: &f32| *x == row[0] || (x.is_nan() && row[0].is_nan());
                assert!(row.iter().all(same), "{self:?}: {row:?}");
                row[0]
            })
            .zip(lse)
            .collect()
    }
}

/// What stands for a GPU without and with products of warp groups.
pub(crate) fn gpus() -> [Emulator; 2] {
    [emulated((8, 0)), emulated((9, 0))]
}

/// Within what a bf16 is rounded to.
pub(crate) fn near(got: f32, expected: f32) -> bool {
    (got - expected).abs() <= expected.abs() / 128.0 || got == expected
}
