//! The corpus of each fuzz target: the seeds, and every input on which the target once failed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use vos_auth_fuzz::{OF_OCTETS, OF_TEXT};

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

fn inputs(target: &str) -> Vec<Vec<u8>> {
    let files = std::fs::read_dir(corpus().join(target)).unwrap();
    let read: Vec<_> = files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
    assert!(!read.is_empty(), "{target} has a corpus");
    read
}

#[test]
fn every_fuzz_target_accepts_its_corpus() {
    for (target, run) in OF_OCTETS {
        for input in inputs(target) {
            run(&input);
        }
    }
    for (target, run) in OF_TEXT {
        // libFuzzer leaves out inputs that are not UTF-8, too.
        for text in inputs(target).into_iter().filter_map(|input| String::from_utf8(input).ok()) {
            run(&text);
        }
    }
}

#[test]
fn every_fuzz_target_is_in_the_tables() {
    let names = OF_TEXT.iter().map(|(name, _)| *name).chain(OF_OCTETS.iter().map(|(name, _)| *name));
    let listed: BTreeSet<_> = names.map(str::to_owned).collect();
    let files = |folder: PathBuf| -> BTreeSet<String> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()).collect()
    };
    assert_eq!(listed, files(corpus()));
    assert_eq!(listed, files(corpus().with_file_name("fuzz_targets")));
}
