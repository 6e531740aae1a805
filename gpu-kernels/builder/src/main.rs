//! `ferroattn-ptx-builder`: compiles the kernels, checks that the PTX in the repository is theirs, and
//! assembles it.

mod args;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use ferroattn_ptx_builder::compile::Compiler;
use ferroattn_ptx_builder::convergence;
use ferroattn_ptx_builder::diff::Diff;
use ferroattn_ptx_builder::kernels_dir;
use ferroattn_ptx_builder::nvvm::RustCuda;
use ferroattn_ptx_builder::ptx_set::PtxSet;
use ferroattn_ptx_builder::ptxas::{Ptxas, Usage};
use ferroattn_ptx_builder::routes;
use ferroattn_ptx_builder::sass::Nvdisasm;
use gpu_kernels::entry::Arch;

use args::Args;

fn main() -> ExitCode {
    match Args::parse(std::env::args().skip(1)).and_then(|args| run(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    if args.help {
        print!("{}", args::HELP);
        return Ok(());
    }
    if args.compare.is_some() {
        return compare(args);
    }
    let kernels = kernels_dir();
    for route in &args.routes {
        let out = args
            .out
            .clone()
            .unwrap_or_else(|| kernels.join("ptx").join(route));
        match (&args.ptxas, &args.diff) {
            (Some(path), _) => {
                let set = PtxSet::read(&out)?;
                refuse_what_may_hang(&set, &workspace(&kernels)?.join("target"))?;
                assemble(&Ptxas::find(path.clone())?, &set, args.json)?;
            }
            (None, Some(old)) => diff(&old.join(route), &out)?,
            (None, None) => build(args, route, &kernels, &out)?,
        }
    }
    Ok(())
}

/// The workspace around `kernels`.
fn workspace(kernels: &Path) -> Result<PathBuf> {
    let parent = kernels.parent();
    Ok(parent
        .context("gpu-kernels lies in the workspace")?
        .to_owned())
}

/// Compiles the kernels by one route, and writes the files or compares them with those in `out`.
fn build(args: &Args, route: &str, kernels: &Path, out: &Path) -> Result<()> {
    let target_dir = workspace(kernels)?.join("target");
    let archs: Vec<String> = args.archs.iter().map(Arch::to_string).collect();
    let set = match (route, &args.from) {
        ("nvvm", Some(from)) => PtxSet::from_rust_cuda(kernels, from, &archs)?,
        ("nvvm", None) => {
            let rust_cuda = RustCuda::find()?;
            eprintln!("compiling with {}", rust_cuda.version);
            PtxSet::compile_nvvm(&rust_cuda, kernels, &target_dir.join("ptx-nvvm"), &archs)?
        }
        _ => {
            let compiler = Compiler::find(args.rustc.clone())?;
            eprintln!("compiling with {}", compiler.version);
            PtxSet::compile(&compiler, kernels, &target_dir.join("ptx"), &archs)?
        }
    };
    refuse_what_may_hang(&set, &target_dir)?;
    if args.check {
        set.compare(out)?;
        println!(
            "{} holds what the source compiles to, byte for byte",
            out.display()
        );
        return Ok(());
    }
    set.write(out)?;
    println!(
        "{}: {} kernels for {}",
        out.display(),
        set.texts.len(),
        set.manifest.archs.join(", ")
    );
    Ok(())
}

/// Says what changed from the set in `old` to the one in `new`.
fn diff(old: &Path, new: &Path) -> Result<()> {
    let diff = Diff::of(&PtxSet::read(old)?, &PtxSet::read(new)?);
    println!("{}:\n{diff}", new.display());
    ensure!(
        diff.is_the_same_work(),
        "the two sets do not hold the same kernels"
    );
    Ok(())
}

/// Writes the report about both routes.
fn compare(args: &Args) -> Result<()> {
    let kernels = kernels_dir();
    let out = match args.compare.clone().flatten() {
        Some(path) => path,
        None => workspace(&kernels)?.join("bench-results/ptx-routes.md"),
    };
    let times = match &args.times {
        Some(path) => routes::read_times(path)?,
        None => Vec::new(),
    };
    let nvdisasm = Nvdisasm::find(args.nvdisasm.clone());
    ensure!(
        nvdisasm.is_some() || args.nvdisasm.is_none(),
        "the disassembler that --nvdisasm names does not run"
    );
    if nvdisasm.is_none() {
        eprintln!("no nvdisasm (PATH, FERROATTN_NVDISASM): the report goes without instructions");
    }
    let ptxas = Ptxas::find(args.ptxas.clone().flatten())?;
    let text = routes::report(&ptxas, nvdisasm.as_ref(), &kernels.join("ptx"), &times)?;
    if let Some(dir) = out.parent() {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    fs::write(&out, text).with_context(|| format!("cannot write {}", out.display()))?;
    println!("{}", out.display());
    Ok(())
}

/// Refuses a set in which threads may wait for such as do not come, and leaves those kernels where they can be read.
fn refuse_what_may_hang(set: &PtxSet, target_dir: &Path) -> Result<()> {
    let refused = convergence::check_set(set)?;
    let dir = target_dir.join("ptx-refused").join(&set.manifest.route);
    for kernel in &refused {
        let path = dir.join(format!("{}.{}.ptx", kernel.kernel, kernel.arch));
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        fs::write(&path, kernel.module)
            .with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("{}:", path.display());
        for finding in &kernel.findings {
            eprintln!("  {finding}");
        }
    }
    let mut names: Vec<&str> = refused.iter().map(|kernel| kernel.kernel).collect();
    names.dedup();
    ensure!(
        refused.is_empty(),
        "PTX of {} is refused, as threads wait where others that they wait for may not come: {}",
        set.manifest.route,
        names.join(", ")
    );
    Ok(())
}

fn assemble(ptxas: &Ptxas, set: &PtxSet, json: bool) -> Result<()> {
    let usage = ptxas.assemble_all(set)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&usage)?);
    } else {
        println!("{}", ptxas.version);
        print_table(&usage);
    }
    let mut spilling: Vec<&str> = usage
        .iter()
        .filter(|usage| usage.spills() && usage.is_hot())
        .map(|usage| usage.entry.as_str())
        .collect();
    spilling.sort_unstable();
    spilling.dedup();
    ensure!(
        spilling.is_empty(),
        "registers live in memory in {} hot kernels (bytes in the table): {}",
        spilling.len(),
        spilling.join(", ")
    );
    Ok(())
}

/// One line per entry; per GPU its registers, and what spills.
fn print_table(usage: &[Usage]) {
    let mut targets: Vec<&str> = Vec::new();
    let mut entries: Vec<&str> = Vec::new();
    for row in usage {
        if !targets.contains(&row.target.as_str()) {
            targets.push(&row.target);
        }
        if !entries.contains(&row.entry.as_str()) {
            entries.push(&row.entry);
        }
    }
    entries.sort_unstable();
    print!("{:36}", "registers (stack+spills, smem)");
    targets.iter().for_each(|target| print!("{target:>16}"));
    println!();
    for entry in entries {
        print!("{entry:36}");
        for target in &targets {
            let cell = usage
                .iter()
                .find(|row| row.entry == entry && row.target == *target)
                .map_or_else(|| "-".to_owned(), cell);
            print!("{cell:>16}");
        }
        println!();
    }
}

fn cell(row: &Usage) -> String {
    let mut cell = row.registers.to_string();
    if row.spills() {
        let bytes = row.stack_bytes + row.spill_store_bytes + row.spill_load_bytes;
        cell += &format!(" ({bytes} B!)");
    }
    if row.shared_bytes > 0 {
        cell += &format!(" s{}", row.shared_bytes);
    }
    cell
}
