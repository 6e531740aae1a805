//! The PTX in the repository: every set holds every kernel, each for its architectures, as the kernels' table says.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

use std::collections::BTreeSet;

use ferroattn::runtime::Route;
use ferroattn::runtime::embedded::{Arch, ArchSet, PtxSet, SETS};
use ferroattn_ptx_builder::manifest::{Manifest, ManifestKernel};
use ferroattn_ptx_builder::{ROUTES, kernels_dir};
use gpu_kernels::entry::{ENTRIES, Entry};

/// Calls `check` with every kernel for every architecture of every set.
fn every_module(mut check: impl FnMut(&PtxSet, Arch, &Entry, &str)) {
    for set in SETS {
        for arch in set.archs().iter() {
            for entry in ENTRIES.iter().filter(|entry| entry.archs.contains(arch)) {
                let module = set
                    .module(entry.name, arch)
                    .unwrap_or_else(|| panic!("{} {arch} lacks {}", set.route, entry.name));
                check(set, arch, entry, &module);
            }
        }
    }
}

/// Everything between a mark and the next end of line.
fn after<'a>(text: &'a str, mark: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.trim().strip_prefix(mark))
}

#[test]
fn both_sets_are_here_and_rust_cudas_comes_first() {
    let routes: Vec<Route> = SETS.iter().map(|set| set.route).collect();
    assert_eq!(routes, [Route::Nvvm, Route::Nvptx]);
    assert_eq!(ROUTES, [Route::Nvvm.name(), Route::Nvptx.name()]);
}

#[test]
fn every_set_has_every_architecture_and_kernel() {
    let expected: BTreeSet<&str> = ENTRIES.iter().map(|entry| entry.name).collect();
    for set in SETS {
        assert_eq!(set.archs(), ArchSet::ALL, "{}", set.route);
        let kernels: Vec<&str> = set.kernels().collect();
        assert!(kernels.is_sorted(), "{}: they are searched", set.route);
        assert_eq!(kernels.into_iter().collect::<BTreeSet<_>>(), expected);
        assert!(!set.compiler.is_empty() && set.source_sha256.len() == 64);
    }
}

#[test]
fn a_kernel_is_there_for_its_architectures_alone_and_whole() {
    every_module(|set, arch, entry, ptx| {
        let name = format!("{} {arch} {}", set.route, entry.name);
        assert_eq!(ptx.matches(".visible .entry ").count(), 1, "{name}");
        assert!(
            ptx.contains(&format!("\n.visible .entry {}(", entry.name)),
            "{name}"
        );
        assert!(ptx.starts_with(&format!(".version {}\n", set.ptx_version)));
        assert_eq!(after(ptx, ".target "), Some(arch.name()), "{name}");
        assert_eq!(ptx.matches('{').count(), ptx.matches('}').count(), "{name}");
    });
    for set in SETS {
        for arch in set.archs().iter() {
            for entry in ENTRIES.iter().filter(|entry| !entry.archs.contains(arch)) {
                assert_eq!(set.module(entry.name, arch), None, "{arch} {}", entry.name);
            }
        }
        assert_eq!(set.module("no_kernel", Arch::Sm80), None);
    }
}

#[test]
fn parameters_and_launch_bounds_are_the_tables() {
    every_module(|set, arch, entry, ptx| {
        let name = format!("{} {arch} {}", set.route, entry.name);
        let header = &ptx[ptx.find(".entry").expect("an entry")..];
        let header = &header[..header.find("\n{").expect("a body")];
        let params: Vec<&str> = header
            .lines()
            .map(str::trim)
            .filter(|line| line.starts_with(".param"))
            .collect();
        let [param] = params[..] else {
            panic!("{name}: {params:?}")
        };
        assert!(
            param.ends_with(&format!("[{}]", entry.params_bytes)),
            "{name}: {param}, not {} bytes",
            entry.params_bytes
        );
        let threads = format!("{}, 1, 1", entry.threads);
        assert_eq!(after(header, ".maxntid "), Some(&*threads), "{name}");
        let min_ctas = entry.min_ctas.to_string();
        assert_eq!(after(header, ".minnctapersm "), Some(&*min_ctas), "{name}");
    });
}

#[test]
fn manifests_speak_of_these_kernels() {
    for (route, set) in ROUTES.into_iter().zip(SETS) {
        let dir = kernels_dir().join("ptx").join(route);
        let manifest = Manifest::read(&dir).expect("a manifest");
        manifest.read_files(&dir).expect("files with its hashes");
        manifest
            .verify_source(&kernels_dir())
            .expect("of this source");
        assert_eq!(manifest.route, route);
        assert_eq!(
            (
                &*manifest.compiler,
                &*manifest.ptx_version,
                &*manifest.source_sha256
            ),
            (set.compiler, set.ptx_version, set.source_sha256)
        );
        assert_eq!(manifest.kernels.len(), ENTRIES.len());
        for kernel in &manifest.kernels {
            let modules: String = set
                .archs()
                .iter()
                .filter_map(|arch| set.module(&kernel.name, arch))
                .collect();
            let row = ManifestKernel::of(&kernel.name, kernel.archs.clone(), &modules);
            assert_eq!(
                row.expect("it is in the table"),
                *kernel,
                "parameters, threads, text"
            );
        }
    }
}
