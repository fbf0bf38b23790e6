//! The page that tells operators what is promised names the tests that hold it: a name that no test has any more is a
//! promise that nobody looks after.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// So many underscores has the name of a test, which is a sentence, and no name of a metric or an error code.
const UNDERSCORES: usize = 3;

fn rust_files(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rust_files(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Every word of lower-case letters, digits and underscores.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|it: char| !(it.is_ascii_lowercase() || it.is_ascii_digit() || it == '_'))
}

#[test]
fn every_test_that_the_guarantees_name_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/reference/guarantees.md")).unwrap();
    let is_sentence = |word: &&str| word.matches('_').count() >= UNDERSCORES;
    let named: BTreeSet<&str> = page
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|code| words(code).eq([*code]))
        .filter(is_sentence)
        .filter(|code| !code.starts_with("usage_guardrail_"))
        .collect();
    assert!(named.len() > 50, "the page names {} tests", named.len());

    let mut files = Vec::new();
    rust_files(&root.join("src"), &mut files);
    rust_files(&root.join("tests"), &mut files);
    let mut functions = BTreeSet::new();
    for file in files {
        let source = fs::read_to_string(file).unwrap();
        let names = source.split("fn ").skip(1).filter_map(|rest| {
            let (name, _) = rest.split_once('(')?;
            words(name).eq([name]).then(|| name.to_owned())
        });
        functions.extend(names);
    }
    let missing: Vec<_> = named
        .into_iter()
        .filter(|name| !functions.contains(*name))
        .collect();
    assert!(missing.is_empty(), "no test is called {missing:#?}");
}
