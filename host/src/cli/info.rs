//! `info`: what this build carries, what it supports, and the machine it is on. Needs no GPU.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use crate::plan::variants;
use crate::runtime::Cuda;
use crate::runtime::driver::{device_count, require_driver};
use crate::runtime::embedded::{SETS, choose};

#[derive(Debug, Args)]
pub(super) struct InfoArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Serialize)]
struct Info {
    version: &'static str,
    driver: Result<String, String>,
    devices: Vec<Device>,
    kernels: Vec<Kernels>,
    support: Vec<Support>,
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

#[derive(Debug, Serialize)]
struct Support {
    operation: &'static str,
    dtypes: &'static str,
    head_sizes: String,
    cache: &'static str,
}

pub(super) fn run(args: &InfoArgs) -> anyhow::Result<ExitCode> {
    let info = Info::gather();
    let mut stdout = io::stdout().lock();
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
        let pairs: Vec<String> = variants::decode_support()
            .into_iter()
            .map(|(keys, values)| {
                if keys == values {
                    keys.to_string()
                } else {
                    format!("{keys}/{values}")
                }
            })
            .collect();
        Self {
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
                    archs: set.archs().map(|arch| arch.name).collect(),
                    source_sha256: set.source_sha256,
                })
                .collect(),
            support: vec![
                Support {
                    operation: "decode",
                    dtypes: "bf16, f16",
                    head_sizes: pairs.join(", "),
                    cache: "paged, any block size that is a multiple of 8, any strides that are multiples of 8",
                },
                Support {
                    operation: "unified_attention",
                    dtypes: "bf16, f16, fp8",
                    head_sizes: pairs.join(", "),
                    cache: "as decode",
                },
                Support {
                    operation: "reshape_and_cache_flash",
                    dtypes: "bf16, f16, f32, fp8",
                    head_sizes: "any (up to 512 with a scale per token and head)".into(),
                    cache: "paged, any block size, any strides; the input's dtype, fp8_e4m3, fp8_e5m2, or \
                            fp8_e4m3 or i8 with a scale per token and head",
                },
                Support {
                    operation: "decode_mla_entry",
                    dtypes: "bf16",
                    head_sizes: "576 and 512, values 512".into(),
                    cache: "656-byte entries, 584-byte pages; all tokens, or top-k indices and a second list over \
                            a second cache; sinks",
                },
                Support {
                    operation: "rope_and_cache",
                    dtypes: "bf16, f16",
                    head_sizes: "any, rotated in NeoX's or GPT-J's style, wholly or in part".into(),
                    cache: "as reshape_and_cache_flash, but for a scale per token and head; queries in place, \
                            elsewhere, or as fp8_e4m3",
                },
                Support {
                    operation: "concat_and_cache_mla",
                    dtypes: "bf16, f16, f32; bf16 for the forms with scales of their own",
                    head_sizes: "any latent and RoPE sizes; 512 + 64 and 448 + 64 for these forms"
                        .into(),
                    cache: "the input's dtype, fp8 with one scale, 656-byte entries, 584-byte pages; many \
                            layers in one launch",
                },
                Support {
                    operation: "gather",
                    dtypes: "any, byte for byte; bf16, f16, f32 from fp8; bf16 from the MLA forms",
                    head_sizes: "any row".into(),
                    cache: "by block table, by the last tokens of each sequence, by top-k indices, by slots",
                },
                Support {
                    operation: "copy_blocks, compaction",
                    dtypes: "any",
                    head_sizes: "any".into(),
                    cache: "blocks that fill one piece of memory each; copies also in pinned host memory",
                },
            ],
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
        for support in &self.support {
            writeln!(out, "{}:", support.operation)?;
            writeln!(out, "  dtypes      {}", support.dtypes)?;
            writeln!(out, "  head sizes  {}", support.head_sizes)?;
            writeln!(out, "  cache       {}", support.cache)?;
        }
        Ok(())
    }
}
