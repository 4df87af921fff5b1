use super::super::fixture::{self, compare, finding, text};
use super::*;
use crate::report::{CgroupReport, Origin, ProcessReport};

fn options(width: u16) -> Options {
    Options { width, ..Options::plain(Units::Iec, false) }
}

fn table(report: &Report, options: &Options) -> String {
    text(|out| write(report, options, out))
}

/// 2,002,000 packets of 1500 bytes are 3,003,000,000: 2.80 GiB. Rules miss 52 bytes of headers in all
/// but every fortieth: 1,448,000 + 25 x 52 to the port.
#[test]
fn comparison_fits_into_80_columns_and_ends_with_its_verdict() {
    let expected = "\
xray (unit:xray.service)
  cgroup     /system.slice/xray.service (id 4242)
  processes  xray (100)
  interval   2026-11-23 10:00:00 to 10:01:00 +08:00
  observed   1 min 00 s of 1 min 00 s

Exact: 2.80 GiB (3,003,000,000 B) on the wire
                 ingress    egress     total
  client leg    1.43 MiB  1.40 GiB  1.40 GiB
  upstream leg  1.40 GiB  1.43 MiB  1.40 GiB
  sum           1.40 GiB  1.40 GiB  2.80 GiB

By listening port (client leg)
            ingress    egress     total
  tcp/443  1.43 MiB  1.40 GiB  1.40 GiB
  no traffic  udp/443

Methods
  method         covers      layer     ingress    egress     total
  ebpf           target      L3 wire  1.40 GiB  1.40 GiB  2.80 GiB
  hook-port      client leg  L3       1.38 MiB  1.35 GiB  1.35 GiB
  iptables-port  client leg  L3       1.38 MiB  1.35 GiB  1.35 GiB
  interface      not available: eth0 appeared after the start; measure again now
                 that it is there

Estimates from iptables-port
  estimate  formula                 total     error  (1)  (2)  (3)
  in-x2     2 * dport            2.76 MiB  -99.90 %  no   no   no
  out-x2    2 * sport            2.70 GiB   -3.48 %  yes  no   no
  sum-x1    dport + sport        1.35 GiB  -51.69 %  no   no   no
  sum-x2    2 * (dport + sport)  2.70 GiB   -3.38 %  yes  no   no
  claims held: (1) the estimate is within 20 %; (2) the truth is 10-20 % above
               the estimate; (3) the truth is 2.1-2.3 times what was counted

Capture
  iptables-port saw 0.10 % of ingress and 96.52 % of egress (of the exact
  figure)
  client leg, ingress : egress = 1 : 1,000

Verdict: the published estimate (in-x2) shows 0.10 % of what the proxy really
         used
";
    assert_eq!(table(&compare(), &options(80)), expected);
}

#[test]
fn command_is_told_as_briefly_as_by_time() {
    let mut report = fixture::exec();
    report.targets[0].findings.push(finding());
    report.targets[0].complete = false;
    let expected = "\
curl: 1.3 s, exit status 0, incomplete
            wire bytes      exactly  wire packets   payload
  total       1.57 MiB  1,650,000 B         1,100  1.52 MiB
  ingress     1.43 MiB  1,500,000 B         1,000  1.38 MiB
  egress       146 KiB    150,000 B           100   141 KiB
  loopback    2.93 KiB      3,000 B             2  2.83 KiB
  warning  socket-not-owned: 4 sockets of xray (pid 100, ports 443 and 8443)
           belong to cgroup /user.slice/user-0.slice and are not counted
           remedy: restart the proxy inside its unit: systemctl restart
           xray.service
";
    assert_eq!(table(&report, &options(80)), expected);
}

#[test]
fn command_that_serves_has_its_legs_shown() {
    let mut report = compare();
    report.command = "exec";
    report.exit_status = Some(ExitStatus { code: None, signal: Some(9) });
    let exact = Options::plain(Units::Bytes, false);
    let expected = "\
xray: 1 min 00 s, killed by signal 9
                     wire bytes  wire packets          payload
  total         3,003,000,000 B     2,002,000  2,898,896,000 B
  ingress       1,501,500,000 B     1,001,000  1,449,448,000 B
  egress        1,501,500,000 B     1,001,000  1,449,448,000 B
  client leg    1,501,500,000 B     1,001,000  1,449,448,000 B
  upstream leg  1,501,500,000 B     1,001,000  1,449,448,000 B
";
    assert_eq!(table(&report, &exact), expected);
}

#[test]
fn everything_that_was_counted_is_there_on_request() {
    let verbose = Options { width: 80, ..Options::plain(Units::Iec, true) };
    let text = table(&compare(), &verbose);
    for lines in [
        "\
                                 ingress     egress      total
  client leg    wire bytes      1.43 MiB   1.40 GiB   1.40 GiB
                wire packets       1,000  1,000,000  1,001,000
                bytes           1.38 MiB   1.35 GiB   1.35 GiB
                packets               25     25,000     25,025
                payload         1.38 MiB   1.35 GiB   1.35 GiB
                retransmitted        0 B        0 B        0 B
",
        "\
By interface, protocol and family (wire bytes, all scopes)
                  ingress    egress     total
  eth0 (billed)  1.40 GiB  1.40 GiB  2.80 GiB
  tcp            1.40 GiB  1.40 GiB  2.80 GiB
  ipv4           1.40 GiB  1.40 GiB  2.80 GiB
",
        "\
Counters behind iptables-port
  ingress   1.38 MiB           25 packets  iptables-nft filter/INPUT
           -p tcp -m tcp --dport 443
  egress    1.35 GiB       25,000 packets  iptables-nft filter/OUTPUT
           -p tcp -m tcp --sport 443
",
    ] {
        assert!(text.contains(lines), "{lines}\nis not in\n{text}");
    }
}

#[test]
fn rule_that_is_not_in_the_sum_says_why() {
    let mut report = compare();
    let rules = &mut report.targets[0].methods[2].rules;
    rules[0].reason = Some("limited to interface eth0".to_owned());
    (rules[1].counted, rules[1].reason) = (false, Some("negated".to_owned()));
    let text = table(&report, &Options { verbose: true, ..options(80) });
    for lines in [
        "-p tcp -m tcp --dport 443\n           (limited to interface eth0)\n",
        "-p tcp -m tcp --sport 443\n           (not in the sum: negated)\n",
    ] {
        assert!(text.contains(lines), "{lines}\nis not in\n{text}");
    }
}

#[test]
fn no_line_is_wider_than_80_columns_in_any_units() {
    for units in [Units::Iec, Units::Si, Units::Bytes] {
        for verbose in [false, true] {
            for report in [compare(), fixture::exec()] {
                let options = Options { width: 80, ..Options::plain(units, verbose) };
                for line in table(&report, &options).lines() {
                    assert!(line.chars().count() <= 80, "{units}, {verbose}: {line}");
                    assert_eq!(line, line.trim_end());
                }
            }
        }
    }
}

#[test]
fn loopback_unbilled_and_kernel_are_apart_and_only_where_there_is_some() {
    let mut report = compare();
    let target = &mut report.targets[0];
    let [mut loopback, mut unbilled, mut kernel] =
        std::array::from_fn(|_| target.cells.first().cloned().expect("cells of the fixture"));
    (loopback.scope, loopback.interface) = (Scope::Loopback, "lo".to_owned());
    (unbilled.scope, unbilled.interface) = (Scope::Unbilled, "eth1".to_owned());
    (kernel.origin, kernel.counters) = (Origin::Kernel, fixture::counters(1));
    target.cells.extend([loopback, unbilled, kernel]);
    target.totals = ledger::totals(&target.cells);
    let text = table(&report, &options(80));
    let expected = "\
  sum           1.40 GiB  1.40 GiB   2.80 GiB
  incl. kernel   1.46 KiB       0 B   1.46 KiB
  unbilled       1.43 MiB       0 B   1.43 MiB
  loopback       1.43 MiB       0 B   1.43 MiB
";
    let squeezed = |text: &str| {
        text.lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect::<Vec<_>>()
            .join("\n")
    };
    assert!(squeezed(&text).contains(&squeezed(expected)), "{text}");
    assert!(text.contains("By listening port (client leg, loopback included)\n"), "{text}");
}

#[test]
fn incomplete_answer_says_so_at_once_and_long_lists_are_cut() {
    let mut report = compare();
    let target = &mut report.targets[0];
    target.complete = false;
    target.observed_seconds = 58.0;
    target.cgroups = (1..=8).map(|id| CgroupReport { path: format!("/a/{id}"), id }).collect();
    target.processes = (1..=9).map(|pid| ProcessReport { pid, name: "xray".to_owned() }).collect();
    target.findings = vec![finding()];
    let text = table(&report, &options(80));
    for line in [
        "  cgroup     /a/6 (id 6)\n             and 2 more\n",
        "  processes  xray (1, 2, 3, 4, 5, 6), and 3 more\n",
        "  observed   58.0 s of 1 min 00 s\n",
        "  complete   no: traffic may be missing, the findings say why\n",
        "\nFindings\n  warning  socket-not-owned: 4 sockets of",
    ] {
        assert!(text.contains(line), "{line}\nis not in\n{text}");
    }
}

#[test]
fn colours_are_for_terminals_and_change_no_text() {
    let mut report = compare();
    report.targets[0].findings.push(finding());
    let plain = table(&report, &options(80));
    assert!(!plain.contains('\x1b'));
    let coloured = table(&report, &Options { colour: true, ..options(80) });
    assert!(coloured.contains("\x1b[33mwarning\x1b[0m"));
    assert!(coloured.contains("\x1b[1mVerdict:\x1b[0m"));
    // Without the sequences (ESC [ ... m), and without what alignment left at the ends of lines.
    let mut bare = String::new();
    for (index, part) in coloured.split("\x1b[").enumerate() {
        bare.push_str(if index == 0 { part } else { part.split_once('m').unwrap().1 });
    }
    let bare: Vec<_> = bare.lines().map(str::trim_end).collect();
    assert_eq!(bare, plain.lines().collect::<Vec<_>>());
}

#[test]
fn names_cannot_command_the_terminal() {
    let mut report = compare();
    let target = &mut report.targets[0];
    let evil = "x\x1b]0;owned\x07".to_owned();
    target.name.clone_from(&evil);
    target.selector.clone_from(&evil);
    target.processes[0].name.clone_from(&evil);
    target.cgroups[0].path.clone_from(&evil);
    target.cells[0].interface.clone_from(&evil);
    target.methods[2].rules[0].rule.clone_from(&evil);
    target.methods[3].reason = Some(evil.clone());
    target.verdict = evil;
    for command in ["compare", "exec"] {
        report.command = command;
        for verbose in [false, true] {
            let text = table(&report, &Options { verbose, ..options(80) });
            assert!(!text.contains(['\x1b', '\x07']), "{text:?}");
        }
    }
}

#[test]
fn each_target_has_its_own_block_and_nothing_to_say_is_not_said() {
    let mut report = compare();
    report.targets.push(report.targets[0].clone());
    let second = &mut report.targets[1];
    second.name = "nginx".to_owned();
    second.methods.clear();
    second.estimates.clear();
    second.capture_rates.clear();
    (second.ratio, second.ports) = (None, vec![]);
    let text = table(&report, &options(80));
    let (_, second) = text.split_once("\n\nnginx (unit:xray.service)\n").expect("a second block");
    assert_eq!(second.lines().filter(|line| line.is_empty()).count(), 2, "{second}");
    assert!(second.contains("\n  sum "));
}

#[test]
fn what_was_carried_again_is_told_by_leg_where_there_was_any() {
    let mut report = compare();
    assert!(!table(&report, &options(80)).contains("retransmitted"));
    report.targets[0].cells[0].counters.retransmitted_bytes = 2896;
    let text = table(&report, &options(80));
    let line = "\n  retransmitted payload, included: client leg 2.83 KiB in, 0 B out\n";
    assert!(text.contains(line), "{text}");
}
