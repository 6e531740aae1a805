//! `info`: what this build carries, what it supports, and the machine it is on. Needs no GPU.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::support_table;
use crate::plan::support::{self, Cache, Operation, Output, Scales, Sizes, Support};
use crate::runtime::Cuda;
use crate::runtime::driver::{device_count, require_driver};
use crate::runtime::embedded::{Arch, SETS, choose};

#[derive(Debug, Args)]
pub(super) struct InfoArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print what is supported, and nothing else, as the README has it
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
}

/// Grows when a field goes, or means something else.
const SCHEMA: u32 = 1;

/// What `info --help` says about the JSON.
pub(super) fn help() -> String {
    format!(
        "JSON: an object with `schema` {SCHEMA}. The number grows when a field goes or means something else; fields may \
         come without that.\n  \
         version     of this program\n  \
         driver      {{\"Ok\": version}} or {{\"Err\": why there is none}}\n  \
         devices     GPUs\n  \
         kernels     sets of PTX that this build carries\n  \
         operations  what each operation does, in words\n  \
         support     rows of the table that `info` prints: an operation takes each pair of `tensors` (null: there is\n              \
                     none) with each `cache`, each of `scales` and each of `sizes`\n"
    )
}

#[derive(Debug, Serialize)]
struct Info {
    schema: u32,
    version: &'static str,
    driver: Result<String, String>,
    devices: Vec<Device>,
    kernels: Vec<Kernels>,
    operations: Vec<Note>,
    support: Vec<Row>,
}

#[derive(Debug, Serialize)]
struct Device {
    ordinal: u32,
    name: String,
    compute_capability: String,
    num_sms: u32,
    memory_bytes: usize,
    l2_bytes: usize,
    ptx_arch: String,
}

#[derive(Debug, Serialize)]
struct Kernels {
    /// Whether this set is used unless somebody asks for another.
    default: bool,
    route: &'static str,
    compiler: &'static str,
    ptx_version: &'static str,
    archs: Vec<&'static str>,
    source_sha256: &'static str,
}

#[derive(Clone, Debug, Serialize)]
struct Note {
    operation: &'static str,
    note: &'static str,
}

/// A row of the support matrix, in the words of the table.
#[derive(Debug, Serialize)]
struct Row {
    operation: &'static str,
    tensors: Vec<Pair>,
    cache: Vec<String>,
    scales: Vec<String>,
    sizes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Pair {
    input: Option<String>,
    output: Option<String>,
}

pub(super) fn run(args: &InfoArgs) -> anyhow::Result<ExitCode> {
    let mut stdout = io::stdout().lock();
    if args.markdown {
        stdout.write_all(support_table::markdown().as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let info = Info::gather();
    if args.json {
        serde_json::to_writer_pretty(&mut stdout, &info).map_err(io::Error::from)?;
        writeln!(stdout)?;
    } else {
        info.print(&mut stdout)?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Info {
    fn gather() -> Self {
        let driver = require_driver()
            .map(|version| version.to_string())
            .map_err(|error| error.to_string());
        let count = if driver.is_ok() {
            device_count().unwrap_or(0)
        } else {
            0
        };
        let devices = (0..count)
            .filter_map(|ordinal| Cuda::open(ordinal).ok())
            .map(|cuda| {
                let properties = cuda.properties();
                let (major, minor) = properties.info.compute_capability;
                Device {
                    ordinal: properties.ordinal,
                    name: properties.name.clone(),
                    compute_capability: format!("{major}.{minor}"),
                    num_sms: properties.info.num_sms,
                    memory_bytes: properties.memory_bytes,
                    l2_bytes: properties.l2_bytes,
                    ptx_arch: cuda.kernels().archs(),
                }
            })
            .collect();
        Self {
            schema: SCHEMA,
            version: env!("CARGO_PKG_VERSION"),
            driver,
            devices,
            kernels: SETS
                .iter()
                .map(|set| Kernels {
                    default: choose(None).is_ok_and(|chosen| chosen.route == set.route),
                    route: set.route.name(),
                    compiler: set.compiler,
                    ptx_version: set.ptx_version,
                    archs: set.archs().iter().map(Arch::name).collect(),
                    source_sha256: set.source_sha256,
                })
                .collect(),
            operations: Operation::ALL
                .map(|operation| Note {
                    operation: operation.name(),
                    note: operation.note(),
                })
                .to_vec(),
            support: support::rows().iter().map(Row::new).collect(),
        }
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "ferroattn {}", self.version)?;
        match &self.driver {
            Ok(version) => writeln!(out, "driver:  CUDA {version}")?,
            Err(error) => writeln!(out, "driver:  {error}")?,
        }
        for device in &self.devices {
            writeln!(
                out,
                "device {}: {}, compute capability {}, {} multiprocessors, {} GB, runs {}",
                device.ordinal,
                device.name,
                device.compute_capability,
                device.num_sms,
                device.memory_bytes >> 30,
                device.ptx_arch,
            )?;
        }
        if self.kernels.is_empty() {
            writeln!(out, "kernels: none (this program was built without PTX)")?;
        }
        for kernels in &self.kernels {
            writeln!(
                out,
                "kernels: route {}{}, PTX {} for {}, by {}",
                kernels.route,
                if kernels.default { " (default)" } else { "" },
                kernels.ptx_version,
                kernels.archs.join(", "),
                kernels.compiler
            )?;
        }
        writeln!(out, "\n{}", support_table::text())
    }
}

impl Row {
    fn new(row: &Support) -> Self {
        let words = |output: Output| match output {
            Output::None => None,
            Output::Dtype(_) | Output::Cache => Some(output.to_string()),
        };
        Self {
            operation: row.operation.name(),
            tensors: row
                .tensors
                .iter()
                .map(|tensors| Pair {
                    input: tensors.input.map(|dtype| dtype.to_string()),
                    output: words(tensors.output),
                })
                .collect(),
            cache: row.caches.iter().map(Cache::to_string).collect(),
            scales: row.scales.iter().map(Scales::to_string).collect(),
            sizes: row.sizes.iter().map(Sizes::to_string).collect(),
        }
    }
}
