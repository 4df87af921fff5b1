//! Bars beside figures: as wide as what the figures leave of the terminal.

use unicode_width::UnicodeWidthStr as _;

use super::{Options, text::Style};

/// Columns between two columns of a table.
const PADDING: usize = 2;
/// A shorter bar tells nothing.
const LEAST: usize = 5;
/// A longer one tells no more.
const MOST: usize = 40;
/// Filled by eighths, from one to seven. U+258F to U+2589.
const EIGHTHS: [char; 7] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉'];

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column<'a> {
    /// What is above it.
    pub heading: &'a str,
    /// `<` or `>`.
    pub alignment: char,
}

impl<'a> Column<'a> {
    pub(super) fn left(heading: &'a str) -> Self {
        Self { heading, alignment: '<' }
    }

    pub(super) fn right(heading: &'a str) -> Self {
        Self { heading, alignment: '>' }
    }
}

/// A row of a table.
#[derive(Clone, Debug)]
pub(super) struct Figures {
    /// What its columns show.
    pub cells: Vec<(String, Style)>,
    /// The figure that its bar stands for, if it has one.
    pub compared: Option<u64>,
}

/// Returns a bar for each row, scaled to the largest; empty for rows without a figure to compare. `None`
/// where the terminal has no room, or there is nothing to compare.
pub(super) fn bars(
    columns: &[Column<'_>],
    rows: &[Figures],
    options: &Options,
) -> Option<Vec<String>> {
    let largest = rows.iter().filter_map(|row| row.compared).max()?;
    let compared = rows.iter().filter(|row| row.compared.is_some()).count();
    if largest == 0 || compared < 2 {
        return None;
    }
    let widest = |(index, column): (usize, &Column<'_>)| {
        let cells = rows.iter().filter_map(|row| row.cells.get(index));
        let widest = cells.map(|(text, _)| text.width()).max().unwrap_or(0);
        PADDING + widest.max(column.heading.width())
    };
    let used: usize = columns.iter().enumerate().map(widest).sum();
    let room = usize::from(options.width).saturating_sub(used + PADDING).min(MOST);
    let draw = |figure| bar(figure, largest, room, options.unicode);
    (room >= LEAST)
        .then(|| rows.iter().map(|row| row.compared.map_or_else(String::new, draw)).collect())
}

/// A bar of `room` columns for the largest figure. Whatever is not zero is seen.
fn bar(figure: u64, largest: u64, room: usize, unicode: bool) -> String {
    let parts = if unicode { 8 } else { 1 };
    let scaled = u128::from(figure) * (room * parts) as u128;
    let half = u128::from(largest) / 2;
    let filled = ((scaled + half) / u128::from(largest)) as usize;
    let filled = filled.max(usize::from(figure != 0));
    if !unicode {
        return "#".repeat(filled);
    }
    let part = (filled % 8).checked_sub(1).map(|eighths| EIGHTHS[eighths]);
    "█".repeat(filled / 8).chars().chain(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_drawn_by_eighths_and_nothing_but_zero_is_empty() {
        assert_eq!(bar(100, 100, 5, true), "█████");
        // 5 columns are 40 eighths: 37 % are 14.8, so 15: one column and seven eighths.
        assert_eq!(bar(37, 100, 5, true), "█▉");
        assert_eq!(bar(1, 1_000_000, 5, true), "▏");
        assert_eq!(bar(0, 100, 5, true), "");
        assert_eq!(bar(u64::MAX, u64::MAX, 40, true).chars().count(), 40);
    }

    #[test]
    fn bars_of_a_locale_without_blocks_are_ascii() {
        assert_eq!(bar(37, 100, 10, false), "####");
        assert_eq!(bar(1, 1_000_000, 10, false), "#");
    }
}
