//! Whose a packet without a socket was: the target's, or anybody's.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::thread;

use anyhow::{Result, bail, ensure};
use traffic_agent::ledger;
use traffic_agent::report::{Directions, Origin, Scopes};
use traffic_lab::handmade::{FarEnd, Side};
use traffic_lab::packet::{ACK, FIN, Family, RST};
use traffic_lab::{CountedCgroup, Stack};
use traffic_tests::factory::Factory;
use traffic_tests::site::{Site, any};
use traffic_tests::unseen::{Class, now};

use crate::{FAMILIES, PORT, close, connected, connected_upstream, reset, segment};

#[test]
fn late_packets_of_an_ipv6_socket_that_carried_ipv4_are_unseen_and_the_targets() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let far = FarEnd::new(&site.lab, Side::Upstream, Family::Ipv4)?;
    let counting = site.count()?;
    let IpAddr::V4(address) = far.at(PORT).ip() else { bail!("{:?} is no IPv4", far.at(PORT)) };
    let to = SocketAddr::from((address.to_ipv6_mapped(), PORT));
    let (mut connection, stream) = thread::scope(|scope| -> Result<_> {
        let connecting = scope.spawn(|| site.factory.tcp_stream(to));
        let connection = far.accept(PORT)?;
        let stream: TcpStream =
            connecting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        Ok((connection, stream))
    })?;
    close(&mut connection, stream)?;
    let closed = now();
    connection.send(ACK, &[7; 100])?;
    connection.see(RST)?;
    connection.send(ACK, &[7; 100])?;
    connection.see(RST)?;
    let class = Class::since(closed).ingress([152; 2]).egress([40; 2]);
    class.assert_in(&counting.finish()?, &[]);
    Ok(())
}

#[test]
fn what_comes_behind_the_peers_own_reset_is_unseen_and_the_targets() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    for family in FAMILIES {
        let far = FarEnd::new(&site.lab, Side::Upstream, family)?;
        let counting = site.count()?;
        let (mut connection, _stream) = connected_upstream(&site, &far)?;
        connection.send(RST, &[])?;
        let gone = now();
        connection.send(ACK, &[7; 100])?;
        connection.see(RST)?;
        let class = Class::since(gone).ingress([segment(family, 100)]).egress([reset(family)]);
        class.assert_in(&counting.finish()?, &[]);
    }
    Ok(())
}

#[test]
fn late_packets_of_another_programs_connections_are_unseen_and_anybodys() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let cgroup = CountedCgroup::new("neighbour")?;
    let neighbour = Factory::start(&site.lab.proxy, &cgroup)?;
    for family in FAMILIES {
        let listener = neighbour.tcp_listener(any(PORT))?;
        let far = FarEnd::new(&site.lab, Side::Client, family)?;
        let counting = site.count()?;
        let (mut connection, stream) = connected(&far, &listener)?;
        close(&mut connection, stream)?;
        let closed = now();
        connection.send(FIN | ACK, &[])?;
        connection.expect(ACK)?;
        // Nothing of it is the target's, and only the end met no socket.
        let counted = counting.finish()?;
        assert_eq!(counted.report.cells, []);
        let bytes = segment(family, 0);
        let all = counted.trace.client.trace.packets.iter();
        let late: Vec<u32> = all
            .filter(|packet| packet.at_ns > closed)
            .map(|packet| packet.headers.l3_bytes)
            .collect();
        assert_eq!(late, [bytes, bytes]);
        let Some(anybodys) = counted.report.unattributed else { bail!("nothing is traced") };
        let pair = (anybodys.ingress.wire_bytes, anybodys.egress.wire_bytes);
        assert_eq!(pair, (bytes.into(), bytes.into()));
    }
    Ok(())
}

#[test]
fn what_is_unseen_on_loopback_is_counted_out_and_in_all_the_same_and_not_billed() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let listener = site.factory.tcp_listener(any(PORT))?;
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        let counting = site.count()?;
        let mut client = site.factory.tcp_stream((address, PORT).into())?;
        drop(listener.accept()?);
        ensure!(client.read(&mut [0])? == 0, "something has come");
        // Until the FIN is acknowledged.
        counting.settle()?;
        client.write_all(&[7; 100])?;
        ensure!(client.take_error()?.is_some(), "no reset has come");
        let report = counting.finish()?.report;
        let Scopes { billed, loopback, .. } = report.totals;
        assert_eq!(billed, Directions::default());
        assert_eq!(loopback.ingress, loopback.egress);
        // The data came to no socket, and none has sent the reset.
        let kernel = ledger::sum(&report.cells, |cell| cell.origin == Origin::Kernel);
        assert_eq!((kernel.ingress.payload_bytes, kernel.egress.packets), (100, 1));
    }
    Ok(())
}
