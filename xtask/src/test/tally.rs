//! Adding up what test programs say about themselves.

use std::fmt;

/// Tests that ran, over all test programs.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    pub ignored: u64,
}

impl Tally {
    /// Reads a line of output; adds it if it is the last line of a test program.
    pub fn read(&mut self, line: &str) {
        if let Some(one) = Self::parse(line) {
            self.add(one);
        }
    }

    /// Adds what another run counted.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }

    /// Tells whether no test ran, not even to be ignored.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    fn parse(line: &str) -> Option<Self> {
        let line = without_colours(line);
        // "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished ..."
        let (_, counts) = line.trim().strip_prefix("test result: ")?.split_once(". ")?;
        let count = |name: &str| {
            counts.split(';').find_map(|part| part.trim().strip_suffix(name)?.trim().parse().ok())
        };
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            ignored: count("ignored")?,
        })
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} passed, {} failed", self.passed, self.failed)
    }
}

/// Removes the escape sequences that a terminal shows as colours.
fn without_colours(line: &str) -> String {
    let mut plain = String::with_capacity(line.len());
    let mut parts = line.split('\u{1b}');
    plain.extend(parts.next());
    for part in parts {
        // "[32mok": what follows the `m`, or nothing where the sequence is cut off.
        plain.push_str(part.split_once('m').map_or("", |(_, rest)| rest));
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_several_programs_are_summed() {
        let mut tally = Tally::default();
        for line in [
            "running 4 tests",
            "test a ... ok",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 7 filtered out; finished \
             in 0.05s",
            "test result: FAILED. 10 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; \
             finished in 1.00s",
        ] {
            tally.read(line);
        }
        assert_eq!(tally, Tally { passed: 13, failed: 2, ignored: 1 });
        assert_eq!(tally.to_string(), "13 passed, 2 failed");
    }

    #[test]
    fn colours_do_not_hide_a_result() {
        let line = "test result: \u{1b}[32mok\u{1b}[m. 3 passed; 0 failed; 0 ignored; 0 measured";
        assert_eq!(Tally::parse(line), Some(Tally { passed: 3, failed: 0, ignored: 0 }));
    }

    #[test]
    fn other_lines_are_no_result() {
        for line in ["", "test result: ", "test result: ok. x passed; 0 failed; 0 ignored", "ok. 3"]
        {
            assert_eq!(Tally::parse(line), None, "{line}");
        }
    }
}
