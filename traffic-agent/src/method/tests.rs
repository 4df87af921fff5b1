//! The parsers, the choice and the difference, on what real programs printed and on what none would.
//!
//! The fixtures were captured in network namespaces: iptables 1.8.9, nft 1.0.6, ufw 0.36.2; the ufw
//! pair stands before and after two connections (IPv4, IPv6) of 100,000 bytes up and 200,000 down.

use proptest::prelude::*;

use super::firewall::{Reading, difference};
use super::ruleset::Ruleset;
use super::{ListeningPort, iptables, nft};
use crate::report::{Direction, Family, Protocol};

const SAVED: &str = include_str!("fixtures/iptables-nft.txt");
const LEGACY: &str = include_str!("fixtures/iptables-legacy.txt");
const SAVED_6: &str = include_str!("fixtures/ip6tables-nft.txt");
const NFT: &str = include_str!("fixtures/nft-1.0.6.json");
const UFW: [&str; 2] =
    [include_str!("fixtures/ufw-start.txt"), include_str!("fixtures/ufw-end.txt")];
const UFW_6: [&str; 2] =
    [include_str!("fixtures/ufw6-start.txt"), include_str!("fixtures/ufw6-end.txt")];
const UFW_NFT: &str = include_str!("fixtures/ufw-nft-1.0.6.json");

pub(crate) fn tcp(port: u16) -> ListeningPort {
    ListeningPort { protocol: Protocol::Tcp, port }
}

fn udp(port: u16) -> ListeningPort {
    ListeningPort { protocol: Protocol::Udp, port }
}

/// A reading of save texts, each with its program and family.
fn reading(texts: &[(&str, &str, &str)], ports: &[ListeningPort]) -> Reading {
    let mut ruleset = Ruleset::default();
    for (text, backend, family) in texts {
        ruleset.tables.extend(iptables::parse(text, backend, family).unwrap().tables);
    }
    Reading::of(ruleset, ports, vec!["iptables-nft-save".into()], Vec::new())
}

fn native(text: &str, ports: &[ListeningPort]) -> Reading {
    let ruleset = nft::parse(text, |_, _| false).unwrap();
    Reading::of(ruleset, ports, vec!["nft".into()], Vec::new())
}

/// A filter table with these rules: (packets, bytes, rule).
fn filter(rules: &[(u64, u64, &str)]) -> String {
    let mut text = String::from(
        "*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:SUB - [0:0]\n",
    );
    for (packets, bytes, rule) in rules {
        text.push_str(&format!("[{packets}:{bytes}] -A {rule}\n"));
    }
    text + "COMMIT\n"
}

pub(crate) fn of(rules: &[(u64, u64, &str)], ports: &[ListeningPort]) -> Reading {
    reading(&[(&filter(rules), "iptables-nft", "ip")], ports)
}

fn counted(reading: &Reading) -> Vec<&str> {
    reading.rules.iter().filter(|r| r.counted).map(|r| r.rule.as_str()).collect()
}

#[test]
fn port_1171_is_not_11710() {
    let rules = [
        (3, 300, "INPUT -p tcp -m tcp --dport 11710"),
        (1, 40, "OUTPUT -p tcp -m tcp --sport 11710"),
    ];
    let exact = of(&rules, &[tcp(11710)]);
    assert_eq!(exact.bytes(Direction::Ingress), Some(300));
    assert_eq!(exact.bytes(Direction::Egress), Some(40));
    for near in [1171, 1710, 17] {
        assert!(of(&rules, &[tcp(near)]).rules.is_empty());
    }
    assert!(of(&rules, &[udp(11710)]).rules.is_empty());
}

#[test]
fn captured_save_file_is_read_rule_by_rule() {
    let reading = reading(
        &[(SAVED, "iptables-nft", "ip"), (LEGACY, "iptables-legacy", "ip")],
        &[tcp(11710), tcp(1171)],
    );
    assert_eq!(
        counted(&reading),
        [
            "-p tcp -m tcp --dport 11710",
            r#"-p tcp -m tcp --dport 1171 -m comment --comment "my \"quoted\" \\ proxy""#,
            "-p tcp -m tcp --sport 11710"
        ]
    );
    // The same port in the other backend sees the same packets.
    let twice = reading.rules.iter().find(|rule| rule.backend == "iptables-legacy").unwrap();
    assert_eq!(
        twice.reason.as_deref(),
        Some("the same packets are counted by iptables-nft INPUT: -p tcp -m tcp --dport 11710")
    );
    // `! --dports 443,8000:8100` and `! --dport 80:90` match 11710, and much more.
    let wide = reading.rules.iter().filter(|rule| rule.rule.contains("! --dport"));
    assert!(wide.clone().count() == 2 && wide.clone().all(|rule| !rule.counted));
    assert!(
        wide.clone().all(|rule| rule
            .reason
            .as_deref()
            .unwrap()
            .contains("where the target does not listen"))
    );
    // 1171 has no egress rule; no port has one for IPv6.
    assert_eq!(reading.coverage.uncovered_ports(Direction::Egress), [tcp(1171)]);
    let missing = reading.coverage.missing();
    assert_eq!(missing.iter().filter(|cell| cell.family == Family::Ipv6).count(), 4);
}

#[test]
fn rules_of_443_are_judged_with_reasons() {
    let reading = reading(
        &[(SAVED, "iptables-nft", "ip"), (SAVED_6, "ip6tables-nft", "ip6")],
        &[tcp(443), udp(443)],
    );
    let reason = |part: &str| {
        let rule = reading.rules.iter().find(|rule| rule.rule.contains(part)).unwrap();
        (rule.counted, rule.reason.clone().unwrap_or_default())
    };
    assert_eq!(
        reason("--dports 443,8000:8100,9 -j").1,
        "it also counts udp port 9,8000-8100, where the target does not listen"
    );
    assert_eq!(reason("--ports 443").1, "it matches the port on either side: it counts both legs");
    assert!(reason("-d 172.17.0.2").1.contains("forwarded"));
    assert_eq!(
        reason("-m udp --dport 443 -j DROP").1,
        "it drops what it counts: the target never gets it"
    );
    // INPUT jumps and goes to it: its packets may be counted twice.
    assert_eq!(reason("-j RETURN").1, "packets reach it over two ways, and are counted twice");
    let goto = reading.rules.iter().find(|rule| rule.rule.contains("-g TRAFFIC_IN")).unwrap();
    assert!(goto.counted);
    let raw = reading.rules.iter().find(|rule| rule.table == "raw").unwrap();
    assert!(!raw.counted && raw.reason.as_deref().unwrap().starts_with("the same packets"));
    let v6 =
        reading.rules.iter().find(|rule| rule.backend == "ip6tables-nft" && rule.counted).unwrap();
    assert_eq!(v6.rule, "-p tcp -m tcp --dport 443");
}

#[test]
fn prerouting_counts_where_no_input_rule_does() {
    let raw =
        "*raw\n:PREROUTING ACCEPT [0:0]\n[9:900] -A PREROUTING -p tcp -m tcp --dport 443\nCOMMIT\n";
    assert_eq!(
        reading(&[(raw, "iptables-nft", "ip")], &[tcp(443)]).bytes(Direction::Ingress),
        Some(900)
    );
    let nat = raw.replace("*raw", "*nat");
    let nat = reading(&[(&nat, "iptables-nft", "ip")], &[tcp(443)]);
    assert_eq!(nat.bytes(Direction::Ingress), None);
    assert!(nat.unavailable().unwrap().contains("first packet of each connection"));
}

#[test]
fn same_packets_in_a_chain_and_its_caller_count_once() {
    let nested = of(
        &[
            (5, 500, "INPUT -j SUB"),
            (5, 500, "INPUT -p tcp -m tcp --dport 443 -j ACCEPT"),
            (5, 500, "SUB -p tcp -m tcp --dport 443"),
        ],
        &[tcp(443)],
    );
    assert_eq!(nested.bytes(Direction::Ingress), Some(500));
    assert_eq!(nested.rules.len(), 2);
    // A chain that both directions pass also counts the proxy's own connections to port 443.
    let both = of(
        &[
            (5, 500, "INPUT -j SUB"),
            (7, 700, "OUTPUT -j SUB"),
            (9, 900, "SUB -p tcp -m tcp --dport 443"),
        ],
        &[tcp(443)],
    );
    assert_eq!(both.bytes(Direction::Ingress), None);
}

#[test]
fn rules_in_sequence_that_exclude_each_other_are_summed() {
    let address = of(
        &[
            (1, 100, "INPUT -s 10.0.0.1/32 -p tcp -m tcp --dport 443 -j ACCEPT"),
            (2, 200, "INPUT -p tcp -m tcp --dport 443 -j ACCEPT"),
        ],
        &[tcp(443)],
    );
    assert_eq!(address.bytes(Direction::Ingress), Some(300));
    // Without ACCEPT the second sees the packets of the first, too.
    let overlapping = of(
        &[
            (1, 100, "INPUT -s 10.0.0.1/32 -p tcp -m tcp --dport 443"),
            (2, 200, "INPUT -p tcp -m tcp --dport 443 -j ACCEPT"),
        ],
        &[tcp(443)],
    );
    assert_eq!(overlapping.bytes(Direction::Ingress), Some(200));
    let alone =
        of(&[(1, 100, "INPUT -s 10.0.0.1/32 -p tcp -m tcp --dport 443 -j ACCEPT")], &[tcp(443)]);
    assert_eq!(alone.bytes(Direction::Ingress), None);
    assert_eq!(
        alone.rules[0].reason.as_deref(),
        Some("it counts only a part of the port's traffic: -s 10.0.0.1/32")
    );
    let states = of(
        &[
            (1, 60, "INPUT -p tcp -m tcp --dport 443 -m conntrack --ctstate NEW"),
            (8, 800, "INPUT -p tcp -m tcp --dport 443 -m state --state ESTABLISHED,RELATED"),
        ],
        &[tcp(443)],
    );
    assert_eq!(states.bytes(Direction::Ingress), Some(860));
    let interfaces = of(
        &[
            (1, 60, "INPUT -i eth0 -p tcp -m tcp --dport 443"),
            (8, 800, "INPUT -i eth1 -p tcp -m tcp --dport 443"),
            (9, 900, "INPUT -i lo -p tcp -m tcp --dport 443"),
        ],
        &[tcp(443)],
    );
    // Those of one interface stand for the port; the loopback rule excludes them and is added.
    assert_eq!(interfaces.bytes(Direction::Ingress), Some(1760));
}

#[test]
fn a_list_counts_only_if_the_target_listens_on_all_of_it() {
    let rules = [(5, 500, "INPUT -p tcp -m multiport --dports 443,8000:8001")];
    assert_eq!(of(&rules, &[tcp(443)]).bytes(Direction::Ingress), None);
    assert_eq!(of(&rules, &[tcp(443), tcp(8000), tcp(8001)]).bytes(Direction::Ingress), Some(500));
}

#[test]
fn native_rules_are_understood() {
    let reading = native(NFT, &[tcp(443)]);
    let of = |text: &str| {
        reading.rules.iter().find(|r| r.rule == text).unwrap_or_else(|| {
            panic!("{text} not in {:#?}", reading.rules.iter().map(|r| &r.rule).collect::<Vec<_>>())
        })
    };
    assert_eq!(of("tcp sport 443 counter").table, "inet acc");
    // Made with `counter packets 3 bytes 400`, it sees most of IPv6.
    assert!(of("ip6 nexthdr tcp tcp sport 443 counter").counted);
    let why = |text: &str| of(text).reason.clone().unwrap();
    assert!(why("tcp dport { 80, 443 } counter accept comment \"hello\"").contains("tcp port 80"));
    assert!(why("th dport 443 counter").contains("udp port 443"));
    assert!(why("tcp dport != 22 counter").contains("where the target does not listen"));
    assert!(why("ct state new tcp dport 443 counter").contains("same packets"));
    assert!(why("ip saddr 1.2.3.4 tcp dport 443 counter").contains("same packets"));
    // Tables of ip, ip6 and inet have one: a single counter for each family. With nothing counted
    // yet, the first is taken; the inet rule for both families would count IPv4 again.
    let ingress = reading.rules.iter().filter(|r| r.counted && r.direction == Direction::Ingress);
    let ingress: Vec<_> = ingress.map(|r| (r.table.as_str(), r.rule.as_str())).collect();
    let v6 = ("inet acc", "meta nfproto ipv6 tcp dport 443 counter");
    assert_eq!(ingress, [("ip filter", "tcp dport 443 counter"), v6]);
    assert!(reading.rules.iter().all(|r| r.table != "netdev nd"));
    // `counter tcp dport 443 counter`: only the second is the port's.
    let double: Vec<_> =
        reading.rules.iter().filter(|r| r.rule.starts_with("counter tcp")).collect();
    assert_eq!(double.len(), 1);
}

#[test]
fn one_unknown_statement_costs_one_rule() {
    let json = r#"{"nftables": [
        {"chain": {"family": "inet", "table": "t", "name": "i", "hook": "input", "type": "filter", "prio": 0}},
        {"rule": {"family": "inet", "table": "t", "chain": "i", "handle": 2, "expr": [
            {"brandnew": {"x": 1}}, {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 443}}, {"counter": {"packets": 9, "bytes": 900}}]}},
        {"rule": {"family": "inet", "table": "t", "chain": "i", "handle": 3, "expr": [
            {"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 443}}, {"counter": {"packets": 5, "bytes": 500}}]}},
        {"brandnew": {"family": 7}}, 5, null]}"#;
    assert_eq!(native(json, &[tcp(443)]).bytes(Direction::Ingress), Some(500));
    // The typed crate gives up on all of it.
    assert!(serde_json::from_str::<nftables::schema::Nftables<'_>>(json).is_err());
}

#[test]
fn nft_cannot_see_xtables_matches_and_does_not_guess() {
    // Read natively only where iptables-nft-save is missing: multiport shows as "xt".
    let reading = native(UFW_NFT, &[tcp(11710)]);
    assert_eq!(reading.bytes(Direction::Egress), Some(200_800 + 201_160));
}

#[test]
fn ufw_shadows_the_port_rule_and_the_rule_is_named() {
    let of = |n: usize| {
        reading(
            &[(UFW[n], "iptables-nft", "ip"), (UFW_6[n], "ip6tables-nft", "ip6")],
            &[tcp(11710)],
        )
    };
    let measured = difference(&of(0), &of(1)).unwrap();
    // The SYN of each connection: 60 and 80 bytes.
    assert_eq!(measured.bytes(Direction::Ingress), Some(140));
    let shadow = measured.find_shadowing(Direction::Ingress).unwrap();
    assert_eq!(shadow.rule, "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT");
    assert!(shadow.chain == "ufw-before-input" || shadow.chain == "ufw6-before-input");
    assert!(shadow.shadowed_chain.ends_with("-user-input"));
    assert_eq!(measured.shadow_finding(Direction::Ingress, 200_000).unwrap().code, "rule-shadowed");
    assert_eq!(measured.shadow_finding(Direction::Ingress, 140), None);
    let findings = measured.coverage.findings(|_| 1000);
    assert!(findings.is_empty(), "{findings:?}");
    // The egress rules stand first in OUTPUT.
    assert_eq!(measured.find_shadowing(Direction::Egress), None);
    assert!(measured.coverage.missing().is_empty());
}

#[test]
fn a_counter_that_falls_is_no_difference() {
    let rule = "INPUT -p tcp -m tcp --dport 443";
    let start = of(&[(5, 500, rule)], &[tcp(443)]);
    let zeroed = difference(&start, &of(&[(1, 100, rule)], &[tcp(443)])).unwrap_err();
    assert!(zeroed.contains("set to zero"), "{zeroed}");
    assert!(difference(&start, &of(&[], &[tcp(443)])).unwrap_err().contains("vanished"));
    assert!(difference(&of(&[], &[tcp(443)]), &start).unwrap_err().contains("added"));
    let grown = difference(&start, &of(&[(9, 900, rule)], &[tcp(443)])).unwrap();
    assert_eq!(grown.bytes(Direction::Ingress), Some(400));
    // Reset, and grown beyond: another rule of the chain tells.
    let other = "INPUT -p tcp -m tcp --dport 22";
    let start = of(&[(5, 500, rule), (1, 50, other)], &[tcp(443)]);
    let end = of(&[(9, 900, rule), (0, 0, other)], &[tcp(443)]);
    assert!(difference(&start, &end).is_err());
}

#[test]
fn foreign_text_is_an_error_that_names_the_line() {
    for (text, line, part) in [
        ("hello\n", 1, "not in a table"),
        ("*filter\n:INPUT ACCEPT [0:0]\n-A INPUT -j ACCEPT\nCOMMIT\n", 3, "without -c"),
        ("*filter\n:INPUT ACCEPT [0:0]\n[x:0] -A INPUT -j ACCEPT\nCOMMIT\n", 3, "not a number"),
        ("*filter\n:INPUT ACCEPT [0:0]\n[0:0] -A INPUT --comment \"a\n", 3, "never closed"),
        ("*filter\n[0:0] -A INPUT -j ACCEPT\n", 2, "unknown chain"),
        ("*filter\n:INPUT ACCEPT [0:0]\n", 2, "no COMMIT"),
        ("COMMIT\n", 1, "without a table"),
        (
            "*filter\n:INPUT ACCEPT [0:0]\n[99999999999999999999:0] -A INPUT\nCOMMIT\n",
            3,
            "not a number",
        ),
    ] {
        let error = iptables::parse(text, "iptables", "ip").unwrap_err();
        assert!(error.line == line && error.problem.contains(part), "{text}: {error}");
    }
    assert!(nft::parse("Error: syntax", |_, _| false).unwrap_err().contains("line 1"));
    assert!(nft::parse("{}", |_, _| false).is_err());
    assert!(iptables::parse("", "iptables", "ip").unwrap().tables.is_empty());
}

#[test]
fn circles_of_jumps_end() {
    let reading = of(
        &[
            (0, 0, "INPUT -j SUB"),
            (0, 0, "SUB -j SUB"),
            (0, 0, "SUB -j INPUT"),
            (3, 300, "SUB -p tcp -m tcp --dport 443"),
        ],
        &[tcp(443)],
    );
    assert_eq!(reading.bytes(Direction::Ingress), Some(300));
}

/// Changes some characters of a text that programs really print.
fn damaged(text: &'static str) -> impl Strategy<Value = String> {
    let marks = prop::sample::select(vec![
        "\"", "!", "-", ":", ",", " ", "[", "]", "9", "\\", "é", "\n", "{", "null", "",
    ]);
    prop::collection::vec((0..text.len(), 0_usize..40, marks), 1..8).prop_map(move |edits| {
        let mut bytes = text.as_bytes().to_vec();
        for (at, length, mark) in edits {
            let at = at.min(bytes.len());
            let end = (at + length).min(bytes.len());
            bytes.splice(at..end, mark.bytes());
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn damaged_save_files_never_panic(text in prop_oneof![damaged(SAVED), damaged(UFW[1]), damaged(LEGACY)]) {
        if let Ok(saved) = iptables::parse(&text, "iptables-nft", "ip") {
            let ruleset = Ruleset { tables: saved.tables };
            let end = Reading::of(ruleset, &[tcp(443), tcp(11710), udp(443)], Vec::new(), Vec::new());
            let _ = difference(&reading(&[(SAVED, "iptables-nft", "ip")], &[tcp(443)]), &end)
                .map(|measured| (measured.find_shadowing(Direction::Ingress), measured.report()));
        }
    }

    #[test]
    fn damaged_json_never_panics(text in damaged(NFT)) {
        if let Ok(ruleset) = nft::parse(&text, |_, _| false) {
            let _ = Reading::of(ruleset, &[tcp(443)], Vec::new(), Vec::new());
        }
    }

    #[test]
    fn any_text_is_refused_or_read(text in any::<String>()) {
        let _ = iptables::parse(&text, "iptables", "ip");
        let _ = nft::parse(&text, |_, _| false);
        let _ = super::interface::parse(&text);
    }
}

#[test]
fn interfaces_are_read_and_a_reset_is_refused() {
    use super::interface::{difference, parse};
    let text = |rx: u64, tx: u64| {
        format!(
            "Inter-|   Receive                                                |  Transmit\n face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    lo:     500       5    0    0    0     0          0         0      500       5    0    0    0     0       0          0\n  eth0:{rx}      70    0    0    0     0          0         0 {tx}      80    0    0    0     0       0          0\n"
        )
    };
    let [start, end] = [text(1000, 2000), text(1500, 4000)].map(|text| parse(&text).unwrap());
    let report = difference(&start, &end).unwrap();
    assert_eq!((report.ingress_bytes, report.egress_bytes), (Some(500), Some(2000)));
    assert_eq!(report.rules.len(), 4);
    assert!(difference(&end, &start).unwrap_err().contains("eth0"));
    let error = parse("a\nb\n eth0: 1 2 x\n").unwrap_err().to_string();
    assert!(error.contains("line 3"), "{error}");
}

#[test]
fn traffic_that_no_rule_counts_is_a_finding() {
    let only_v4 = of(&[(5, 500, "INPUT -p tcp -m tcp --dport 443")], &[tcp(443), tcp(8443)]);
    let codes = |v6: u64, other: u64| {
        let findings = only_v4.coverage.findings(|cell| match (cell.family, cell.listening.port) {
            (_, 8443) => other,
            (Family::Ipv6, _) => v6,
            _ => 500,
        });
        findings.into_iter().map(|finding| finding.code).collect::<Vec<_>>()
    };
    assert_eq!(codes(0, 0), [""; 0]);
    assert_eq!(codes(9, 0), ["rules-miss-family"]);
    assert_eq!(codes(9, 7), ["not-all-ports", "rules-miss-family"]);
}
