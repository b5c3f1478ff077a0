//! Tables for people, and how times are shown.

use jiff::{Timestamp, tz::TimeZone};

/// Rows under a heading, each column as wide as its widest cell.
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(heading: &[&str]) -> Self {
        Self {
            rows: vec![heading.iter().map(|&cell| cell.to_owned()).collect()],
        }
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows
            .push(cells.iter().map(|cell| clean(cell)).collect());
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| {
                let cells = self.rows.iter().filter_map(|row| row.get(column));
                cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
            })
            .collect();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                let gap = width.saturating_sub(cell.chars().count()) + 2;
                line.extend(std::iter::repeat_n(' ', gap));
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Without the characters that move a terminal's cursor: names come from machines.
pub(super) fn clean(text: &str) -> String {
    text.chars()
        .map(|letter| if letter.is_control() { '?' } else { letter })
        .collect()
}

/// How many there are: `1 chunk`, `2 chunks`.
pub(super) fn counted(count: u64, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// A time of day where the operator is.
pub(super) fn local_time(seconds: u64) -> String {
    time_in(seconds, TimeZone::system())
}

fn time_in(seconds: u64, zone: TimeZone) -> String {
    let stamp = i64::try_from(seconds)
        .ok()
        .and_then(|seconds| Timestamp::from_second(seconds).ok());
    stamp.map_or_else(
        || format!("{seconds} s"),
        |stamp| {
            stamp
                .to_zoned(zone)
                .strftime("%Y-%m-%d %H:%M:%S")
                .to_string()
        },
    )
}

/// How long ago, in one unit.
pub(super) fn ago(then: u64, now: u64) -> String {
    let seconds = now.saturating_sub(then);
    match seconds {
        0..=119 => format!("{seconds} s ago"),
        120..=7199 => format!("{} min ago", seconds / 60),
        7200..=172_799 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// The beginning of an id that is long enough to name it.
pub(super) fn short(id: &str) -> String {
    id.chars().take(8).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_terminal_codes_are_shown_harmless() {
        let mut table = Table::new(&["NAME", "STATE"]);
        table.row(vec!["büro-pc".into(), "waiting".into()]);
        table.row(vec!["\x1b[2J".into(), String::new()]);
        assert_eq!(
            table.to_string(),
            "NAME     STATE\nbüro-pc  waiting\n?[2J\n"
        );
    }

    #[test]
    fn times_are_shown_in_the_zone_and_impossible_ones_do_not_panic() {
        assert_eq!(time_in(0, TimeZone::UTC), "1970-01-01 00:00:00");
        assert_eq!(time_in(u64::MAX, TimeZone::UTC), format!("{} s", u64::MAX));
    }

    #[test]
    fn ages_are_shown_in_one_unit() {
        for (seconds, text) in [
            (5, "5 s ago"),
            (130, "2 min ago"),
            (7200, "2 h ago"),
            (172_800, "2 days ago"),
        ] {
            assert_eq!(ago(1000, 1000 + seconds), text);
        }
        assert_eq!(ago(10, 5), "0 s ago");
    }
}
