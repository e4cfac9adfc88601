//! Holds the structure of the source: the arrows between rooms, module docs, file sizes, and the
//! dependencies that must not come back. ARCHITECTURE.md states the rules; this test keeps them.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// Which rooms of `crate::` a room may use. A room that is not listed may use everything.
const ARROWS: &[(&str, &[&str])] = &[
    ("balance", &["balance"]),
    ("crd", &["crd"]),
    ("handoff", &["balance", "handoff"]),
    ("metrics", &["balance", "handoff", "metrics"]),
    ("proxy", &["balance", "handoff", "metrics", "proxy", "readiness"]),
    ("readiness", &["readiness"]),
    ("source", &["balance", "crd", "handoff", "metrics", "readiness", "source"]),
    ("vitals", &["handoff", "metrics", "readiness", "vitals"]),
];

/// Libraries that must not appear in a room or a part of it: it would no longer be pure, or would know
/// Kubernetes.
const FOREIGN: &[(&str, &[&str])] = &[
    (
        "balance",
        &["tokio", "hyper", "kube", "k8s_openapi", "std::time::SystemTime", "std::time::Instant", "std::fs"],
    ),
    ("crd", &["tokio", "hyper"]),
    ("proxy", &["hyper", "kube", "k8s_openapi"]),
    ("proxy/http1", &["http", "std::io", "std::time", "tokio"]),
];

/// Lines of code a file may have, tests aside.
const FILE_LINES_MAX: usize = 500;

struct Source {
    path: PathBuf,
    room: String,
    /// The text up to its test module.
    code: String,
    text: String,
}

impl Source {
    fn is_in(&self, room: &str) -> bool {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        self.path.starts_with(root.join(room)) || self.path == root.join(room).with_extension("rs")
    }
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.into_iter().map(|path| source(&root, path)).collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|it| it == "rs") {
            files.push(path);
        }
    }
}

fn source(root: &Path, path: PathBuf) -> Source {
    let text = fs::read_to_string(&path).unwrap();
    let first = path.strip_prefix(root).unwrap().components().next().unwrap();
    let room = first.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned();
    let is_test_file = path.components().any(|it| it.as_os_str() == "tests") || path.ends_with("tests.rs");
    let code =
        if is_test_file { "" } else { text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default() };
    Source { path, room, code: code.to_owned(), text }
}

#[test]
fn rooms_use_only_the_rooms_their_arrows_allow() {
    let mut wrong = Vec::new();
    for source in sources() {
        let Some((_, allowed)) = ARROWS.iter().find(|(room, _)| *room == source.room) else { continue };
        for used in source.code.split("crate::").skip(1) {
            let room: String = used.chars().take_while(|it| it.is_alphanumeric() || *it == '_').collect();
            if !allowed.contains(&room.as_str()) {
                wrong.push(format!("{} uses crate::{room}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows of ARCHITECTURE.md broken:\n{}", wrong.join("\n"));
}

#[test]
fn pure_rooms_stay_pure() {
    let mut wrong = Vec::new();
    for source in sources() {
        let foreign = FOREIGN.iter().filter(|(room, _)| source.is_in(room)).flat_map(|(_, names)| *names);
        for name in foreign {
            let uses =
                |line: &str| !line.trim_start().starts_with("//") && line.contains(&format!("{name}::"));
            let ends =
                |line: &str| line.trim_start().starts_with("use ") && line.contains(&format!("{name};"));
            if source.code.lines().any(|line| uses(line) || ends(line)) {
                wrong.push(format!("{} uses {name}", source.path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_module_says_in_at_most_five_lines_what_it_owns() {
    for source in sources() {
        if source.code.is_empty() {
            continue;
        }
        let lines = source.text.lines().take_while(|line| line.starts_with("//!")).count();
        let limit = if source.path.ends_with("lib.rs") { 10 } else { 5 };
        assert!((1..=limit).contains(&lines), "{}: module doc of {lines} lines", source.path.display());
    }
}

#[test]
fn files_stay_readable_in_one_sitting() {
    for source in sources() {
        let lines = source.code.lines().count();
        assert!(lines <= FILE_LINES_MAX, "{}: {lines} lines; split it by idea", source.path.display());
    }
}

/// Cargo.lock also lists what no feature of ours turns on, so the resolved graph is asked.
#[test]
fn there_is_one_crypto_library() {
    let mut cargo = std::process::Command::new(env!("CARGO"));
    cargo.args(["tree", "--offline", "--locked", "--prefix", "none", "--edges", "normal,build,dev"]);
    let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    let tree = String::from_utf8(output.stdout).unwrap();
    assert!(tree.lines().any(|line| line.starts_with("aws-lc-rs ")), "cargo tree tells nothing");
    for banned in ["ring", "openssl", "native-tls", "serde_yml"] {
        let found = tree.lines().find(|line| line.starts_with(&format!("{banned} ")));
        assert_eq!(found, None, "{banned} is back among the dependencies");
    }
}

/// Names in the documents and manifests that look like metrics must be metrics.
#[test]
fn documents_name_only_metrics_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut documents: Vec<PathBuf> =
        ["README.md", "ARCHITECTURE.md", "bench/README.md"].iter().map(|name| root.join(name)).collect();
    documents.extend(fs::read_dir(root.join("manifests")).into_iter().flatten().map(|it| it.unwrap().path()));
    for document in documents.iter().filter(|it| it.is_file()) {
        let text = fs::read_to_string(document).unwrap();
        for word in
            text.split(|c: char| !c.is_ascii_lowercase() && c != '_').filter(|it| it.starts_with("guideway_"))
        {
            let known = guideway::metrics::family::ALL.iter().any(|family| family.name == word);
            assert!(known, "{} names {word}, which is no metric", document.display());
        }
    }
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    for family in guideway::metrics::family::ALL {
        assert!(readme.contains(family.name), "README.md does not name {}", family.name);
    }
}

/// Limits and tests that docs/limits.md names are there under these names.
#[test]
fn the_page_of_limits_names_what_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut files, mut code) = (Vec::new(), String::new());
    collect(&root.join("src"), &mut files);
    collect(&root.join("tests"), &mut files);
    files.iter().for_each(|file| code.push_str(&fs::read_to_string(file).unwrap()));
    let page = fs::read_to_string(root.join("docs/limits.md")).unwrap();
    let rows = page.lines().filter(|line| line.starts_with("| ") && line.contains('`'));
    let names = rows
        .flat_map(|row| row.split('`').skip(1).step_by(2))
        .filter(|name| !name.contains('.') && !["drainTimeout", "maxRequestBodyBytes"].contains(name));
    let mut count = 0;
    for name in names {
        let known = [format!("const {name}:"), format!("pub {name}:"), format!("fn {name}()")];
        assert!(
            known.iter().any(|it| code.contains(it)),
            "docs/limits.md names {name}, which is neither limit nor test"
        );
        count += 1;
    }
    assert!(count > 30, "only {count} names are found");
}
