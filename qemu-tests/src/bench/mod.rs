//! `lab bench`: the product measured beside its peers, in one run on one computer.
//!
//! Invariants: ours and the peers get the same client, files and way between them, one after the other in
//! turns; every figure comes out, good or bad. A bench that cannot run here says why and fails.
//!
//! Not here: limits that a figure has to keep; tests are not timed (they would fail on a busy computer).
//! `scripts/bench` installs what a bench needs and calls this.

mod boot;
mod cpu;
mod dhcp;
mod http;
mod peers;
mod restore;
mod store;
mod tftp;
mod tftp_client;
mod tftp_servers;
mod udp_delay;

use std::fmt::Write;

use serde::Serialize;

use crate::scenarios::Settings;

/// One bench.
pub(crate) struct Bench {
    /// Name on the command line.
    pub(crate) name: &'static str,
    /// What it measures, in one line.
    pub(crate) about: &'static str,
    /// Measures, and tells the report each row as soon as it is known.
    pub(crate) run: fn(&Settings, &mut Report) -> anyhow::Result<()>,
}

impl Bench {
    /// How the command line knows it.
    pub(crate) fn value(&self) -> clap::builder::PossibleValue {
        clap::builder::PossibleValue::new(self.name).help(self.about)
    }
}

/// Every bench.
pub(crate) const ALL: [Bench; 6] = [
    Bench {
        name: "tftp",
        about: "speed and processor time of TFTP beside tftpd-hpa, atftpd and dnsmasq",
        run: tftp::run,
    },
    Bench {
        name: "http",
        about: "speed and processor time of HTTP beside nginx, for one machine and for fifty",
        run: http::run,
    },
    Bench {
        name: "dhcp",
        about: "exchanges a second of 10,000 DHCP clients beside Kea, and with many leases",
        run: dhcp::run,
    },
    Bench {
        name: "boot",
        about: "power-on to beacon for each firmware, in parts, beside dnsmasq alone",
        run: boot::run,
    },
    Bench {
        name: "store",
        about: "bytes, time and memory of captures beside restic, borg, casync and partclone",
        run: store::run,
    },
    Bench {
        name: "restore",
        about: "restores beside the line, an O_DIRECT copy, zstd | dd, partclone, restic and casync",
        run: restore::run,
    },
];

/// The bench of a name.
pub(crate) fn find(name: &str) -> Option<&'static Bench> {
    ALL.iter().find(|bench| bench.name == name)
}

/// One figure, with a peer's beside it when there is one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Row {
    bench: &'static str,
    case: String,
    ours: f64,
    peer: Option<f64>,
    peer_name: Option<String>,
    unit: &'static str,
    /// Ours divided by the peer's; whether more is better is the unit's matter.
    ratio: Option<f64>,
}

impl Row {
    /// Our own figure.
    pub(crate) fn new(
        bench: &'static str,
        case: impl Into<String>,
        ours: f64,
        unit: &'static str,
    ) -> Self {
        Self {
            bench,
            case: case.into(),
            ours: rounded(ours),
            peer: None,
            peer_name: None,
            unit,
            ratio: None,
        }
    }

    /// The same beside a peer's figure.
    pub(crate) fn beside(mut self, peer_name: impl Into<String>, peer: f64) -> Self {
        self.ratio = (peer > 0.0).then(|| rounded(self.ours / peer));
        self.peer = Some(rounded(peer));
        self.peer_name = Some(peer_name.into());
        self
    }
}

/// Four digits: more would be noise.
fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let scale = 10_f64.powi(3 - value.abs().log10().floor() as i32);
    (value * scale).round() / scale
}

/// Where rows go: JSON at once, one line each, or a table at the end.
#[derive(Debug)]
pub(crate) struct Report {
    json: bool,
    rows: Vec<Row>,
}

impl Report {
    /// An empty one.
    pub(crate) fn new(json: bool) -> Self {
        Self {
            json,
            rows: Vec::new(),
        }
    }

    /// Takes a row.
    pub(crate) fn row(&mut self, row: Row) -> anyhow::Result<()> {
        if self.json {
            println!("{}", serde_json::to_string(&row)?);
        }
        self.rows.push(row);
        Ok(())
    }

    /// Prints what has not been printed.
    pub(crate) fn finish(&self) {
        if !self.json {
            print!("{}", table(&self.rows));
        }
    }
}

fn table(rows: &[Row]) -> String {
    let number =
        |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
    let cells = rows.iter().map(|row| {
        [
            row.case.clone(),
            row.ours.to_string(),
            number(row.peer),
            row.peer_name.clone().unwrap_or_else(|| "-".to_owned()),
            row.unit.to_owned(),
            number(row.ratio),
        ]
    });
    let head = ["case", "ours", "peer", "peer's name", "unit", "ratio"].map(str::to_owned);
    let lines: Vec<[String; 6]> = std::iter::once(head).chain(cells).collect();
    let width = |column: usize| {
        let lengths = lines.iter().map(|line| line[column].chars().count());
        lengths.max().unwrap_or(0)
    };
    let widths: [usize; 6] = std::array::from_fn(width);
    let mut text = String::new();
    for line in &lines {
        let mut row = String::new();
        for (cell, width) in line.iter().zip(widths) {
            // Writing to a string cannot fail.
            let _ = write!(row, "{cell:width$}  ");
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_the_agreed_fields() {
        let row = Row::new("tftp", "window 4", 30.0, "MB/s").beside("atftpd", 20.0);
        assert_eq!(
            serde_json::to_string(&row).unwrap(),
            r#"{"bench":"tftp","case":"window 4","ours":30.0,"peer":20.0,"peer_name":"atftpd","unit":"MB/s","ratio":1.5}"#
        );
        let alone = serde_json::to_value(Row::new("boot", "bios", 5.0, "s")).unwrap();
        assert!(alone["peer"].is_null() && alone["ratio"].is_null());
    }

    #[test]
    fn figures_have_four_digits() {
        let of = |value| Row::new("x", "", value, "").ours;
        assert_eq!(of(123_456.0), 123_500.0);
        assert_eq!(of(0.012_345_6), 0.012_35);
        assert_eq!(of(0.0), 0.0);
    }

    #[test]
    fn the_table_has_aligned_columns() {
        let rows = [
            Row::new("x", "short", 1.0, "s"),
            Row::new("x", "much longer", 2.5, "s").beside("peer", 5.0),
        ];
        assert_eq!(
            table(&rows),
            "case         ours  peer  peer's name  unit  ratio\n\
             short        1     -     -            s     -\n\
             much longer  2.5   5     peer         s     0.5\n"
        );
    }
}
