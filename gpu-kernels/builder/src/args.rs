//! The command line.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use ferroattn_ptx_builder::ROUTES;
use gpu_kernels::entry::Arch;

/// What `--help` prints.
pub(crate) const HELP: &str = "\
Compiles the kernels of ferroattn to PTX. What is compiled, or assembled, is refused if threads of a warp may part
where a barrier, or another instruction that waits for them, needs them together.

Usage: ferroattn-ptx-builder [OPTIONS]

      --route ROUTE    nvptx: compile with stock rustc (default); nvvm: with rust-cuda, which needs rustup,
                       LLVM 7 (LLVM_CONFIG) and a CUDA 12 toolkit (CUDA_PATH); both: one after the other
      --check          compile, but only compare with what is there
      --arch ARCH      compile for this architecture alone (may be repeated); the set then holds no other
      --out DIR        where the set of one route lies [default: gpu-kernels/ptx/<route>]
      --rustc PATH     the compiler of route nvptx [env: FERROATTN_RUSTC]
                       [default: /usr/bin/rustc, then rustup's nightly]
      --from DIR       with --route nvvm: PTX that rust-cuda compiled elsewhere from this source, a file
                       <arch>.ptx for each architecture
      --ptxas[=PATH]   assemble what is there for every GPU, and report registers and spills
                       [env: FERROATTN_PTXAS]
      --json           report as JSON
      --diff DIR       say which kernels differ from those in DIR/<route>, such as gpu-kernels/ptx of another
                       checkout; fails if any does but for its name
      --compare[=FILE] write what the two routes' kernels need, side by side
                       [default: bench-results/ptx-routes.md]
      --nvdisasm PATH  with --compare: count instructions with this disassembler
                       [env: FERROATTN_NVDISASM] [default: nvdisasm, if there is one]
      --times FILE     with --compare: add times, from `ferroattn bench --ptx both --json FILE`
  -h, --help           this text

Route nvvm, further: FERROATTN_NVVM_TOOLCHAIN names another toolchain of rustup's than the nightly that rust-cuda
was written for, and FERROATTN_NVVM_BACKEND a librustc_codegen_nvvm.so that was built already.
";

/// The command line, understood.
#[derive(Debug, Default)]
pub(crate) struct Args {
    pub(crate) help: bool,
    pub(crate) check: bool,
    pub(crate) json: bool,
    pub(crate) archs: Vec<Arch>,
    pub(crate) out: Option<PathBuf>,
    pub(crate) rustc: Option<PathBuf>,
    /// Of `ROUTES`.
    pub(crate) routes: Vec<&'static str>,
    pub(crate) from: Option<PathBuf>,
    /// Some: assemble, with the assembler at this path if there is one.
    pub(crate) ptxas: Option<Option<PathBuf>>,
    /// Some: compare the routes and write it there.
    pub(crate) compare: Option<Option<PathBuf>>,
    pub(crate) nvdisasm: Option<PathBuf>,
    /// Some: compare with the sets in this folder.
    pub(crate) diff: Option<PathBuf>,
    pub(crate) times: Option<PathBuf>,
}

impl Args {
    /// Reads the arguments after the program's name. `--name value` and `--name=value` mean the same.
    pub(crate) fn parse(arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut args = Self {
            rustc: std::env::var_os("FERROATTN_RUSTC").map(PathBuf::from),
            routes: vec!["nvptx"],
            ..Self::default()
        };
        let mut arguments = arguments.peekable();
        while let Some(argument) = arguments.next() {
            let (name, inline) = match argument.split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (argument, None),
            };
            let mut value = || {
                inline
                    .clone()
                    .or_else(|| arguments.next())
                    .with_context(|| format!("{name} needs a value"))
            };
            match name.as_str() {
                "-h" | "--help" => args.help = true,
                "--check" => args.check = true,
                "--json" => args.json = true,
                "--arch" => args.archs.push(known_arch(&value()?)?),
                "--out" => args.out = Some(value()?.into()),
                "--rustc" => args.rustc = Some(value()?.into()),
                "--from" => args.from = Some(value()?.into()),
                "--diff" => args.diff = Some(value()?.into()),
                "--nvdisasm" => args.nvdisasm = Some(value()?.into()),
                "--times" => args.times = Some(value()?.into()),
                "--route" => args.routes = known_routes(&value()?)?,
                "--ptxas" | "--compare" => {
                    let path = inline
                        .or_else(|| arguments.next_if(|next| !next.starts_with('-')))
                        .map(PathBuf::from);
                    if name == "--ptxas" {
                        args.ptxas = Some(path);
                    } else {
                        args.compare = Some(path);
                    }
                }
                other => bail!("unknown argument `{other}`; see --help"),
            }
        }
        ensure!(
            args.out.is_none() || args.routes.len() == 1,
            "--out is for one route"
        );
        ensure!(
            args.from.is_none() || args.routes == ["nvvm"],
            "--from is for --route nvvm"
        );
        if args.archs.is_empty() {
            args.archs = Arch::ALL.to_vec();
        }
        args.archs.sort();
        args.archs.dedup();
        Ok(args)
    }
}

fn known_routes(name: &str) -> Result<Vec<&'static str>> {
    if name == "both" {
        return Ok(ROUTES.to_vec());
    }
    let known = ROUTES.into_iter().find(|route| *route == name);
    let known =
        known.with_context(|| format!("there is no route `{name}`; routes: nvptx, nvvm, both"))?;
    Ok(vec![known])
}

fn known_arch(name: &str) -> Result<Arch> {
    Arch::named(name).with_context(|| {
        let names: Vec<&str> = Arch::ALL.iter().map(|arch| arch.name()).collect();
        let names = names.join(", ");
        format!("there is no PTX for `{name}`; architectures: {names}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args> {
        Args::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn routes_and_what_goes_with_them() {
        assert_eq!(parse("").unwrap().routes, ["nvptx"]);
        assert_eq!(parse("--route=both").unwrap().routes, ROUTES);
        let args = parse("--route nvvm --from x --arch sm_90").unwrap();
        assert_eq!(args.from, Some("x".into()));
        assert_eq!(args.archs, [Arch::Sm90]);
        for wrong in [
            "--route llvm",
            "--from x",
            "--route both --out x",
            "--arch sm_70",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn paths_may_be_left_out() {
        let args = parse("--ptxas --compare out.md --times t.json").unwrap();
        assert_eq!(args.ptxas, Some(None));
        assert_eq!(args.compare, Some(Some("out.md".into())));
        assert_eq!(args.times, Some("t.json".into()));
    }
}
