//! What comes for a connection that the proxy has closed: its socket is an orphan, in TIME_WAIT, or
//! gone.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use anyhow::Result;
use traffic_lab::Stack;
use traffic_lab::handmade::{Connection, FarEnd, Side};
use traffic_lab::packet::Direction::Egress;
use traffic_lab::packet::{ACK, FIN, Family, RST};
use traffic_lab::topology::addresses;
use traffic_tests::site::{Site, any, tcp};
use traffic_tests::unseen::{Class, now};

use crate::{FAMILIES, PORT, close, connected, connected_upstream, has, reset, segment};

#[test]
fn a_fin_that_time_wait_answers_is_unseen_52_and_52_bytes_or_72_and_72() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let listener = site.factory.tcp_listener(any(PORT))?;
    for (family, bytes) in [(Family::Ipv4, 52), (Family::Ipv6, 72)] {
        let client = FarEnd::new(&site.lab, Side::Client, family)?;
        let upstream = FarEnd::new(&site.lab, Side::Upstream, family)?;
        let counting = site.count()?;
        let (mut a, a_stream) = connected(&client, &listener)?;
        let (mut b, b_stream) = connected_upstream(&site, &upstream)?;
        close(&mut a, a_stream)?;
        close(&mut b, b_stream)?;
        let closed = now();
        for mut connection in [a, b] {
            connection.send(FIN | ACK, &[])?;
            connection.expect(ACK)?;
        }
        let class = Class::since(closed).ingress([bytes, bytes]).egress([bytes, bytes]);
        class.assert_in(&counting.finish()?, &[tcp(PORT)]);
    }
    Ok(())
}

#[test]
fn everything_that_comes_into_time_wait_is_unseen_and_so_is_what_answers_it() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let listener = site.factory.tcp_listener(any(PORT))?;
    for family in FAMILIES {
        let far = FarEnd::new(&site.lab, Side::Client, family)?;
        let counting = site.count()?;
        let (mut connection, stream) = connected(&far, &listener)?;
        connection.send(ACK, &[7; 100])?;
        connection.expect(ACK)?;
        // Read, or closing would reset.
        std::io::Read::read_exact(&mut &stream, &mut [0; 100])?;
        close(&mut connection, stream)?;
        let closed = now();
        // Waiting for the FIN, one more acknowledgement is nothing new.
        connection.send(ACK, &[])?;
        connection.send(FIN | ACK, &[])?;
        connection.expect(ACK)?;
        // The FIN again, the data again, and an acknowledgement from before both.
        connection.send_again(1, FIN | ACK, &[])?;
        connection.see(ACK)?;
        connection.send_again(101, ACK, &[7; 100])?;
        connection.see(ACK)?;
        connection.send_again(101, ACK, &[])?;
        connection.see(ACK)?;
        // Nothing new, and the end of TIME_WAIT.
        connection.send(ACK, &[])?;
        connection.send(RST, &[])?;
        let (header, data) = (segment(family, 0), segment(family, 100));
        let class = Class::since(closed)
            .ingress([header, header, header, data, header, header, header])
            .egress([header; 4]);
        class.assert_in(&counting.finish()?, &[tcp(PORT)]);
    }
    Ok(())
}

#[test]
fn without_timestamps_time_wait_answers_with_unseen_40_bytes_or_60() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    site.lab.proxy.sysctl("ipv4/tcp_timestamps", "0")?;
    let listener = site.factory.tcp_listener(any(PORT))?;
    for (family, bytes) in [(Family::Ipv4, 40), (Family::Ipv6, 60)] {
        let far = FarEnd::new(&site.lab, Side::Client, family)?;
        let counting = site.count()?;
        let (mut connection, stream) = connected(&far, &listener)?;
        close(&mut connection, stream)?;
        let closed = now();
        // The far end sends timestamps all the same.
        connection.send(FIN | ACK, &[])?;
        connection.expect(ACK)?;
        let class = Class::since(closed).ingress([segment(family, 0)]).egress([bytes]);
        class.assert_in(&counting.finish()?, &[tcp(PORT)]);
    }
    Ok(())
}

#[test]
fn old_acknowledgements_at_once_are_unseen_and_time_wait_answers_only_the_first() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let listener = site.factory.tcp_listener(any(PORT))?;
    for family in FAMILIES {
        let far = FarEnd::new(&site.lab, Side::Client, family)?;
        let counting = site.count()?;
        let (mut connection, stream) = connected(&far, &listener)?;
        close(&mut connection, stream)?;
        let closed = now();
        for _ in 0..5 {
            connection.send_again(100, ACK, &[])?;
        }
        connection.see(ACK)?;
        let bytes = segment(family, 0);
        // Not more than one in half a second (net.ipv4.tcp_invalid_ratelimit).
        let class = Class::since(closed).ingress([bytes; 5]).answers_of(bytes);
        class.assert_in(&counting.finish()?, &[tcp(PORT)]);
    }
    Ok(())
}

#[test]
fn late_segments_that_are_merged_are_unseen_and_counted_as_on_the_wire() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let listener = site.factory.tcp_listener(any(PORT))?;
    for family in FAMILIES {
        let counting = site.count()?;
        let to = SocketAddr::from((addresses(family).proxy_client, PORT));
        let mut client = site.lab.client.run_in(|| TcpStream::connect(to))??;
        drop(listener.accept()?);
        // Until the FIN is acknowledged.
        counting.settle()?;
        let closed = now();
        // Five segments at once: the kernel may put them together, and then answers all by one reset.
        let segments = 5;
        let payload = 1500 - segment(family, 0);
        client.write_all(&vec![7; segments * payload as usize])?;
        let class = Class::since(closed).ingress([1500; 5]).answers_of(reset(family));
        class.assert_in(&counting.finish()?, &[tcp(PORT)]);
    }
    Ok(())
}

#[test]
fn a_connection_that_takes_the_place_of_one_in_time_wait_is_seen_from_its_syn_on() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let listener = site.factory.tcp_listener(any(PORT))?;
    for family in FAMILIES {
        let far = FarEnd::new(&site.lab, Side::Client, family)?;
        let counting = site.count()?;
        let (mut connection, stream) = connected(&far, &listener)?;
        close(&mut connection, stream)?;
        let closed = now();
        connection.send(FIN | ACK, &[])?;
        connection.expect(ACK)?;
        let reopened = now();
        let mut connection = connection.reopen()?;
        drop(listener.accept()?);
        connection.expect(FIN)?;
        // With its acknowledgement, so the socket is still there.
        connection.send(FIN | ACK, &[])?;
        connection.expect(ACK)?;
        let class = Class::of(|packet| (closed..reopened).contains(&packet.at_ns));
        let pair = [segment(family, 0)];
        class.ingress(pair).egress(pair).assert_in(&counting.finish()?, &[tcp(PORT)]);
    }
    Ok(())
}

#[test]
fn data_after_the_close_is_unseen_its_size_and_a_reset_of_40_or_60_bytes() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let listener = site.factory.tcp_listener(any(PORT))?;
    for (family, data, reset) in [(Family::Ipv4, 1052, 40), (Family::Ipv6, 1072, 60)] {
        let client = FarEnd::new(&site.lab, Side::Client, family)?;
        let upstream = FarEnd::new(&site.lab, Side::Upstream, family)?;
        let counting = site.count()?;
        let (mut a, a_stream) = connected(&client, &listener)?;
        let (mut b, b_stream) = connected_upstream(&site, &upstream)?;
        close(&mut a, a_stream)?;
        close(&mut b, b_stream)?;
        let closed = now();
        for mut connection in [a, b] {
            connection.send(ACK, &[7; 1000])?;
            connection.see(RST)?;
        }
        let class = Class::since(closed).ingress([data; 2]).egress([reset; 2]);
        class.assert_in(&counting.finish()?, &[tcp(PORT)]);
    }
    Ok(())
}

/// Data, a FIN and a reset for a connection that is gone; two of them are answered.
fn come_late(connection: &mut Connection<'_>) -> Result<()> {
    connection.send(ACK, &[7; 500])?;
    connection.see(RST)?;
    connection.send(FIN | ACK, &[])?;
    connection.see(RST)?;
    connection.send(RST, &[])
}

/// The proxy closes with data that it has not read: its socket sends a reset, and is gone.
fn reset_by_the_proxy(connection: &mut Connection<'_>, stream: TcpStream) -> Result<()> {
    connection.send(ACK, &[7; 100])?;
    connection.expect(ACK)?;
    drop(stream);
    connection.see(RST).map(drop)
}

#[test]
fn what_comes_when_socket_and_listener_are_gone_is_unseen_with_a_reset_each() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    for family in FAMILIES {
        let listener = site.factory.tcp_listener(any(PORT))?;
        let client = FarEnd::new(&site.lab, Side::Client, family)?;
        let upstream = FarEnd::new(&site.lab, Side::Upstream, family)?;
        let counting = site.count()?;
        let (mut a, a_stream) = connected(&client, &listener)?;
        let (mut b, b_stream) = connected_upstream(&site, &upstream)?;
        reset_by_the_proxy(&mut a, a_stream)?;
        reset_by_the_proxy(&mut b, b_stream)?;
        drop(listener);
        let gone = now();
        for mut connection in [a, b] {
            come_late(&mut connection)?;
        }
        let (data, empty) = (segment(family, 500), segment(family, 0));
        let class = Class::since(gone)
            .ingress([data, empty, empty, data, empty, empty])
            .egress([reset(family); 4]);
        class.assert_in(&counting.finish()?, &[tcp(PORT)]);
    }
    Ok(())
}

#[test]
fn a_listener_takes_what_comes_for_dead_connections_but_its_resets_are_unseen_on_ipv6() -> Result<()>
{
    let site = Site::new(Stack::GsoGro)?;
    let listener = site.factory.tcp_listener(any(PORT))?;
    for (family, unseen) in [(Family::Ipv4, vec![]), (Family::Ipv6, vec![60, 60])] {
        let far = FarEnd::new(&site.lab, Side::Client, family)?;
        let counting = site.count()?;
        let (mut connection, stream) = connected(&far, &listener)?;
        reset_by_the_proxy(&mut connection, stream)?;
        let gone = now();
        come_late(&mut connection)?;
        let class = Class::of(|packet| {
            packet.at_ns > gone && family == Family::Ipv6 && has(packet, Egress, RST)
        });
        class.egress(unseen).assert_in(&counting.finish()?, &[tcp(PORT)]);
    }
    Ok(())
}

#[test]
fn the_reset_of_an_orphan_is_unseen_on_ipv6_and_60_bytes() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let listener = site.factory.tcp_listener(any(PORT))?;
    for (family, unseen) in [(Family::Ipv4, vec![]), (Family::Ipv6, vec![60])] {
        let far = FarEnd::new(&site.lab, Side::Client, family)?;
        let counting = site.count()?;
        let (mut connection, stream) = connected(&far, &listener)?;
        drop(stream);
        connection.see(FIN)?;
        // The far end has not seen the FIN when it sends: the socket still waits for that.
        connection.send(ACK, &[7; 1000])?;
        connection.see(RST)?;
        // On IPv4 the kernel names the socket as the owner of the reset, since 6.13.
        let class = Class::of(|packet| family == Family::Ipv6 && has(packet, Egress, RST));
        class.egress(unseen).assert_in(&counting.finish()?, &[tcp(PORT)]);
    }
    Ok(())
}
