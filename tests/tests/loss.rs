//! Loss, and what TCP sends again because of it: what reached the proxy or left it is counted as often as
//! the wire carried it, and what the proxy's own firewall dropped is exactly what is missing.

use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use traffic_agent::report::Direction;
use traffic_lab::packet::Family;
use traffic_lab::relay::bind_listener;
use traffic_lab::topology::{CLIENT_DEVICE, LabTrace, UPSTREAM_DEVICE, addresses};
use traffic_lab::{Filter, Lab, Namespace, Stack};
use traffic_tests::exchange::{end, one_way};
use traffic_tests::rules::{self, RuleCount};
use traffic_tests::site::{RELAY_PORT, SERVER_PORT, Site, any, tcp};
use traffic_tests::truth::{self, Applications, Witnesses};

const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];
/// Thousands of packets, of which a hundred are lost; dozens where the sender makes super-packets.
const BULK_BYTES: usize = 3_000_000;
/// By number and not by chance: of some dozens, chance may lose none. (`retransmissions` has it by chance.)
const LOST: &str = "-p tcp -m statistic --mode nth --every 30 --packet 7 -j DROP";
/// What was sent is acknowledged by then, however often it was lost.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(60);

/// A connection on each leg.
struct Connections {
    client: TcpStream,
    accepted: TcpStream,
    upstream: TcpStream,
    server: TcpStream,
}

impl Connections {
    fn open(site: &Site, family: Family) -> Result<Self> {
        let proxy = site.factory.tcp_listener(any(RELAY_PORT))?;
        let listener: TcpListener =
            site.lab.upstream.run_in(|| bind_listener(any(SERVER_PORT)))??;
        let to = (addresses(family).proxy_client, RELAY_PORT);
        let client = site.lab.client.run_in(|| TcpStream::connect(to))??;
        let (accepted, _) = proxy.accept()?;
        let upstream = site.factory.tcp_stream((addresses(family).upstream, SERVER_PORT).into())?;
        let (server, _) = listener.accept()?;
        Ok(Self { client, accepted, upstream, server })
    }

    /// Bulk both ways on both legs, and nothing on its way any more.
    fn carry(&self) -> Result<()> {
        for (a, b) in [(&self.client, &self.accepted), (&self.server, &self.upstream)] {
            one_way(a, b, BULK_BYTES)?;
            one_way(b, a, BULK_BYTES)?;
            wait_until_acknowledged(a)?;
            wait_until_acknowledged(b)?;
        }
        Ok(())
    }

    /// Closes where nothing is lost: a lost FIN is sent again after silence that is taken for the end.
    fn close(self) -> Result<Option<Applications>> {
        end(&self.client, &self.accepted)?;
        end(&self.server, &self.upstream)?;
        Ok(Some(Applications::both_ways(BULK_BYTES, BULK_BYTES)))
    }
}

fn wait_until_acknowledged(stream: &TcpStream) -> Result<()> {
    use std::os::fd::AsRawFd;
    let begin = Instant::now();
    loop {
        let mut unacknowledged: libc::c_int = 0;
        // SAFETY: SIOCOUTQ writes one int, and the pointer is that of a live one.
        let result =
            unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut unacknowledged) };
        nix::errno::Errno::result(result)?;
        if unacknowledged == 0 {
            return Ok(());
        }
        ensure!(
            begin.elapsed() < ACKNOWLEDGED_WITHIN,
            "{unacknowledged} bytes are not acknowledged"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Where packets are lost.
#[derive(Clone, Copy, Debug)]
enum Where {
    /// Behind the proxy: captured, and then dropped by the far end. The proxy sends again.
    BehindTheProxy,
    /// Before the proxy: dropped by the far end before its capture. The far end sends again.
    BeforeTheProxy,
}

impl Where {
    fn rule(self) -> String {
        match self {
            Self::BehindTheProxy => format!("INPUT {LOST}"),
            Self::BeforeTheProxy => format!("OUTPUT {LOST}"),
        }
    }
}

fn far_ends(lab: &Lab) -> [&Namespace; 2] {
    [&lab.client, &lab.upstream]
}

/// Or the test would prove nothing.
fn assert_lost(far_end: &Namespace, family: Family, place: Where) -> Result<()> {
    let saved = rules::save(far_end, family, "filter")?;
    let begin = place.rule().replace(LOST, "-p tcp ");
    let lost = rules::find(&saved, &begin).unwrap_or_default();
    ensure!(lost.packets > 0, "nothing was lost:\n{saved}");
    Ok(())
}

/// Bytes of payload that the captures saw again.
fn sent_again(trace: &LabTrace, filter: Filter) -> [u64; 2] {
    [&trace.client, &trace.upstream].map(|leg| leg.trace.retransmitted_payload(filter))
}

#[test]
fn retransmissions_are_counted_as_often_as_the_wire_carries_them() -> Result<()> {
    for stack in [Stack::GsoGro, Stack::Plain] {
        let site = Site::new(stack)?;
        let witnesses = Witnesses::of(&site)?;
        for place in [Where::BehindTheProxy, Where::BeforeTheProxy] {
            for family in FAMILIES {
                println!("{stack:?} {place:?} {family:?}");
                let counted = witnesses.hold(&[tcp(RELAY_PORT)], || {
                    let connections = Connections::open(&site, family)?;
                    for far_end in far_ends(&site.lab) {
                        rules::add(far_end, family, &place.rule())?;
                    }
                    connections.carry()?;
                    for far_end in far_ends(&site.lab) {
                        assert_lost(far_end, family, place)?;
                        rules::remove(far_end, family, &place.rule())?;
                    }
                    connections.close()
                })?;
                // The capture saw both copies of what was lost behind it.
                if let Where::BehindTheProxy = place {
                    let again = sent_again(&counted.trace, Filter::all().egress());
                    assert!(again.iter().all(|&bytes| bytes > 0), "{again:?}");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn what_the_proxys_own_firewall_drops_on_its_way_in_is_exactly_what_is_missing() -> Result<()> {
    // A rule counts super-packets; without offloads it counts what the wire carried.
    let site = Site::new(Stack::Plain)?;
    for family in FAMILIES {
        let counting = site.count()?;
        let connections = Connections::open(&site, family)?;
        let drops =
            [CLIENT_DEVICE, UPSTREAM_DEVICE].map(|device| format!("PREROUTING -i {device} {LOST}"));
        for rule in &drops {
            rules::add_to(&site.lab.proxy, family, "raw", rule)?;
        }
        connections.carry()?;
        let saved = rules::save(&site.lab.proxy, family, "raw")?;
        for rule in &drops {
            rules::remove_from(&site.lab.proxy, family, "raw", rule)?;
        }
        connections.close()?;

        let counted = counting.finish()?;
        let cells = &counted.report.cells;
        let legs =
            [(CLIENT_DEVICE, &counted.trace.client), (UPSTREAM_DEVICE, &counted.trace.upstream)];
        for (device, leg) in legs {
            let dropped = rules::find(&saved, &format!("PREROUTING -i {device} "))
                .filter(|dropped| dropped.packets > 0);
            let Some(dropped) = dropped else { panic!("nothing was dropped:\n{saved}") };
            let hook = truth::on_device(cells, device, Direction::Ingress);
            let wire = leg.trace.sum(Filter::all().ingress());
            let missing = RuleCount {
                packets: wire.packets - hook.wire_packets,
                bytes: wire.l3_bytes - hook.wire_bytes,
            };
            assert_eq!(missing, dropped, "{device}: missing (left), dropped (right)");
            let hook = truth::on_device(cells, device, Direction::Egress);
            let wire = leg.trace.sum(Filter::all().egress());
            assert_eq!((hook.wire_packets, hook.wire_bytes), (wire.packets, wire.l3_bytes));
            // What was dropped came again, and the far end's own repetitions are counted.
            assert!(leg.trace.retransmitted_payload(Filter::all().ingress()) > 0);
        }
    }
    Ok(())
}
