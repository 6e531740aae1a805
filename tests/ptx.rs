//! The PTX in the repository: every set holds every kernel, each file those of its architecture, as the kernels'
//! table says.
#![allow(missing_docs, reason = "a test crate has no readers of its docs")]

use ferroattn::runtime::Route;
use ferroattn::runtime::embedded::{Embedded, Image, SETS};
use ferroattn_ptx_builder::compile::ARCHS;
use ferroattn_ptx_builder::manifest::{FILE_NAME, Manifest};
use ferroattn_ptx_builder::{ROUTES, kernels_dir};
use gpu_kernels::entry::{ENTRIES, Entry};

/// Calls `check` with every file of every set.
fn every_image(mut check: impl FnMut(&Embedded, &Image)) {
    for set in SETS {
        for image in set.images {
            check(set, image);
        }
    }
}

/// The kernels of a file.
fn entries(image: &Image) -> impl Iterator<Item = &'static Entry> {
    ENTRIES.iter().filter(|entry| entry.is_in(image.arch))
}

/// Everything between a mark and the next end of line.
fn after<'a>(text: &'a str, mark: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.trim().strip_prefix(mark))
}

#[test]
fn both_sets_are_here_and_rust_cudas_comes_first() {
    // Whoever builds from source has one set.
    if std::env::var_os("FERROATTN_KERNELS").is_some_and(|from| from != "prebuilt") {
        return;
    }
    let routes: Vec<Route> = SETS.iter().map(|set| set.route).collect();
    assert_eq!(routes, [Route::Nvvm, Route::Nvptx]);
    assert_eq!(ROUTES, [Route::Nvvm.name(), Route::Nvptx.name()]);
}

#[test]
fn every_set_has_every_architecture() {
    for set in SETS {
        let archs: Vec<&str> = set.images.iter().map(|image| image.arch).collect();
        assert_eq!(archs, ARCHS, "{}", set.route);
        assert!(!set.compiler.is_empty() && set.source_sha256.len() == 64);
    }
}

#[test]
fn every_entry_is_in_every_file_of_its_architectures_alone_and_whole() {
    every_image(|set, image| {
        let name = format!("{} {}", set.route, image.arch);
        let there = image.text().matches("\n.visible .entry ").count();
        assert_eq!(there, entries(image).count(), "{name}");
        for entry in entries(image) {
            let ptx = image
                .entry_ptx(entry.name)
                .unwrap_or_else(|| panic!("{name} lacks {}", entry.name));
            assert_eq!(ptx.matches(".visible .entry ").count(), 1);
            assert!(ptx.starts_with(&format!(".version {}\n", set.ptx_version)));
            assert_eq!(after(&ptx, ".target "), Some(image.arch), "{name}");
            assert_eq!(ptx.matches('{').count(), ptx.matches('}').count(), "{name}");
        }
    });
}

#[test]
fn parameters_and_launch_bounds_are_the_tables() {
    every_image(|set, image| {
        for entry in entries(image) {
            let name = format!("{} {} {}", set.route, image.arch, entry.name);
            let ptx = image.entry_ptx(entry.name).expect("it is there");
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
        }
    });
}

#[test]
fn manifests_speak_of_these_files() {
    for route in ROUTES {
        let dir = kernels_dir().join("ptx").join(route);
        if !dir.join(FILE_NAME).exists() {
            // `both_sets_are_here_and_rust_cudas_comes_first` complains.
            continue;
        }
        let manifest = Manifest::read(&dir).expect("a manifest");
        manifest.verify_files(&dir).expect("files with its hashes");
        assert_eq!(manifest.route, route);
        assert_eq!(manifest.entries.len(), ENTRIES.len());
        for (there, entry) in manifest.entries.iter().zip(ENTRIES) {
            assert_eq!(there.name, entry.name);
            assert_eq!(there.params_bytes, entry.params_bytes, "{}", entry.name);
            assert_eq!(there.threads, entry.threads, "{}", entry.name);
        }
        for file in &manifest.files {
            let mut text = file.read(&dir).expect("a file");
            text.push(' ');
            let changed = ferroattn_ptx_builder::manifest::PtxFile::of(&file.arch, &text);
            assert_ne!(changed.sha256, file.sha256, "one more byte, another hash");
        }
    }
}
