use jiff::ZonedDateTime;

use super::super::fixture::{counters, finding, text};
use super::*;
use crate::{
    past::{Coverage, projection, tally::Group},
    report::{FORMAT, Leg, Protocol, Scopes},
    units::Units,
};

fn options(width: u16) -> Options {
    Options { width, ..Options::plain(Units::Iec, false) }
}

fn table(report: &PastReport, options: &Options) -> String {
    text(|out| write(report, options, out))
}

fn at(time: &str) -> ZonedDateTime {
    format!("{time}+08:00[+08:00]").parse().unwrap()
}

fn days(from: &str, to: &str) -> Extent {
    Extent { start: at(&format!("{from}T00:00")), end: at(&format!("{to}T00:00")) }
}

/// A thousandth of the packets out comes in, 1500 bytes each.
fn directions(packets: u64) -> Directions {
    Directions { ingress: counters(packets / 1000), egress: counters(packets) }
}

fn billed(packets: u64) -> Scopes {
    Scopes { billed: directions(packets), ..Scopes::default() }
}

fn observed(observed_seconds: f64, observable_seconds: f64) -> Coverage {
    let complete = observed_seconds == observable_seconds;
    Coverage { observed_seconds, observable_seconds, complete, notes: vec![] }
}

fn row(period: &str, extent: Extent, totals: Scopes) -> Row {
    Row {
        target: "xray".to_owned(),
        period: period.to_owned(),
        extent,
        day: None,
        group: Group::default(),
        totals,
        total_wire_bytes: totals.billed.wire_bytes(),
        modelled_link_bytes: None,
        coverage: observed(86_400.0, 86_400.0),
        estimates: vec![],
    }
}

fn report(interval: Extent, totals: Scopes, rows: Vec<Row>) -> PastReport {
    let target = TargetPast {
        name: "xray".to_owned(),
        selector: "unit:xray.service".to_owned(),
        since: at("2026-10-01T12:00:00"),
        last_flush: at("2026-11-24T18:20:00"),
        total_wire_bytes: totals.billed.wire_bytes(),
        totals,
        coverage: observed(4_692_000.0, 4_692_000.0),
        projection: None,
        calibration: None,
        estimate_notes: None,
        findings: vec![],
    };
    PastReport {
        format: FORMAT,
        command: "report",
        time_zone: "Asia/Shanghai".to_owned(),
        made_at: at("2026-11-24T18:20:05"),
        interval,
        by: vec![],
        link_overhead: None,
        with_estimates: false,
        targets: vec![target],
        rows,
    }
}

/// 1,000,000 packets of 1500 bytes are 1.40 GiB.
fn overview() -> PastReport {
    let (today, month) = (days("2026-11-24", "2026-11-25"), days("2026-11-01", "2026-12-01"));
    let rows = vec![
        row("today", today, billed(1_000_000)),
        row("yesterday", days("2026-11-23", "2026-11-24"), billed(3_000_000)),
        row("this-month", month.clone(), billed(20_000_000)),
        row("last-month", days("2026-10-01", "2026-11-01"), billed(40_000_000)),
    ];
    let totals = billed(60_000_000);
    let mut report = report(days("2026-10-01", "2026-12-01"), totals, rows);
    // 10 of 30 days were observed, in which 20,000,000 packets went out: the month is three times as much.
    let (start, end) = (month.start, month.end);
    let projected =
        projection::project("2026-11".into(), (start, end), &directions(20_000_000), 864_000_000);
    report.targets[0].projection = Some(projected);
    report
}

#[test]
fn overview_fits_into_80_columns() {
    let expected = "\
xray (unit:xray.service)
  counted    since 2026-10-01 12:00:00 +08:00
  observed   54 d 07 h 20 min of 54 d 07 h 20 min

               ingress    egress     total
  today       1.43 MiB  1.40 GiB  1.40 GiB  ▋
  yesterday   4.29 MiB  4.19 GiB  4.20 GiB  █▊
  this month  28.6 MiB  27.9 GiB  28.0 GiB  ████████████
  last month  57.2 MiB  55.9 GiB  55.9 GiB  ████████████████████████
  projection  85.8 MiB  83.8 GiB  83.9 GiB  ████████████████████████████████████
  projection: 2026-11 if the whole month is like the 10 d 00 h 00 min of it that
  were observed
";
    assert_eq!(table(&overview(), &options(80)), expected);
}

#[test]
fn too_little_is_not_projected() {
    let mut report = overview();
    let projection = report.targets[0].projection.as_mut().unwrap();
    let (start, end) = (projection.start.clone(), projection.end.clone());
    *projection = projection::project("2026-11".into(), (start, end), &directions(1), 3_600_000);
    let text = table(&report, &options(100));
    assert!(!text.contains("\n  projection "), "{text}");
    assert!(
        text.contains(
            "  no projection: 1 h 00 min 00 s of this month were observed; it takes 1 d 00 h 00 min of \
             them to\n  say what the month comes to\n"
        ),
        "{text}"
    );
}

fn by_day() -> PastReport {
    let mut rows = vec![
        row("2026-11-22", days("2026-11-22", "2026-11-23"), billed(1_000_000)),
        row("2026-11-23", days("2026-11-23", "2026-11-24"), billed(2_000_000)),
    ];
    let gap = Note {
        kind: "gap",
        extent: Extent { start: at("2026-11-23T08:00"), end: at("2026-11-23T08:51:50.4") },
        message: "cgroup /system.slice/xray.service was gone".to_owned(),
    };
    // 3110.4 of 86,400 s are 3.6 %.
    rows[1].coverage = Coverage { notes: vec![gap.clone()], ..observed(83_289.6, 86_400.0) };
    let mut totals = billed(3_000_000);
    totals.loopback = directions(1_000);
    let mut report = report(days("2026-11-22", "2026-11-24"), totals, rows);
    report.targets[0].coverage = Coverage { notes: vec![gap], ..observed(169_689.6, 172_800.0) };
    report
}

#[test]
fn what_was_not_observed_is_marked_and_told_below() {
    let expected = "\
xray (unit:xray.service)
  interval   2026-11-22 00:00 to 2026-11-24 00:00 +08:00 (Asia/Shanghai)
  counted    since 2026-10-01 12:00:00 +08:00
  observed   1 d 23 h 08 min of 2 d 00 h 00 min (98.20 %): traffic may be
             missing

Exact: 4.20 GiB (4,504,500,000 B) on the wire
               ingress    egress     total  observed
  2026-11-22  1.43 MiB  1.40 GiB  1.40 GiB            █████████████
  2026-11-23  2.86 MiB  2.79 GiB  2.80 GiB   96.40 %  ██████████████████████████
  sum         4.29 MiB  4.19 GiB  4.20 GiB
  loopback    1.46 KiB  1.43 MiB  1.43 MiB

What happened
  gap         2026-11-23 08:00:00 to 08:51:50 +08:00 (51 min 50 s): cgroup
              /system.slice/xray.service was gone
";
    assert_eq!(table(&by_day(), &options(80)), expected);
}

#[test]
fn share_that_is_missing_is_never_rounded_away() {
    let mut report = by_day();
    report.rows[1].coverage.observed_seconds = 86_399.9;
    assert!(table(&report, &options(80)).contains(" 99.99 %  █"));
}

#[test]
fn bars_are_ascii_where_the_locale_is_and_gone_where_there_is_no_room() {
    let ascii = Options { unicode: false, ..options(80) };
    let text = table(&by_day(), &ascii);
    assert!(text.is_ascii(), "{text}");
    assert!(text.contains("2.80 GiB   96.40 %  ##########################\n"), "{text}");
    let narrow = table(&by_day(), &options(40));
    assert!(narrow.contains("\n  2026-11-22  1.43 MiB  1.40 GiB  1.40 GiB\n"), "{narrow}");
}

#[test]
fn parts_of_a_period_stand_below_its_name() {
    let leg = |leg, port| Group {
        leg: Some(leg),
        protocol: (leg == Leg::Client).then_some(Protocol::Tcp),
        port,
        ..Group::default()
    };
    let parts = |period: &str, extent: Extent| {
        [
            (leg(Leg::Client, Some(Some(443))), 1_000_000),
            (leg(Leg::Client, Some(None)), 1_000),
            (leg(Leg::Upstream, None), 2_000_000),
        ]
        .map(|(group, packets)| Row { group, ..row(period, extent.clone(), billed(packets)) })
    };
    let mut rows = Vec::from(parts("2026-11-22", days("2026-11-22", "2026-11-23")));
    rows.extend(parts("2026-11-23", days("2026-11-23", "2026-11-24")));
    let report = report(days("2026-11-22", "2026-11-24"), billed(6_002_000), rows);
    let text = table(&report, &options(80));
    let expected = "
              leg       port          ingress    egress     total
  2026-11-22  client    tcp/443      1.43 MiB  1.40 GiB  1.40 GiB  ██████▌
              client    tcp, others  1.46 KiB  1.43 MiB  1.43 MiB  ▏
              upstream               2.86 MiB  2.79 GiB  2.80 GiB  █████████████
  2026-11-23  client    tcp/443      1.43 MiB  1.40 GiB  1.40 GiB  ██████▌
              client    tcp, others  1.46 KiB  1.43 MiB  1.43 MiB  ▏
              upstream               2.86 MiB  2.79 GiB  2.80 GiB  █████████████
  sum                                8.59 MiB  8.38 GiB  8.39 GiB
";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn a_wide_name_shifts_no_column() {
    let part = |interface: &str, scope| Group {
        interface: Some(interface.to_owned()),
        scope: Some(scope),
        ..Group::default()
    };
    let interval = || days("2026-11-22", "2026-11-24");
    let rows = vec![
        Row {
            group: part("以太网0", Scope::Billed),
            ..row("interval", interval(), billed(1_000_000))
        },
        Row { group: part("eth1", Scope::Billed), ..row("interval", interval(), billed(500_000)) },
        Row {
            group: part("lo", Scope::Loopback),
            ..row(
                "interval",
                interval(),
                Scopes { loopback: directions(250_000), ..Scopes::default() },
            )
        },
    ];
    let mut totals = billed(1_500_000);
    totals.loopback = directions(250_000);
    let text = table(&report(interval(), totals, rows), &options(64));
    let expected = "
  interface  scope      ingress    egress     total
  以太网0    billed    1.43 MiB  1.40 GiB  1.40 GiB  ███████████
  eth1       billed     732 KiB   715 MiB   716 MiB  █████▌
  lo         loopback   366 KiB   358 MiB   358 MiB  ██▊
  billed               2.15 MiB  2.10 GiB  2.10 GiB
";
    assert!(text.contains(expected), "{text}");
}

#[test]
fn hour_that_comes_twice_shows_its_offset() {
    let hour = |start: &str, end: &str| Extent {
        start: start.parse().unwrap(),
        end: end.parse().unwrap(),
    };
    let (summer, winter) = ("-04:00[America/New_York]", "-05:00[America/New_York]");
    let rows = vec![
        row(
            "2026-11-01T00",
            hour(&format!("2026-11-01T00:00{summer}"), &format!("2026-11-01T01:00{summer}")),
            billed(1_000),
        ),
        row(
            "2026-11-01T01",
            hour(&format!("2026-11-01T01:00{summer}"), &format!("2026-11-01T01:00{winter}")),
            billed(1_000),
        ),
        row(
            "2026-11-01T01",
            hour(&format!("2026-11-01T01:00{winter}"), &format!("2026-11-01T02:00{winter}")),
            billed(1_000),
        ),
    ];
    let text = table(&report(days("2026-11-01", "2026-11-02"), billed(3_000), rows), &options(80));
    assert!(text.contains("\n  2026-11-01 00:00         "), "{text}");
    assert!(text.contains("\n  2026-11-01 01:00 -04:00  "), "{text}");
    assert!(text.contains("\n  2026-11-01 01:00 -05:00  "), "{text}");
}

#[test]
fn modelled_bytes_are_called_a_model() {
    let mut report = by_day();
    for row in &mut report.rows {
        row.modelled_link_bytes = Some(row.total_wire_bytes + 14 * 1_001_000);
    }
    let text = table(&report, &options(100));
    assert!(text.contains("total  link (model)  observed"), "{text}");
    // 1,501,500,000 and 14,014,000: 1.41 GiB.
    assert!(text.contains("1.40 GiB      1.41 GiB"), "{text}");
}

#[test]
fn all_counters_are_there_on_request_and_findings_with_their_remedy() {
    let mut report = by_day();
    report.targets[0].findings.push(finding());
    let text = table(&report, &Options { verbose: true, ..options(100) });
    for words in
        ["wire packets", "retransmitted", "Findings\n  warning  socket-not-owned:", "remedy:"]
    {
        assert!(text.contains(words), "{words} is not in {text}");
    }
}

#[test]
fn many_notes_are_shortened_to_the_latest() {
    let mut report = by_day();
    let note = report.targets[0].coverage.notes[0].clone();
    report.targets[0].coverage.notes = (0..25)
        .map(|number| Note { message: format!("number {number}"), ..note.clone() })
        .collect();
    let text = table(&report, &options(100));
    assert!(text.contains("5 earlier ones are in --format json"), "{text}");
    assert!(
        !text.contains("number 4\n") && text.contains("number 5\n") && text.contains("number 24\n")
    );
}

#[test]
fn names_cannot_command_the_terminal() {
    let mut report = by_day();
    report.targets[0].name = "x\x1b[2J".to_owned();
    report.targets[0].selector = "unit:\x1b]0;owned\x07".to_owned();
    report.targets[0].coverage.notes[0].message = "gone\x1b[1A".to_owned();
    assert!(!table(&report, &options(80)).contains('\x1b'));
}
