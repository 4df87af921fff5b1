//! Everything of the lab at once, as root: `cargo run --release -p traffic-lab --example smoke`.
//!
//! Prints, per stack model, family and workload, what the far ends captured and what the proxy's
//! devices counted. Nothing may be lost in between.

use std::time::{Duration, Instant};

use anyhow::Result;
use traffic_lab::packet::{Direction, Family};
use traffic_lab::process::Place;
use traffic_lab::role::{Role, run_from_environment};
use traffic_lab::topology::addresses;
use traffic_lab::trace::Filter;
use traffic_lab::udp;
use traffic_lab::workload::{Route, Server, Workload, run};
use traffic_lab::{CountedCgroup, Lab, Process, Stack, answered};

const RELAY: u16 = 11710;

fn main() -> Result<()> {
    run_from_environment();
    let begin = Instant::now();
    let bulk = Workload {
        name: "100 MB down",
        connections: 1,
        parallel: 1,
        upload_bytes: 16,
        download_bytes: 100_000_000,
        at_once: false,
    };
    let up = Workload { name: "100 MB up", upload_bytes: 100_000_000, download_bytes: 16, ..bulk };
    let both = Workload {
        name: "4 x (25 + 25 MB)",
        connections: 4,
        parallel: 4,
        upload_bytes: 25_000_000,
        download_bytes: 25_000_000,
        at_once: true,
    };
    let bulks = [bulk, up, both];
    let more = std::env::args().any(|argument| argument == "--bulk");
    println!(
        "{:7} {:4} {:17} {:>12} {:>9} {:>9} {:>11} {:>11} {:>5} {:>5} {:>7} {:>6}",
        "stack",
        "",
        "workload",
        "L3 bytes",
        "packets",
        "ingress",
        "device in",
        "device out",
        "lost",
        "noise",
        "resent",
        "s"
    );
    let stacks =
        if more { &[Stack::GsoGro, Stack::Plain, Stack::Tso][..] } else { &[Stack::GsoGro] };
    let mut lost_frames = 0;
    for &stack in stacks {
        let lab = Lab::new(stack)?;
        let cgroup = CountedCgroup::new("smoke")?;
        let place =
            Place { namespace: Some(&lab.proxy), cgroup: Some(&cgroup), user: Some(65_534) };
        let relay = Role::Relay { listen: format!("[::]:{RELAY}").parse()? };
        let mut relay = Process::spawn(relay.command()?, place)?;
        relay.wait_for_port(RELAY, Duration::from_secs(5))?;
        assert_eq!(cgroup.members()?, [relay.pid()]);
        let server = Server::start(&lab.upstream, "[::]:8080".parse()?)?;
        let workloads = Workload::DEMO.iter().chain(more.then_some(&bulks).into_iter().flatten());
        for workload in workloads {
            for family in [Family::Ipv4, Family::Ipv6] {
                let addresses = addresses(family);
                let route = Route {
                    client: &lab.client,
                    relay: Some((addresses.proxy_client, RELAY).into()),
                    target: (addresses.upstream, 8080).into(),
                };
                let capture = lab.capture()?;
                let outcome = run(workload, route, &server, &|_| ())?;
                let trace = capture.stop()?;
                let legs = [&trace.client, &trace.upstream];
                let lost = legs
                    .map(|leg| [leg.lost(Direction::Ingress), leg.lost(Direction::Egress)])
                    .concat();
                lost_frames += lost.iter().map(|lost| lost.abs()).sum::<i64>();
                let all = trace.sum(Filter::all());
                let noise: u64 = legs
                    .iter()
                    .map(|leg| leg.trace.noise.not_ip.frames + leg.trace.noise.icmpv6.frames)
                    .sum();
                let resent: u64 =
                    legs.iter().map(|leg| leg.trace.retransmitted_payload(Filter::all())).sum();
                println!(
                    "{:7} {:4} {:17} {:>12} {:>9} {:>9} {:>11} {:>11} {:>5} {:>5} {:>7} {:>6.2}",
                    format!("{stack:?}"),
                    format!("{family:?}"),
                    workload.name,
                    all.l3_bytes,
                    all.packets,
                    trace.sum(Filter::all().ingress()).packets,
                    legs.iter().map(|leg| leg.device.ingress_packets).sum::<u64>(),
                    legs.iter().map(|leg| leg.device.egress_packets).sum::<u64>(),
                    lost.iter().sum::<i64>(),
                    noise,
                    resent,
                    outcome.duration.as_secs_f64(),
                );
                for leg in legs {
                    let answered = answered::classify(&leg.trace);
                    if answered != answered::AnsweredByKernel::default() {
                        println!(
                            "    answered by the kernel: {} resets, {} silent, {} repeated; {} TIME_WAIT candidates",
                            answered.resets.len(),
                            answered.silent.len(),
                            answered.repeated.len(),
                            answered.time_wait.len()
                        );
                    }
                }
                // Every byte of the sockets is in the capture once, and what was sent again besides.
                let payload = trace.client.trace.sum(Filter::all().ingress()).payload_bytes
                    - trace.client.trace.retransmitted_payload(Filter::all().ingress());
                assert_eq!(payload, outcome.client.sent_bytes);
            }
        }
        for segmented in [false, true] {
            for family in [Family::Ipv4, Family::Ipv6] {
                let receive = udp::Receiver::start(
                    &lab.upstream,
                    udp::Receive { listen: "[::]:5353".parse()?, echo: true, gro: false },
                )?;
                let send = Role::UdpSend(udp::Send {
                    target: (addresses(family).upstream, 5353).into(),
                    sockets: 1,
                    datagram_bytes: 1200,
                    total_bytes: 6_000_001,
                    segmented,
                    await_echo: true,
                });
                let capture = lab.capture()?;
                let sender = Process::spawn(send.command()?, place)?;
                let report = udp::Report::parse(&sender.output(Duration::from_secs(20))?)?;
                let trace = capture.stop()?;
                println!(
                    "{stack:?} {family:?} UDP segmented {segmented}: {report}, server {}, wire {:?}",
                    receive.totals(),
                    trace.sum(Filter::all().udp())
                );
                trace.check()?;
            }
        }
    }
    println!("{lost_frames} frames lost, {:.1} s altogether", begin.elapsed().as_secs_f64());
    anyhow::ensure!(lost_frames == 0, "frames were lost in the rings");
    Ok(())
}
