//! Connections that never come about: nobody listens, the proxy has given up, or the kernel keeps no
//! state of them.

use std::net::{SocketAddr, TcpStream};
use std::thread;

use anyhow::{Result, ensure};
use traffic_lab::handmade::{FarEnd, Side};
use traffic_lab::packet::Direction::Egress;
use traffic_lab::packet::{ACK, Family, RST, SYN};
use traffic_lab::topology::addresses;
use traffic_lab::{Filter, Stack};
use traffic_tests::exchange::with_listener;
use traffic_tests::factory::{connect_to, domain};
use traffic_tests::site::{Site, any, tcp};
use traffic_tests::unseen::{Class, now};

use crate::{FAMILIES, PORT, connected, has, reset, syn};

/// Sends ten SYNs to a port, each of which is refused.
pub(super) fn knock(far: &FarEnd, port: u16) -> Result<()> {
    for _ in 0..10 {
        let from = far.fresh_port();
        far.syn(from, port)?;
        far.receive(|headers| {
            headers.destination_port == from && headers.tcp.is_some_and(|tcp| tcp.has(RST))
        })?;
    }
    Ok(())
}

#[test]
fn a_syn_to_a_port_without_listener_is_unseen_60_and_40_bytes_or_80_and_60() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    for (family, syn, reset) in [(Family::Ipv4, 60, 40), (Family::Ipv6, 80, 60)] {
        let far = FarEnd::new(&site.lab, Side::Client, family)?;
        let counting = site.count()?;
        knock(&far, 9)?;
        let class = Class::of(|_| true).ingress([syn; 10]).egress([reset; 10]).anybodys();
        class.assert_in(&counting.finish()?, &[]);
    }
    Ok(())
}

#[test]
fn a_syn_to_the_proxys_port_while_the_proxy_is_down_is_unseen() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    for family in FAMILIES {
        let far = FarEnd::new(&site.lab, Side::Client, family)?;
        let listener = site.factory.tcp_listener(any(PORT))?;
        let counting = site.count()?;
        // Up, it has a connection, which the far end resets.
        let (mut connection, _stream) = connected(&far, &listener)?;
        connection.send(RST, &[])?;
        drop(listener);
        let down = now();
        knock(&far, PORT)?;
        let class = Class::since(down).ingress([syn(family); 10]).egress([reset(family); 10]);
        class.assert_in(&counting.finish()?, &[tcp(PORT)]);
    }
    Ok(())
}

#[test]
fn thousands_of_unseen_syns_from_four_clients_at_once_are_all_counted() -> Result<()> {
    const EACH: usize = 1000;
    let site = Site::new(Stack::GsoGro)?;
    for family in FAMILIES {
        let listener = site.factory.tcp_listener(any(PORT))?;
        let counting = site.count()?;
        drop(listener);
        let to = SocketAddr::from((addresses(family).proxy_client, PORT));
        let connect = || (0..EACH).all(|_| TcpStream::connect(to).is_err());
        let refused = site.lab.client.run_in(|| {
            thread::scope(|scope| {
                let clients: Vec<_> = (0..4).map(|_| scope.spawn(connect)).collect();
                clients.into_iter().all(|client| client.join().unwrap_or(false))
            })
        })?;
        ensure!(refused, "somebody listens");
        let counted = counting.finish()?;
        // A client whose answer is a second late asks once more.
        let syns = counted.trace.sum(Filter::all().ingress()).packets as usize;
        ensure!(syns >= 4 * EACH, "{syns} SYNs were sent");
        let class =
            Class::of(|_| true).ingress(vec![syn(family); syns]).egress(vec![reset(family); syns]);
        class.assert_in(&counted, &[tcp(PORT)]);
    }
    Ok(())
}

#[test]
fn an_answer_to_a_connection_that_the_proxy_gave_up_is_unseen_and_so_is_its_reset() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    for family in FAMILIES {
        let far = FarEnd::new(&site.lab, Side::Upstream, family)?;
        let counting = site.count()?;
        let to = far.at(PORT);
        let socket = site.factory.socket(domain(to), libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
        ensure!(connect_to(&socket, to).is_err(), "nobody has answered yet");
        let mut connection = far.take_syn(PORT)?;
        drop(socket);
        let given_up = now();
        connection.send(SYN | ACK, &[])?;
        connection.see(RST)?;
        let class = Class::since(given_up).ingress([syn(family)]).egress([reset(family)]);
        class.assert_in(&counting.finish()?, &[]);
    }
    Ok(())
}

#[test]
fn a_reset_that_answers_a_wrong_answer_is_unseen_on_ipv6_and_60_bytes() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    for (family, unseen) in [(Family::Ipv4, vec![]), (Family::Ipv6, vec![60])] {
        let far = FarEnd::new(&site.lab, Side::Upstream, family)?;
        let counting = site.count()?;
        let to = far.at(PORT);
        let socket = site.factory.socket(domain(to), libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
        ensure!(connect_to(&socket, to).is_err(), "nobody has answered yet");
        let mut connection = far.take_syn(PORT)?;
        connection.answer_wrongly()?;
        connection.see(RST)?;
        // The right one, so that the SYN is not sent again; then the end.
        connection.send(SYN | ACK, &[])?;
        connection.see(ACK)?;
        connection.send(RST, &[])?;
        let class = Class::of(|packet| family == Family::Ipv6 && has(packet, Egress, RST));
        // The connection is not over, so it is not remembered.
        class.egress(unseen).assert_in(&counting.finish()?, &[]);
    }
    Ok(())
}

#[test]
fn a_connection_that_is_never_finished_is_seen_with_its_repeated_syn_ack() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let _listener = site.factory.tcp_listener(any(PORT))?;
    for family in FAMILIES {
        let far = FarEnd::new(&site.lab, Side::Client, family)?;
        let counting = site.count()?;
        let from = far.fresh_port();
        far.syn(from, PORT)?;
        for _ in 0..2 {
            far.receive(|headers| headers.tcp.is_some_and(|tcp| tcp.has(SYN | ACK)))?;
        }
        // Again, and then the kernel has nothing more to repeat.
        far.syn(from, PORT)?;
        far.receive(|headers| headers.tcp.is_some_and(|tcp| tcp.has(SYN | ACK)))?;
        far.reset(from, PORT)?;
        counting.finish()?.assert_books_equal_capture(&[tcp(PORT)]);
    }
    Ok(())
}

#[test]
fn a_syn_cookie_is_an_unseen_syn_ack_of_60_bytes_or_80_per_connection() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    site.lab.proxy.sysctl("ipv4/tcp_syncookies", "2")?;
    let listener = site.factory.tcp_listener(any(PORT))?;
    for (family, bytes) in [(Family::Ipv4, 60), (Family::Ipv6, 80)] {
        let counting = site.count()?;
        for _ in 0..20 {
            let to = (addresses(family).proxy_client, PORT).into();
            with_listener(&site.lab.client, to, &listener)?;
        }
        let class = Class::of(|packet| has(packet, Egress, SYN | ACK)).egress([bytes; 20]);
        class.untraced().assert_in(&counting.finish()?, &[tcp(PORT)]);
    }
    Ok(())
}
