//! Every reason code is documented in `docs/reason-codes.md`, every documented one exists, and something gives it.
#![allow(
    clippy::disallowed_methods,
    reason = "tests read the page and the source"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use backup::plan::ReasonCode;

fn place(of: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(of)
}

/// The names of the variants, as the source has them.
fn variants() -> Vec<String> {
    let source = fs::read_to_string(place("src/plan/mod.rs")).unwrap();
    let (_, body) = source.split_once("pub enum ReasonCode {").unwrap();
    let (body, _) = body.split_once("\n}").unwrap();
    let lines = body.lines().map(str::trim);
    let names = lines.filter(|line| !line.is_empty() && !line.starts_with("//"));
    names
        .map(|name| name.trim_end_matches(',').to_owned())
        .collect()
}

/// As programs see it.
fn code(variant: &str) -> String {
    let mut code = String::new();
    for letter in variant.chars() {
        if letter.is_uppercase() && !code.is_empty() {
            code.push('-');
        }
        code.extend(letter.to_lowercase());
    }
    code
}

/// Each code of the page with what is written of it.
fn documented() -> Vec<(String, String)> {
    let page = fs::read_to_string(place("../docs/reason-codes.md")).unwrap();
    let sections = page.split("\n## ").skip(1);
    let sections = sections.map(|section| section.split_once('\n').unwrap());
    sections
        .map(|(name, text)| (name.trim().to_owned(), text.to_owned()))
        .collect()
}

#[test]
fn the_page_has_every_code_once_and_no_other() {
    let codes: BTreeSet<_> = variants().iter().map(|variant| code(variant)).collect();
    assert!(codes.len() > 10, "{codes:?}");
    for code in &codes {
        let json = format!("\"{code}\"");
        let known: ReasonCode = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&known).unwrap(), json);
    }
    let page = documented();
    let names: BTreeSet<_> = page.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(names.len(), page.len(), "a code is documented twice");
    let missing: Vec<_> = codes.difference(&names).collect();
    assert!(missing.is_empty(), "not documented: {missing:?}");
    let strange: Vec<_> = names.difference(&codes).collect();
    assert!(strange.is_empty(), "documented, and no code: {strange:?}");
    for (name, text) in page {
        assert!(
            text.contains("What to do:") || name == "member-disk",
            "{name} does not say what to do"
        );
    }
}

#[test]
fn something_gives_every_code() {
    let folder = fs::read_dir(place("src/plan")).unwrap();
    let files = folder.map(|file| file.unwrap().path());
    let source: String = files
        .filter(|file| file.is_file())
        .map(|file| fs::read_to_string(file).unwrap())
        .collect();
    for variant in variants() {
        let given = format!("ReasonCode::{variant},");
        let found = source.contains(&given) || source.contains(&given.replace(',', "\n"));
        assert!(found, "nothing is refused as {variant}");
    }
}
