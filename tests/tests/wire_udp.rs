//! Every byte of UDP is counted as the wire carries it, plain, segmented by the kernel on the way out
//! and merged on the way in; and UDP, which has no listening state, finds its leg.

use std::net::SocketAddr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use traffic_agent::report::{Direction, Leg};
use traffic_lab::Stack;
use traffic_lab::kernel::Kernel;
use traffic_lab::packet::Family;
use traffic_lab::role::Role;
use traffic_lab::topology::addresses;
use traffic_lab::udp::{Receive, Receiver, Report, Send};
use traffic_tests::figures;
use traffic_tests::site::{SERVER_PORT, Site, any, udp};

const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];
/// A port that the kernel hands out to nobody in the lab.
const CHOSEN_PORT: u16 = 8443;
/// 1250 datagrams, the last of them short.
const PLAN: Send = Send {
    target: SocketAddr::V4(std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 0)),
    sockets: 1,
    datagram_bytes: 1200,
    total_bytes: 1_499_321,
    segmented: false,
    await_echo: false,
};
const DATAGRAMS: u64 = 1250;
/// How long the server may take to note what has come.
const NOTED_WITHIN: Duration = Duration::from_secs(10);

fn server_address(family: Family) -> SocketAddr {
    (addresses(family).upstream, SERVER_PORT).into()
}

#[test]
fn plain_and_segmented_sends_equal_the_capture() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let receive = Receive { listen: any(SERVER_PORT), echo: false, gro: false };
    let server = Receiver::start(&site.lab.upstream, receive)?;
    for (family, segmented) in FAMILIES.into_iter().flat_map(|f| [(f, false), (f, true)]) {
        let counting = site.count()?;
        let before = server.totals();
        let send = Send { target: server_address(family), segmented, ..PLAN };
        let sent = site.start(&Role::UdpSend(send))?.output(Duration::from_secs(60))?;
        let sent = Report::parse(&sent)?;
        let counted = counting.finish()?;
        counted.assert_books_equal_capture(&[]);

        // By hand, too: 8 bytes of UDP and 20 or 40 of IP per datagram.
        let headers = 8 + if family == Family::Ipv4 { 20 } else { 40 };
        let egress = counted.report.totals.billed.egress;
        assert_eq!(egress.wire_packets, DATAGRAMS);
        assert_eq!(egress.payload_bytes, PLAN.total_bytes);
        assert_eq!(egress.wire_bytes, PLAN.total_bytes + DATAGRAMS * headers);
        // 40 datagrams per send.
        let sends = if segmented { DATAGRAMS.div_ceil(40) } else { DATAGRAMS };
        assert_eq!(egress.packets, sends);
        assert_eq!(egress.bytes, PLAN.total_bytes + sends * headers);
        assert_eq!((sent.sent_packets, sent.sent_bytes), (DATAGRAMS, PLAN.total_bytes));
        // The server takes note of a datagram when its thread has its turn.
        let received = || server.totals().received_bytes - before.received_bytes;
        let begin = Instant::now();
        while received() != PLAN.total_bytes && begin.elapsed() < NOTED_WITHIN {
            thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(received(), PLAN.total_bytes);
    }
    Ok(())
}

#[test]
fn a_server_that_merges_and_echoes_is_the_client_leg_and_equals_the_capture() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    for (gro, bound_before) in [(false, true), (true, false), (true, true)] {
        let receive = Receive { listen: any(CHOSEN_PORT), echo: true, gro };
        let before = bound_before.then(|| site.udp_receiver(receive.clone())).transpose()?;
        for family in FAMILIES {
            let mut counting = site.count()?;
            // The first datagram must be right, without any further look at the target.
            let _during = match before {
                None => Some(site.udp_receiver(receive.clone())?),
                Some(_) => None,
            };
            assert_eq!(counting.measurement.client_ports(), [udp(CHOSEN_PORT)]);
            let target = (addresses(family).proxy_client, CHOSEN_PORT).into();
            let send = Send { target, segmented: true, await_echo: true, ..PLAN };
            let client = site.lab.client.run_in(|| send.run(|| true))??;
            assert_eq!(client.received_bytes, PLAN.total_bytes);

            let counted = counting.finish()?;
            counted.assert_books_equal_capture(&[udp(CHOSEN_PORT)]);
            let billed = counted.report.totals.billed;
            for counters in [billed.ingress, billed.egress] {
                assert_eq!(counters.payload_bytes, PLAN.total_bytes);
                assert_eq!(counters.wire_packets, DATAGRAMS);
                if gro && Kernel::running()?.merges_on_veth() {
                    assert!(counters.packets < DATAGRAMS, "nothing was merged");
                }
            }
        }
    }
    Ok(())
}

#[test]
fn five_hundred_ephemeral_upstream_sockets_use_no_port_slot() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let receive = Receive { listen: any(SERVER_PORT), echo: true, gro: false };
    let _server = Receiver::start(&site.lab.upstream, receive)?;
    let mut counting = site.count()?;
    let mut sockets = Vec::new();
    for number in 0..500 {
        let family = FAMILIES[number % 2];
        let to = server_address(family);
        // Half of them ask for "any port", half do not even ask.
        let socket = match number < 250 {
            true => site.factory.udp(SocketAddr::new(unspecified(family), 0))?,
            false => site.factory.udp_unbound(to)?,
        };
        socket.set_read_timeout(Some(Duration::from_secs(60)))?;
        socket.send_to(&[1; 100], to)?;
        assert_eq!(socket.recv(&mut [0; 200])?, 100);
        sockets.push(socket);
        if number % 100 == 99 {
            counting.measurement.follow()?;
        }
    }
    assert_eq!(counting.measurement.client_ports(), []);
    let counted = counting.finish()?;
    counted.assert_books_equal_capture(&[]);
    assert_eq!(counted.report.ports, []);
    for direction in [Direction::Ingress, Direction::Egress] {
        let upstream = |key: &figures::Key| key.direction == direction && key.leg == Leg::Upstream;
        assert_eq!(figures::sum(&counted.books(), upstream).payload_bytes, 500 * 100);
    }
    Ok(())
}

fn unspecified(family: Family) -> std::net::IpAddr {
    match family {
        Family::Ipv4 => std::net::Ipv4Addr::UNSPECIFIED.into(),
        Family::Ipv6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}
