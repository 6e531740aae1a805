//! One buffer of another machine among those of a request, whichever it is: refused by its name, on the emulator.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

use std::cell::RefCell;

use ferroattn::Result;
use ferroattn::emulator::Emulator;
use ferroattn::error::{Error, RequestError};
use ferroattn::ops::{
    BlockCaches, CacheScales, CacheTable, CacheWriteRequest, CheckMode, CompactReferences,
    CompactRequest, ConcatAndCacheMlaGroupedRequest, ConcatAndCacheMlaRequest, CopyBlocksRequest,
    DecodeMlaEntryRequest, DecodeMlaRequest, DecodeOptions, EntryForm, EntryTokens, GatherForm,
    GatherRequest, GatherRows, MlaCacheForm, MlaScales, RopeAndCacheRequest, RopeQuery, RopeStyle,
    RopeTable, WindowTokens,
};
use ferroattn::plan::SplitPolicy;
use ferroattn::runtime::{Buffer, Launcher};
use ferroattn::tensor::{Dtype, contiguous_strides};

use Dtype::{Bf16, F8E4m3, F32, I32, I64, U8};

/// Makes buffers of zeros on one machine, but for one of them.
struct Pool<'m> {
    here: &'m Emulator,
    there: &'m Emulator,
    /// Which is on the other machine.
    foreign: usize,
    /// Names of those made so far.
    made: RefCell<Vec<&'static str>>,
}

impl<'m> Pool<'m> {
    /// A tensor of a request, under the name that errors have for it.
    fn make(&self, name: &'static str, dtype: Dtype, shape: &[usize]) -> Buffer<'m> {
        let mut made = self.made.borrow_mut();
        let machine = if made.len() == self.foreign {
            self.there
        } else {
            self.here
        };
        made.push(name);
        let zeros = vec![0; shape.iter().product::<usize>() * dtype.size()];
        Buffer::new(machine, name, dtype, shape, &zeros).expect("small")
    }

    /// The same, without, if it is of no use here.
    fn make_if(
        &self,
        is_wanted: bool,
        name: &'static str,
        dtype: Dtype,
        shape: &[usize],
    ) -> Option<Buffer<'m>> {
        is_wanted.then(|| self.make(name, dtype, shape))
    }
}

/// Each buffer that `launch` makes is on another machine once; then none is, and the launch is a good one.
fn each_is_refused(launch: impl Fn(&Pool<'_>) -> Result<()>) {
    let (here, there) = (Emulator::new(), Emulator::new());
    for foreign in 0.. {
        let pool = Pool {
            here: &here,
            there: &there,
            foreign,
            made: RefCell::default(),
        };
        let result = launch(&pool);
        match (pool.made.borrow().get(foreign), result) {
            (Some(name), Err(Error::Request(RequestError::Machine { tensor }))) => {
                assert_eq!(tensor, *name);
            }
            (None, Ok(())) => break,
            (name, other) => panic!("{name:?} on another machine: {other:?}"),
        }
    }
}

/// Checks a request and runs it.
macro_rules! run {
    ($request:expr, $pool:expr) => {{
        let checked = $request.check()?;
        let plan = checked.plan();
        let mut workspace = $pool.make("workspace", U8, &[plan.workspace_bytes().max(256)]);
        checked.launch(&plan, &mut workspace.view_mut(), $pool.here)
    }};
}

/// What is done with a decode over latents.
#[derive(Clone, Copy, PartialEq)]
enum Latents {
    Launch,
    /// By a schedule that is there.
    LaunchScheduled,
    Schedule,
}

#[test]
fn decode_over_latents() {
    for dtype in [Bf16, F8E4m3] {
        for what in [Latents::Launch, Latents::LaunchScheduled, Latents::Schedule] {
            each_is_refused(|pool| {
                // A schedule has no use for the other tensors.
                let inputs = Pool {
                    foreign: usize::MAX,
                    made: RefCell::default(),
                    ..*pool
                };
                let pool_of_inputs = match what {
                    Latents::Schedule => &inputs,
                    _ => pool,
                };
                let make = |name, dtype, shape: &[usize]| pool_of_inputs.make(name, dtype, shape);
                let is_scaled = dtype == F8E4m3;
                let query = make("query", dtype, &[1, 1, 4, 576]);
                let cache = make("cache", dtype, &[1, 16, 576]);
                let table = make("block_table", I32, &[1, 1]);
                let lens = pool.make("seq_lens", I32, &[1]);
                let mut out = make("out", Bf16, &[1, 1, 4, 512]);
                let mut lse = make("lse", F32, &[1, 1, 4]);
                let q_scale = pool_of_inputs.make_if(is_scaled, "q_scale", F32, &[1]);
                let k_scale = pool_of_inputs.make_if(is_scaled, "k_scale", F32, &[1]);
                let mut options = DecodeOptions::default();
                if what != Latents::Launch {
                    options = options.split_policy(SplitPolicy::Scheduled);
                }
                let mut request = DecodeMlaRequest {
                    query: query.view(),
                    cache: cache.view(),
                    block_table: table.view(),
                    seq_lens: lens.view(),
                    out: out.view_mut(),
                    lse: Some(lse.view_mut()),
                    softmax_scale: 0.125,
                    scales: k_scale.as_ref().map(|k_scale| MlaScales {
                        q_scale: q_scale.as_ref().map(Buffer::view),
                        k_scale: k_scale.view(),
                    }),
                    options,
                };
                // Of one sequence on the plain emulator: nothing to merge, and nothing to attend to.
                let mut items = pool.make_if(what != Latents::Launch, "schedule", I32, &[3, 4]);
                if let Some(items) = &mut items {
                    items.write(&[[0; 16], [0xff; 16], [0xff; 16]].concat())?;
                }
                let workspace = |bytes: usize| pool.make("workspace", U8, &[bytes.max(256)]);
                if what == Latents::Schedule {
                    let checked = request.check()?;
                    let plan = checked.plan(&pool.here.device())?;
                    let mut workspace = workspace(plan.workspace_bytes());
                    let items = &mut items.as_mut().expect("a schedule").view_mut();
                    return checked.schedule(&plan, items, &mut workspace.view_mut(), pool.here);
                }
                request.options.schedule = items.as_ref().map(Buffer::view);
                let checked = request.check()?;
                let plan = checked.plan(&pool.here.device())?;
                let mut workspace = workspace(plan.workspace_bytes());
                checked.launch(&plan, &mut workspace.view_mut(), pool.here)
            });
        }
    }
}

#[test]
fn decode_over_entries() {
    for (has_lists, by_table) in [(false, true), (true, false), (true, true)] {
        each_is_refused(|pool| {
            let query = pool.make("query", Bf16, &[1, 1, 4, 576]);
            let cache = pool.make("cache", U8, &[1, 64, 656]);
            let table = pool.make_if(by_table, "block_table", I32, &[1, 1]);
            let table = table.as_ref();
            let lens = pool.make_if(!has_lists, "seq_lens", I32, &[1]);
            let list = |name, dtype, shape: &[usize]| pool.make_if(has_lists, name, dtype, shape);
            let indices = list("topk_indices", I32, &[1, 1, 8]);
            let length = list("topk_length", I32, &[1, 1]);
            let window_cache = list("window.cache", U8, &[1, 64, 656]);
            let window_indices = list("window.indices", I32, &[1, 1, 8]);
            let window_length = list("window.length", I32, &[1, 1]);
            let sinks = pool.make("sinks", F32, &[4]);
            let mut out = pool.make("out", Bf16, &[1, 1, 4, 512]);
            let mut lse = pool.make("lse", F32, &[1, 1, 4]);
            let checked = DecodeMlaEntryRequest {
                query: query.view(),
                form: EntryForm::Fp8Ds,
                cache: cache.view(),
                block_size: 64,
                tokens: match (&lens, &indices, &window_cache, &window_indices) {
                    (None, Some(indices), Some(cache), Some(window)) => EntryTokens::TopK {
                        topk_indices: indices.view(),
                        topk_length: length.as_ref().map(Buffer::view),
                        block_table: table.map(Buffer::view),
                        window: Some(WindowTokens {
                            cache: cache.view(),
                            block_size: 64,
                            indices: window.view(),
                            length: window_length.as_ref().map(Buffer::view),
                        }),
                    },
                    (lens, ..) => EntryTokens::All {
                        block_table: table.expect("a table").view(),
                        seq_lens: lens.as_ref().expect("lengths").view(),
                    },
                },
                sinks: Some(sinks.view()),
                out: out.view_mut(),
                lse: Some(lse.view_mut()),
                softmax_scale: 0.125,
                options: DecodeOptions::default(),
            }
            .check()?;
            let plan = checked.plan(&pool.here.device())?;
            let mut workspace = pool.make("workspace", U8, &[plan.workspace_bytes().max(256)]);
            checked.launch(&plan, &mut workspace.view_mut(), pool.here)
        });
    }
}

/// What a cache write does to values.
#[derive(Clone, Copy, PartialEq)]
enum Values {
    Copied,
    Scaled,
    ScaledByToken,
}

/// Calls `then` with a write of one token.
fn write(
    pool: &Pool<'_>,
    values: Values,
    then: impl FnOnce(CacheWriteRequest<'_>) -> Result<()>,
) -> Result<()> {
    let stored = if values == Values::Copied {
        Bf16
    } else {
        F8E4m3
    };
    let key = pool.make("key", Bf16, &[1, 2, 64]);
    let value = pool.make("value", Bf16, &[1, 2, 64]);
    let mut key_cache = pool.make("key_cache", stored, &[1, 16, 2, 64]);
    let mut value_cache = pool.make("value_cache", stored, &[1, 16, 2, 64]);
    let slots = pool.make("slot_mapping", I64, &[1]);
    let shape = match values {
        Values::ScaledByToken => &[1, 16, 2][..],
        Values::Copied | Values::Scaled => &[1],
    };
    let has_scales = values != Values::Copied;
    let mut k_scale = pool.make_if(has_scales, "k_scale", F32, shape);
    let mut v_scale = pool.make_if(has_scales, "v_scale", F32, shape);
    then(CacheWriteRequest {
        key: key.view(),
        value: value.view(),
        key_cache: key_cache.view_mut(),
        value_cache: value_cache.view_mut(),
        slot_mapping: slots.view(),
        block_size: 16,
        scales: match (values, &mut k_scale, &mut v_scale) {
            (Values::Scaled, Some(k_scale), Some(v_scale)) => CacheScales::Given {
                k_scale: k_scale.view(),
                v_scale: v_scale.view(),
            },
            (Values::ScaledByToken, Some(k_scale), Some(v_scale)) => CacheScales::PerTokenHead {
                k_scale: k_scale.view_mut(),
                v_scale: v_scale.view_mut(),
            },
            _ => CacheScales::None,
        },
        check: CheckMode::Off,
    })
}

#[test]
fn cache_writes() {
    for values in [Values::Copied, Values::Scaled, Values::ScaledByToken] {
        each_is_refused(|pool| write(pool, values, |request| run!(request, pool)));
    }
}

#[test]
fn rotated_cache_writes() {
    for values in [Values::Copied, Values::Scaled] {
        each_is_refused(|pool| {
            write(pool, values, |write| {
                let is_scaled = values == Values::Scaled;
                let positions = pool.make("positions", I64, &[1]);
                let cos_sin = pool.make("cos_sin", F32, &[1, 64]);
                let query = pool.make("query", Bf16, &[1, 4, 64]);
                let rotated = if is_scaled { F8E4m3 } else { Bf16 };
                let mut out = pool.make("query_out", rotated, &[1, 4, 64]);
                let q_scale = pool.make_if(is_scaled, "q_scale", F32, &[1]);
                let request = RopeAndCacheRequest {
                    write,
                    table: RopeTable {
                        positions: positions.view(),
                        cos_sin: cos_sin.view(),
                        style: RopeStyle::Neox,
                    },
                    query: Some(RopeQuery {
                        query: query.view(),
                        out: out.view_mut(),
                        q_scale: q_scale.as_ref().map(Buffer::view),
                    }),
                };
                run!(request, pool)
            })
        });
    }
}

#[test]
fn latent_cache_writes() {
    for is_scaled in [false, true] {
        let stored = if is_scaled { F8E4m3 } else { Bf16 };
        each_is_refused(|pool| {
            let kv_c = pool.make("kv_c", Bf16, &[1, 512]);
            let k_pe = pool.make("k_pe", Bf16, &[1, 64]);
            let mut cache = pool.make("kv_cache", stored, &[1, 16, 576]);
            let slots = pool.make("slot_mapping", I64, &[1]);
            let scale = pool.make_if(is_scaled, "scale", F32, &[1]);
            let request = ConcatAndCacheMlaRequest {
                kv_c: kv_c.view(),
                k_pe: Some(k_pe.view()),
                kv_cache: cache.view_mut(),
                slot_mapping: slots.view(),
                block_size: 16,
                form: match &scale {
                    Some(scale) => MlaCacheForm::Fp8 {
                        scale: scale.view(),
                    },
                    None => MlaCacheForm::Plain,
                },
                check: CheckMode::Off,
            };
            run!(request, pool)
        });
        each_is_refused(|pool| {
            let kv_c = pool.make("kv_c", Bf16, &[1, 1, 512]);
            let k_pe = pool.make("k_pe", Bf16, &[1, 1, 64]);
            // Nobody can know whose memory addresses are.
            let layer = vec![0; 16 * 576 * stored.size()];
            let layer = Buffer::new(pool.here, "layer", stored, &[1, 16, 576], &layer)?;
            let mut addresses = pool.make("kv_caches", I64, &[1]);
            addresses.write(&layer.view().address().to_le_bytes())?;
            let slots = pool.make("slot_mapping", I64, &[1, 1]);
            let scales = pool.make_if(is_scaled, "scales", F32, &[1]);
            let shape = [1, 16, 576];
            let strides = contiguous_strides(&shape);
            // SAFETY: the address is a cache of this shape, which nobody else uses meanwhile.
            let caches =
                unsafe { CacheTable::from_raw(addresses.view(), stored, &shape, &strides) }?;
            let request = ConcatAndCacheMlaGroupedRequest {
                kv_c: kv_c.view(),
                k_pe: k_pe.view(),
                kv_caches: caches,
                slot_mapping: slots.view(),
                block_size: 16,
                scales: scales.as_ref().map(Buffer::view),
                check: CheckMode::Off,
            };
            run!(request, pool)
        });
    }
}

/// Which kind of [`GatherRows`].
const ROWS: [&str; 4] = ["ragged", "padded", "top-k", "slots"];

#[test]
fn gathers() {
    for rows in ROWS {
        each_is_refused(|pool| {
            let is_scaled = rows == "slots";
            let stored = if is_scaled { F8E4m3 } else { Bf16 };
            let cache = pool.make("cache", stored, &[1, 16, 64]);
            let scale = pool.make_if(is_scaled, "scale", F32, &[1]);
            let out_shape = if rows == "padded" {
                &[1, 2, 64][..]
            } else {
                &[2, 64]
            };
            let mut out = pool.make("out", Bf16, out_shape);
            let list = |name, shape: &[usize]| pool.make(name, I32, shape);
            let table = (rows != "slots").then(|| list("block_table", &[1, 1]));
            let (first, second) = match rows {
                "ragged" => (list("row_starts", &[2]), Some(list("first_tokens", &[1]))),
                "padded" => (list("seq_lens", &[1]), Some(list("lens", &[1]))),
                "top-k" => (list("indices", &[1, 2]), Some(list("seqs", &[1]))),
                _ => (list("slots", &[2]), None),
            };
            let second = second.as_ref().map(Buffer::view);
            let rows = match (&table, rows) {
                (Some(table), "ragged") => GatherRows::Ragged {
                    block_table: table.view(),
                    row_starts: first.view(),
                    first_tokens: second,
                },
                (Some(table), "padded") => GatherRows::Padded {
                    block_table: table.view(),
                    seq_lens: first.view(),
                    lens: second,
                },
                (Some(table), _) => GatherRows::TopK {
                    block_table: table.view(),
                    indices: first.view(),
                    seqs: second,
                },
                (None, _) => GatherRows::Slots {
                    slots: first.view(),
                },
            };
            let request = GatherRequest {
                cache: cache.view(),
                block_size: 16,
                form: match &scale {
                    Some(scale) => GatherForm::Fp8 {
                        scale: scale.view(),
                    },
                    None => GatherForm::Raw,
                },
                out: out.view_mut(),
                rows,
                zero_missing: true,
                check: CheckMode::Off,
            };
            run!(request, pool)
        });
    }
}

#[test]
fn moves_of_blocks() {
    for is_within in [false, true] {
        each_is_refused(|pool| {
            let source = pool.make_if(!is_within, "source", Bf16, &[2, 16]);
            let mut target = pool.make("target", Bf16, &[2, 16]);
            let pairs = pool.make("pairs", I64, &[0, 2]);
            let request = CopyBlocksRequest {
                caches: match &source {
                    Some(source) => BlockCaches::Between {
                        source: source.view(),
                        target: target.view_mut(),
                    },
                    None => BlockCaches::Within(target.view_mut()),
                },
                pairs: pairs.view(),
                check: CheckMode::Off,
            };
            run!(request, pool)
        });
    }
    for has_tables in [false, true] {
        each_is_refused(|pool| {
            let cache = pool.make("caches", Bf16, &[2, 16, 64]);
            let mut compact = pool.make("caches", Bf16, &[2, 16, 64]);
            let shape = if has_tables { &[1, 1][..] } else { &[1] };
            let name = if has_tables { "block_table" } else { "slots" };
            let references = pool.make(name, I32, shape);
            let lens = pool.make_if(has_tables, "seq_lens", I32, &[1]);
            let mut renamed = pool.make("renamed", I32, shape);
            let mut num_wanted = pool.make("num_wanted", I32, &[1]);
            let request = CompactRequest {
                caches: vec![(cache.view(), compact.view_mut())],
                block_size: 16,
                references: match &lens {
                    Some(lens) => CompactReferences::Tables {
                        block_table: references.view(),
                        seq_lens: lens.view(),
                        renamed: renamed.view_mut(),
                    },
                    None => CompactReferences::Slots {
                        slots: references.view(),
                        renamed: renamed.view_mut(),
                    },
                },
                num_wanted: num_wanted.view_mut(),
                check: CheckMode::Off,
            };
            run!(request, pool)
        });
    }
}
