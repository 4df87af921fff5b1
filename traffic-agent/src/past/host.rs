//! What the cgroups of the host used in a span of time, and how that balances with what the interfaces
//! counted: the result of `report --by cgroup`. Pure.

use std::collections::BTreeMap;

use jiff::ZonedDateTime;
use serde::Serialize;

use super::{Extent, Note};
use crate::balance::{Balance, Frames, Side};
use crate::history::Series;
use crate::host::HostSeries;
use crate::method::interface::{InterfaceCounters, LOOPBACK};
use crate::report::{Counters, Direction, Directions, Origin, rfc3339};

/// The result of `report --by cgroup`.
#[derive(Clone, Debug, Serialize)]
pub struct HostPast {
    /// [`crate::report::FORMAT`].
    pub format: u32,
    /// `report`.
    pub command: &'static str,
    /// The zone of the interval.
    pub time_zone: String,
    /// When it was made.
    #[serde(serialize_with = "rfc3339")]
    pub made_at: ZonedDateTime,
    /// What it is about.
    pub interval: Extent,
    /// `cgroup`.
    pub by: [&'static str; 1],
    /// By what they used, the most first.
    pub cgroups: Vec<CgroupPast>,
    /// Every interface but loopback.
    pub balance: Vec<InterfaceBalance>,
    /// What happened to the host's counters.
    pub notes: Vec<Note>,
}

/// What one cgroup used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CgroupPast {
    /// Its path; in brackets what is none.
    pub cgroup: String,
    /// The target that it belongs to.
    pub target: Option<String>,
    /// On all interfaces but loopback, in all network namespaces.
    #[serde(flatten)]
    pub network: Directions,
    /// On loopback.
    pub loopback: Directions,
    /// Both directions of `network`.
    pub total_wire_bytes: u64,
}

/// Both directions of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InterfaceBalance {
    /// Its name.
    pub interface: String,
    /// Towards the host.
    pub ingress: Balance,
    /// From the host.
    pub egress: Balance,
}

/// Sums of the history that are put together.
#[derive(Debug, Default)]
pub struct Sums {
    cgroups: BTreeMap<(String, Option<String>), CgroupPast>,
    /// By interface and direction.
    sides: BTreeMap<(String, Direction), Side>,
}

impl Sums {
    /// Adds what a cgroup used.
    pub fn add_host(&mut self, series: &HostSeries, counters: Counters) {
        let HostSeries { cgroup, target, interface, direction } = series;
        let row = self.cgroups.entry((cgroup.clone(), target.clone())).or_insert_with(|| {
            CgroupPast { cgroup: cgroup.clone(), target: target.clone(), ..CgroupPast::default() }
        });
        let sum = if interface == LOOPBACK { &mut row.loopback } else { &mut row.network };
        *sum.of_mut(*direction) += counters;
        // What a target used has its own, finer figures.
        if target.is_none() {
            self.side(interface, *direction).others += counters;
        }
    }

    /// Adds what a target used.
    pub fn add_target(&mut self, series: &Series, counters: Counters) {
        let side = self.side(&series.interface, series.direction);
        match series.origin {
            Origin::Socket => side.targets += counters,
            Origin::Kernel | Origin::KernelDerived => side.kernel += counters,
        }
    }

    fn side(&mut self, interface: &str, direction: Direction) -> &mut Side {
        self.sides.entry((interface.to_owned(), direction)).or_default()
    }

    /// The cgroups, the largest first.
    pub fn cgroups(&self) -> Vec<CgroupPast> {
        let mut cgroups: Vec<CgroupPast> = self
            .cgroups
            .values()
            .map(|row| CgroupPast { total_wire_bytes: row.network.wire_bytes(), ..row.clone() })
            .collect();
        cgroups.sort_by_key(|row| {
            std::cmp::Reverse((row.total_wire_bytes, row.loopback.wire_bytes()))
        });
        cgroups
    }

    /// Balances what the interfaces counted, but for loopback.
    pub fn balance(
        &self,
        interfaces: &BTreeMap<String, InterfaceCounters>,
        link_header: u32,
    ) -> Vec<InterfaceBalance> {
        let wanted = interfaces.iter().filter(|(name, _)| *name != LOOPBACK);
        wanted
            .map(|(name, counted)| {
                let of = |direction| {
                    let (packets, bytes) = match direction {
                        Direction::Ingress => (counted.ingress_packets, counted.ingress_bytes),
                        Direction::Egress => (counted.egress_packets, counted.egress_bytes),
                    };
                    let side = self.sides.get(&(name.clone(), direction));
                    let side = side.cloned().unwrap_or_default();
                    let device = Frames { packets, bytes };
                    Balance::of(&Side { device, ..side }, direction, link_header)
                };
                InterfaceBalance {
                    interface: name.clone(),
                    ingress: of(Direction::Ingress),
                    egress: of(Direction::Egress),
                }
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::Remainder;
    use crate::report::{Family, Leg, Protocol, Scope};

    fn counters(packets: u64, bytes: u64) -> Counters {
        Counters { packets, bytes, wire_packets: packets, wire_bytes: bytes, ..Counters::default() }
    }

    fn host(cgroup: &str, target: Option<&str>, interface: &str) -> HostSeries {
        HostSeries {
            cgroup: cgroup.to_owned(),
            target: target.map(str::to_owned),
            interface: interface.to_owned(),
            direction: Direction::Egress,
        }
    }

    #[test]
    fn a_target_is_a_cgroup_like_others_and_balanced_by_its_own_figures() {
        let mut sums = Sums::default();
        sums.add_host(&host("/proxy.slice", Some("xray"), "eth0"), counters(10, 10_000));
        sums.add_host(&host("/proxy.slice", Some("xray"), "lo"), counters(5, 700));
        sums.add_host(&host("/ssh.service", None, "eth0"), counters(3, 300));
        sums.add_host(&host("/docker", None, "(other namespaces)"), counters(7, 20_000));
        let series = Series {
            interface: "eth0".to_owned(),
            scope: Scope::Billed,
            origin: Origin::Socket,
            direction: Direction::Egress,
            leg: Leg::Upstream,
            protocol: Protocol::Tcp,
            port: None,
            family: Family::Ipv4,
        };
        sums.add_target(&series, counters(10, 10_000));
        let cgroups = sums.cgroups();
        let of = |row: &CgroupPast| {
            (row.cgroup.clone(), row.total_wire_bytes, row.loopback.egress.wire_bytes)
        };
        let expected =
            [("/docker", 20_000, 0), ("/proxy.slice", 10_000, 700), ("/ssh.service", 300, 0)];
        let expected = expected.map(|(path, total, loopback)| (path.to_owned(), total, loopback));
        assert_eq!(cgroups.iter().map(of).collect::<Vec<_>>(), expected);

        // 13 frames of the host, and 8 that it forwarded, for docker with an acknowledgement of 52 bytes.
        let bytes = 10_300 + 13 * 14 + 20_000 + 52 + 8 * 14;
        let counted =
            InterfaceCounters { egress_packets: 21, egress_bytes: bytes, ..Default::default() };
        let interfaces = [("eth0".to_owned(), counted), ("lo".to_owned(), counted)].into();
        let balance = sums.balance(&interfaces, 14);
        let [InterfaceBalance { interface, egress, .. }] = &balance[..] else { panic!() };
        assert_eq!(interface, "eth0");
        assert_eq!(egress.targets, Frames { packets: 10, bytes: 10_140 });
        assert_eq!(egress.others, Frames { packets: 3, bytes: 342 });
        assert_eq!(egress.remainder, Remainder { packets: 8, bytes: 20_164 });
    }
}
