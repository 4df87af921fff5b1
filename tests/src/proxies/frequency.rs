//! A table of how much of workloads no hook saw, printed also where a test passes.

use std::io::{self, Write};

use anyhow::Result;
use traffic_lab::Filter;
use traffic_lab::packet::Family;
use traffic_lab::topology::LabTrace;
use traffic_lab::workload::Workload;

use super::books::Account;

/// The head of the table. A test's harness keeps what `println` prints, but not this.
pub fn print_head() -> Result<()> {
    // The harness has begun a line.
    writeln!(
        io::stdout(),
        "\n| proxy | workload | family | connections | bytes | unseen packets | \
                            unseen bytes | share | which |"
    )?;
    Ok(writeln!(io::stdout(), "|---|---|---|---:|---:|---:|---:|---:|---|")?)
}

/// A row: what both legs have carried, and of that what no hook saw and why.
pub fn print_row(
    proxy: &str,
    workload: &Workload,
    family: Family,
    trace: &LabTrace,
    [client, upstream]: [&Account; 2],
) -> Result<()> {
    let captured = trace.sum(Filter::all()).l3_bytes;
    let unseen = client.named.iter().chain(&upstream.named);
    let (packets, bytes) = unseen
        .fold((0, 0), |(packets, bytes), named| (packets + named.packets, bytes + named.bytes));
    let share = 100.0 * bytes as f64 / captured as f64;
    let Workload { name, connections, .. } = workload;
    let family = match family {
        Family::Ipv4 => "IPv4",
        Family::Ipv6 => "IPv6",
    };
    Ok(writeln!(
        io::stdout(),
        "| {proxy} | {name} | {family} | {connections} | {captured} | {packets} | {bytes} | \
         {share:.4} % | client leg: {client}; upstream leg: {upstream} |"
    )?)
}
