//! Counting rules of iptables, added and read back without the product's help.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use traffic_lab::Namespace;
use traffic_lab::packet::Family;

/// Packets and bytes of a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleCount {
    /// What iptables calls packets.
    pub packets: u64,
    /// L3 bytes.
    pub bytes: u64,
}

/// Adds a rule: `INPUT -p tcp --dport 80`.
pub fn add(namespace: &Namespace, family: Family, rule: &str) -> Result<()> {
    run(namespace, family, &format!("-w -A {rule}")).map(drop)
}

/// Adds a rule to a table.
pub fn add_to(namespace: &Namespace, family: Family, table: &str, rule: &str) -> Result<()> {
    run(namespace, family, &format!("-w -t {table} -A {rule}")).map(drop)
}

/// Removes a rule that was added in the same words.
pub fn remove(namespace: &Namespace, family: Family, rule: &str) -> Result<()> {
    run(namespace, family, &format!("-w -D {rule}")).map(drop)
}

/// Removes a rule from a table.
pub fn remove_from(namespace: &Namespace, family: Family, table: &str, rule: &str) -> Result<()> {
    run(namespace, family, &format!("-w -t {table} -D {rule}")).map(drop)
}

/// Finds the counters of the rule that begins so in what [`save`] returned: `INPUT -i eth0 `. A space
/// at the end of the line belongs to it, so that a rule can be named whole.
pub fn find(saved: &str, begin: &str) -> Option<RuleCount> {
    saved.lines().find_map(|line| {
        let (counters, rule) = line.strip_prefix('[')?.split_once("] -A ")?;
        format!("{rule} ").starts_with(begin).then_some(())?;
        let (packets, bytes) = counters.split_once(':')?;
        Some(RuleCount { packets: packets.parse().ok()?, bytes: bytes.parse().ok()? })
    })
}

/// What the only rule of a chain has counted, `INPUT` or `OUTPUT`.
pub fn read(namespace: &Namespace, family: Family, chain: &str) -> Result<RuleCount> {
    // num pkts bytes target prot opt in out source destination; -x: no rounding.
    let listing = run(namespace, family, &format!("-w -L {chain} -v -n -x --line-numbers"))?;
    let lines: Vec<&str> = listing.lines().skip(2).collect();
    let [line] = lines.as_slice() else { bail!("chain {chain} has not one rule:\n{listing}") };
    let mut numbers = line.split_whitespace().skip(1).map(str::parse);
    let mut next = || numbers.next().context("a column is missing")?.context("no number");
    Ok(RuleCount { packets: next()?, bytes: next()? })
}

/// A table with all counters, as iptables-save prints it.
pub fn save(namespace: &Namespace, family: Family, table: &str) -> Result<String> {
    run_program(namespace, &format!("{}-save", program(family)), &format!("-c -t {table}"))
}

fn program(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "iptables",
        Family::Ipv6 => "ip6tables",
    }
}

fn run(namespace: &Namespace, family: Family, arguments: &str) -> Result<String> {
    run_program(namespace, program(family), arguments)
}

fn run_program(namespace: &Namespace, program: &str, arguments: &str) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments.split(' '));
    let output = namespace
        .command_in(&mut command)?
        .output()
        .with_context(|| format!("cannot run {program}: run `cargo xtask test`"))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments}: {errors}");
    Ok(String::from_utf8(output.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_of_a_rule_are_found_in_what_is_saved() {
        let saved = "*mangle\n:INPUT ACCEPT [9:9]\n[12:3456] -A INPUT -i eth0\n\
                     [1:2] -A INPUT -i eth1 -j DROP\nCOMMIT\n";
        let count = |packets, bytes| Some(RuleCount { packets, bytes });
        assert_eq!(find(saved, "INPUT -i eth0 "), count(12, 3456));
        assert_eq!(find(saved, "INPUT -i eth1 "), count(1, 2));
        assert_eq!(find(saved, "INPUT -i eth "), None);
        assert_eq!(find(saved, "OUTPUT -o eth0 "), None);
    }
}
