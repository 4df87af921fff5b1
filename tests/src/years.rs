//! Years of traffic: figures that no float and no 32-bit counter holds, put into the maps of an agent that
//! runs, and what the agent should then report.

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use traffic_ebpf::{
    Cell, EGRESS, INGRESS, INTERFACE_SLOT_LOOPBACK, INTERFACE_SLOT_OTHER, IPV4, IPV6,
    PORT_SLOT_CLIENT_TCP, PORT_SLOT_UPSTREAM_TCP, PORT_SLOT_UPSTREAM_UDP, TABLE_TCP, TABLE_UDP,
    cell_index,
};
use traffic_lab::topology::{CLIENT_DEVICE, UPSTREAM_DEVICE};

use crate::agent::{Desk, Running};
use crate::seed::{Seeds, cpus};
use crate::site::Site;

/// The counters of a cell in JSON and CSV.
pub const COUNTERS: [&str; 6] =
    ["packets", "bytes", "wire_packets", "wire_bytes", "payload_bytes", "retransmitted_bytes"];
/// Of which this is the exact figure.
pub const WIRE_BYTES: usize = 3;
/// And this what a rule counts.
const BYTES: usize = 1;

/// The counters of a cell, in the order of [`COUNTERS`].
pub type Figures = [u64; 6];

/// The coordinates of a cell in JSON and CSV.
pub const COORDINATES: [&str; 8] =
    ["interface", "scope", "direction", "leg", "protocol", "port", "family", "origin"];

/// What a cell is called, in the order of [`COORDINATES`].
pub type Words = [&'static str; 8];

/// What is put into the maps: where it stands, what it is called, and how much on the first CPU.
#[derive(Clone, Debug)]
pub struct Seed {
    interface_slot: u8,
    direction: u32,
    port: Port,
    family: u32,
    scope: &'static str,
    origin: &'static str,
    /// On the first CPU.
    pub first_cpu: Figures,
}

/// Where a packet is counted.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Port {
    /// A listening port, which has claimed a slot.
    Listening(u32, u16),
    /// A slot that has no port.
    Slot(u8),
}

impl Seed {
    /// Coordinates as JSON and CSV have them: [`COORDINATES`].
    pub fn words(&self) -> Words {
        let interface = match self.interface_slot {
            INTERFACE_SLOT_LOOPBACK => "lo",
            INTERFACE_SLOT_OTHER => "other",
            1 => CLIENT_DEVICE,
            _ => UPSTREAM_DEVICE,
        };
        let (leg, protocol, port) = match self.port {
            Port::Listening(TABLE_UDP, _) => ("client", "udp", "53"),
            Port::Listening(..) => ("client", "tcp", "443"),
            Port::Slot(PORT_SLOT_CLIENT_TCP) => ("client", "tcp", ""),
            Port::Slot(PORT_SLOT_UPSTREAM_UDP) => ("upstream", "udp", ""),
            Port::Slot(_) => ("upstream", "tcp", ""),
        };
        let direction = if self.direction == INGRESS { "ingress" } else { "egress" };
        let family = if self.family == IPV4 { "ipv4" } else { "ipv6" };
        [interface, self.scope, direction, leg, protocol, port, family, self.origin]
    }

    /// What each CPU has counted: an even number more than 2^32 on all but the first, so that what is
    /// odd stays odd. Where a packet had no socket, all CPUs share a counter.
    fn per_cpu(&self) -> Result<Vec<Figures>> {
        if self.origin == "kernel" {
            return Ok(vec![self.first_cpu]);
        }
        let other = |cpu: usize| [(1 << 32) + 2 * cpu as u64; 6];
        Ok((0..cpus()?).map(|cpu| if cpu == 0 { self.first_cpu } else { other(cpu) }).collect())
    }

    /// What they have counted together.
    pub fn sum(&self) -> Result<Figures> {
        Ok(self.per_cpu()?.into_iter().fold([0; 6], added))
    }
}

/// A sum that does not fit stands at the limit.
pub fn added(one: Figures, other: Figures) -> Figures {
    std::array::from_fn(|index| one[index].saturating_add(other[index]))
}

/// Six figures that no float can hold, others for each number.
fn beyond_floats(number: u64) -> Figures {
    std::array::from_fn(|index| (1 << 53) + 1 + 1_000_000 * number + 2 * index as u64)
}

const TCP_443: Port = Port::Listening(TABLE_TCP, 443);

/// A cell of each kind. The first is written last.
pub fn seeds() -> [Seed; 7] {
    let seed = |number, interface_slot, direction, port, family, scope| Seed {
        interface_slot,
        direction,
        port,
        family,
        scope,
        origin: "socket",
        first_cpu: beyond_floats(number),
    };
    let udp_53 = Port::Listening(TABLE_UDP, 53);
    [
        seed(1, 1, INGRESS, TCP_443, IPV4, "billed"),
        seed(2, 1, EGRESS, TCP_443, IPV6, "billed"),
        seed(3, 1, EGRESS, Port::Slot(PORT_SLOT_UPSTREAM_UDP), IPV4, "billed"),
        seed(4, 2, INGRESS, Port::Slot(PORT_SLOT_UPSTREAM_TCP), IPV6, "unbilled"),
        seed(5, INTERFACE_SLOT_LOOPBACK, INGRESS, udp_53, IPV4, "loopback"),
        seed(6, INTERFACE_SLOT_OTHER, EGRESS, Port::Slot(PORT_SLOT_CLIENT_TCP), IPV6, "billed"),
        Seed {
            origin: "kernel",
            ..seed(7, 1, EGRESS, Port::Slot(PORT_SLOT_UPSTREAM_TCP), IPV4, "billed")
        },
    ]
}

/// Puts the seeds into the maps of a running agent.
pub fn plant(running: &Running, site: &Site, seeds: &[Seed]) -> Result<()> {
    let mut maps = Seeds::of(running.pid())?;
    for (slot, device) in [(1, CLIENT_DEVICE), (2, UPSTREAM_DEVICE)] {
        let index = site.lab.proxy.run_in(|| nix::net::if_::if_nametoindex(device))??;
        maps.give_slot(slot, u16::try_from(index)?)?;
    }
    for seed in seeds.iter().rev() {
        let port_slot = match seed.port {
            Port::Listening(table, port) => maps.port_slot(table, port)?,
            Port::Slot(slot) => slot,
        };
        let per_cpu: Vec<Cell> = seed
            .per_cpu()?
            .into_iter()
            .map(
                |[packets, bytes, wire_packets, wire_bytes, payload_bytes, retransmitted_bytes]| {
                    Cell {
                        packets,
                        bytes,
                        wire_packets,
                        wire_bytes,
                        payload_bytes,
                        retransmitted_bytes,
                    }
                },
            )
            .collect();
        let index = cell_index(seed.direction, port_slot.into(), seed.family);
        match seed.origin {
            "socket" => maps.count(seed.interface_slot, index, &per_cpu)?,
            _ => maps.count_answered(seed.interface_slot, index, per_cpu[0])?,
        }
    }
    Ok(())
}

/// The sum of the seeds that `keep` selects.
pub fn sum(seeds: &[Seed], keep: impl Fn(&Words) -> bool) -> Result<Figures> {
    let kept = seeds.iter().filter(|seed| keep(&seed.words()));
    kept.map(Seed::sum).try_fold([0; 6], |sum, figures| Ok(added(sum, figures?)))
}

/// Bytes of the client leg of a direction, loopback included: what a rule for its ports counts.
pub fn hook_bytes(seeds: &[Seed], direction: &str) -> Result<u64> {
    Ok(sum(seeds, |words| words[2] == direction && words[3] == "client")?[BYTES])
}

/// Billed wire bytes of both directions.
pub fn total(seeds: &[Seed]) -> Result<u64> {
    Ok(sum(seeds, |words| words[1] == "billed")?[WIRE_BYTES])
}

/// The counters of a cell, or of a sum of cells, in JSON.
pub fn figures(value: &Value) -> Result<Figures> {
    let mut figures = [0; 6];
    for (figure, counter) in figures.iter_mut().zip(COUNTERS) {
        *figure = value[counter].as_u64().with_context(|| format!("{counter} in {value}"))?;
    }
    Ok(figures)
}

/// The command line: what is counted, and how it is printed.
pub fn compare(site: &Site, format: &str) -> Vec<String> {
    let target = format!("proxy=cgroup:{}", site.cgroup.cgroup_path());
    let mut words = vec!["compare", "--format", format, "--units", "bytes", "--target", &target];
    words.extend(["--port", "tcp/443", "--port", "udp/53", "--unbilled", UPSTREAM_DEVICE]);
    words.extend(["-d", "1h", "-i", "100ms"]);
    words.into_iter().map(str::to_owned).collect()
}

/// Runs `compare`, seeds it, waits for what a line of an interval says of the seeds, and ends it.
pub fn run(site: &Site, format: &str, seeds: &[Seed], seen: &str) -> Result<String> {
    let desk = Desk::new()?;
    let mut running = desk.start(compare(site, format), None, |_| ())?;
    // The first line: the first reading is over.
    running.wait_for_output("ingress")?;
    plant(&running, site, seeds)?;
    running.wait_for_output(seen)?;
    running.signal(Signal::SIGINT)?;
    let ended = running.finish()?;
    ensure!(ended.code()? == 0 && !ended.stderr.contains("panicked"), "{ended:?}");
    Ok(ended.stdout)
}

/// Both directions of the port beyond 2^63: twice either, and their sum, are beyond a u64.
pub fn beyond_a_u64() -> [Seed; 2] {
    [(INGRESS, 5), (EGRESS, 7)].map(|(direction, more)| Seed {
        interface_slot: 1,
        direction,
        port: TCP_443,
        family: IPV4,
        scope: "billed",
        origin: "socket",
        first_cpu: [(1 << 63) + more; 6],
    })
}
