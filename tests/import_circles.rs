//! Files import each other in one direction: whoever reads one knows what to read before it.

use std::collections::{BTreeMap, BTreeSet};
use std::{fs, path::Path};

/// Sources of a crate, and the folder of them, if not all, among whose files there must be no circle.
const FOLDERS: [(&str, &[&str]); 3] = [
    ("gpu-kernels/src", &[]),
    ("host/src", &["cases"]),
    ("host/src", &["ops"]),
];

const ITEMS: &str = "struct enum union trait fn const static type macro_rules!";

type Names = Vec<String>;

#[derive(Default)]
struct File {
    defined: BTreeSet<String>,
    /// What is imported, whether others see it as if it were defined here, and its name here.
    imports: Vec<(Names, bool, String)>,
}

type Files = BTreeMap<Names, File>;

#[test]
fn no_files_import_each_other_in_a_circle() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (sources, folder) in FOLDERS {
        let mut files = Files::new();
        read(&root.join(sources), &[], &mut files);
        let within = files
            .iter()
            .filter(|(file, _)| file.iter().zip(folder).all(|(a, b)| a == b));
        let arrows = within
            .filter(|(file, _)| file.len() >= folder.len())
            .map(|(at, file)| {
                let own = file.imports.iter().filter(|(_, is_public, _)| !is_public);
                let to = own.filter_map(|(path, ..)| defining(&files, at, path, 0));
                (at, to.filter(|to| to != at).collect())
            });
        let mut arrows: BTreeMap<&Names, BTreeSet<Names>> = arrows.collect();
        assert!(
            arrows.len() > 10 && arrows.values().any(|to| !to.is_empty()),
            "{sources} {folder:?}"
        );
        // Files that import none of those that are left are in no circle, until none is left or all are.
        loop {
            let left = arrows.len();
            let names: BTreeSet<Names> = arrows.keys().copied().cloned().collect();
            arrows
                .values_mut()
                .for_each(|to| to.retain(|to| names.contains(to)));
            arrows.retain(|_, to| !to.is_empty());
            if arrows.len() == left {
                break;
            }
        }
        assert!(
            arrows.is_empty(),
            "circles in {sources}, of these or of some of these: {arrows:#?}"
        );
    }
}

fn read(folder: &Path, module: &[String], files: &mut Files) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let stem = path.file_stem().expect("a name").to_str().expect("UTF-8");
        let child = [module, &[stem.to_string()]].concat();
        if path.is_dir() {
            read(&path, &child, files);
        } else if path.extension().is_some_and(|it| it == "rs") {
            let is_folders = ["mod", "lib"].contains(&stem);
            let text = fs::read_to_string(&path).expect("UTF-8");
            files.insert(
                if is_folders { module.to_vec() } else { child },
                parse(&text),
            );
        }
    }
}

fn parse(text: &str) -> File {
    let text = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default();
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let text = lines.collect::<Vec<_>>().join(" ");
    let words = text
        .split(|c: char| !c.is_alphanumeric() && !"_!".contains(c))
        .filter(|it| !it.is_empty());
    let items = words
        .clone()
        .zip(words.skip(1))
        .filter(|(item, _)| ITEMS.split(' ').any(|it| it == *item));
    let mut file = File {
        defined: items.map(|(_, name)| name.to_string()).collect(),
        ..File::default()
    };
    for (before, tree) in text
        .match_indices("use ")
        .map(|(at, _)| text[..at].trim_end())
        .zip(text.split("use ").skip(1))
    {
        let is_public = before.ends_with("pub") || before.ends_with(')');
        if is_public || before.is_empty() || before.ends_with([';', '{', '}', ']']) {
            expand(
                tree.split(';').next().unwrap_or_default(),
                &[],
                is_public,
                &mut file.imports,
            );
        }
    }
    file
}

fn expand(
    tree: &str,
    prefix: &[String],
    is_public: bool,
    imports: &mut Vec<(Names, bool, String)>,
) {
    let names = |path: &str| {
        path.split("::")
            .map(|it| it.trim().to_string())
            .filter(|it| !it.is_empty())
            .collect::<Names>()
    };
    if let Some((head, inner)) = tree.split_once('{') {
        let (prefix, mut depth) = ([prefix, &names(head)].concat(), 0);
        let Some(end) = inner.rfind('}') else { return };
        let inner = &inner[..end];
        for part in inner.split(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            c == ',' && depth == 0
        }) {
            expand(part, &prefix, is_public, imports);
        }
    } else if !tree.trim().is_empty() {
        let (path, other_name) = tree
            .split_once(" as ")
            .map_or((tree, None), |(path, name)| (path, Some(name)));
        let mut path = [prefix, &names(path)].concat();
        if path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        let name = other_name.map_or_else(
            || path.last().cloned().unwrap_or_default(),
            |name| name.trim().to_string(),
        );
        imports.push((path, is_public, name));
    }
}

/// The file that defines what `path` is in file `at`, if it is one of these.
fn defining(files: &Files, at: &[String], path: &[String], depth: usize) -> Option<Names> {
    let mut file = at.to_vec();
    let mut path = path;
    let child = |file: &[String], name: &String| {
        Some([file, std::slice::from_ref(name)].concat()).filter(|it| files.contains_key(it))
    };
    match path.first()?.as_str() {
        "crate" => (file, path) = (Vec::new(), &path[1..]),
        "self" => path = &path[1..],
        "super" => {
            while path.first().is_some_and(|it| it == "super") {
                file.pop();
                path = &path[1..];
            }
        }
        _ => {
            child(&file, &path[0])?;
        }
    }
    while let Some(below) = path.first().and_then(|name| child(&file, name)) {
        (file, path) = (below, &path[1..]);
    }
    let Some(name) = path
        .first()
        .filter(|name| depth < 9 && !files[&file].defined.contains(*name))
    else {
        return Some(file);
    };
    let imported = files[&file]
        .imports
        .iter()
        .filter(|(.., other)| other == name || other == "*");
    let found = imported.filter_map(|(from, _, other)| {
        let from = if other == "*" {
            [&from[..from.len() - 1], path].concat()
        } else {
            [from, &path[1..]].concat()
        };
        defining(files, &file, &from, depth + 1)
            .filter(|found| other != "*" || files[found].defined.contains(name))
    });
    found.max_by_key(Vec::len).or(Some(file))
}
