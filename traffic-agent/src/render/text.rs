//! Text that is not a figure: wrapped, coloured, and free of what a terminal would obey.

use std::io::{self, Write};

use comfy_table::{Cell, CellAlignment, Table, presets};

use super::Options;

/// How a piece of text stands out on a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Plain,
    Bold,
    Dim,
    Green,
    Yellow,
    Red,
}

impl Style {
    /// SGR parameters. Source: ECMA-48, 8.3.117.
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "0",
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Green => "32",
            Self::Yellow => "33",
            Self::Red => "31",
        }
    }
}

/// Returns `text` in a style, if there is to be any.
pub(super) fn paint(text: &str, style: Style, colour: bool) -> String {
    match colour && style != Style::Plain {
        true => format!("\x1b[{}m{text}\x1b[0m", style.code()),
        false => text.to_owned(),
    }
}

/// Returns `text` without control characters.
///
/// Names of processes, cgroups and rules are chosen by whoever runs them, and a terminal obeys escape
/// sequences wherever they come from.
pub(super) fn tame(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Returns `text` in lines of at most `width` characters, broken at spaces. A word that is longer has
/// a line for itself: a command or path in pieces cannot be pasted.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for paragraph in text.split('\n') {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            let used = line.chars().count();
            if used != 0 && used + 1 + word.chars().count() > width {
                lines.push(std::mem::take(&mut line));
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        if !line.is_empty() {
            lines.push(line);
        }
    }
    lines.iter().map(|line| tame(line)).collect()
}

/// Something short before a text: what it says, how it looks, the columns it fills.
pub(super) type Label<'a> = (&'a str, Style, usize);

/// Writes labels and wrapped text behind them, each further line under the first one's text.
pub(super) fn write_labelled(
    labels: &[Label<'_>],
    text: &str,
    options: &Options,
    out: &mut dyn Write,
) -> io::Result<()> {
    let column: usize = labels.iter().map(|(_, _, width)| width).sum();
    // However narrow the terminal: some words to a line.
    let lines = wrap(text, text_width(options).saturating_sub(column).max(20));
    for (label, style, width) in labels {
        let gap = width.saturating_sub(label.chars().count());
        write!(out, "{}{:gap$}", paint(label, *style, options.colour), "")?;
    }
    for (index, line) in lines.iter().enumerate() {
        let indent = if index == 0 { 0 } else { column };
        writeln!(out, "{:indent$}{line}", "")?;
    }
    if lines.is_empty() { writeln!(out) } else { Ok(()) }
}

/// Columns that text may use: beyond 120, lines are hard to follow.
fn text_width(options: &Options) -> usize {
    usize::from(options.width).clamp(40, 120)
}

/// A table without lines. Its cells are never wrapped: half a number is worse than a long line.
pub(super) struct Grid {
    table: Table,
    colour: bool,
}

impl Grid {
    /// Begins a table with these headings. An alignment for each column: `<` or `>`.
    pub(super) fn new(headings: &[(&str, char)], options: &Options) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).force_no_tty();
        if options.colour {
            table.enforce_styling();
            table.style_text_only();
        }
        table.set_header(headings.iter().map(|(heading, _)| {
            let cell = Cell::new(heading);
            if options.colour { cell.add_attribute(comfy_table::Attribute::Dim) } else { cell }
        }));
        for (column, (_, alignment)) in table.column_iter_mut().zip(headings) {
            column.set_padding((2, 0));
            column.set_cell_alignment(match alignment {
                '>' => CellAlignment::Right,
                _ => CellAlignment::Left,
            });
        }
        Self { table, colour: options.colour }
    }

    /// Adds a row.
    pub(super) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.styled_row(cells.into_iter().map(|cell| (cell, Style::Plain)));
    }

    /// Adds a row whose cells have styles.
    pub(super) fn styled_row(&mut self, cells: impl IntoIterator<Item = (String, Style)>) {
        use comfy_table::{Attribute, Color};
        let colour = self.colour;
        self.table.add_row(cells.into_iter().map(|(text, style)| {
            let cell = Cell::new(tame(&text));
            match style {
                _ if !colour => cell,
                Style::Plain => cell,
                Style::Bold => cell.add_attribute(Attribute::Bold),
                Style::Dim => cell.add_attribute(Attribute::Dim),
                Style::Green => cell.fg(Color::DarkGreen),
                Style::Yellow => cell.fg(Color::DarkYellow),
                Style::Red => cell.fg(Color::DarkRed),
            }
        }));
    }

    /// Writes the table.
    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        self.table.lines().try_for_each(|line| writeln!(out, "{}", line.trim_end()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_breaks_at_spaces_and_never_inside_a_word() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("one two three", 13), ["one two three"]);
        assert_eq!(
            wrap("run --target=unit:xray.service now", 10),
            ["run", "--target=unit:xray.service", "now"]
        );
        assert_eq!(wrap("a\nb", 80), ["a", "b"]);
        assert!(wrap("", 80).is_empty());
    }

    #[test]
    fn escape_sequences_in_names_do_not_reach_the_terminal() {
        assert_eq!(tame("xr\x1b[2Jay\r"), "xr\u{fffd}[2Jay\u{fffd}");
        assert_eq!(wrap("a\x1bb \u{9b}c", 80), ["a\u{fffd}b \u{fffd}c"]);
    }

    #[test]
    fn nothing_is_coloured_unless_asked() {
        assert_eq!(paint("x", Style::Red, false), "x");
        assert_eq!(paint("x", Style::Red, true), "\x1b[31mx\x1b[0m");
        assert_eq!(paint("x", Style::Plain, true), "x");
    }
}
