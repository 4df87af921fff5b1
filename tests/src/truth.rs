//! What a measurement is held against: three witnesses, none of them the product's.
//!
//! * `wire_packets`, `wire_bytes`, `payload_bytes`: the captures at both far ends, where nothing is
//!   merged or split. Every coordinate of every cell.
//! * `packets`, `bytes`: counting rules of iptables in the proxy's namespace, one per device, direction
//!   and family. They see the same sk_buffs as the hook. On the way out no capture could: the device's
//!   tap comes after segmentation. On the way in GRO is done before the tap, the rules and the hook
//!   alike; the rules are taken for both. Without offloads the captures say the same once more.
//! * `payload_bytes` again: what both applications say they gave to and got from their sockets, and
//!   what the capture shows was sent again, which is `retransmitted_bytes`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use traffic_agent::method::ListeningPort;
use traffic_agent::report::{CellReport, Counters, Direction, Family};
use traffic_lab::packet;
use traffic_lab::topology::{CLIENT_DEVICE, LabTrace, UPSTREAM_DEVICE};
use traffic_lab::{Filter, Namespace};

use crate::figures::{self, Books};
use crate::rules::{self, RuleCount};
use crate::site::{Counted, Site};

const DEVICES: [&str; 2] = [CLIENT_DEVICE, UPSTREAM_DEVICE];
const DIRECTIONS: [Direction; 2] = [Direction::Ingress, Direction::Egress];
const FAMILIES: [(packet::Family, Family); 2] =
    [(packet::Family::Ipv4, Family::Ipv4), (packet::Family::Ipv6, Family::Ipv6)];
/// A table that the tests' own rules are not in.
const TABLE: &str = "mangle";

/// A device of the proxy, a direction and a family: what one rule counts.
pub type Way = (&'static str, Direction, Family);

/// What the rules have counted, by way. Complete: also what is zero.
pub type AtHook = BTreeMap<Way, RuleCount>;

/// The counting rules in a proxy's namespace.
#[derive(Debug)]
pub struct HookRules<'n> {
    namespace: &'n Namespace,
}

impl<'n> HookRules<'n> {
    /// Adds them.
    pub fn add(namespace: &'n Namespace) -> Result<Self> {
        for (family, _) in FAMILIES {
            for device in DEVICES {
                for direction in DIRECTIONS {
                    let rule = rule(device, direction);
                    rules::add_to(namespace, family, TABLE, &rule)?;
                }
            }
        }
        Ok(Self { namespace })
    }

    /// Reads them.
    pub fn read(&self) -> Result<AtHook> {
        let mut counts = AtHook::new();
        for (family, version) in FAMILIES {
            let saved = rules::save(self.namespace, family, TABLE)?;
            for device in DEVICES {
                for direction in DIRECTIONS {
                    let rule = rule(device, direction);
                    let count = rules::find(&saved, &format!("{rule} "))
                        .with_context(|| format!("{rule:?} is not in:\n{saved}"))?;
                    counts.insert((device, direction, version), count);
                }
            }
        }
        Ok(counts)
    }
}

fn rule(device: &str, direction: Direction) -> String {
    match direction {
        Direction::Ingress => format!("INPUT -i {device}"),
        Direction::Egress => format!("OUTPUT -o {device}"),
    }
}

/// What was added to each rule.
pub fn since(now: &AtHook, before: &AtHook) -> AtHook {
    now.iter()
        .map(|(way, count)| {
            let before = before.get(way).copied().unwrap_or_default();
            let added = RuleCount {
                packets: count.packets - before.packets,
                bytes: count.bytes - before.bytes,
            };
            (*way, added)
        })
        .collect()
}

/// What a far end's application gave to its sockets for the proxy, and got from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Carried {
    /// Bytes towards the proxy.
    pub to_proxy: u64,
    /// Bytes from the proxy.
    pub from_proxy: u64,
}

impl std::ops::AddAssign for Carried {
    fn add_assign(&mut self, other: Self) {
        self.to_proxy += other.to_proxy;
        self.from_proxy += other.from_proxy;
    }
}

/// What both applications say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Applications {
    /// The client.
    pub client: Carried,
    /// The server.
    pub upstream: Carried,
}

impl Applications {
    /// So many bytes each way on the client leg, and on the upstream leg.
    pub fn both_ways(client: usize, upstream: usize) -> Self {
        let carried = |bytes| Carried { to_proxy: bytes as u64, from_proxy: bytes as u64 };
        Self { client: carried(client), upstream: carried(upstream) }
    }

    fn on(&self, device: &str, direction: Direction) -> u64 {
        let far_end = if device == CLIENT_DEVICE { self.client } else { self.upstream };
        match direction {
            Direction::Ingress => far_end.to_proxy,
            Direction::Egress => far_end.from_proxy,
        }
    }
}

/// A site with the rules in its proxy's namespace: one measurement after the other is held against all
/// witnesses.
#[derive(Debug)]
pub struct Witnesses<'s> {
    site: &'s Site,
    rules: HookRules<'s>,
}

impl<'s> Witnesses<'s> {
    /// Adds the rules.
    pub fn of(site: &'s Site) -> Result<Self> {
        Ok(Self { site, rules: HookRules::add(&site.lab.proxy)? })
    }

    /// The site.
    pub fn site(&self) -> &'s Site {
        self.site
    }

    /// Counts while `traffic` goes on, which tells what both applications say, if that is comparable,
    /// and holds every figure against every witness. These ports are the client leg.
    pub fn hold(
        &self,
        listening: &[ListeningPort],
        traffic: impl FnOnce() -> Result<Option<Applications>>,
    ) -> Result<Counted> {
        self.hold_as(|trace| figures::of_capture(trace, listening), traffic)
    }

    /// As [`Witnesses::hold`], where the cells are not under the coordinates that the wire shows:
    /// `expected` makes their books of the captures.
    pub fn hold_as(
        &self,
        expected: impl FnOnce(&LabTrace) -> Books,
        traffic: impl FnOnce() -> Result<Option<Applications>>,
    ) -> Result<Counted> {
        let counting = self.site.count()?;
        let before = self.rules.read()?;
        let applications = traffic()?;
        let counted = counting.finish()?;
        let at_hook = since(&self.rules.read()?, &before);
        let Counted { report, trace } = &counted;
        compare(&report.cells, trace, &expected(trace), &at_hook, applications.as_ref())?;
        Ok(counted)
    }
}

/// Holds cells against all witnesses, of which `captured` are the books of the captures; the error names what disagrees, with both numbers.
pub fn compare(
    cells: &[CellReport],
    trace: &LabTrace,
    captured: &Books,
    at_hook: &AtHook,
    applications: Option<&Applications>,
) -> Result<()> {
    let books = figures::of_cells(cells);
    ensure!(!books.is_empty(), "nothing was counted");
    if books != *captured {
        let mut keys: Vec<_> = books.keys().chain(captured.keys()).collect();
        keys.sort();
        keys.dedup();
        let differences: Vec<String> = keys
            .into_iter()
            .filter(|key| books.get(key) != captured.get(key))
            .map(|key| {
                format!("{key:?}: cell {:?}, capture {:?}", books.get(key), captured.get(key))
            })
            .collect();
        bail!("cells and capture disagree:\n{}", differences.join("\n"));
    }
    for (&way, &rule) in at_hook {
        let (device, direction, family) = way;
        let hook = sum(cells, |cell| {
            cell.interface == device && cell.direction == direction && cell.family == family
        });
        let hook = RuleCount { packets: hook.packets, bytes: hook.bytes };
        ensure!(hook == rule, "{way:?}: hook {hook:?}, rule {rule:?}");
    }
    compare_payload(cells, trace, applications)
}

/// The payload is what the applications say, and what was sent again.
fn compare_payload(
    cells: &[CellReport],
    trace: &LabTrace,
    applications: Option<&Applications>,
) -> Result<()> {
    for (device, leg) in [(CLIENT_DEVICE, &trace.client), (UPSTREAM_DEVICE, &trace.upstream)] {
        for direction in DIRECTIONS {
            let filter = match direction {
                Direction::Ingress => Filter::all().ingress(),
                Direction::Egress => Filter::all().egress(),
            };
            let again = leg.trace.retransmitted_payload(filter);
            let counted = on_device(cells, device, direction);
            ensure!(
                counted.retransmitted_bytes == again,
                "{device} {direction:?}: {} bytes counted as sent again; the capture says {again}",
                counted.retransmitted_bytes
            );
            let Some(applications) = applications else { continue };
            let (counted, said) = (counted.payload_bytes, applications.on(device, direction));
            ensure!(
                counted == said + again,
                "{device} {direction:?}: {counted} bytes of payload; the application says {said}, \
                 and {again} were sent again"
            );
        }
    }
    Ok(())
}

/// The sum of the cells of a device and a direction, both families.
pub fn on_device(cells: &[CellReport], device: &str, direction: Direction) -> Counters {
    sum(cells, |cell| cell.interface == device && cell.direction == direction)
}

fn sum(cells: &[CellReport], keep: impl Fn(&CellReport) -> bool) -> Counters {
    let mut sum = Counters::default();
    cells.iter().filter(|cell| keep(cell)).for_each(|cell| sum += cell.counters);
    sum
}
