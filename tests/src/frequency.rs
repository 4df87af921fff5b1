//! A table of how much of workloads the kernel exchanged without a socket, printed also where a test
//! passes.

use std::io::{self, Write};

use anyhow::Result;
use traffic_lab::Filter;
use traffic_lab::packet::Family;
use traffic_lab::topology::LabTrace;
use traffic_lab::workload::Workload;

/// The head of the table. A test's harness keeps what `println` prints, but not this.
pub fn print_head() -> Result<()> {
    // The harness has begun a line.
    writeln!(
        io::stdout(),
        "\n| proxy | workload | family | connections | bytes | without a socket: packets | bytes in \
         | bytes out | share |"
    )?;
    Ok(writeln!(io::stdout(), "|---|---|---|---:|---:|---:|---:|---:|---:|")?)
}

/// What the kernel exchanged without a socket, on both legs.
#[derive(Clone, Copy, Debug, Default)]
pub struct WithoutSocket {
    /// As on the wire, both directions.
    pub packets: u64,
    /// L3 bytes to the proxy.
    pub ingress_bytes: u64,
    /// L3 bytes from the proxy.
    pub egress_bytes: u64,
}

/// A row: what both legs have carried, and what of that met no socket.
pub fn print_row(
    proxy: &str,
    workload: &Workload,
    family: Family,
    trace: &LabTrace,
    without_socket: WithoutSocket,
) -> Result<()> {
    let captured = trace.sum(Filter::all()).l3_bytes;
    let WithoutSocket { packets, ingress_bytes, egress_bytes } = without_socket;
    let share = 100.0 * (ingress_bytes + egress_bytes) as f64 / captured as f64;
    let Workload { name, connections, .. } = workload;
    let family = match family {
        Family::Ipv4 => "IPv4",
        Family::Ipv6 => "IPv6",
    };
    Ok(writeln!(
        io::stdout(),
        "| {proxy} | {name} | {family} | {connections} | {captured} | {packets} | {ingress_bytes} | \
         {egress_bytes} | {share:.4} % |"
    )?)
}
