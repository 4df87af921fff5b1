//! The truth matrix: every kind of traffic through every kind of stack, each cell held against all
//! witnesses of [`truth`], both legs and directions, all five figures, to the byte.
//!
//! The proxy of a cell is the test itself, with sockets that were born in the counted cgroup and the
//! proxy's namespace: so every way to hand bytes to a socket is at hand, and nothing else is in the way.
//! One program instance counts all cells of a stack; a cell is the difference of two samples.

mod datagram;
mod kinds;
mod setting;
mod stream;
mod writing;

use std::io::Write;
use std::net::SocketAddr;
use std::thread::ScopedJoinHandle;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use traffic_agent::measure::Measurement;
use traffic_agent::report::{CellReport, Direction};
use traffic_lab::packet::{Family, Packet};
use traffic_lab::topology::{CLIENT_DEVICE, LabTrace, UPSTREAM_DEVICE, addresses};
use traffic_lab::{CountedCgroup, Stack};

use self::datagram::Sending;
use self::kinds::BOTH;
pub use self::kinds::{ESSENCE, Kind, TCP, Traffic, UDP};
use self::setting::Label;
pub use self::setting::{Setting, Variant};
use self::stream::Listeners;
use self::writing::Writing;
use crate::factory::{Factory, mapped};
use crate::figures;
use crate::site::{RELAY_PORT, SERVER_PORT, Site, tcp, udp};
use crate::truth::{self, Applications, HookRules};

/// Frames lost inside the lab spoil its truth; then the cell is driven again.
const TRIES: u32 = 3;
/// Whose sockets a cell uses, and by which addresses.
struct Ends<'s> {
    site: &'s Site,
    factory: &'s Factory,
    family: Family,
    variant: Variant,
}

impl Ends<'_> {
    /// The server's address as the proxy connects to it.
    fn server(&self) -> SocketAddr {
        let server = (addresses(self.family).upstream, SERVER_PORT).into();
        if self.variant == Variant::Mapped { mapped(server) } else { server }
    }
}

/// What was found in a cell, when every figure was right.
struct Found {
    cells: Vec<CellReport>,
    trace: LabTrace,
}

/// The site, and all that stays from cell to cell.
struct Bench<'s> {
    site: &'s Site,
    factory: &'s Factory,
    rules: HookRules<'s>,
    measurement: Measurement<'s>,
    listeners: Listeners,
}

/// A cgroup below the counted one, with a factory in it, which must end first.
struct Below {
    factory: Factory,
    _cgroup: CountedCgroup,
}

/// Drives all kinds of traffic, IPv4 and IPv6, and prints a line per cell. An error lists every cell in
/// which a figure differs.
pub fn check<'k>(setting: Setting, kinds: impl IntoIterator<Item = &'k Kind>) -> Result<()> {
    let _taken = setting.processors.take()?;
    let site = Site::new(setting.stack)?;
    setting.variant.prepare(&site)?;
    let below = match setting.variant {
        Variant::SubCgroup => {
            let cgroup = site.cgroup.child("below")?;
            Some(Below { factory: Factory::start(&site.lab.proxy, &cgroup)?, _cgroup: cgroup })
        }
        _ => None,
    };
    let factory = below.as_ref().map_or(&site.factory, |below| &below.factory);
    let listeners = Listeners::open(&site, factory, setting.variant)?;
    let rules = HookRules::add(&site.lab.proxy)?;
    let measurement = Measurement::start(&site.host, site.plan()?)?;
    let mut bench = Bench { site: &site, factory, rules, measurement, listeners };
    say("")?;
    let mut wrong = Vec::new();
    for &kind in kinds {
        for &family in setting.variant.families() {
            let label = Label { kind, family, setting };
            let begin = Instant::now();
            match bench.cell(&label) {
                Ok(found) => say(&format!(
                    "  {label}: {}; {:.1} s",
                    found.summary(),
                    begin.elapsed().as_secs_f64()
                ))?,
                Err(error) => {
                    say(&format!("  {label}: WRONG: {error:#}"))?;
                    wrong.push(format!("{label}: {error:#}"));
                }
            }
        }
    }
    setting.variant.check_was_seen(&site)?;
    ensure!(wrong.is_empty(), "{} cells are wrong:\n{}", wrong.len(), wrong.join("\n\n"));
    Ok(())
}

/// Prints a line also where the harness keeps what a test prints until it fails: the matrix is to be
/// seen, cell by cell.
fn say(line: &str) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{line}").context("cannot print")
}

impl Bench<'_> {
    /// Drives a cell, again if the lab itself lost frames: then its captures are no truth.
    fn cell(&mut self, label: &Label) -> Result<Found> {
        for attempt in 1..=TRIES {
            match self.try_cell(label)? {
                Ok(found) => return Ok(found),
                Err(lost) => say(&format!("  {label}: attempt {attempt} of {TRIES}: {lost:#}"))?,
            }
        }
        bail!("the lab lost frames {TRIES} times; is the machine very busy?")
    }

    /// Ok(Err) if the far ends saw frames that never reached the proxy, by its device's counters.
    fn try_cell(&mut self, label: &Label) -> Result<Result<Found>> {
        let (family, variant) = (label.family, label.setting.variant);
        let ends = Ends { site: self.site, factory: self.factory, family, variant };
        let capture = self.site.lab.capture()?;
        let (rules_before, start) = (self.rules.read()?, self.measurement.sample()?);
        let driven = match label.kind.traffic {
            Traffic::Streams(streams) => streams.run(&ends, &self.listeners),
            Traffic::Datagrams(datagrams) => datagrams.run(&ends),
        };
        let trace = capture.stop()?;
        if let Err(lost) = trace.check() {
            return Ok(Err(lost));
        }
        let (applications, zero_copies) = driven?;
        let end = self.measurement.sample()?;
        let at_hook = truth::since(&self.rules.read()?, &rules_before);
        let cells = self.measurement.cells(&start, &end)?;
        let captured = figures::of_capture(&trace, &[tcp(RELAY_PORT), udp(datagram::PORT)]);
        truth::compare(&cells, &trace, &captured, &at_hook, Some(&applications))?;
        let found = Found { cells, trace };
        found.check_is_what_it_says(label, zero_copies, &applications)?;
        Ok(Ok(found))
    }
}

impl Found {
    /// Or the cell would prove less than its label says.
    fn check_is_what_it_says(
        &self,
        label: &Label,
        zero_copies: u64,
        applications: &Applications,
    ) -> Result<()> {
        ensure!(applications.client.to_proxy > 0 && applications.upstream.to_proxy > 0, "no bytes");
        let zero_copied = match label.kind.traffic {
            Traffic::Streams(streams) => streams.writing == Writing::ZeroCopy,
            Traffic::Datagrams(datagrams) => datagrams.proxy == Sending::ZeroCopy,
        };
        ensure!(zero_copied == (zero_copies > 0), "{zero_copies} zero-copied sends");
        self.check_headers(label)?;
        for direction in [Direction::Ingress, Direction::Egress] {
            for device in BOTH {
                let sum = truth::on_device(&self.cells, device, direction);
                let merged = match direction {
                    // GRO leaves packets with IPv4 options alone.
                    Direction::Ingress if label.setting.variant == Variant::Ipv4Options => &[],
                    Direction::Ingress => label.kind.merged_ingress,
                    Direction::Egress => label.kind.merged_egress,
                };
                let segmented_udp = matches!(label.kind.traffic, Traffic::Datagrams(_))
                    && direction == Direction::Egress;
                match label.setting.stack {
                    // A program's own UDP_SEGMENT is a super-packet, whatever the device can do.
                    Stack::Plain if !segmented_udp => ensure!(
                        (sum.packets, sum.bytes) == (sum.wire_packets, sum.wire_bytes),
                        "{device} {direction:?}: super-packets without offloads"
                    ),
                    Stack::GsoGro if merged.contains(device) => ensure!(
                        sum.packets < sum.wire_packets,
                        "{device} {direction:?}: no super-packets"
                    ),
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// Full packets of TCP are of the MTU, and their headers have timestamps or not.
    fn check_headers(&self, label: &Label) -> Result<()> {
        let merged = [label.kind.merged_egress, label.kind.merged_ingress].concat();
        if matches!(label.kind.traffic, Traffic::Datagrams(_)) || merged.is_empty() {
            return Ok(());
        }
        let largest = |packets: &[Packet]| packets.iter().map(|one| one.headers.l3_bytes).max();
        for leg in [&self.trace.client, &self.trace.upstream] {
            let packets = &leg.trace.packets;
            let mtu = label.setting.variant.mtu();
            ensure!(largest(packets) == Some(mtu), "the largest is {:?}", largest(packets));
            // Longer ones have a SACK besides.
            let full = packets.iter().filter(|packet| packet.headers.l3_bytes == mtu);
            let shortest = full.map(|packet| mtu - packet.headers.payload_bytes).min();
            let expected = label.setting.variant.tcp_headers(label.family);
            ensure!(shortest == Some(expected), "headers of {shortest:?} bytes, not {expected}");
        }
        Ok(())
    }

    /// Both legs in figures, and what is unexplained: nothing, or there would be no summary.
    fn summary(&self) -> String {
        let legs = [("client", CLIENT_DEVICE, &self.trace.client)].into_iter().chain([(
            "upstream",
            UPSTREAM_DEVICE,
            &self.trace.upstream,
        )]);
        let legs: Vec<String> = legs
            .map(|(name, device, leg)| {
                let ingress = truth::on_device(&self.cells, device, Direction::Ingress);
                let egress = truth::on_device(&self.cells, device, Direction::Egress);
                let captured = leg.trace.sum(traffic_lab::Filter::all());
                let counted = ingress.wire_bytes + egress.wire_bytes;
                format!(
                    "{name} {counted} B in {} packets ({} at the hook), {} B unexplained",
                    captured.packets,
                    ingress.packets + egress.packets,
                    counted.abs_diff(captured.l3_bytes)
                )
            })
            .collect();
        legs.join("; ")
    }
}

/// What a thread returned; its panic goes on here.
fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
