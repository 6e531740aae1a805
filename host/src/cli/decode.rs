//! `decode`: the demonstration, with sizes from the command line.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;

use super::decode_demo::{self, DecodeDemo};
use super::machines::{self, Choice, PtxSet};
use crate::runtime::Route;

#[derive(Debug, Args)]
pub(super) struct DecodeArgs {
    /// Sequences
    #[arg(long)]
    num_seqs: Option<usize>,
    /// Tokens in the cache before the first step
    #[arg(long)]
    context_len: Option<usize>,
    /// Decode steps
    #[arg(long)]
    steps: Option<usize>,
    /// Query heads
    #[arg(long)]
    num_query_heads: Option<usize>,
    /// KV heads
    #[arg(long)]
    num_kv_heads: Option<usize>,
    /// Values per head
    #[arg(long)]
    head_size: Option<usize>,
    /// Tokens per cache block
    #[arg(long)]
    block_size: Option<usize>,
    /// Seeds the values and the order of blocks
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Which machine
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    runtime: Choice,
    /// Whose PTX the GPU runs [env: FERROATTN_PTX] [default: rust-cuda's, if this build has it]
    #[arg(long, value_enum)]
    ptx: Option<PtxSet>,
}

pub(super) fn run(args: &DecodeArgs) -> anyhow::Result<ExitCode> {
    let machine = machines::open_one(args.runtime, args.ptx.map(Route::from))?;
    let defaults = DecodeDemo::for_machine(machine.as_ref());
    let demo = DecodeDemo {
        num_seqs: args.num_seqs.unwrap_or(defaults.num_seqs),
        context_len: args.context_len.unwrap_or(defaults.context_len),
        steps: args.steps.unwrap_or(defaults.steps),
        num_query_heads: args.num_query_heads.unwrap_or(defaults.num_query_heads),
        num_kv_heads: args.num_kv_heads.unwrap_or(defaults.num_kv_heads),
        head_size: args.head_size.unwrap_or(defaults.head_size),
        block_size: args.block_size.unwrap_or(defaults.block_size),
        seed: args.seed,
    };
    eprintln!("{demo:?}");
    let outcome = decode_demo::run(&demo, machine.as_ref())?;
    writeln!(io::stdout(), "{outcome}")?;
    Ok(if outcome.verdict.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
