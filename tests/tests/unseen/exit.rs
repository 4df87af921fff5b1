//! Connections that outlive the process that had them, and its cgroup.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use traffic_agent::target::Cgroup;
use traffic_lab::handmade::{FarEnd, Side};
use traffic_lab::packet::{ACK, FIN};
use traffic_lab::{CountedCgroup, Filter, Stack};
use traffic_tests::factory::Factory;
use traffic_tests::site::{RELAY_PORT, Site, any, tcp};
use traffic_tests::unseen::{Class, now};

use crate::{FAMILIES, PORT, connected, segment};

/// How long a killed process may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(60);

/// A request to connect, in the words of SOCKS5.
fn socks5_connect(to: SocketAddr) -> Vec<u8> {
    let mut request = vec![5, 1, 0];
    match to.ip() {
        IpAddr::V4(address) => {
            request.push(1);
            request.extend(address.octets());
        }
        IpAddr::V6(address) => {
            request.push(4);
            request.extend(address.octets());
        }
    }
    request.extend(to.port().to_be_bytes());
    request
}

#[test]
fn of_a_killed_proxys_connections_only_the_time_wait_pairs_are_unseen() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    for family in FAMILIES {
        let client = FarEnd::new(&site.lab, Side::Client, family)?;
        let upstream = FarEnd::new(&site.lab, Side::Upstream, family)?;
        let mut relay = site.relay()?;
        let counting = site.count()?;
        let mut a = client.connect(RELAY_PORT)?;
        a.send(ACK, &[5, 1, 0])?;
        a.expect_payload(2)?;
        let request = socks5_connect(upstream.at(PORT));
        a.send(ACK, &request)?;
        let mut b = upstream.accept(PORT)?;
        // The reply has as many bytes as the request.
        a.expect_payload(request.len() as u32)?;
        a.send(ACK, &[])?;

        relay.signal(Signal::SIGKILL)?;
        for connection in [&mut a, &mut b] {
            connection.expect(FIN)?;
            connection.send(ACK, &[])?;
        }
        relay.wait(GONE_WITHIN)?;
        let closed = now();
        for connection in [&mut a, &mut b] {
            connection.send(FIN | ACK, &[])?;
            connection.expect(ACK)?;
        }
        let pair = [segment(family, 0); 2];
        let class = Class::since(closed).ingress(pair).egress(pair);
        class.assert_in(&counting.finish()?, &[tcp(RELAY_PORT)]);
    }
    Ok(())
}

#[test]
fn what_was_queued_when_the_process_ended_is_counted_also_when_its_cgroup_is_gone() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    for family in FAMILIES {
        let far = FarEnd::new(&site.lab, Side::Client, family)?;
        let cgroup = CountedCgroup::new("short-lived")?;
        let process = Factory::start(&site.lab.proxy, &cgroup)?;
        let listener = process.tcp_listener(any(PORT))?;
        let mut plan = site.plan()?;
        let (path, dir) = (cgroup.cgroup_path(), cgroup.path().to_owned());
        plan.cgroups = vec![Cgroup { path, dir, id: cgroup.id()? }];
        let counting = site.count_as(plan)?;
        let (mut connection, mut stream) = connected(&far, &listener)?;
        stream.set_nonblocking(true)?;
        let queued = stream.write(&[7; 100_000])?;
        drop((stream, listener, process));
        cgroup.remove()?;

        // Nothing was acknowledged so far: most of it is with the kernel still.
        loop {
            let segment = connection.expect(ACK)?;
            connection.send(ACK, &[])?;
            if segment.headers.tcp.is_some_and(|tcp| tcp.has(FIN)) {
                break;
            }
        }
        let closed = now();
        connection.send(FIN | ACK, &[])?;
        connection.expect(ACK)?;
        let counted = counting.finish()?;
        let pair = [segment(family, 0)];
        let class = Class::since(closed).ingress(pair).egress(pair);
        class.assert_in(&counted, &[tcp(PORT)]);
        let sent = counted.trace.sum(Filter::all().egress());
        ensure!(sent.payload_bytes >= queued as u64 && queued > 20_000, "{queued} were queued");
        counted.expect_finding("cgroup-gone").context("a removed cgroup is told")?;
    }
    Ok(())
}
