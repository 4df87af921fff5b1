//! What a change does to a file, for people. Pure.

use std::fmt::Write as _;

use super::Change;

/// Lines shown around what changes.
const AROUND: usize = 2;

/// Describes a change in the form of `diff -u`, without line numbers.
pub fn describe(change: &Change) -> String {
    let (before, after) = (change.before.as_deref(), change.after.as_deref());
    let verb = match (before, after) {
        (None, _) => "create",
        (_, None) => "remove",
        _ => "change",
    };
    let mut text = format!("{verb} {}\n", change.path.display());
    let lines = |text: Option<&str>| text.unwrap_or_default().lines().map(str::to_owned).collect();
    let (old, new): (Vec<String>, Vec<String>) = (lines(before), lines(after));
    let same = |pairs: usize| old.len().min(new.len()) - pairs;
    let head = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let tail = old.iter().rev().zip(new.iter().rev()).take(same(head));
    let tail = tail.take_while(|(a, b)| a == b).count();
    let mut put = |sign: char, lines: &[String]| {
        for line in lines {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "  {sign}{line}");
        }
    };
    put(' ', &old[head.saturating_sub(AROUND)..head]);
    put('-', &old[head..old.len() - tail]);
    put('+', &new[head..new.len() - tail]);
    put(' ', &old[old.len() - tail..old.len() - tail + AROUND.min(tail)]);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(before: Option<&str>, after: Option<&str>) -> String {
        let own = |text: Option<&str>| text.map(str::to_owned);
        describe(&Change { path: "/f".into(), before: own(before), after: own(after) })
    }

    #[test]
    fn only_what_differs_is_shown_with_its_surroundings() {
        assert_eq!(change(None, Some("a\nb\n")), "create /f\n  +a\n  +b\n");
        assert_eq!(change(Some("a\n"), None), "remove /f\n  -a\n");
        let before = "1\n2\n3\nold\n4\n5\n6\n";
        let after = before.replace("old", "new");
        let expected = "change /f\n   2\n   3\n  -old\n  +new\n   4\n   5\n";
        assert_eq!(change(Some(before), Some(&after)), expected);
        assert_eq!(change(Some("a\na\n"), Some("a\na\na\n")), "change /f\n   a\n   a\n  +a\n");
    }
}
