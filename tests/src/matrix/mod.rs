//! The truth matrix: every kind of traffic through every kind of stack, each cell held against all
//! witnesses of [`truth`], both legs and directions, all five figures, to the byte.
//!
//! The proxy of a cell is the test itself, with sockets that were born in the counted cgroup and the
//! proxy's namespace: so every way to hand bytes to a socket is at hand, and nothing else is in the way.
//! One program instance counts all cells of a stack; a cell is the difference of two samples.

mod datagram;
mod stream;
mod writing;

use std::fmt;
use std::io::Write;
use std::thread::ScopedJoinHandle;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use traffic_agent::measure::Measurement;
use traffic_agent::report::{CellReport, Direction};
use traffic_lab::Stack;
use traffic_lab::packet::Family;
use traffic_lab::topology::{CLIENT_DEVICE, LabTrace, UPSTREAM_DEVICE};

pub use self::datagram::{Datagrams, Sending};
pub use self::stream::{Listeners, Streams};
pub use self::writing::Writing;
use crate::processors::Processors;
use crate::site::{RELAY_PORT, Site, tcp, udp};
use crate::truth::{self, Applications, HookRules};

/// Frames lost inside the lab spoil its truth; then the cell is driven again.
const TRIES: u32 = 3;
/// Some super-packets of 64 KiB on each leg, in each direction that is bulk.
const BULK: usize = 2_000_000;
/// Too little for a packet to be full, and still thousands of writes.
const TINY: usize = 6_000;
/// Of a small answer, or a question.
const SMALL: usize = 500;

/// Traffic of a cell.
#[derive(Debug, Clone, Copy)]
pub enum Traffic {
    /// TCP.
    Streams(Streams),
    /// UDP.
    Datagrams(Datagrams),
}

/// One kind of traffic, and what of it must be seen for the cell to prove what it says.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// For the label.
    pub name: &'static str,
    /// What is driven.
    pub traffic: Traffic,
    /// With offloads, the proxy's stack must send super-packets on these devices.
    pub merged_egress: &'static [&'static str],
    /// And receive some on these.
    pub merged_ingress: &'static [&'static str],
}

const BOTH: &[&str] = &[CLIENT_DEVICE, UPSTREAM_DEVICE];
const STREAMS: Streams =
    Streams { connections: 1, parallel: 1, up: BULK, down: BULK, writing: Writing::Copy };

/// TCP in all its kinds.
pub const TCP: [Kind; 7] = {
    const fn kind(name: &'static str, streams: Streams) -> Kind {
        let traffic = Traffic::Streams(streams);
        Kind { name, traffic, merged_egress: BOTH, merged_ingress: BOTH }
    }
    [
        Kind {
            merged_egress: &[CLIENT_DEVICE],
            merged_ingress: &[UPSTREAM_DEVICE],
            ..kind("bulk down", Streams { up: SMALL, ..STREAMS })
        },
        Kind {
            merged_egress: &[UPSTREAM_DEVICE],
            merged_ingress: &[CLIENT_DEVICE],
            ..kind("bulk up", Streams { down: SMALL, ..STREAMS })
        },
        Kind {
            merged_egress: &[],
            merged_ingress: &[],
            ..kind(
                "short connections",
                Streams { connections: 80, parallel: 4, up: 200, down: 1_000, ..STREAMS },
            )
        },
        Kind {
            merged_egress: &[],
            merged_ingress: &[],
            ..kind(
                "tiny writes",
                Streams { up: TINY, down: TINY, writing: Writing::Tiny, ..STREAMS },
            )
        },
        kind("sendfile", Streams { writing: Writing::Sendfile, ..STREAMS }),
        kind("splice", Streams { writing: Writing::Splice, ..STREAMS }),
        kind("MSG_ZEROCOPY", Streams { writing: Writing::ZeroCopy, ..STREAMS }),
    ]
};

/// Payloads of 500 datagrams, the last of them short.
const MANY: [usize; 500] = {
    let mut payloads = [1_200; 500];
    payloads[499] = 321;
    payloads
};
/// Payloads of zero to seven bytes.
const FEW_BYTES: [usize; 400] = {
    let mut payloads = [0; 400];
    let mut number = 0;
    while number < 400 {
        payloads[number] = number % 8;
        number += 1;
    }
    payloads
};
const ONE: &[usize] = &[SMALL];
const DATAGRAMS: Datagrams = Datagrams {
    flows: 1,
    up: &MANY,
    down: &MANY,
    far: Sending::Plain,
    proxy: Sending::Plain,
    gro: false,
};

/// UDP in all its kinds.
pub const UDP: [Kind; 8] = {
    const fn kind(name: &'static str, datagrams: Datagrams) -> Kind {
        let traffic = Traffic::Datagrams(datagrams);
        Kind { name, traffic, merged_egress: &[], merged_ingress: &[] }
    }
    [
        kind("bulk down", Datagrams { up: ONE, ..DATAGRAMS }),
        kind("bulk up", Datagrams { down: ONE, ..DATAGRAMS }),
        kind("short flows", Datagrams { flows: 60, up: &[60], down: &[300], ..DATAGRAMS }),
        kind("tiny writes", Datagrams { up: &FEW_BYTES, down: &FEW_BYTES, ..DATAGRAMS }),
        kind("sendfile", Datagrams { proxy: Sending::Sendfile, ..DATAGRAMS }),
        kind("MSG_ZEROCOPY", Datagrams { proxy: Sending::ZeroCopy, ..DATAGRAMS }),
        Kind {
            merged_egress: BOTH,
            ..kind("UDP_SEGMENT", Datagrams { proxy: Sending::Segmented, ..DATAGRAMS })
        },
        Kind {
            merged_egress: BOTH,
            merged_ingress: BOTH,
            ..kind(
                "UDP_SEGMENT and UDP_GRO",
                Datagrams {
                    far: Sending::Segmented,
                    proxy: Sending::Segmented,
                    gro: true,
                    ..DATAGRAMS
                },
            )
        },
    ]
};

/// Where a cell is in the matrix.
#[derive(Debug, Clone, Copy)]
struct Label {
    kind: Kind,
    family: Family,
    stack: Stack,
    processors: Processors,
}

impl fmt::Display for Label {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.kind.traffic {
            Traffic::Streams(_) => "TCP",
            Traffic::Datagrams(_) => "UDP",
        };
        let family = match self.family {
            Family::Ipv4 => "IPv4",
            Family::Ipv6 => "IPv6",
        };
        let offloads = if self.stack == Stack::Plain { "off" } else { "on" };
        let (name, processors) = (self.kind.name, self.processors);
        write!(formatter, "{protocol} {family}, offloads {offloads}, {processors}, {name}")
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
    rules: HookRules<'s>,
    measurement: Measurement<'s>,
    listeners: Listeners,
}

/// Drives all kinds of traffic, IPv4 and IPv6, and prints a line per cell. An error lists every cell in
/// which a figure differs.
pub fn check(stack: Stack, processors: Processors, kinds: &[Kind]) -> Result<()> {
    let _taken = processors.take()?;
    let site = Site::new(stack)?;
    let listeners = Listeners::open(&site)?;
    let rules = HookRules::add(&site.lab.proxy)?;
    let measurement = Measurement::start(&site.host, site.plan()?)?;
    let mut bench = Bench { site: &site, rules, measurement, listeners };
    say("")?;
    let mut wrong = Vec::new();
    for &kind in kinds {
        for family in [Family::Ipv4, Family::Ipv6] {
            let label = Label { kind, family, stack, processors };
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
        let capture = self.site.lab.capture()?;
        let (rules_before, start) = (self.rules.read()?, self.measurement.sample()?);
        let driven = match label.kind.traffic {
            Traffic::Streams(streams) => streams.run(self.site, label.family, &self.listeners),
            Traffic::Datagrams(datagrams) => datagrams.run(self.site, label.family),
        };
        let trace = capture.stop()?;
        if let Err(lost) = trace.check() {
            return Ok(Err(lost));
        }
        let (applications, zero_copies) = driven?;
        let end = self.measurement.sample()?;
        let at_hook = truth::since(&self.rules.read()?, &rules_before);
        let cells = self.measurement.cells(&start, &end)?;
        let listening = [tcp(RELAY_PORT), udp(datagram::PORT)];
        truth::compare(&cells, &trace, &listening, &at_hook, Some(&applications))?;
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
        for direction in [Direction::Ingress, Direction::Egress] {
            for device in BOTH {
                let sum = truth::on_device(&self.cells, device, direction);
                let merged = match direction {
                    Direction::Ingress => label.kind.merged_ingress,
                    Direction::Egress => label.kind.merged_egress,
                };
                let segmented_udp = matches!(label.kind.traffic, Traffic::Datagrams(_))
                    && direction == Direction::Egress;
                match label.stack {
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
                    "{name} {counted} B in {} wire packets of {} at the hook, {} unexplained",
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
