//! The books balance: the sum of all cells is every packet that reached the hooks, under load on all
//! processors, while connections, ports and looks at the target come and go.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::Result;
use traffic_lab::Stack;
use traffic_lab::packet::Family;
use traffic_lab::topology::addresses;
use traffic_lab::workload::Workload;
use traffic_tests::exchange::with_listener;
use traffic_tests::site::{RELAY_PORT, Site, any, tcp};

const FIRST_PORT: u16 = 2000;
/// Of which 57 have slots beside the relay.
const PORTS: u16 = 80;

const BULK: Workload = Workload {
    name: "bulk",
    connections: 12,
    parallel: 3,
    upload_bytes: 1_000_000,
    download_bytes: 2_000_000,
    at_once: true,
};
const SHORT: Workload = Workload {
    name: "short",
    connections: 400,
    parallel: 4,
    upload_bytes: 200,
    download_bytes: 2000,
    at_once: false,
};

fn check(stack: Stack) -> Result<()> {
    let site = Site::new(stack)?;
    let _relay = site.relay()?;
    // A server is one workload's at a time: it tells how much it carried.
    let server = site.server()?;
    let mut counting = site.count()?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        // Ports come and go; their first SYN claims a slot while packets pass on the other processor.
        let ports = scope.spawn(|| -> Result<()> {
            for port in FIRST_PORT..FIRST_PORT + PORTS {
                let family = if port % 2 == 0 { Family::Ipv4 } else { Family::Ipv6 };
                let listener = site.factory.tcp_listener(any(port))?;
                let to = (addresses(family).proxy_client, port).into();
                with_listener(&site.lab.client, to, &listener)?;
            }
            Ok(())
        });
        let load = scope.spawn(|| -> Result<()> {
            for workload in [BULK, SHORT] {
                for family in [Family::Ipv4, Family::Ipv6] {
                    site.drive(&workload, family, &server)?;
                }
            }
            Ok(())
        });
        let watching = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::Relaxed) {
                counting.measurement.follow()?;
                counting.so_far()?;
                thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        });
        let results = [ports.join(), load.join()];
        done.store(true, Ordering::Relaxed);
        for result in results.into_iter().chain([watching.join()]) {
            result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        Ok(())
    })?;

    let counted = counting.finish()?;
    let ports: Vec<_> =
        [RELAY_PORT].into_iter().chain(FIRST_PORT..FIRST_PORT + PORTS).map(tcp).collect();
    assert_eq!(counted.books_without_ports(), counted.captured_without_ports(&ports));
    // The devices agree: LabTrace::check, in `finish`, has held the captures against them.
    let billed = counted.report.totals.billed;
    if stack == Stack::Plain {
        let (client, upstream) = (counted.trace.client.device, counted.trace.upstream.device);
        assert_eq!(
            [billed.ingress.packets, billed.egress.packets],
            [
                client.ingress_packets + upstream.ingress_packets,
                client.egress_packets + upstream.egress_packets
            ]
        );
    }
    Ok(())
}

#[test]
fn sums_balance_under_load_with_super_packets() -> Result<()> {
    check(Stack::GsoGro)
}

#[test]
fn sums_balance_under_load_packet_by_packet() -> Result<()> {
    check(Stack::Plain)
}
