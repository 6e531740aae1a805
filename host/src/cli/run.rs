//! `run`: one operation on tensors from a file.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;

use super::machines::{self, Choice};
use super::run_file::{self, File};
use super::run_job::{Inputs, Names};
use super::{run_attention as attention, run_cache as cache};
use crate::reference::HostTensor;
use crate::runtime::{Route, Runtime};

/// Tensors by their names, those in brackets if wanted; then `metadata:` with entries of the file's metadata. Shapes
/// and dtypes are those of the library's requests.
///
/// decode: query, key_cache, value_cache, block_table, seq_lens, [q_scale, k_scale, v_scale, alibi_slopes, sinks];
/// metadata: softmax_scale, [out_dtype, max_seq_len, split_policy, sliding_window, softcap]. Writes out, lse.
///
/// unified: as decode, and query_start_loc, [causal_flags, output_scale]; metadata: as decode, and [causal,
/// num_decodes, max_query_len, f32_scores].
///
/// decode_mla: query, cache, block_table, seq_lens, [q_scale, k_scale]; metadata: kv_lora_rank, softmax_scale,
/// [out_dtype, max_seq_len, split_policy].
///
/// decode_mla_entry: query, cache, [sinks], and either block_table, seq_lens or topk_indices, [topk_length,
/// block_table, window_cache, window_indices, window_length]; metadata: form (fp8_ds_mla or v4), softmax_scale,
/// [block_size, window_block_size, split_policy].
///
/// reshape_and_cache_flash: key, value, key_cache, value_cache, slot_mapping, [k_scale, v_scale], or [k_scale_cache,
/// v_scale_cache] for a scale per token and head. Writes the caches.
///
/// rope_and_cache: the same, and positions, cos_sin, [query, q_scale]; metadata: [style (neox or gptj)]. Also writes
/// query_out.
///
/// concat_and_cache_mla: kv_c, kv_cache, slot_mapping, [k_pe, scale]; metadata: [form (fp8_ds_mla or v4), scale_rule
/// (exact or power_of_two), block_size]. Writes kv_cache.
///
/// concat_and_cache_mla_grouped: kv_c, k_pe, kv_caches [num_layers, num_blocks, block_size, entry], slot_mapping,
/// [scales]. Writes kv_caches.
///
/// gather: cache, [scale], and block_table, row_starts, [first_tokens]; or block_table, seq_lens, [lens] with
/// rows_per_seq; or block_table, topk_indices, [seqs]; or slots; metadata: [form, out_dtype, block_size, rows_per_seq].
/// Writes out; rows without a token are zeros.
///
/// copy_blocks: pairs, and either target, [source] or targets, [sources] (caches along a dimension ahead of the
/// blocks'). Writes target or targets.
///
/// compact: cache, slots or block_table, seq_lens; metadata: num_compact_blocks, [block_size]. Writes compact, renamed,
/// num_wanted.
///
/// out_dtype is bf16, f16, f32 or fp8_e4m3; split_policy is auto, invariant, or tokens per split. Indices are checked
/// before they are used.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(super) struct RunArgs {
    /// The operation
    #[arg(long, value_parser = operation)]
    op: &'static Operation,
    /// Which machine; `auto` is the GPU if there is one, else the emulator
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    runtime: Choice,
    /// Whose PTX the GPU runs [env: FERROATTN_PTX] [default: rust-cuda's, if this build has it]
    #[arg(long, value_enum)]
    ptx: Option<Route>,
    /// Tensors to read
    #[arg(value_name = "IN.safetensors")]
    input: PathBuf,
    /// Where to write the results
    #[arg(value_name = "OUT.safetensors")]
    output: PathBuf,
}

/// One that `run` runs.
#[derive(Debug)]
struct Operation {
    name: &'static str,
    names: Names,
    run: fn(&Inputs<'_>, &dyn Runtime) -> anyhow::Result<Vec<HostTensor>>,
}

#[rustfmt::skip]
static OPERATIONS: &[Operation] = &[
    Operation { name: "decode", names: attention::DECODE, run: attention::decode },
    Operation { name: "unified", names: attention::UNIFIED, run: attention::unified },
    Operation { name: "decode_mla", names: attention::DECODE_MLA, run: attention::decode_mla },
    Operation { name: "decode_mla_entry", names: attention::DECODE_MLA_ENTRY, run: attention::decode_mla_entry },
    Operation { name: "reshape_and_cache_flash", names: cache::WRITE, run: cache::write },
    Operation { name: "rope_and_cache", names: cache::ROPE, run: cache::rope },
    Operation { name: "concat_and_cache_mla", names: cache::MLA_WRITE, run: cache::mla_write },
    Operation { name: "concat_and_cache_mla_grouped", names: cache::MLA_WRITE_GROUPED, run: cache::mla_write_grouped },
    Operation { name: "gather", names: cache::GATHER, run: cache::gather },
    Operation { name: "copy_blocks", names: cache::COPY_BLOCKS, run: cache::copy_blocks },
    Operation { name: "compact", names: cache::COMPACT, run: cache::compact },
];

fn operation(name: &str) -> Result<&'static Operation, String> {
    let found = OPERATIONS.iter().find(|operation| operation.name == name);
    found.ok_or_else(|| {
        let names: Vec<_> = OPERATIONS.iter().map(|operation| operation.name).collect();
        format!("it may be {}", names.join(", "))
    })
}

pub(super) fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let bytes =
        fs::read(&args.input).with_context(|| format!("reading {}", args.input.display()))?;
    let in_file = || format!("in {}", args.input.display());
    let file = File::read(&bytes).with_context(in_file)?;
    let inputs = Inputs::read(&file, args.op.names).with_context(in_file)?;
    let machine = machines::open_one(args.runtime, args.ptx)?;
    let results = (args.op.run)(&inputs, machine.as_ref())?;
    run_file::write(&results, &args.output)
        .with_context(|| format!("writing {}", args.output.display()))?;
    Ok(ExitCode::SUCCESS)
}
