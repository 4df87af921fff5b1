//! ICMP, which the kernel sends and takes by itself, and datagrams that find no socket.

use std::time::Duration;

use anyhow::{Result, ensure};
use traffic_lab::handmade::{FarEnd, Side};
use traffic_lab::packet::Direction::Ingress;
use traffic_lab::packet::{Family, Headers, ICMP, ICMPV6, Packet};
use traffic_lab::{Filter, Stack};
use traffic_tests::factory::{connect_to, domain};
use traffic_tests::site::{Site, any, udp};
use traffic_tests::unseen::{Class, now};

use crate::{FAMILIES, PORT, ip_header, syn};

/// A packet takes its time, but not this long.
const PATIENCE: Duration = Duration::from_secs(60);

/// A site whose kernel answers every datagram: by itself it sends six errors and then one a second.
fn site() -> Result<Site> {
    let site = Site::new(Stack::GsoGro)?;
    site.lab.proxy.sysctl("ipv4/icmp_ratelimit", "0")?;
    site.lab.proxy.sysctl("ipv6/icmp/ratelimit", "0")?;
    Ok(site)
}

fn is_icmp(headers: &Headers) -> bool {
    matches!(headers.protocol, ICMP | ICMPV6)
}

/// Errors over IPv6 have no tracepoint.
fn has_tracepoint(packet: &Packet) -> bool {
    packet.headers.protocol != ICMPV6
}

/// Sends a datagram to a port of the proxy, and waits for the error that answers it.
fn send_in_vain(far: &FarEnd, from: u16, port: u16, bytes: usize) -> Result<()> {
    far.datagram(from, port, &vec![7; bytes])?;
    far.receive(is_icmp).map(drop)
}

#[test]
fn a_ping_to_the_host_is_unseen_84_bytes_each_way_or_104() -> Result<()> {
    let site = site()?;
    for (family, bytes) in [(Family::Ipv4, 84), (Family::Ipv6, 104)] {
        let far = FarEnd::new(&site.lab, Side::Client, family)?;
        let counting = site.count()?;
        for number in 0..10 {
            far.ping(number)?;
            far.receive(is_icmp)?;
        }
        let class = Class::of(|_| true).ingress([bytes; 10]).egress([bytes; 10]);
        class.untraced().assert_in(&counting.finish()?, &[]);
    }
    Ok(())
}

#[test]
fn a_datagram_to_a_closed_port_is_unseen_and_its_error_at_most_576_bytes_or_1280() -> Result<()> {
    let site = site()?;
    // 500 and 1400 bytes behind the headers; the error quotes all of that, or as much as it may.
    let sizes = [(Family::Ipv4, [528, 1428], [556, 576]), (Family::Ipv6, [548, 1448], [596, 1280])];
    for (family, datagrams, errors) in sizes {
        let far = FarEnd::new(&site.lab, Side::Client, family)?;
        let counting = site.count()?;
        for bytes in [500, 1400] {
            send_in_vain(&far, far.fresh_port(), 9, bytes)?;
        }
        let class = Class::of(|_| true).ingress(datagrams).egress(errors).anybodys();
        class.traced(has_tracepoint).assert_in(&counting.finish()?, &[]);
    }
    Ok(())
}

#[test]
fn a_datagram_to_the_proxys_port_while_the_proxy_is_down_is_unseen() -> Result<()> {
    let site = site()?;
    for family in FAMILIES {
        let far = FarEnd::new(&site.lab, Side::Client, family)?;
        let socket = site.factory.udp(any(PORT))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let counting = site.count()?;
        let from = far.fresh_port();
        far.datagram(from, PORT, &[7; 100])?;
        ensure!(socket.recv(&mut [0; 200])? == 100, "another datagram has come");
        drop(socket);
        let down = now();
        send_in_vain(&far, from, PORT, 100)?;
        let datagram = ip_header(family) + 8 + 100;
        let class =
            Class::since(down).ingress([datagram]).egress([ip_header(family) + 8 + datagram]);
        class.traced(has_tracepoint).assert_in(&counting.finish()?, &[udp(PORT)]);
    }
    Ok(())
}

#[test]
fn errors_that_the_kernel_limits_are_unseen_as_many_as_it_sends() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    for family in FAMILIES {
        let far = FarEnd::new(&site.lab, Side::Client, family)?;
        let socket = site.factory.udp(any(PORT))?;
        let counting = site.count()?;
        drop(socket);
        for _ in 0..10 {
            far.datagram(far.fresh_port(), PORT, &[7; 100])?;
        }
        let datagram = ip_header(family) + 8 + 100;
        let class = Class::of(|_| true)
            .ingress([datagram; 10])
            .answers_of(ip_header(family) + 8 + datagram)
            .traced(has_tracepoint);
        let counted = counting.finish()?;
        class.assert_in(&counted, &[udp(PORT)]);
        let sent = counted.trace.sum(Filter::all().egress()).packets;
        // All ten, if the machine has stood still for as long as the allowance takes to come back.
        ensure!((1..=10).contains(&sent), "{sent} errors were sent");
    }
    Ok(())
}

#[test]
fn an_answer_to_a_datagram_whose_socket_is_closed_is_unseen_and_so_is_its_error() -> Result<()> {
    let site = site()?;
    for family in FAMILIES {
        let far = FarEnd::new(&site.lab, Side::Upstream, family)?;
        let counting = site.count()?;
        let socket = site.factory.udp_unbound(far.at(53))?;
        socket.connect(far.at(53))?;
        socket.send(&[7; 40])?;
        let query = far.receive(|headers| headers.destination_port == 53)?;
        drop(socket);
        let closed = now();
        send_in_vain(&far, 53, query.headers.source_port, 200)?;
        let answer = ip_header(family) + 8 + 200;
        let class = Class::since(closed).ingress([answer]).egress([ip_header(family) + 8 + answer]);
        class.traced(has_tracepoint).assert_in(&counting.finish()?, &[]);
    }
    Ok(())
}

#[test]
fn an_error_that_refuses_what_the_proxy_sent_is_unseen_88_bytes_or_128_for_a_syn() -> Result<()> {
    let site = site()?;
    for (family, for_syn) in [(Family::Ipv4, 88), (Family::Ipv6, 128)] {
        let header = ip_header(family) + 8;
        assert_eq!(header + syn(family), for_syn);
        let far = FarEnd::new(&site.lab, Side::Upstream, family)?;
        let counting = site.count()?;
        let to = far.at(PORT);
        let connecting =
            site.factory.socket(domain(to), libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
        ensure!(connect_to(&connecting, to).is_err(), "nobody has answered yet");
        far.refuse(&far.receive(|headers| headers.tcp.is_some())?)?;
        let sending = site.factory.udp_unbound(to)?;
        sending.connect(to)?;
        sending.send(&[7; 100])?;
        far.refuse(&far.receive(|headers| headers.destination_port == PORT)?)?;
        // Both sockets have been told, so neither sends once more.
        sending.set_read_timeout(Some(PATIENCE))?;
        ensure!(sending.recv(&mut [0; 10]).is_err(), "a datagram has come");
        let class = Class::of(|packet| packet.direction == Ingress && is_icmp(&packet.headers));
        let class = class.ingress([for_syn, header + header + 100]);
        class.untraced().assert_in(&counting.finish()?, &[]);
    }
    Ok(())
}
