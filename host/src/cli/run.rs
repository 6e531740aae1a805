//! `run`: one operation on tensors from a file.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::LazyLock;

use anyhow::{Context, ensure};
use clap::Args;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};

use super::machines::{self, Choice, PtxSet};
use super::run_file::{self, File};
use super::{run_attention as attention, run_cache as cache, run_gather as gather, run_names};
use crate::cases::BlocksOperation;
use crate::cases::named::{FileContents, Operation, Ready, Stage};
use crate::ops::{CHECK_BYTES, CheckMode, check_result};
use crate::reference::HostTensor;
use crate::runtime::{Buffer, Route, Runtime};
use crate::tensor::Dtype;

/// Most bytes of all that an operation makes, and of its workspace: `run --help` says so.
pub(super) const MOST_BYTES: usize = 1 << 30;

/// Every operation, in the order of the help.
static OPERATIONS: LazyLock<Vec<&Operation>> = LazyLock::new(|| {
    let mut blocks = BlocksOperation::ALL
        .map(BlocksOperation::operation)
        .to_vec();
    // Of one operation there may be several kinds of cases.
    blocks.dedup_by_key(|op| op.name);
    [
        attention::OPERATIONS,
        cache::OPERATIONS,
        &[&gather::GATHER],
        &blocks,
    ]
    .concat()
});

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    /// The operation
    #[arg(long, value_parser = operations())]
    op: &'static Operation,
    /// Which machine
    #[arg(long, value_enum, default_value_t = Choice::Auto)]
    runtime: Choice,
    /// Whose PTX the GPU runs [env: FERROATTN_PTX] [default: rust-cuda's, if this build has it]
    #[arg(long, value_enum)]
    ptx: Option<PtxSet>,
    /// Tensors to read
    #[arg(value_name = "IN.safetensors")]
    input: PathBuf,
    /// Where to write the results
    #[arg(value_name = "OUT.safetensors")]
    output: PathBuf,
}

fn operations() -> impl TypedValueParser<Value = &'static Operation> {
    let values = OPERATIONS
        .iter()
        .map(|op| PossibleValue::new(op.name).help(op.about));
    PossibleValuesParser::new(values).try_map(|name| operation(&name))
}

fn operation(name: &str) -> anyhow::Result<&'static Operation> {
    let found = OPERATIONS.iter().find(|op| op.name == name).copied();
    found.with_context(|| format!("there is no operation `{name}`"))
}

/// What `run --help` says after the options.
pub(super) fn help() -> String {
    run_names::help(&OPERATIONS)
}

pub(super) fn run(args: &RunArgs) -> anyhow::Result<ExitCode> {
    let bytes =
        fs::read(&args.input).with_context(|| format!("reading {}", args.input.display()))?;
    let in_file = || format!("in {}", args.input.display());
    let file = File::read(&bytes).with_context(in_file)?;
    let given = read(args.op, &file).with_context(in_file)?;
    let machine = machines::open_one(args.runtime, args.ptx.map(Route::from))?;
    let results = launch(args.op, given, machine.as_ref())?;
    fs::write(&args.output, run_file::bytes(&results)?)
        .with_context(|| format!("writing {}", args.output.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Runs the operation of this name on the tensors of a safetensors file, as `ferroattn run` does; gives the results, as
/// such a file. The plan is printed on stderr. `ferroattn run --help` says what each operation reads.
///
/// # Errors
/// The file is none, or has not what the operation needs, or names that it does not take; sizes that no request can
/// need; and what the operation's check, its check on the device, or the machine says.
pub fn run_operation(op: &str, file: &[u8], machine: &dyn Runtime) -> anyhow::Result<Vec<u8>> {
    let op = operation(op)?;
    let file = File::read(file)?;
    run_file::bytes(&launch(op, read(op, &file)?, machine)?)
}

fn read(op: &'static Operation, file: &File<'_>) -> anyhow::Result<FileContents> {
    let (tensors, entries) = (file.names().into_iter(), file.entries().into_iter());
    op.refuse_unknown(tensors, entries, &OPERATIONS)?;
    file.contents(op)
}

/// What the operation writes, in the order of its request.
fn launch(
    op: &'static Operation,
    given: FileContents,
    machine: &dyn Runtime,
) -> anyhow::Result<Vec<HostTensor>> {
    let mut stage = Stage::new(machine, op, given, MOST_BYTES)?;
    let written = stage.launch(CheckMode::Device, &|ready| finish(&ready, machine))?;
    written.into_iter().map(|name| stage.read(name)).collect()
}

/// Prints the plan, launches it, and says what the check on the device has found, if there was one.
fn finish(ready: &Ready<'_>, machine: &dyn Runtime) -> anyhow::Result<()> {
    let bytes = ready.workspace_bytes;
    ensure!(
        bytes <= MOST_BYTES,
        "this needs a workspace of {bytes} bytes, which is more than {MOST_BYTES}"
    );
    eprintln!("{}", ready.plan);
    // Zeros: a check record that says that nothing was found, even if nothing is launched.
    let bytes = bytes.max(CHECK_BYTES);
    let mut workspace = Buffer::uninit(machine, "workspace", Dtype::U8, &[bytes])?;
    workspace.write(&vec![0; bytes])?;
    (ready.launch)(&mut workspace.view_mut(), machine)?;
    machine.synchronize()?;
    if ready.check == CheckMode::Device {
        check_result(&workspace.read()?[..CHECK_BYTES])?;
    }
    Ok(())
}
