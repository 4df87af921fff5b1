//! What the running kernel says of the programs of an object: how much its verifier went through, and
//! what became of them.
//!
//! The agent's library loads them, in an example of its own: so they are loaded as a measurement does,
//! and no library for that is part of this program.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result};

use crate::{command, debian, workspace::Workspace};

/// What the kernel says of a program; `None` where it does not say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Instructions that the verifier went through, on all ways: its complexity.
    pub verified: Option<u64>,
    /// Bytes of the program as the verifier left it.
    pub translated_bytes: Option<u64>,
    /// Bytes of machine code.
    pub compiled_bytes: Option<u64>,
}

/// Loads the programs of an object and asks the kernel for their figures, by name. None without root.
pub fn figures(workspace: &Workspace, object: &Path) -> Result<BTreeMap<String, Figures>> {
    if !debian::is_root() {
        return Ok(BTreeMap::new());
    }
    let text = command::output(
        workspace
            .cargo()
            .args(["run", "--quiet", "--locked", "--package", "traffic-agent"])
            .args(["--example", "verifier"])
            .env("TRAFFIC_AGENT_OBJECT", object),
    )
    .context("the running kernel does not take the object")?;
    text.lines()
        .map(|line| parse(line).with_context(|| format!("not the figures of a program: {line}")))
        .collect()
}

/// Reads a line of the example: name, then three numbers or `-`.
fn parse(line: &str) -> Option<(String, Figures)> {
    let columns: Vec<&str> = line.split('\t').collect();
    let &[name, verified, translated, compiled] = columns.as_slice() else { return None };
    let number = |text: &str| match text {
        "-" => Some(None),
        digits => digits.parse().ok().map(Some),
    };
    let figures = Figures {
        verified: number(verified)?,
        translated_bytes: number(translated)?,
        compiled_bytes: number(compiled)?,
    };
    Some((name.to_owned(), figures))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_that_the_kernel_does_not_say_is_none() {
        let figures =
            Figures { verified: None, translated_bytes: Some(12_752), compiled_bytes: Some(7738) };
        assert_eq!(
            parse("count_egress\t-\t12752\t7738"),
            Some(("count_egress".to_owned(), figures))
        );
        assert_eq!(parse("x\t-\t-\t-"), Some(("x".to_owned(), Figures::default())));
        for other in ["", "x\t1\t2", "x\t1\t2\tthree", "x\t1\t2\t3\t4"] {
            assert_eq!(parse(other), None, "{other:?}");
        }
    }
}
