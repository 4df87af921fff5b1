//! What happens between the wire and the hook: fragments, which the hook sees only whole, and the
//! firewall.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Result, ensure};
use traffic_agent::report::Direction;
use traffic_lab::handmade::{FarEnd, Side};
use traffic_lab::packet::{Family, ICMP, ICMPV6, RST};
use traffic_lab::topology::addresses;
use traffic_lab::{Filter, Stack};
use traffic_tests::figures::{self, Figures};
use traffic_tests::rules;
use traffic_tests::site::{Site, any, tcp, udp};
use traffic_tests::unseen::{Class, minus, of_sockets};

use crate::{FAMILIES, PORT, ip_header, reset, syn};

/// A datagram of three fragments.
const LARGE: usize = 4000;
/// A packet takes its time, but not this long.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn further_fragments_are_unseen_headers_20_bytes_each_on_ipv4_and_104_for_two_on_ipv6() -> Result<()>
{
    let site = Site::new(Stack::GsoGro)?;
    // IPv4: a header on each. IPv6: a header on each, and 8 bytes on each and on the first.
    for (family, bytes) in [(Family::Ipv4, 2 * 20), (Family::Ipv6, 2 * 40 + 3 * 8)] {
        let counting = site.count()?;
        let at = SocketAddr::from((addresses(family).upstream, PORT));
        let far = site.lab.upstream.run_in(|| UdpSocket::bind(at))??;
        let near = site.factory.udp_unbound(at)?;
        near.connect(at)?;
        let mut buffer = [0; 2 * LARGE];
        for socket in [&near, &far] {
            socket.set_read_timeout(Some(PATIENCE))?;
        }
        near.send(&[7; LARGE])?;
        let (length, from) = far.recv_from(&mut buffer)?;
        far.send_to(&buffer[..length], from)?;
        ensure!(near.recv(&mut buffer)? == LARGE, "another datagram has come");

        let counted = counting.finish()?;
        let unseen = minus(counted.captured(&[]), &of_sockets(&counted));
        let headers = Figures { wire_packets: 2, wire_bytes: bytes, payload_bytes: 0 };
        for direction in [Direction::Ingress, Direction::Egress] {
            let of_direction = figures::sum(&unseen, |key| key.direction == direction);
            assert_eq!(of_direction, headers, "{family:?}, {direction:?}");
        }
    }
    Ok(())
}

#[test]
fn a_spoiled_datagram_is_unseen_if_it_is_so_short_that_it_is_verified_at_once() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let socket = site.factory.udp(any(PORT))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    for family in FAMILIES {
        let far = FarEnd::new(&site.lab, Side::Client, family)?;
        let counting = site.count()?;
        let from = far.fresh_port();
        // Behind the IP header 76 bytes (CHECKSUM_BREAK, include/linux/skbuff.h) are verified before
        // the kernel looks for a socket, 77 when the socket is read. Both are dropped.
        far.spoiled_datagram(from, PORT, &[7; 68])?;
        far.spoiled_datagram(from, PORT, &[7; 69])?;
        far.datagram(from, PORT, &[7; 50])?;
        ensure!(socket.recv(&mut [0; 200])? == 50, "a spoiled one has come");
        let class = Class::of(|packet| packet.headers.payload_bytes == 68);
        let class = class.ingress([ip_header(family) + 76]).untraced();
        class.assert_in(&counting.finish()?, &[udp(PORT)]);
    }
    Ok(())
}

#[test]
fn what_the_firewall_drops_on_its_way_in_is_unseen() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let _listener = site.factory.tcp_listener(any(PORT))?;
    let _socket = site.factory.udp(any(PORT))?;
    for family in FAMILIES {
        rules::add(&site.lab.proxy, family, &format!("INPUT -p tcp --dport {PORT} -j DROP"))?;
        let early = format!("PREROUTING -p udp --dport {PORT} -j DROP");
        rules::add_to(&site.lab.proxy, family, "raw", &early)?;
        let far = FarEnd::new(&site.lab, Side::Client, family)?;
        let counting = site.count()?;
        far.syn(far.fresh_port(), PORT)?;
        far.datagram(far.fresh_port(), PORT, &[7; 100])?;
        let class = Class::of(|_| true).ingress([syn(family), ip_header(family) + 8 + 100]);
        class.untraced().assert_in(&counting.finish()?, &[tcp(PORT), udp(PORT)]);
    }
    Ok(())
}

#[test]
fn what_the_firewall_refuses_is_unseen_with_its_answer() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let _listener = site.factory.tcp_listener(any(PORT))?;
    let _socket = site.factory.udp(any(PORT))?;
    for family in FAMILIES {
        let by_reset = format!("INPUT -p tcp --dport {PORT} -j REJECT --reject-with tcp-reset");
        rules::add(&site.lab.proxy, family, &by_reset)?;
        rules::add(&site.lab.proxy, family, &format!("INPUT -p udp --dport {PORT} -j REJECT"))?;
        let far = FarEnd::new(&site.lab, Side::Client, family)?;
        let counting = site.count()?;
        far.syn(far.fresh_port(), PORT)?;
        far.receive(|headers| headers.tcp.is_some_and(|tcp| tcp.has(RST)))?;
        far.datagram(far.fresh_port(), PORT, &[7; 100])?;
        far.receive(|headers| matches!(headers.protocol, ICMP | ICMPV6))?;
        let datagram = ip_header(family) + 8 + 100;
        let class = Class::of(|_| true)
            .ingress([syn(family), datagram])
            .egress([reset(family), ip_header(family) + 8 + datagram])
            // The ICMP error has a tracepoint, but the firewall sent it, in anybody's name.
            .traced(|_| false);
        class.assert_in(&counting.finish()?, &[tcp(PORT), udp(PORT)]);
    }
    Ok(())
}

#[test]
fn what_the_firewall_drops_on_its_way_out_is_neither_sent_nor_counted() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    for family in FAMILIES {
        let output = format!("OUTPUT -p udp --dport {PORT} -j DROP");
        rules::add(&site.lab.proxy, family, &output)?;
        let late = format!("POSTROUTING -p udp --dport {} -j DROP", PORT + 1);
        rules::add_to(&site.lab.proxy, family, "mangle", &late)?;
        let far = FarEnd::new(&site.lab, Side::Upstream, family)?;
        let counting = site.count()?;
        let socket = site.factory.udp_unbound(far.at(PORT))?;
        for port in [PORT, PORT + 1] {
            ensure!(socket.send_to(&[7; 100], far.at(port)).is_err(), "the rule does not drop");
        }
        socket.send_to(&[7; 100], far.at(PORT + 2))?;
        let counted = counting.finish()?;
        let egress = counted.report.totals.billed.egress;
        assert_eq!(egress.wire_bytes, u64::from(ip_header(family)) + 8 + 100);
        counted.assert_books_equal_capture(&[]);
    }
    Ok(())
}

#[test]
fn an_answer_of_the_kernels_that_the_firewall_drops_is_counted_and_not_sent() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    for family in FAMILIES {
        let rule = "OUTPUT -p tcp --tcp-flags RST RST -j DROP";
        rules::add(&site.lab.proxy, family, rule)?;
        let listener = site.factory.tcp_listener(any(PORT))?;
        let far = FarEnd::new(&site.lab, Side::Client, family)?;
        let counting = site.count()?;
        drop(listener);
        far.syn(far.fresh_port(), PORT)?;
        let counted = counting.finish()?;
        let billed = counted.report.totals.billed;
        assert_eq!(counted.trace.sum(Filter::all()).l3_bytes, u64::from(syn(family)));
        assert_eq!(billed.ingress.wire_bytes, u64::from(syn(family)));
        // One too many.
        assert_eq!(billed.egress.wire_bytes, u64::from(reset(family)));
    }
    Ok(())
}
