//! The picture of boots as SVG: a bar for each part, its place and width to scale.
//!
//! Pure: boots in, text out.

use std::fmt::Write;

use super::{PartLine, heading, part_lines};
use crate::flight_recorder::{BootView, Part};

/// Pixels.
const WIDTH: usize = 960;
const LEFT: usize = 96;
const RIGHT: usize = 260;
const LINE: usize = 26;
const BAR: usize = 16;
const HEAD: usize = 58;

/// Draws boots one below the other.
pub(super) fn draw(name: &str, boots: &[&BootView]) -> String {
    let mut body = String::new();
    let mut y = 44;
    for boot in boots {
        y = draw_boot(&mut body, boot, y);
    }
    let height = y + 8;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"16\" y=\"28\" font-size=\"17\" font-weight=\"bold\" fill=\"#1b1b1b\">{}</text>\n\
         {body}</svg>\n",
        escaped(name)
    )
}

fn draw_boot(body: &mut String, boot: &BootView, top: usize) -> usize {
    let lines = part_lines(boot);
    let end = lines.iter().map(|line| line.to_ms).max().unwrap_or(0);
    let room = WIDTH - LEFT - RIGHT;
    let place = |ms: u64| -> usize {
        let room = u64::try_from(room).unwrap_or(u64::MAX);
        usize::try_from(ms.saturating_mul(room) / end.max(1)).unwrap_or(0)
    };
    text(body, (16, top + 18), "#1b1b1b", &heading(boot));
    let first = top + HEAD - 24;
    let last = first + lines.len() * LINE;
    for second in ticks(end) {
        let x = LEFT + place(second * 1000);
        let _ = writeln!(
            body,
            "<line x1=\"{x}\" y1=\"{first}\" x2=\"{x}\" y2=\"{last}\" stroke=\"#d8dce2\"/>"
        );
        let label = format!("{second} s");
        let _ = writeln!(
            body,
            "<text x=\"{x}\" y=\"{}\" fill=\"#666b74\" font-size=\"11\" text-anchor=\"middle\">{label}</text>",
            last + 14
        );
    }
    for (index, line) in lines.iter().enumerate() {
        let y = first + index * LINE;
        let (from, to) = (place(line.from_ms), place(line.to_ms));
        text(body, (16, y + 17), "#1b1b1b", line.part.name());
        let _ = writeln!(
            body,
            "<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{BAR}\" rx=\"2\" fill=\"{}\"/>",
            LEFT + from,
            y + (LINE - BAR) / 2,
            (to - from).max(2),
            colour(line.part)
        );
        text(body, (LEFT + room + 14, y + 17), "#444a52", &words(line));
    }
    let mut y = last + 34;
    if let Some(diagnosis) = &boot.diagnosis {
        text(
            body,
            (16, y),
            "#a11d1d",
            &format!("{}: {}", diagnosis.code, diagnosis.sentence),
        );
        y += 24;
    }
    y
}

/// Whole seconds to mark, at most a dozen.
fn ticks(end_ms: u64) -> impl Iterator<Item = u64> {
    let seconds = end_ms / 1000;
    let step = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600]
        .into_iter()
        .find(|step| seconds / step <= 12)
        .unwrap_or(3600);
    (0..=seconds).step_by(usize::try_from(step).unwrap_or(1))
}

fn words(line: &PartLine) -> String {
    line.words().join("  ")
}

fn text(body: &mut String, (x, y): (usize, usize), fill: &str, words: &str) {
    let words = escaped(words);
    let _ = writeln!(
        body,
        "<text x=\"{x}\" y=\"{y}\" fill=\"{fill}\">{words}</text>"
    );
}

/// Machines' names are text, not markup.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for letter in text.chars() {
        match letter {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            letter if letter.is_control() => out.push('?'),
            letter => out.push(letter),
        }
    }
    out
}

fn colour(part: Part) -> &'static str {
    match part {
        Part::Dhcp => "#3b6fb6",
        Part::Tftp => "#c8862a",
        Part::Http => "#3f9a5b",
        Part::Loader => "#9aa3ad",
        Part::Kernel => "#6c757f",
        Part::Beacon => "#7b4fa3",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_become_markup() {
        let picture = draw("<script>\u{7}&\"", &[]);
        assert!(picture.contains("&lt;script&gt;?&amp;&quot;"), "{picture}");
    }

    #[test]
    fn there_are_at_most_a_dozen_marks() {
        for end in [0, 900, 12_999, 61_000, 700_000, 36_000_000] {
            assert!(ticks(end).count() <= 13, "{end}");
        }
    }
}
