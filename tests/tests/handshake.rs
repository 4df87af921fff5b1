//! The end of a handshake on two CPUs: the kernel shows a packet to the hook twice, and it is counted once.

use std::thread;

use anyhow::Result;
use traffic_lab::Stack;
use traffic_lab::handmade::{FarEnd, Side};
use traffic_lab::packet::{Family, RST};
use traffic_tests::site::{RELAY_PORT, Site, any, tcp};
use traffic_tests::truth::Witnesses;

/// Of so many, some meet the race.
const CONNECTIONS: usize = 3000;

/// The first bytes of a connection reach its request while another CPU makes a socket of it: the kernel runs
/// the hook on the listener, finds that it came too late, and delivers the packet again, to that socket.
/// Source: `req_stolen` in `tcp_v4_rcv()`, net/ipv4/tcp_ipv4.c.
#[test]
fn a_packet_that_the_kernel_delivers_again_is_counted_once() -> Result<()> {
    // Without GRO on the way in, each frame is taken by the CPU that sent it.
    let site = Site::new(Stack::Plain)?;
    let witnesses = Witnesses::of(&site)?;
    let listener = site.factory.tcp_listener(any(RELAY_PORT))?;
    for family in [Family::Ipv4, Family::Ipv6] {
        let far = FarEnd::new(&site.lab, Side::Client, family)?;
        witnesses.hold(&[tcp(RELAY_PORT)], || {
            thread::scope(|scope| {
                let listener = &listener;
                let accepting = scope.spawn(move || -> Result<()> {
                    for _ in 0..CONNECTIONS {
                        drop(listener.accept()?);
                    }
                    Ok(())
                });
                for _ in 0..CONNECTIONS {
                    let mut connection = far.half_open(RELAY_PORT)?;
                    connection.send_at_once(&[7; 16])?;
                    connection.send(RST, &[])?;
                }
                accepting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            })?;
            Ok(None)
        })?;
    }
    Ok(())
}
