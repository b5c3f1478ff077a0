//! Tests of the module selection, on small trees of fake modules.

use proptest::prelude::{Strategy, any, prop, prop_assert, prop_assert_eq, proptest};

use super::*;
use crate::elf::tests::fake_elf;

const KERNEL: &str = "6.1.0-fake";

fn module(depends: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut info = vec![("depends", depends), ("vermagic", "6.1.0-fake SMP")];
    info.extend_from_slice(more);
    fake_elf(None, &[], &info)
}

fn tree(files: &[(&str, Vec<u8>)]) -> (tempfile::TempDir, PathBuf) {
    let root = tempfile::tempdir().unwrap();
    let base = root.path().join(KERNEL);
    for (path, data) in files {
        let path = base.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, data).unwrap();
    }
    (root, base)
}

const fn wanted(need: Need, modules: &'static [&'static str]) -> Group {
    Group {
        why: "a reason",
        need,
        modules,
    }
}

fn select(base: &Path, groups: &[Group], needs: &[(&str, &str)]) -> Result<Selection, ModuleError> {
    ModuleFiles::scan(Architecture::X64, KERNEL, &[base.to_owned()])?.select(groups, needs, false)
}

fn content<'a>(tree: &'a Tree, name: &str) -> &'a str {
    let path = format!("usr/lib/modules/{KERNEL}/{name}");
    let node = tree.iter().find(|(here, _)| *here == path).unwrap().1;
    match node {
        crate::tree::Node::File { data, .. } => str::from_utf8(data).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn index_files_speak_of_the_chosen_modules_only_and_load_right_to_left() {
    let (_root, base) = tree(&[
        (
            "kernel/fs/ext4/ext4.ko",
            module("jbd2,crc16", &[("alias", "fs-ext4")]),
        ),
        (
            "kernel/fs/jbd2/jbd2.ko",
            module("", &[("softdep", "pre: crypto-crc32c")]),
        ),
        ("kernel/lib/crc16.ko", module("", &[])),
        (
            "kernel/crypto/crc32c_generic.ko",
            module("", &[("alias", "crypto-crc32c")]),
        ),
        ("kernel/other.ko", module("", &[("alias", "other")])),
        ("modules.builtin", b"kernel/lib/crc32.ko\n".to_vec()),
    ]);
    let groups = [wanted(Need::Required, &["ext4", "crc32"])];
    let needs = [("jbd2", "crc32c_generic"), ("jbd2", "not_in_this_kernel")];
    let selection = select(&base, &groups, &needs).unwrap();
    assert_eq!(selection.built_in, ["crc32"]);
    let names: Vec<&str> = selection
        .modules
        .iter()
        .map(|module| module.name.as_str())
        .collect();
    assert_eq!(names, ["crc16", "crc32c_generic", "jbd2", "ext4"]);
    assert_eq!(selection.modules[3].why, Some("a reason"));
    assert_eq!(selection.modules[0].why, None);

    let tree = selection.tree(KERNEL);
    assert_eq!(
        content(&tree, "modules.dep"),
        "kernel/lib/crc16.ko:\n\
         kernel/crypto/crc32c_generic.ko:\n\
         kernel/fs/jbd2/jbd2.ko: kernel/crypto/crc32c_generic.ko\n\
         kernel/fs/ext4/ext4.ko: kernel/fs/jbd2/jbd2.ko kernel/crypto/crc32c_generic.ko \
         kernel/lib/crc16.ko\n"
    );
    assert_eq!(
        content(&tree, "modules.alias"),
        "alias crypto-crc32c crc32c_generic\nalias fs-ext4 ext4\n"
    );
    assert_eq!(
        content(&tree, "modules.softdep"),
        "softdep jbd2 pre: crypto-crc32c\n"
    );
    assert_eq!(content(&tree, "modules.builtin"), "kernel/lib/crc32.ko\n");
}

#[test]
fn a_required_module_that_is_nowhere_fails_with_its_purpose_unless_allowed() {
    let (_root, base) = tree(&[("kernel/a.ko", module("", &[]))]);
    let groups = [
        wanted(Need::Required, &["a", "ahci"]),
        wanted(Need::WhenThere, &["rare"]),
    ];
    let error = select(&base, &groups, &[]).unwrap_err().to_string();
    assert!(error.contains("ahci (a reason)"), "{error}");
    assert!(!error.contains("rare"), "{error}");

    let files = ModuleFiles::scan(Architecture::X64, KERNEL, &[base]).unwrap();
    let selection = files.select(&groups, &[], true).unwrap();
    assert_eq!(selection.absent, ["ahci", "rare"]);
    assert_eq!(selection.modules.len(), 1);
}

#[test]
fn a_dependency_that_is_nowhere_is_an_error_that_names_both() {
    let (_root, base) = tree(&[("kernel/a.ko", module("gone", &[]))]);
    let error = select(&base, &[wanted(Need::Required, &["a"])], &[]).unwrap_err();
    let ModuleError::Dependency {
        module, dependency, ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!((module.as_str(), dependency.as_str()), ("a", "gone"));
}

#[test]
fn a_dependency_that_is_built_in_is_satisfied() {
    let (_root, base) = tree(&[
        ("kernel/a.ko", module("crc-t10dif", &[])),
        ("modules.builtin", b"kernel/lib/crc-t10dif.ko\n".to_vec()),
    ]);
    let selection = select(&base, &[wanted(Need::Required, &["a"])], &[]).unwrap();
    assert_eq!(selection.modules.len(), 1);
}

#[test]
fn a_module_of_another_kernel_is_refused() {
    let other = fake_elf(None, &[], &[("vermagic", "5.0 SMP")]);
    let (_root, base) = tree(&[("kernel/a.ko", other)]);
    let error = select(&base, &[wanted(Need::Required, &["a"])], &[]).unwrap_err();
    let ModuleError::OtherKernel { found, .. } = error else {
        panic!("{error}");
    };
    assert_eq!(found, "5.0");
}

#[test]
fn modules_in_a_circle_are_an_error_that_shows_it() {
    let (_root, base) = tree(&[
        ("kernel/a.ko", module("b", &[])),
        ("kernel/b.ko", module("a", &[])),
    ]);
    let error = select(&base, &[wanted(Need::Required, &["a"])], &[]).unwrap_err();
    assert!(error.to_string().ends_with("a → b → a"), "{error}");
}

#[test]
fn compressed_modules_are_stored_plain_under_their_plain_names() {
    let plain = module("", &[]);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    io::Write::write_all(&mut gz, &plain).unwrap();
    let mut xz = lzma_rust2::XzWriter::new(Vec::new(), lzma_rust2::XzOptions::default()).unwrap();
    io::Write::write_all(&mut xz, &plain).unwrap();
    let (_root, base) = tree(&[
        (
            "kernel/a.ko.zst",
            zstd::encode_all(plain.as_slice(), 3).unwrap(),
        ),
        ("kernel/b.ko.gz", gz.finish().unwrap()),
        ("kernel/c.ko.xz", xz.finish().unwrap()),
    ]);
    let groups = [wanted(Need::Required, &["a", "b", "c"])];
    let selection = select(&base, &groups, &[]).unwrap();
    for (module, path) in
        selection
            .modules
            .iter()
            .zip(["kernel/a.ko", "kernel/b.ko", "kernel/c.ko"])
    {
        assert_eq!(module.path, path);
        assert_eq!(module.data, plain);
    }
}

#[test]
fn a_directory_without_modules_is_refused() {
    let (_root, base) = tree(&[("kernel/readme", Vec::new())]);
    let error = ModuleFiles::scan(Architecture::X64, KERNEL, &[base]).unwrap_err();
    assert!(matches!(error, ModuleError::Empty { .. }));
}

/// A graph without circles: an edge leads from a larger number to a smaller one; names are shuffled by a
/// multiplication so that their order tells nothing.
fn graph() -> impl Strategy<Value = BTreeMap<String, Vec<String>>> {
    let name = |number: usize| format!("m{:03}", (number * 37 + 11) % 101);
    (1..30usize).prop_flat_map(move |count| {
        prop::collection::vec(
            prop::collection::vec(any::<prop::sample::Index>(), 0..4),
            count,
        )
        .prop_map(move |rows| {
            rows.iter()
                .enumerate()
                .map(|(number, row)| {
                    let edges = row.iter().filter(|_| number > 0);
                    (
                        name(number),
                        edges.map(|to| name(to.index(number))).collect(),
                    )
                })
                .collect()
        })
    })
}

proptest! {
    #[test]
    fn every_module_comes_once_and_after_all_it_depends_on(graph in graph()) {
        let edges: BTreeMap<&str, &[String]> = graph
            .iter()
            .map(|(name, needs)| (name.as_str(), needs.as_slice()))
            .collect();
        let order = load_order(&edges).unwrap();
        let mut sorted = order.clone();
        sorted.sort_unstable();
        prop_assert_eq!(sorted, edges.keys().copied().collect::<Vec<_>>());
        for (place, name) in order.iter().enumerate() {
            for needed in edges[name] {
                let before = order.iter().position(|other| other == needed).unwrap();
                prop_assert!(before < place, "{} must come before {}", needed, name);
            }
        }
    }
}
