//! The named lists of cases.

use super::attention::{
    decode_grid, mla_fp8_grid, mla_grid, scaled_grid, score_mods_grid,
    special_grid as attention_special, unified_grid,
};
use super::base::fill::Fill;
use super::base::lens::Lens;
use super::cache::{grid as cache_grid, special_grid as cache_special, write_grid};
use super::case::Case;

/// A named list.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is for.
    pub about: &'static str,
    /// The cases.
    pub cases: fn() -> Vec<Case>,
}

/// All lists.
pub const GRIDS: [Grid; 4] = [
    Grid {
        name: "smoke",
        about: "one of everything, small enough for the emulator",
        cases: smoke,
    },
    Grid {
        name: "edges",
        about: "lengths and shapes at which a paged, tiled kernel goes wrong",
        cases: edges,
    },
    Grid {
        name: "sweep",
        about: "every supported shape at sizes people run; for a GPU",
        cases: sweep,
    },
    Grid {
        name: "bench",
        about: "the shapes that are timed",
        cases: bench,
    },
];

/// A list that grows by cases of one operation at a time.
#[derive(Default)]
struct List(Vec<Case>);

impl List {
    fn add<T>(&mut self, of: fn(T) -> Case, cases: impl IntoIterator<Item = T>) {
        self.0.extend(cases.into_iter().map(of));
    }
}

fn smoke() -> Vec<Case> {
    let mut list = List::default();
    list.add(Case::Decode, decode_grid::smoke());
    list.add(Case::CacheWrite, write_grid::smoke());
    list.add(Case::Decode, scaled_grid::smoke());
    list.add(Case::Decode, score_mods_grid::smoke());
    list.add(Case::Decode, mla_grid::smoke());
    list.add(Case::DecodeEntries, mla_fp8_grid::smoke());
    list.add(Case::Unified, unified_grid::smoke());
    list.add(Case::CacheWrite, write_grid::smoke_scaled());
    list.add(Case::MlaWrite, cache_grid::smoke_mla());
    list.add(Case::MlaWriteGrouped, cache_grid::smoke_grouped());
    list.add(Case::Gather, cache_grid::smoke_gathers());
    list.add(Case::Blocks, cache_grid::smoke_blocks());
    // Every fill in every operation, small.
    let lens = Lens::List(vec![70, 0, 1, 33]);
    let query_and_seq_lens = [(30, 75), (1, 40), (0, 30), (9, 9), (2, 0), (5, 70)];
    for fill in Fill::SPECIAL {
        special_attention(&mut list, fill, [&lens; 2], &query_and_seq_lens);
        list.add(Case::CacheWrite, cache_special::writes(fill));
        list.add(Case::MlaWrite, cache_special::mla_writes(fill));
        list.add(Case::MlaWriteGrouped, cache_special::grouped_writes(fill));
        list.add(Case::Gather, cache_special::gathers(fill));
        list.add(
            Case::Blocks,
            cache_special::moved_blocks(fill, (3, 7), 60, 20),
        );
    }
    list.0
}

/// A fill in every operation of attention; lengths of plain caches, and of MLA's.
fn special_attention(
    list: &mut List,
    fill: Fill,
    [lens, mla_lens]: [&Lens; 2],
    query_and_seq_lens: &[(usize, i32)],
) {
    list.add(Case::Decode, attention_special::decodes(fill, lens));
    list.add(Case::Decode, attention_special::latent(fill, mla_lens));
    list.add(
        Case::DecodeEntries,
        attention_special::entries(fill, mla_lens),
    );
    list.add(
        Case::Unified,
        attention_special::unified(fill, query_and_seq_lens),
    );
}

fn edges() -> Vec<Case> {
    let mut list = List::default();
    list.add(Case::Decode, decode_grid::edges());
    list.add(Case::CacheWrite, write_grid::edges());
    list.add(Case::Decode, score_mods_grid::edges());
    list.add(Case::Decode, mla_grid::edges());
    list.add(Case::DecodeEntries, mla_fp8_grid::edges());
    list.add(Case::Unified, unified_grid::edges());
    list.0
}

fn sweep() -> Vec<Case> {
    let mut list = List::default();
    list.add(Case::Decode, decode_grid::sweep());
    list.add(Case::CacheWrite, write_grid::sweep());
    list.add(Case::Decode, scaled_grid::sweep());
    list.add(Case::Decode, score_mods_grid::sweep());
    list.add(Case::Decode, mla_grid::sweep());
    list.add(Case::DecodeEntries, mla_fp8_grid::sweep());
    list.add(Case::Unified, unified_grid::sweep());
    list.add(Case::CacheWrite, write_grid::sweep_scaled());
    list.add(Case::MlaWrite, cache_grid::sweep_mla());
    list.add(Case::MlaWriteGrouped, cache_grid::sweep_grouped());
    list.add(Case::Gather, cache_grid::sweep_gathers());
    list.add(Case::Blocks, cache_grid::sweep_blocks());
    // Every fill in every operation whose result depends on sizes.
    let query_and_seq_lens = [
        (1, 900),
        (700, 1500),
        (64, 64),
        (333, 333),
        (5, 2000),
        (0, 70),
    ];
    for fill in Fill::SPECIAL {
        let lens = [&Lens::Ragged(9, 3000), &Lens::Ragged(7, 3000)];
        special_attention(&mut list, fill, lens, &query_and_seq_lens);
        let blocks = cache_special::moved_blocks(fill, (16, 576), 500, 200);
        list.add(Case::Blocks, blocks);
    }
    list.0
}

fn bench() -> Vec<Case> {
    let mut list = List::default();
    let decodes = decode_grid::bench();
    let scaled = scaled_grid::bench(&decodes);
    list.add(Case::Decode, decodes);
    list.add(Case::Decode, scaled);
    list.add(Case::Decode, mla_grid::bench());
    list.add(Case::DecodeEntries, mla_fp8_grid::bench());
    list.add(Case::CacheWrite, write_grid::bench());
    list.add(Case::Unified, unified_grid::bench());
    list.add(Case::CacheWrite, write_grid::bench_scaled());
    list.add(Case::MlaWrite, cache_grid::bench_mla());
    list.add(Case::Gather, cache_grid::bench_gathers());
    list.add(Case::Blocks, cache_grid::bench_blocks());
    list.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_reads_back_and_is_listed_once() {
        for grid in GRIDS {
            let cases = (grid.cases)();
            for case in &cases {
                assert_eq!(case.to_string().parse().as_ref(), Ok(case));
            }
            let mut lines: Vec<_> = cases.iter().map(Case::to_string).collect();
            lines.sort_unstable();
            for pair in lines.windows(2) {
                assert_ne!(pair[0], pair[1], "twice in {}", grid.name);
            }
        }
    }

    #[test]
    fn timed_shapes_have_the_peers_names_and_bytes() {
        let names: Vec<_> = bench().iter().map(Case::peer_name).collect();
        for name in [
            "gqa32_8_128 kv=bf16 pg=16 b=64 ctx=8192",
            "gqa32_8_128 kv=bf16 pg=16 b=64 ctx=8192 ragged",
            "mqa64_8_128 kv=bf16 pg=16 b=1 ctx=8192",
            "mha32_32_128 kv=bf16 pg=16 b=64 ctx=8192",
            "oss64_8_64 kv=bf16 pg=16 b=64 ctx=8192",
            "gemma16_8_256 kv=bf16 pg=16 b=1 ctx=8192",
            "write H=8 D=128 kv=bf16 n=65536",
            "write H=8 D=128 kv=fp8 n=65536",
            "write fp8_per_token_head n=65536",
            "mla write ds656 n=65536",
            "dsv4 insert v4_584 n=65536",
            "mla gather bf16 req=16 tok=98304",
            "dsv4 gather v4_584 req=64 len=1024",
            "dsv4 slot gather n=131072",
            "copy_blocks bf16 page=64 row=576 blocks=4000 count=2000",
            "compact_tables bf16 page=64 row=576 blocks=4000 count=30000",
        ] {
            assert!(names.iter().any(|other| other == name), "{name}");
        }
        let ragged = bench()
            .into_iter()
            .find(|case| case.to_string().contains("ragged"))
            .expect("a ragged case");
        for seed in [0, 1, 2] {
            let megabytes = ragged.unavoidable_bytes(seed) / 1_000_000;
            assert!((945..=949).contains(&megabytes), "{megabytes} MB");
        }
    }
}
