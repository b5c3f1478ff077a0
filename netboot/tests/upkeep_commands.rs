//! The store's upkeep as a person does it, on a copy of the sample store: with no server.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use protocol::api::RestorePointView;
use protocol::upkeep::{GcReport, PruneView, StoreView};

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder");
    for entry in fs::read_dir(from).expect("the sample") {
        let entry = entry.expect("an entry");
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).expect("copied");
        }
    }
}

fn sample() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a folder");
    let sample = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/samples/store-v1/data");
    copy(&sample, directory.path());
    directory
}

fn netboot(data: &Path, words: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netboot"));
    command.arg("--data-dir").arg(data).args(words);
    command.output().expect("netboot runs")
}

fn says(data: &Path, words: &[&str]) -> String {
    let output = netboot(data, words);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{words:?}: {said}");
    String::from_utf8(output.stdout).expect("text")
}

fn refuses(data: &Path, words: &[&str]) -> String {
    let output = netboot(data, words);
    assert_eq!(output.status.code(), Some(1), "{words:?}");
    String::from_utf8(output.stderr).expect("text")
}

fn json<T: serde::de::DeserializeOwned>(data: &Path, words: &[&str]) -> T {
    serde_json::from_str(&says(data, &[words, &["--json"]].concat())).expect("JSON")
}

#[test]
fn what_is_forgotten_is_freed_and_what_is_pinned_stays() {
    let directory = sample();
    let data = directory.path();
    let before: StoreView = json(data, &["store"]);
    assert_eq!(before.restore_points.len(), 2);
    assert_eq!(before.dead_bytes, 0);
    assert!(refuses(data, &["forget", "sample-1"]).contains("is pinned"));
    assert!(refuses(data, &["prune"]).contains("no rule says"));
    assert!(refuses(data, &["pin", "sample"]).contains("beginning of 2"));
    let view: PruneView = json(data, &["prune", "--keep-last", "1", "--dry-run"]);
    // The newest is kept by the rule, the other one by its pin.
    assert!(view.restore_points.iter().all(|verdict| verdict.keep));
    let view: RestorePointView = json(data, &["unpin", "sample-1"]);
    assert!(!view.pinned);
    let dry = says(data, &["prune", "--keep-last", "1", "--dry-run"]);
    assert!(
        dry.contains("1 would be removed; nothing was changed"),
        "{dry}"
    );
    let view: PruneView = json(data, &["prune", "--keep-last", "1"]);
    assert_eq!(
        view.restore_points.iter().filter(|one| !one.keep).count(),
        1
    );
    let dead: StoreView = json(data, &["store"]);
    assert!(dead.dead_bytes > 0 && dead.restore_points.len() == 1);
    let would: GcReport = json(data, &["gc", "--dry-run", "--rewrite-below", "100"]);
    let report: GcReport = json(data, &["gc", "--rewrite-below", "100"]);
    assert_eq!(would.dead_chunks, report.dead_chunks);
    assert!(report.freed_bytes > 0 && !report.dry_run);
    let after: StoreView = json(data, &["store"]);
    assert_eq!(after.dead_bytes, 0);
    assert!(after.stored_bytes < before.stored_bytes);
    assert!(says(data, &["verify"]).contains("All of it is sound."));
    let again = says(data, &["gc"]);
    assert!(
        again.starts_with("0 of 50 chunks are not needed"),
        "{again}"
    );
}

#[test]
fn an_image_is_made_without_a_server_and_its_name_stands_for_its_id() {
    let directory = sample();
    let data = directory.path();
    let create = ["factory", "create", "--from"];
    let named = ["sample-2", "--name", "Lab", "--description", "for the lab"];
    let before: StoreView = json(data, &["store"]);
    let said = says(data, &[&create[..], &named].concat());
    assert!(said.contains("Factory image Lab ("), "{said}");
    let after: StoreView = json(data, &["store"]);
    assert_eq!(after.restore_points.len(), 3);
    assert_eq!(after.stored_bytes, before.stored_bytes);
    let again = refuses(
        data,
        &[&create[..], &["sample-1", "--name", "LAB"]].concat(),
    );
    assert!(again.contains("the name `LAB` is taken"), "{again}");
    let unknown = refuses(data, &[&create[..], &["nothing"]].concat());
    assert!(unknown.contains("no restore point `nothing`"), "{unknown}");
    for wrong in [
        &["factory", "create"][..],
        &["factory", "create", "machine", "--from", "sample-1"],
        &["factory", "create", "--from", "sample-1", "--name", "1st"],
        &["factory", "create", "--from", "sample-1", "--watch"],
    ] {
        assert_eq!(netboot(data, wrong).status.code(), Some(2), "{wrong:?}");
    }
    // Rules leave it alone, also when they keep one of its machine.
    let view: PruneView = json(data, &["prune", "--keep-last", "1", "--dry-run"]);
    let image = view.restore_points.iter().find(|verdict| {
        let factory = "factory image".to_owned();
        verdict.keep && verdict.reasons.contains(&factory)
    });
    assert!(image.is_some(), "{view:?}");
    let compared = says(data, &["compare", "sample-2", "lab"]);
    assert!(
        compared.contains("Disks and partitions are the same"),
        "{compared}"
    );
    let view: RestorePointView = json(data, &["forget", "lab"]);
    assert!(view.is_factory());
    assert!(says(data, &["verify"]).contains("2 restore points checked"));
}

#[test]
fn damage_that_verify_finds_is_remembered() {
    let directory = sample();
    let data = directory.path();
    let pack = data.join("store/packs/00000001.pack");
    let mut bytes = fs::read(&pack).expect("a pack");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&pack, bytes).expect("damaged");
    let said = refuses(data, &["verify"]);
    assert!(
        said.contains("1 damaged chunk, 1 restore point affected"),
        "{said}"
    );
    let view: StoreView = json(data, &["store"]);
    assert_eq!(view.damaged_chunks, 1);
    assert!(data.join("store/damaged.json").is_file());
}

#[test]
fn a_folder_without_a_store_is_told_so() {
    let directory = tempfile::tempdir().expect("a folder");
    let output = netboot(directory.path(), &["gc"]);
    assert_eq!(output.status.code(), Some(66));
}
