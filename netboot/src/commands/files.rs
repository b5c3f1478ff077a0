//! `files volumes`, `files ls`, `files get`, and `items`.

use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use backup::filesystem::tree::{FileTree, Node, NodeId, NodeKind};
use backup::units::HumanBytes;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::file_options::{FilesCommand, GetArgs, ItemsArgs, LsArgs, VolumesArgs};
use super::table::{Table, clean, local_time};
use super::{CommandError, open_store, print, print_json};
use crate::files::name::shown;
use crate::files::{
    self, ArchiveKind, Destination, FilesError, OnClash, Progress, Spec, Step, Summary, VolumeView,
};

pub(super) fn run(data_directory: &Path, command: &FilesCommand) -> Result<(), CommandError> {
    match command {
        FilesCommand::Volumes(args) => volumes(data_directory, args),
        FilesCommand::Ls(args) => ls(data_directory, args),
        FilesCommand::Get(args) => get(data_directory, args),
    }
}

fn volumes(data_directory: &Path, args: &VolumesArgs) -> Result<(), CommandError> {
    let store = open_store(data_directory)?;
    let id = files::resolve(&store, &args.restore_point, args.machine.as_deref())?;
    let manifest = files::manifest(&store, &id)?;
    let views = files::view_all(&store, &id, &manifest)?;
    if args.json {
        return print_json(&views);
    }
    print(&volume_table(&views))
}

/// Volumes for people.
pub(super) fn volume_table(views: &[VolumeView]) -> String {
    let mut table = Table::new(&[
        "VOLUME",
        "FILE SYSTEM",
        "LABEL",
        "SIZE",
        "USED",
        "SAVED",
        "FILES",
    ]);
    for view in views {
        let dash = || "-".to_owned();
        table.row(vec![
            view.volume.clone(),
            view.file_system.clone().unwrap_or_else(dash),
            view.label.clone().unwrap_or_else(dash),
            HumanBytes(view.size).to_string(),
            view.used
                .map_or_else(dash, |used| HumanBytes(used).to_string()),
            HumanBytes(view.saved).to_string(),
            match &view.reason {
                None => "yes".to_owned(),
                Some(reason) => format!("no: {reason}"),
            },
        ]);
    }
    table.to_string()
}

/// What can be recovered of a restore point.
#[derive(Debug, Serialize)]
struct ItemView {
    /// What a command calls it.
    item: String,
    /// `full-system`, `volume` or `files`.
    kind: &'static str,
    /// In words.
    description: String,
    /// Bytes of data.
    bytes: u64,
    /// The command that recovers it.
    command: String,
}

pub(super) fn items(data_directory: &Path, args: &ItemsArgs) -> Result<(), CommandError> {
    let store = open_store(data_directory)?;
    let id = files::resolve(&store, &args.restore_point, args.machine.as_deref())?;
    let manifest = files::manifest(&store, &id)?;
    let mut items = vec![ItemView {
        item: "full-system".to_owned(),
        kind: "full-system",
        description: manifest.system.as_ref().map_or_else(
            || "all disks".to_owned(),
            |system| format!("all disks, {}", system.name),
        ),
        bytes: manifest.data_bytes(),
        command: format!("netboot restore MACHINE {id}"),
    }];
    for view in files::view_all(&store, &id, &manifest)? {
        let kind = view.file_system.as_deref().unwrap_or("unknown data");
        let label = view
            .label
            .as_ref()
            .map_or_else(String::new, |label| format!(" `{label}`"));
        let (kind_word, command) = if view.readable {
            ("files", format!("netboot files get {id}:{}/", view.volume))
        } else {
            ("volume", format!("netboot restore MACHINE {id}"))
        };
        items.push(ItemView {
            item: format!("volume {}", view.volume),
            kind: kind_word,
            description: format!("{kind}{label}, {}", HumanBytes(view.size)),
            bytes: view.saved,
            command,
        });
    }
    if args.json {
        return print_json(&items);
    }
    let mut table = Table::new(&["ITEM", "WHAT", "DATA", "RECOVERED BY"]);
    for item in items {
        table.row(vec![
            item.item,
            item.description,
            HumanBytes(item.bytes).to_string(),
            item.command,
        ]);
    }
    print(&table.to_string())
}

/// A file or folder for programs.
#[derive(Debug, Serialize)]
struct EntryView {
    /// Its path from the top of the volume, harmless to a terminal.
    path: String,
    /// Its bytes in hexadecimal, when they are no UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_bytes: Option<String>,
    kind: &'static str,
    /// Octal.
    mode: Option<String>,
    uid: Option<u32>,
    gid: Option<u32>,
    size: u64,
    /// Seconds since 1970-01-01 UTC.
    modified: Option<i64>,
    modified_nanoseconds: Option<u32>,
    names: u32,
    link_target: Option<String>,
    sealed: Option<&'static str>,
}

const fn kind_word(kind: NodeKind) -> &'static str {
    match kind {
        NodeKind::File => "file",
        NodeKind::Directory => "folder",
        NodeKind::SymbolicLink => "link",
        NodeKind::CharacterDevice { .. } => "character-device",
        NodeKind::BlockDevice { .. } => "block-device",
        NodeKind::Fifo => "pipe",
        NodeKind::Socket => "socket",
    }
}

fn target_of(tree: &dyn FileTree, id: NodeId, node: &Node) -> Option<Vec<u8>> {
    (node.kind == NodeKind::SymbolicLink)
        .then(|| tree.link_target(id).ok())
        .flatten()
}

fn hexadecimal(bytes: &[u8]) -> Option<String> {
    let is_text = std::str::from_utf8(bytes).is_ok();
    (!is_text).then(|| bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn entry_view(tree: &dyn FileTree, path: &[u8], id: NodeId, node: &Node) -> EntryView {
    EntryView {
        path: match std::str::from_utf8(path) {
            Ok(text) => text.to_owned(),
            Err(_) => shown(path),
        },
        path_bytes: hexadecimal(path),
        kind: kind_word(node.kind),
        mode: node.mode.map(|mode| format!("{mode:04o}")),
        uid: node.uid,
        gid: node.gid,
        size: node.size,
        modified: node.modified.map(|time| time.seconds),
        modified_nanoseconds: node.modified.map(|time| time.nanoseconds),
        names: node.links,
        link_target: target_of(tree, id, node).map(|target| shown(&target)),
        sealed: node.sealed,
    }
}

/// A line as `ls -l` shows it.
fn line(tree: &dyn FileTree, path: &[u8], id: NodeId, node: &Node) -> String {
    let owner = match (node.uid, node.gid) {
        (Some(uid), Some(gid)) => format!("{uid}:{gid}"),
        _ => "-".to_owned(),
    };
    let size = match node.kind {
        NodeKind::CharacterDevice { major, minor } | NodeKind::BlockDevice { major, minor } => {
            format!("{major},{minor}")
        }
        _ => node.size.to_string(),
    };
    let time = node.modified.map_or_else(
        || "-".to_owned(),
        |time| match u64::try_from(time.seconds) {
            Ok(seconds) => local_time(seconds),
            Err(_) => format!("{} s", time.seconds),
        },
    );
    let mut text = format!(
        "{}  {owner:>11}  {size:>13}  {time:>19}  {}",
        mode_word(node),
        shown(path)
    );
    if node.kind == NodeKind::Directory {
        text.push('/');
    }
    if let Some(target) = target_of(tree, id, node) {
        text.push_str(&format!(" -> {}", shown(&target)));
    }
    if let Some(reason) = node.sealed {
        text.push_str(&format!(" ({reason})"));
    }
    text.push('\n');
    text
}

fn mode_word(node: &Node) -> String {
    let kind = match node.kind {
        NodeKind::File => '-',
        NodeKind::Directory => 'd',
        NodeKind::SymbolicLink => 'l',
        NodeKind::CharacterDevice { .. } => 'c',
        NodeKind::BlockDevice { .. } => 'b',
        NodeKind::Fifo => 'p',
        NodeKind::Socket => 's',
    };
    let Some(mode) = node.mode else {
        return format!("{kind}?????????");
    };
    let mut text = String::from(kind);
    // Set-user-id, set-group-id and sticky are shown in place of the three execute bits.
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

fn ls(data_directory: &Path, args: &LsArgs) -> Result<(), CommandError> {
    let store = open_store(data_directory)?;
    let spec = &args.what;
    let id = files::resolve(&store, &spec.restore_point, args.machine.as_deref())?;
    let manifest = files::manifest(&store, &id)?;
    let place = files::place(&manifest, spec)?;
    let volume = files::open(&store, &id, &manifest, place.volume.as_deref())?;
    let tree = volume.tree.as_ref();
    let start = files::find(tree, &place.path).map_err(|error| FilesError::Path {
        path: format!("/{}", shown(&place.path)),
        reason: error.to_string(),
    })?;
    let mut output = BufWriter::new(std::io::stdout().lock());
    let mut failed = 0;
    let mut problems: Vec<String> = Vec::new();
    let mut count = 0u64;
    let mut broken: Option<std::io::Error> = None;
    let is_folder = tree
        .node(start)
        .is_ok_and(|node| node.kind == NodeKind::Directory);
    let walked = files::walk(tree, start, b"", &mut |step| {
        let (path, id, node) = match step {
            Step::Left { .. } => return Ok(true),
            Step::Problem { path, reason } => {
                failed += 1;
                problems.push(format!("{}: {reason}", shown(path)));
                return Ok(false);
            }
            Step::Node { path, id, node } => (path, id, node),
        };
        if path.is_empty() && is_folder {
            return Ok(true);
        }
        let path = if path.is_empty() { &place.path } else { path };
        let written = if args.json {
            let lead = if count == 0 { "[\n  " } else { ",\n  " };
            serde_json::to_string(&entry_view(tree, path, id, node))
                .map_err(std::io::Error::from)
                .and_then(|text| write!(output, "{lead}{text}"))
        } else {
            output.write_all(line(tree, path, id, node).as_bytes())
        };
        count += 1;
        if let Err(error) = written {
            broken = Some(error);
            return Err(FilesError::Volume("standard output is gone".to_owned()));
        }
        Ok(args.recursive)
    });
    match broken {
        Some(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
        Some(error) => return Err(error.into()),
        None => walked?,
    }
    if args.json {
        let end = if count == 0 { "[]\n" } else { "\n]\n" };
        output.write_all(end.as_bytes())?;
    }
    output.flush()?;
    drop(output);
    for problem in &problems {
        eprintln!("netboot: {problem}");
    }
    if failed > 0 {
        return Err(CommandError::NotAll { failed });
    }
    Ok(())
}

fn destination(args: &GetArgs) -> Result<Destination, CommandError> {
    let Some(archive) = &args.archive else {
        return Ok(Destination::Folder {
            path: args.to.clone().unwrap_or_else(|| PathBuf::from(".")),
            on_clash: args.on_clash,
        });
    };
    let to_output = archive.as_os_str() == "-";
    let named = if to_output {
        Some(ArchiveKind::Tar)
    } else {
        ArchiveKind::of(archive)
    };
    let kind = args.format.or(named).ok_or_else(|| {
        FilesError::Volume(format!(
            "`{}` does not say which archive it is: end it with .tar, .tar.gz, .tar.zst or .zip, or use --format",
            archive.display()
        ))
    })?;
    if to_output && std::io::stdout().is_terminal() {
        let reason = "an archive is no text for a terminal: send it to a file or program";
        return Err(FilesError::Volume(reason.to_owned()).into());
    }
    Ok(Destination::Archive {
        path: (!to_output).then(|| archive.clone()),
        kind,
        replace: args.on_clash == Some(OnClash::Overwrite),
    })
}

fn get(data_directory: &Path, args: &GetArgs) -> Result<(), CommandError> {
    let store = open_store(data_directory)?;
    let Some(first) = args.what.first() else {
        return Ok(());
    };
    let apart = |other: &Spec| {
        FilesError::Volume(format!(
            "all paths must be of one volume: `{}` and `{}` are not",
            clean(&first.to_string()),
            clean(&other.to_string())
        ))
    };
    let same = |spec: &&Spec| spec.restore_point == first.restore_point;
    if let Some(other) = args.what.iter().find(|spec| !same(spec)) {
        return Err(apart(other).into());
    }
    let destination = destination(args)?;
    let id = files::resolve(&store, &first.restore_point, args.machine.as_deref())?;
    let manifest = files::manifest(&store, &id)?;
    let named = files::place(&manifest, first)?.volume;
    let mut paths = Vec::with_capacity(args.what.len());
    for spec in &args.what {
        let place = files::place(&manifest, spec)?;
        if place.volume != named {
            return Err(apart(spec).into());
        }
        paths.push(place.path);
    }
    let volume = files::open(&store, &id, &manifest, named.as_deref())?;
    let bar = progress_bar(args.json);
    let taken = files::take(&volume, &paths, &destination, &mut |progress: Progress| {
        bar.set_length(progress.of_bytes);
        bar.set_position(progress.bytes);
    });
    bar.finish_and_clear();
    let summary = taken?;
    let to_output = matches!(destination, Destination::Archive { path: None, .. });
    match (args.json, to_output) {
        (true, true) => eprintln!("{}", serde_json::to_string(&summary)?),
        (true, false) => print_json(&summary)?,
        (false, _) => eprint!("{}", describe(&summary, &volume.volume)),
    }
    if summary.failed > 0 {
        return Err(CommandError::NotAll {
            failed: summary.failed,
        });
    }
    Ok(())
}

fn progress_bar(json: bool) -> ProgressBar {
    if json {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(0);
    let template = "{spinner} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    // The template is constant; the default style is only a poorer picture.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}

fn describe(summary: &Summary, volume: &str) -> String {
    let mut text = format!(
        "{} files ({}), {} folders, {} links of volume {volume} written to {}.\n",
        summary.files,
        HumanBytes(summary.bytes),
        summary.folders,
        summary.links + summary.hard_links,
        clean(&summary.place)
    );
    if summary.devices > 0 {
        text.push_str(&format!("{} devices and pipes.\n", summary.devices));
    }
    if summary.skipped > 0 {
        text.push_str(&format!(
            "{} were there already and stayed.\n",
            summary.skipped
        ));
    }
    for problem in &summary.problems {
        text.push_str(&format!("{}: {}\n", problem.path, problem.reason));
    }
    let untold = summary.failed - summary.problems.len() as u64;
    if untold > 0 {
        text.push_str(&format!("and {untold} more\n"));
    }
    text
}
