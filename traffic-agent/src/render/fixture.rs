//! Reports made by hand for the tests of this room: a proxy that downloads, and a command.

use jiff::ZonedDateTime;

use crate::{
    estimate::{self, PortBytes},
    ledger,
    report::{
        CellReport, CgroupReport, Counters, Covers, Direction, ExitStatus, FORMAT, Family, Finding,
        Interval, Layer, Leg, MethodReport, Origin, PortReport, ProcessReport, Protocol, Report,
        RuleReport, Scope, Severity, TargetReport,
    },
};

pub(super) fn interval() -> Interval {
    let at = |time: &str| time.parse::<ZonedDateTime>().expect("a time with its zone");
    Interval {
        start: at("2026-11-23T10:00:00.25+08:00[+08:00]"),
        end: at("2026-11-23T10:01:00.25+08:00[+08:00]"),
        seconds: 60.0,
    }
}

/// `packets` of 1500 bytes on the wire, as super-packets of up to 40, each with headers of 52 bytes.
pub(super) fn counters(packets: u64) -> Counters {
    let supers = packets.div_ceil(40);
    Counters {
        packets: supers,
        bytes: packets * 1448 + supers * 52,
        wire_packets: packets,
        wire_bytes: packets * 1500,
        payload_bytes: packets * 1448,
        retransmitted_bytes: 0,
    }
}

fn cell(
    (interface, scope): (&str, Scope),
    direction: Direction,
    (leg, port): (Leg, Option<u16>),
    counters: Counters,
) -> CellReport {
    CellReport {
        interface: interface.to_owned(),
        scope,
        origin: Origin::Socket,
        direction,
        leg,
        protocol: Protocol::Tcp,
        port,
        family: Family::Ipv4,
        counters,
    }
}

/// 1,000,000 packets up and 1,000 down on the client leg, the reverse upstream; no findings.
pub(super) fn compare() -> Report {
    use Direction::{Egress, Ingress};
    const ETH0: (&str, Scope) = ("eth0", Scope::Billed);
    const CLIENT: (Leg, Option<u16>) = (Leg::Client, Some(443));
    const UPSTREAM: (Leg, Option<u16>) = (Leg::Upstream, None);
    let cells = vec![
        cell(ETH0, Ingress, CLIENT, counters(1_000)),
        cell(ETH0, Ingress, UPSTREAM, counters(1_000_000)),
        cell(ETH0, Egress, CLIENT, counters(1_000_000)),
        cell(ETH0, Egress, UPSTREAM, counters(1_000)),
    ];
    let (ingress, egress) = (counters(1_000), counters(1_000_000));
    let port = PortBytes { ingress: ingress.bytes, egress: egress.bytes };
    let totals = ledger::totals(&cells);
    let exact = PortBytes {
        ingress: totals.billed.ingress.wire_bytes,
        egress: totals.billed.egress.wire_bytes,
    };
    let rule = |chain: &str, rule: &str, direction, bytes, packets| RuleReport {
        backend: "iptables-nft".to_owned(),
        table: "filter".to_owned(),
        chain: chain.to_owned(),
        rule: rule.to_owned(),
        direction,
        bytes,
        packets,
        counted: true,
        reason: None,
    };
    let method = |name, covers, layer, bytes: PortBytes, rules| MethodReport {
        name,
        covers,
        layer,
        available: true,
        reason: None,
        ingress_bytes: Some(bytes.ingress),
        egress_bytes: Some(bytes.egress),
        rules,
    };
    let rules = vec![
        rule("INPUT", "-p tcp -m tcp --dport 443", Ingress, ingress.bytes, ingress.packets),
        rule("OUTPUT", "-p tcp -m tcp --sport 443", Egress, egress.bytes, egress.packets),
    ];
    let target = TargetReport {
        name: "xray".to_owned(),
        selector: "unit:xray.service".to_owned(),
        cgroups: vec![CgroupReport { path: "/system.slice/xray.service".to_owned(), id: 4242 }],
        processes: vec![ProcessReport { pid: 100, name: "xray".to_owned() }],
        complete: true,
        observed_seconds: 60.0,
        total_wire_bytes: exact.ingress + exact.egress,
        totals,
        ports: vec![
            PortReport { protocol: Protocol::Tcp, port: Some(443), ingress, egress },
            PortReport {
                protocol: Protocol::Udp,
                port: Some(443),
                ingress: Counters::default(),
                egress: Counters::default(),
            },
        ],
        cells,
        unattributed: None,
        methods: vec![
            method("ebpf", Covers::Target, Layer::L3Wire, exact, vec![]),
            method("hook-port", Covers::ClientLeg, Layer::L3, port, vec![]),
            method("iptables-port", Covers::ClientLeg, Layer::L3, port, rules),
            MethodReport {
                name: "interface",
                covers: Covers::Interfaces,
                layer: Layer::L2,
                available: false,
                reason: Some(
                    "eth0 appeared after the start; measure again now that it is there".to_owned(),
                ),
                ingress_bytes: None,
                egress_bytes: None,
                rules: vec![],
            },
        ],
        estimates: estimate::estimates("iptables-port", port, Some(exact.ingress + exact.egress)),
        capture_rates: estimate::capture_rates("iptables-port", port, "exact", exact).to_vec(),
        ratio: Some(estimate::ratio(port)),
        verdict: "the published estimate (in-x2) shows 0.10 % of what the proxy really used"
            .to_owned(),
        findings: vec![],
    };
    Report {
        format: FORMAT,
        command: "compare",
        interval: interval(),
        targets: vec![target],
        exit_status: None,
    }
}

/// A command that fetched 1,000 packets, and talked to a server on the same host.
pub(super) fn exec() -> Report {
    let cell = |place, direction, packets| {
        cell(place, direction, (Leg::Upstream, None), counters(packets))
    };
    let cells = vec![
        cell(("lo", Scope::Loopback), Direction::Egress, 2),
        cell(("eth0", Scope::Billed), Direction::Ingress, 1_000),
        cell(("eth0", Scope::Billed), Direction::Egress, 100),
    ];
    let totals = ledger::totals(&cells);
    let mut report = compare();
    let [target] = report.targets.as_mut_slice() else { unreachable!("made with one target") };
    *target = TargetReport {
        name: "curl".to_owned(),
        selector: "exec:curl".to_owned(),
        cgroups: vec![],
        processes: vec![],
        total_wire_bytes: totals.billed.wire_bytes(),
        totals,
        ports: vec![],
        cells,
        methods: vec![],
        estimates: vec![],
        capture_rates: vec![],
        ratio: None,
        verdict: String::new(),
        findings: vec![],
        ..target.clone()
    };
    report.command = "exec";
    report.interval.seconds = 1.25;
    report.exit_status = Some(ExitStatus { code: Some(0), signal: None });
    report
}

pub(super) fn finding() -> Finding {
    Finding {
        severity: Severity::Warning,
        code: "socket-not-owned",
        message: "4 sockets of xray (pid 100, ports 443 and 8443) belong to cgroup \
                  /user.slice/user-0.slice and are not counted"
            .to_owned(),
        remedy: "restart the proxy inside its unit: systemctl restart xray.service".to_owned(),
        incomplete: true,
    }
}

/// Returns what a writer wrote.
pub(super) fn text(write: impl FnOnce(&mut dyn std::io::Write) -> std::io::Result<()>) -> String {
    let mut out = Vec::new();
    write(&mut out).expect("memory takes everything");
    String::from_utf8(out).expect("only text is written")
}
