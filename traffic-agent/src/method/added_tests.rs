//! In network namespaces of their own; skipped where there is no right to make one.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::thread;

use super::super::firewall::{Firewall, difference};
use super::*;
use crate::report::Direction;

const PORT: ListeningPort = ListeningPort { protocol: Protocol::Tcp, port: 11710 };

#[test]
fn only_tables_of_dead_processes_are_stale() {
    let text = r#"{"nftables": [{"metainfo": {}},
        {"table": {"family": "inet", "name": "traffic_agent_7", "handle": 1}},
        {"table": {"family": "inet", "name": "traffic_agent_8_2", "handle": 2}},
        {"table": {"family": "inet", "name": "traffic_agent_x", "handle": 3}},
        {"table": {"family": "ip", "name": "traffic_agent_8", "handle": 4}},
        {"table": {"family": "inet", "name": "filter", "handle": 5}}]}"#;
    assert_eq!(stale_tables(text, |pid| pid == 7), ["traffic_agent_8_2"]);
    assert!(stale_tables("not json", |_| false).is_empty());
    assert!(chain_name("4194304_9", "OUT").len() <= 28);
}

/// A network namespace with loopback up; it ends with its last descriptor. `None`: no right.
fn namespace() -> Option<OwnedFd> {
    let opened = thread::spawn(|| {
        // SAFETY: a bare system call that affects this thread alone.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return None;
        }
        Some(OwnedFd::from(File::open("/proc/thread-self/ns/net").unwrap()))
    });
    let netns = opened.join().unwrap();
    let programs = ["ip", "nft", "iptables", "iptables-save"].map(run::find);
    match (netns, programs) {
        (Some(netns), [Some(ip), Some(_), Some(_), Some(_)]) => {
            run::run(&ip, &["link", "set", "lo", "up"], "", Some(netns.as_fd())).unwrap();
            Some(netns)
        }
        (netns, _) => {
            let reason =
                if netns.is_some() { "no ip, nft or iptables" } else { "no right to unshare" };
            assert!(std::env::var_os("TRAFFIC_REQUIRE_KERNEL").is_none(), "{reason}");
            eprintln!("skipped: {reason}");
            None
        }
    }
}

/// One connection over loopback that carries 100,000 bytes and gets 300,000.
fn connect(netns: &OwnedFd, address: &'static str) {
    let netns = netns.try_clone().unwrap();
    let run = move || {
        // SAFETY: a bare system call on an open descriptor; it affects this thread alone.
        assert_eq!(unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) }, 0);
        let listener = TcpListener::bind((address, PORT.port)).unwrap();
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.read_to_end(&mut Vec::new()).unwrap();
            stream.write_all(&vec![1; 300_000]).unwrap();
        });
        let mut stream = TcpStream::connect((address, PORT.port)).unwrap();
        stream.write_all(&vec![1; 100_000]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        stream.read_to_end(&mut Vec::new()).unwrap();
        server.join().unwrap();
    };
    thread::spawn(run).join().unwrap();
}

fn ruleset(netns: &OwnedFd) -> String {
    let nft = run::find("nft").unwrap();
    run::run(&nft, &["list", "ruleset"], "", Some(netns.as_fd())).unwrap()
}

fn counts(netns: &OwnedFd, mut added: AddedRules) {
    let late = ListeningPort { protocol: Protocol::Udp, port: 53 };
    let start = added.read().unwrap();
    connect(netns, "127.0.0.1");
    connect(netns, "::1");
    added.ensure(late).unwrap();
    let measured = difference(&start, &added.read().unwrap()).unwrap();
    let (ingress, egress) = (measured.bytes(Direction::Ingress), measured.bytes(Direction::Egress));
    assert!(ingress.unwrap() > 200_000 && ingress.unwrap() < 250_000, "{ingress:?}");
    assert!(egress.unwrap() > 600_000 && egress.unwrap() < 650_000, "{egress:?}");
    assert!(measured.coverage.missing().is_empty());
    // Not taken for rules of the operator.
    assert!(Firewall::read(Some(netns.as_fd()), &[PORT]).rules.is_empty());
    assert!(ruleset(netns).to_ascii_lowercase().contains("traffic"));
    added.remove().unwrap();
    let left = ruleset(netns).to_ascii_lowercase();
    assert!(!left.contains("traffic"), "{left}");
}

#[test]
fn a_table_of_our_own_counts_both_families_and_goes() {
    let Some(netns) = namespace() else { return };
    counts(&netns, AddedRules::add(Some(netns.as_fd()), &[PORT]).unwrap());
}

#[test]
fn chains_of_our_own_do_the_same_where_nft_is_missing() {
    let Some(netns) = namespace() else { return };
    let programs = ["iptables", "ip6tables"].into_iter().filter_map(run::find).collect();
    let backend = Backend::Iptables { programs, suffix: std::process::id().to_string() };
    let own = netns.try_clone().unwrap();
    counts(&netns, AddedRules::add_with(Some(own), vec![backend], &[PORT]).unwrap());
}

#[test]
fn dropping_removes_and_the_next_run_removes_what_a_killed_one_left() {
    let Some(netns) = namespace() else { return };
    let nft = run::find("nft").unwrap();
    // Above the kernel's largest pid: nobody is alive there.
    let left = "add table inet traffic_agent_4194305\n";
    run::run(&nft, &["-f", "-"], left, Some(netns.as_fd())).unwrap();
    let added = AddedRules::add(Some(netns.as_fd()), &[PORT]).unwrap();
    assert!(!ruleset(&netns).contains("4194305"));
    drop(added);
    assert_eq!(ruleset(&netns).trim(), "");
}

#[test]
fn rules_of_all_backends_see_the_same_bytes_once() {
    let Some(netns) = namespace() else { return };
    let run = |program: &str, arguments: &[&str]| {
        run::run(&run::find(program).unwrap(), arguments, "", Some(netns.as_fd())).unwrap();
    };
    for program in ["iptables-nft", "ip6tables-nft", "iptables-legacy"] {
        run(program, &["-w", "-A", "INPUT", "-p", "tcp", "--dport", "11710"]);
        run(program, &["-w", "-A", "OUTPUT", "-p", "tcp", "--sport", "11710"]);
    }
    let added = AddedRules::add(Some(netns.as_fd()), &[PORT]).unwrap();
    let read = || Firewall::read(Some(netns.as_fd()), &[PORT]);
    let (start, own) = (read(), added.read().unwrap());
    connect(&netns, "127.0.0.1");
    connect(&netns, "::1");
    let theirs = difference(&start, &read()).unwrap();
    let ours = difference(&own, &added.read().unwrap()).unwrap();
    for direction in [Direction::Ingress, Direction::Egress] {
        assert!(theirs.bytes(direction).unwrap() > 200_000);
        assert_eq!(theirs.bytes(direction), ours.bytes(direction));
    }
    // iptables-legacy sees the packets of iptables-nft again.
    assert_eq!(theirs.rules.iter().filter(|rule| rule.counted).count(), 4);
    assert_eq!(theirs.rules.len(), 6);
    let before = read();
    run("iptables-nft", &["-w", "-Z"]);
    assert!(difference(&before, &read()).unwrap_err().contains("set to zero"));
}
