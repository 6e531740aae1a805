//! The command line: data on stdout, progress and complaints on stderr.

mod bench;
mod bench_measure;
mod calibrate;
mod ceiling;
mod decode;
pub mod decode_demo;
mod fuzz;
mod info;
mod machines;
mod run;
mod run_attention;
mod run_cache;
mod run_file;
mod run_gather;
mod run_names;
mod support_table;
mod sweep;

use std::io::{self, Write};
use std::process::ExitCode;

pub use run::run_operation;

use clap::{CommandFactory, Parser, Subcommand};

/// Paged attention kernels for LLM inference, on NVIDIA GPUs or emulated.
#[derive(Debug, Parser)]
#[command(name = "ferroattn", version, arg_required_else_help = true)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run cases and compare each with the reference
    Sweep(sweep::SweepArgs),
    /// Run random requests and compare each with the reference; then spoil each and look for the error
    Fuzz(fuzz::FuzzArgs),
    /// Time cases on the GPU
    Bench(bench::BenchArgs),
    /// Fill a paged cache, decode from it step by step, compare with the reference
    Decode(decode::DecodeArgs),
    /// Run one operation on the tensors of a safetensors file
    #[command(after_long_help = run::help())]
    Run(run::RunArgs),
    /// Print FP8 scales for the tensors of a safetensors file; needs no GPU
    #[command(after_long_help = calibrate::help())]
    Calibrate(calibrate::CalibrateArgs),
    /// Show driver, devices, compiled kernels and what is supported; needs no GPU
    #[command(after_long_help = info::help())]
    Info(info::InfoArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Parses the process's arguments and does what they say.
pub fn main() -> ExitCode {
    let args = Args::parse();
    let done = match args.command {
        Command::Sweep(args) => sweep::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Decode(args) => decode::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Calibrate(args) => calibrate::run(&args),
        Command::Info(args) => info::run(&args),
        Command::Completions { shell } => completions(shell),
    };
    match done {
        Ok(code) => code,
        // Whoever reads us has seen enough: `ferroattn sweep | head`.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn completions(shell: clap_complete::Shell) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "ferroattn", &mut script);
    io::stdout().write_all(&script)?;
    Ok(ExitCode::SUCCESS)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
    })
}
