//! A report that compares what two compilers made of the same kernels: registers, spills, instructions,
//! wide loads, occupancy, and, if somebody measured them, times.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use gpu_kernels::decode::{DecodeTile, merge as merge_splits};
use gpu_kernels::entry::{Arch, ENTRIES, Entry, EntryId, Variant};
use gpu_kernels::mla::{RAW_STAGES, STAGES};
use gpu_kernels::prefill::PrefillTile;
use serde::Deserialize;

use crate::ROUTES;
use crate::manifest::Manifest;
use crate::ptx_set::PtxSet;
use crate::ptxas::{Ptxas, Usage};
use crate::sass::{Nvdisasm, Sass};

/// What the comparison is assembled for: each kernel is for one of these.
const ARCHS: [&str; 2] = [Arch::Sm90.name(), Arch::Sm90a.name()];

/// One route's side of the report.
struct Side {
    manifest: Manifest,
    usage: Vec<Usage>,
    /// If there is a disassembler.
    sass: Option<BTreeMap<String, Sass>>,
}

/// Times of both routes for one benchmark case.
#[derive(Clone, Debug, PartialEq)]
pub struct Times {
    /// The case.
    pub case: String,
    /// The kernel that does most of its work.
    pub entry: &'static str,
    /// Microseconds, in the order of [`ROUTES`].
    pub us: [f64; 2],
}

/// The report as Markdown. `ptx` holds a folder per route.
///
/// # Errors
/// A set is missing or stale with regard to the other; or it does not assemble.
pub fn report(
    ptxas: &Ptxas,
    nvdisasm: Option<&Nvdisasm>,
    ptx: &Path,
    times: &[Times],
) -> Result<String> {
    let sides = ROUTES
        .iter()
        .map(|route| side(ptxas, nvdisasm, &ptx.join(route)))
        .collect::<Result<Vec<_>>>()?;
    let [nvvm, nvptx] = &sides[..] else {
        unreachable!("there are two routes");
    };
    ensure!(
        nvvm.manifest.source_sha256 == nvptx.manifest.source_sha256,
        "the two sets were compiled from different sources; build both with `{}`",
        crate::mend("both")
    );
    Ok(markdown(&ptxas.version, [nvvm, nvptx], times))
}

fn side(ptxas: &Ptxas, nvdisasm: Option<&Nvdisasm>, dir: &Path) -> Result<Side> {
    let set = PtxSet::read(dir)?;
    let cubin = std::env::temp_dir().join(format!(
        "ferroattn-{}-{}.cubin",
        std::process::id(),
        set.manifest.route
    ));
    let mut usage = Vec::new();
    let mut sass = nvdisasm.map(|_| BTreeMap::new());
    for arch in ARCHS {
        usage.extend(ptxas.assemble(&set, arch, arch, &cubin)?);
        let counts = nvdisasm.map(|nvdisasm| nvdisasm.count(&cubin)).transpose();
        // It has been read, or could not be.
        let _ = std::fs::remove_file(&cubin);
        if let (Some(sass), Some(counts)) = (&mut sass, counts?) {
            sass.extend(counts);
        }
    }
    Ok(Side {
        manifest: set.manifest,
        usage,
        sass,
    })
}

fn markdown(ptxas: &str, sides: [&Side; 2], times: &[Times]) -> String {
    let mut text = String::from("# One source, two compilers\n\n");
    let mut line = |line: String| writeln!(text, "{line}").expect("strings take all text");
    line(format!(
        "Each kernel as rust-cuda (`nvvm`) and stock rustc (`nvptx`) compile it, assembled for {}. Cells \
         hold both numbers, `nvvm / nvptx`, or one if they agree.",
        ARCHS.join(" or ")
    ));
    line(String::new());
    for side in sides {
        line(format!(
            "- {}: {}",
            side.manifest.route, side.manifest.compiler
        ));
    }
    line(format!("- assembler: {ptxas}"));
    line(format!("- source: {}", sides[0].manifest.source_sha256));
    line(String::new());

    let has_sass = sides.iter().all(|side| side.sass.is_some());
    let mut header = vec![
        "kernel",
        "registers",
        "spilled bytes",
        "stack bytes",
        "blocks per SM",
    ];
    if has_sass {
        header.extend(["instructions", "16-byte loads"]);
    }
    if !times.is_empty() {
        header.push("time nvvm / nvptx");
    }
    line(format!("| {} |", header.join(" | ")));
    line(format!("|---|{}", "---:|".repeat(header.len() - 1)));
    for entry in ENTRIES {
        let usage = sides.map(|side| side.usage.iter().find(|usage| usage.entry == entry.name));
        let mut cells =
            vec![
                entry.name.to_owned(),
                pair(usage.map(|usage| usage.map(|usage| usage.registers))),
                pair(usage.map(|usage| {
                    usage.map(|usage| usage.spill_store_bytes + usage.spill_load_bytes)
                })),
                pair(usage.map(|usage| usage.map(|usage| usage.stack_bytes))),
                pair(usage.map(|usage| usage.map(|usage| ctas_per_sm(entry, usage)))),
            ];
        if has_sass {
            let sass = sides.map(|side| side.sass.as_ref()?.get(entry.name));
            cells.push(pair(sass.map(|sass| sass.map(|sass| sass.instructions))));
            cells.push(pair(sass.map(|sass| sass.map(|sass| sass.wide_loads))));
        }
        if !times.is_empty() {
            let ratios = times
                .iter()
                .filter(|times| times.entry == entry.name)
                .map(|times| times.us[0] / times.us[1]);
            cells.push(mean(ratios).map_or_else(|| "-".into(), |mean| format!("{mean:.3}")));
        }
        line(format!("| {} |", cells.join(" | ")));
    }
    if !times.is_empty() {
        line("\nThe times are geometric means over the cases below that run the kernel.\n".into());
        line("| case | kernel | µs nvvm | µs nvptx | nvvm / nvptx |".into());
        line("|---|---|---:|---:|---:|".into());
        for Times { case, entry, us } in times {
            let [nvvm, nvptx] = us;
            let ratio = nvvm / nvptx;
            line(format!(
                "| {case} | {entry} | {nvvm:.2} | {nvptx:.2} | {ratio:.3} |"
            ));
        }
    }
    text
}

/// Two numbers, or one if they agree.
fn pair(numbers: [Option<u32>; 2]) -> String {
    let text = |number: Option<u32>| number.map_or_else(|| "-".into(), |number| number.to_string());
    let [first, second] = numbers.map(text);
    if first == second {
        first
    } else {
        format!("{first} / {second}")
    }
}

/// Geometric mean, if there is anything.
fn mean(ratios: impl Iterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0.0);
    for ratio in ratios {
        sum += ratio.ln();
        count += 1.0;
    }
    (count > 0.0).then(|| (sum / count).exp())
}

/// Thread blocks that a multiprocessor of compute capability 9.0 holds at once.
fn ctas_per_sm(entry: &Entry, usage: &Usage) -> u32 {
    /// Registers come in units of so many per warp.
    const REGISTER_UNIT: u32 = 256;
    const REGISTERS: u32 = 64 * 1024;
    const THREADS: u32 = 2048;
    const CTAS: u32 = 32;
    const SHARED_BYTES: u32 = 228 * 1024;
    /// What CUDA itself takes of the shared memory of each thread block.
    const SHARED_RESERVED: u32 = 1024;
    let warps = entry.threads.div_ceil(32);
    let registers = (usage.registers * 32).next_multiple_of(REGISTER_UNIT) * warps;
    let shared = usage.shared_bytes + dynamic_shared_bytes(entry) + SHARED_RESERVED;
    (REGISTERS / registers.max(1))
        .min(THREADS / entry.threads)
        .min(SHARED_BYTES / shared)
        .min(CTAS)
}

/// Dynamic shared memory that a launch of `entry` asks for; the least, where it depends on the launch.
pub(crate) fn dynamic_shared_bytes(entry: &Entry) -> u32 {
    match entry.variant {
        Variant::DecodeMla { cut, .. } => cut.shared_bytes(STAGES.0),
        Variant::DecodeMlaEntry { form, cut } => cut.entry_shared_bytes(form, RAW_STAGES.0, 1),
        Variant::DecodeGqa {
            cache,
            head_size,
            head_size_v,
            ruled,
            ..
        } => {
            let shape = DecodeTile::of(
                head_size,
                head_size_v,
                cache.value_bytes(),
                cache.token_scales,
            );
            if ruled {
                shape.shared_bytes_of(1, head_size_v)
            } else {
                shape.shared_bytes()
            }
        }
        Variant::PrefillGqa {
            cache,
            head_size,
            head_size_v,
            products,
        } => {
            let (value_bytes, token_scales) = (cache.value_bytes(), cache.token_scales);
            PrefillTile::of(head_size, head_size_v, value_bytes, token_scales, products)
                .shared_bytes()
        }
        Variant::MergeSplits { .. } | Variant::MergeScheduled { .. } => merge_splits::SHARED_BYTES,
        Variant::MergeMany { .. } => merge_splits::SHARED_BYTES_OF_MANY,
        Variant::MergeFew { .. }
        | Variant::MergeRows
        | Variant::CacheCopy
        | Variant::CacheScaled { .. }
        | Variant::CachePerTokenHead { .. }
        | Variant::RopeAndCache { .. }
        | Variant::ConcatAndCacheMlaFp8Ds
        | Variant::ConcatAndCacheMlaV4
        | Variant::GatherCopy
        | Variant::GatherScaled { .. }
        | Variant::GatherMlaFp8Ds
        | Variant::GatherMlaV4
        | Variant::CheckPaged
        | Variant::CheckSlots
        | Variant::CheckGather
        | Variant::ReadCeiling
        | Variant::Only(_) => 0,
    }
}

/// Reads the times of both routes from what `ferroattn bench --ptx both --json FILE` wrote.
///
/// # Errors
/// The file cannot be read, is of another form, or holds no case that was measured with both.
pub fn read_times(path: &Path) -> Result<Vec<Times>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let times = parse_times(&text).with_context(|| format!("in {}", path.display()))?;
    ensure!(
        !times.is_empty(),
        "{} holds no case that was measured with both sets; write it with `ferroattn bench --ptx both \
         --json FILE`",
        path.display()
    );
    Ok(times)
}

fn parse_times(text: &str) -> Result<Vec<Times>> {
    #[derive(Deserialize)]
    struct Bench {
        records: Vec<Record>,
    }
    #[derive(Deserialize)]
    struct Record {
        case: String,
        peer_name: String,
        plan: String,
        median_us: f64,
        ptx_route: Option<String>,
    }
    let bench: Bench = serde_json::from_str(text)?;
    let of = |case: &str, route: &str| {
        bench
            .records
            .iter()
            .find(|record| record.case == case && record.ptx_route.as_deref() == Some(route))
    };
    Ok(bench
        .records
        .iter()
        .filter(|record| record.ptx_route.as_deref() == Some(ROUTES[0]))
        .filter_map(|record| {
            let other = of(&record.case, ROUTES[1])?;
            // A plan names its kernels in order; a check ahead of them is no part of the work.
            let checks = |entry: &Entry| {
                matches!(
                    entry.id,
                    EntryId::check_paged
                        | EntryId::check_slots
                        | EntryId::check_gather
                        | EntryId::check_pairs
                        | EntryId::check_compact
                        | EntryId::check_lists
                )
            };
            let entry = record.plan.split([' ', ';']).find_map(|word| {
                let mut named = ENTRIES.iter().filter(|entry| entry.name == word);
                named.find(|entry| !checks(entry))
            })?;
            Some(Times {
                case: record.peer_name.clone(),
                entry: entry.name,
                us: [record.median_us, other.median_us],
            })
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> &'static Entry {
        ENTRIES.iter().find(|entry| entry.name == name).unwrap()
    }

    fn usage(name: &str, registers: u32) -> Usage {
        Usage {
            entry: name.to_owned(),
            registers,
            ..Usage::default()
        }
    }

    #[test]
    fn occupancy_is_what_runs_out_first() {
        let check = entry("check_slots");
        // 16 warps of 128 threads each fill 2048 threads; 128 registers fill the file four times earlier.
        assert_eq!(
            ctas_per_sm(check, &usage(check.name, 32)),
            2048 / check.threads
        );
        let warps = check.threads / 32;
        assert_eq!(ctas_per_sm(check, &usage(check.name, 128)), 16 / warps);
        // 129 registers are allocated as 136.
        assert_eq!(
            ctas_per_sm(check, &usage(check.name, 129)),
            65536 / (136 * 32 * warps)
        );
        let decode = entry("decode_gqa_bf16_d128_h8");
        let shared = dynamic_shared_bytes(decode) + 1024;
        assert_eq!(
            ctas_per_sm(decode, &usage(decode.name, 32)),
            228 * 1024 / shared
        );
    }

    #[test]
    fn times_are_paired_by_case() {
        let record = |route: &str, case: &str, us: f64| {
            format!(
                r#"{{"case": "{case}", "peer_name": "{case}", "median_us": {us}, "ptx_route": "{route}",
                    "plan": "2 splits; check_paged grid; decode_gqa_bf16_d128_h8 grid; merge_splits_bf16 grid"}}"#
            )
        };
        let text = format!(
            r#"{{"environment": {{}}, "records": [{}, {}, {}]}}"#,
            record("nvvm", "a", 3.0),
            record("nvptx", "a", 2.0),
            record("nvvm", "b", 1.0)
        );
        let times = parse_times(&text).unwrap();
        let expected = Times {
            case: "a".into(),
            entry: "decode_gqa_bf16_d128_h8",
            us: [3.0, 2.0],
        };
        assert_eq!(times, [expected]);
    }

    #[test]
    fn the_report_has_a_row_per_kernel() {
        let side = |registers| Side {
            manifest: Manifest {
                schema: 1,
                route: "r".into(),
                source_sha256: "s".into(),
                compiler: "c".into(),
                flags: Vec::new(),
                ptx_version: "8.1".into(),
                archs: Vec::new(),
                kernels: Vec::new(),
            },
            usage: vec![usage("check_slots", registers)],
            sass: None,
        };
        let text = markdown("ptxas", [&side(20), &side(22)], &[]);
        assert!(text.contains("| check_slots | 20 / 22 | 0 | 0 |"), "{text}");
        assert!(!text.contains("instructions"), "{text}");
        let rows = text.lines().filter(|line| line.starts_with("| ")).count();
        assert_eq!(rows, ENTRIES.len() + 1);
        let mean = mean([0.5, 2.0].into_iter()).unwrap();
        assert!((mean - 1.0).abs() < 1e-12);
    }
}
