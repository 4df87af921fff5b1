//! Proxies that send from their first moment on, and what of that may be missing from a history: what was sent
//! in the gaps that it tells.

use std::time::Duration;

use anyhow::Result;
use traffic_agent::history::{Event, EventKind};
use traffic_lab::Process;
use traffic_lab::packet::{Family, Packet};
use traffic_lab::process::Place;
use traffic_lab::role::Role;
use traffic_lab::sockets::Transport;
use traffic_lab::topology::{LabTrace, addresses};
use traffic_lab::udp::{Receive, Send};

use crate::accounted::TARGET;
use crate::daemon::Home;
use crate::figures;
use crate::role;
use crate::site::{Site, any};

/// Where the upstream receives what such a proxy sends.
pub const SINK: u16 = 9999;

/// This many bursts of 32 datagrams in as many milliseconds, from the first moment of the process on.
pub fn burst(bursts: u64) -> Role {
    Role::UdpSend(Send {
        target: (addresses(Family::Ipv4).upstream, SINK).into(),
        sockets: 1,
        datagram_bytes: 100,
        total_bytes: bursts * 3200,
        segmented: false,
        await_echo: false,
    })
}

/// Takes the datagrams, so that nobody answers them with errors.
pub fn sink(site: &Site) -> Result<Process> {
    let receive = Receive { listen: any(SINK), echo: false, gro: false };
    let place = Place { namespace: Some(&site.lab.upstream), cgroup: None, user: None };
    let mut sink = Process::spawn(role(&Role::UdpReceive(receive))?, place)?;
    sink.wait_for(Transport::Udp, SINK, Duration::from_secs(60))?;
    Ok(sink)
}

/// Whether a packet was captured in a gap; events are kept in whole milliseconds.
fn is_in(gaps: &[Event], packet: &Packet) -> bool {
    let at = (packet.at_ns / 1_000_000) as i64;
    gaps.iter().any(|gap| gap.start.as_millisecond() <= at && at <= gap.end.as_millisecond())
}

/// Holds the history of [`TARGET`] against a capture: nothing is counted twice, and what is missing was captured
/// in a gap.
#[track_caller]
pub fn assert_missing_in_gaps_only(home: &Home, trace: &LabTrace) -> Result<()> {
    let mut gaps = home.events(TARGET)?;
    gaps.retain(|event| event.kind == EventKind::Gap);
    let counted = figures::sum(&home.books(TARGET)?, |_| true).wire_bytes;
    let packets = || trace.client.trace.packets.iter().chain(&trace.upstream.trace.packets);
    let bytes = |packet: &Packet| u64::from(packet.headers.l3_bytes);
    let captured: u64 = packets().map(bytes).sum();
    let outside: u64 = packets().filter(|packet| !is_in(&gaps, packet)).map(bytes).sum();
    println!(
        "{counted} bytes counted of {captured}; {outside} were captured outside of {} gaps of {} ms \
         together",
        gaps.len(),
        gaps.iter().map(|gap| gap.end.as_millisecond() - gap.start.as_millisecond()).sum::<i64>()
    );
    assert!(counted <= captured, "{counted} bytes counted, {captured} captured");
    let missing = outside.saturating_sub(counted);
    assert!(missing == 0, "{missing} bytes are missing outside of all gaps: {gaps:?}");
    Ok(())
}
