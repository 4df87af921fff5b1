//! `report` on a history that was written through the store: what goes in comes out, in every zone and
//! format. Needs no rights.

mod history;

use std::fs;

use history::*;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use traffic_agent::estimate::PortBytes;
use traffic_agent::history::{Event, EventKind, Method, MethodReading, Quarter, spread};
use traffic_agent::host::{HostAbsolute, HostFlush, HostSeries};
use traffic_agent::method::interface::InterfaceCounters;
use traffic_agent::report::{Counters, Direction};

/// Two days and a half hour in Shanghai (+08:00): 24 November 2026 begins at 16:00Z of the 23rd.
fn two_days() -> History {
    let mut history = History::new("Asia/Shanghai");
    history.observed("xray", "2026-11-22T15:30:00Z", "2026-11-22T16:00:00Z", proxied(100));
    history.observed("xray", "2026-11-22T16:00:00Z", "2026-11-23T16:00:00Z", proxied(10_000));
    history.observed("xray", "2026-11-23T16:00:00Z", "2026-11-24T10:00:00Z", proxied(2_000));
    history
}

fn totals(report: &Value) -> Vec<(&str, u64)> {
    let rows = report["rows"].as_array().unwrap();
    rows.iter()
        .map(|row| (row["period"].as_str().unwrap(), row["total_wire_bytes"].as_u64().unwrap()))
        .collect()
}

/// 101 packets in and out for each 100 down, of 1500 bytes.
fn both(down: u64) -> u64 {
    (down + down / 100) * 1500 * 2
}

#[test]
fn days_are_those_of_the_history_and_sum_up_to_what_went_in() {
    let history = two_days();
    let report = history.json(&["--by", "day", "--from", "2026-11-22", "--to", "2026-11-25"]);
    let days =
        [("2026-11-22", both(100)), ("2026-11-23", both(10_000)), ("2026-11-24", both(2_000))];
    assert_eq!(totals(&report), days);
    assert_eq!(report["targets"][0]["total_wire_bytes"], both(100) + both(10_000) + both(2_000));
    let second = &report["rows"][1];
    assert_eq!(second["start"], "2026-11-23T00:00:00+08:00");
    assert_eq!(second["end"], "2026-11-24T00:00:00+08:00");
    assert_eq!((&second["day"], &second["target"]), (&json!("2026-11-23"), &json!("xray")));
    assert_eq!(second["billed"]["egress"]["wire_bytes"], 10_100 * 1500);
    assert_eq!(second["billed"]["ingress"]["payload_bytes"], 10_100 * 1448);
    assert_eq!(
        (&second["observed_seconds"], &second["complete"]),
        (&json!(86_400.0), &json!(true))
    );
    // Counted since 23:30.
    let first = &report["rows"][0];
    assert_eq!(
        (&first["observed_seconds"], &first["observable_seconds"]),
        (&json!(1800.0), &json!(1800.0))
    );
    assert_eq!((&report["format"], &report["command"]), (&json!(1), &json!("report")));
    assert_eq!((&report["time_zone"], &report["by"]), (&json!("Asia/Shanghai"), &json!(["day"])));
}

#[test]
fn another_zone_is_cut_from_the_quarters() {
    let history = two_days();
    // The traffic lies in the quarters that end at 16:00Z of the 22nd, 16:00Z of the 23rd and 10:00Z of the
    // 24th: 21:45, 21:45 and 15:45 in Nepal.
    let nepal = ["--time-zone", "Asia/Kathmandu"];
    let asked = ["--by", "hour", "--from", "2026-11-22", "--to", "2026-11-25"];
    let report = history.json(&[nepal, ["--by", "day"], ["--from", "2026-11-22"]].concat());
    let days =
        [("2026-11-22", both(100)), ("2026-11-23", both(10_000)), ("2026-11-24", both(2_000))];
    assert_eq!(totals(&report)[..3], days);
    let report = history.json(&[&nepal[..], &asked[..]].concat());
    let busy: Vec<_> = totals(&report).into_iter().filter(|(_, bytes)| *bytes != 0).collect();
    let hours = [
        ("2026-11-22T21", both(100)),
        ("2026-11-23T21", both(10_000)),
        ("2026-11-24T15", both(2_000)),
    ];
    assert_eq!(busy, hours);
    assert_eq!(report["rows"][0]["start"], "2026-11-22T21:00:00+05:45");
}

#[test]
fn parts_sum_up_to_the_whole_in_every_division() {
    let mut history = two_days();
    let loopback = vec![
        (series(LO, CLIENT, Direction::Ingress), packets(7)),
        (series(LO, UPSTREAM, Direction::Egress), packets(5)),
    ];
    history.observed("xray", "2026-11-24T10:00:00Z", "2026-11-24T10:15:00Z", loopback);
    let range = ["--from", "2026-11-22", "--to", "2026-11-25"];
    let whole = both(100) + both(10_000) + both(2_000);
    for by in
        ["leg", "port", "protocol", "interface", "scope", "day,leg", "hour,port", "month,scope,leg"]
    {
        let report = history.json(&[&["--by", by], &range[..]].concat());
        let sum: u64 = totals(&report).iter().map(|(_, bytes)| bytes).sum();
        assert_eq!(
            (sum, &report["targets"][0]["total_wire_bytes"]),
            (whole, &json!(whole)),
            "{by}"
        );
        let loopback: u64 = report["rows"]
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row["loopback"]["ingress"]["wire_packets"].as_u64().unwrap())
            .sum();
        assert_eq!(loopback, 7, "{by}");
    }
    let report = history.json(&[&["--by", "port"], &range[..]].concat());
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!(
        (&rows[0]["leg"], &rows[0]["protocol"], &rows[0]["port"]),
        (&json!("client"), &json!("tcp"), &json!(443))
    );
    assert_eq!(rows[1]["leg"], "upstream");
    assert!(rows[1].get("port").is_none() && rows[1].get("interface").is_none());
    assert_eq!(rows[0]["billed"]["ingress"]["wire_packets"], 1 + 100 + 20);
}

#[test]
fn a_range_that_cuts_days_is_read_by_quarters_where_it_must() {
    let history = two_days();
    // From the quarter before the end of the 22nd to the one that ends the counting.
    let range = ["--from", "2026-11-22T23:45", "--to", "2026-11-24T17:45"];
    let report = history.json(&[&["--by", "day"], &range[..]].concat());
    let days = [("2026-11-22", both(100)), ("2026-11-23", both(10_000)), ("2026-11-24", 0)];
    assert_eq!(totals(&report), days);
    assert_eq!(report["rows"][0]["start"], "2026-11-22T23:45:00+08:00");
    assert_eq!(report["rows"][0]["observed_seconds"], 900.0);
    assert_eq!(report["rows"][2]["observed_seconds"], 17.75 * 3600.0);
    let whole = history.json(&range);
    assert_eq!(totals(&whole), [("interval", both(100) + both(10_000))]);
}

#[test]
fn a_gap_marks_its_rows_and_only_them() {
    let mut history = History::new("UTC");
    history.observed("xray", "2026-11-22T00:00:00Z", "2026-11-23T06:00:00Z", proxied(100));
    let gap = Event {
        start: at("2026-11-23T06:00:00Z"),
        end: at("2026-11-23T08:24:00Z"),
        kind: EventKind::Gap,
        message: "the unit was stopped, and nothing was attached".to_owned(),
    };
    let upgraded = Event { kind: EventKind::Note, message: "upgraded".to_owned(), ..gap.clone() };
    let rest = spread(gap.end, at("2026-11-25T00:00:00Z"));
    history.flush("xray", "2026-11-25T00:00:00Z", rest, proxied(200), vec![gap, upgraded]);
    let days = ["--by", "day", "--from", "2026-11-22", "--to", "2026-11-25"];
    let report = history.json(&days);
    let complete: Vec<_> =
        report["rows"].as_array().unwrap().iter().map(|row| row["complete"].clone()).collect();
    assert_eq!(complete, [json!(true), json!(false), json!(true)]);
    let row = &report["rows"][1];
    // 24 h less 2 h 24 min.
    assert_eq!(
        (&row["observed_seconds"], &row["observable_seconds"]),
        (&json!(77_760.0), &json!(86_400.0))
    );
    assert_eq!(
        row["notes"],
        json!([{
            "kind": "gap", "start": "2026-11-23T06:00:00+00:00", "end": "2026-11-23T08:24:00+00:00",
            "message": "the unit was stopped, and nothing was attached"
        }])
    );
    let table = history.run("report", &days);
    assert_eq!(table.code, Some(0));
    assert!(table.out.contains("90.00 %"), "{}", table.out);
    assert!(
        table.out.contains(
            "gap         2026-11-23 06:00:00 to 08:24:00 +00:00 (2 h 24 min 00 s): the unit"
        ),
        "{}",
        table.out
    );
    assert!(table.err.contains("traffic may be missing"), "{}", table.err);
    assert_eq!(history.run("report", &[&days[..], &["--strict"]].concat()).code, Some(3));
    let before = ["--from", "2026-11-22", "--to", "2026-11-23", "--strict"];
    assert_eq!(history.run("report", &before).code, Some(0));
}

#[test]
fn overview_is_of_now_and_projects_the_month() {
    // Whatever the date is: 30 hours until now are in this month and the one before.
    let now = Timestamp::now();
    let begin = now - SignedDuration::from_hours(30);
    let mut history = History::new("UTC");
    let [begin, end] = [begin, now].map(|time| time.to_string());
    history.observed("xray", &begin, &end, proxied(1_000));
    let report = history.json(&[]);
    let rows = report["rows"].as_array().unwrap();
    let of = |period: &str| rows.iter().find(|row| row["period"] == period);
    assert_eq!(of("this-month").unwrap()["total_wire_bytes"], both(1_000));
    assert_eq!(of("today").unwrap()["total_wire_bytes"], both(1_000));
    assert_eq!(of("yesterday").unwrap()["total_wire_bytes"], 0);
    assert_eq!(report["targets"][0]["complete"], true, "{report}");
    let projection = &report["targets"][0]["projection"];
    let observed = projection["observed_seconds"].as_f64().unwrap();
    match projection["total_wire_bytes"].as_u64() {
        Some(bytes) => {
            assert!(observed >= 86_400.0 && bytes > both(1_000), "{projection}");
        }
        // The second of the month, or the first: less than a day of it was observed.
        None => assert!(observed < 86_400.0, "{projection}"),
    }
    let table = history.run("report", &[]);
    assert_eq!((table.code, table.err.as_str()), (Some(0), ""));
    assert!(table.out.contains("this month") && table.out.contains("projection"), "{}", table.out);
}

#[test]
fn history_that_is_not_kept_up_says_so() {
    let history = two_days();
    let report = history.json(&["--by", "month", "--from", "2026-11", "--to", "2030"]);
    // The test runs later than its numbers, or a little earlier: then there is nothing to say yet.
    let late = at("2026-11-24T10:00:00Z") + SignedDuration::from_secs(150) < Timestamp::now();
    assert_eq!(
        report["targets"][0]["findings"].as_array().unwrap().len(),
        usize::from(late),
        "{report}"
    );
    if late {
        assert_eq!(report["targets"][0]["findings"][0]["code"], "history-not-current");
        assert_eq!(report["rows"][0]["complete"], false);
    }
}

#[test]
fn csv_has_the_same_figures_in_bytes() {
    let history = two_days();
    let arguments =
        ["--by", "day,leg", "--from", "2026-11-23", "--to", "2026-11-24", "--link-overhead", "14"];
    let finished =
        history.run("report", &[&arguments[..], &["--format", "csv", "--units", "si"]].concat());
    let lines: Vec<&str> = finished.out.lines().collect();
    assert_eq!(
        lines[..3],
        [
            "kind,target,period,start,end,interface,leg,protocol,port,scope,direction,packets,bytes,\
             wire_packets,wire_bytes,payload_bytes,retransmitted_bytes,modelled_link_bytes,\
             observed_seconds,observable_seconds,complete,note",
            "period,xray,2026-11-23,2026-11-23T00:00:00+08:00,2026-11-24T00:00:00+08:00,,client,,,billed,\
             ingress,100,150000,100,150000,144800,0,151400,86400.0,86400.0,true,",
            "period,xray,2026-11-23,2026-11-23T00:00:00+08:00,2026-11-24T00:00:00+08:00,,client,,,billed,\
             egress,10000,15000000,10000,15000000,14480000,0,15140000,86400.0,86400.0,true,",
        ]
    );
    assert_eq!(lines.len(), 5);
    let json = history.json(&arguments);
    assert_eq!(json["rows"][0]["modelled_link_bytes"], 151_400 + 15_140_000);
    assert_eq!(json["link_overhead_bytes"], 14);
}

#[test]
fn targets_are_told_apart_by_name_or_selector() {
    let mut history = two_days();
    history.observed("sing-box", "2026-11-23T16:00:00Z", "2026-11-24T10:00:00Z", proxied(300));
    let day = ["--from", "2026-11-24", "--to", "2026-11-25"];
    for (wanted, found) in [
        (&["xray"][..], vec!["xray"]),
        (&["unit:sing-box.service"], vec!["sing-box"]),
        (&["xray.service", "sing-box"], vec!["sing-box", "xray"]),
        (&[], vec!["sing-box", "xray"]),
    ] {
        let report = history.json(&[wanted, &day].concat());
        let names: Vec<_> = report["targets"]
            .as_array()
            .unwrap()
            .iter()
            .map(|target| target["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, found);
    }
    let missing = history.run("report", &["v2ray"]);
    missing.assert_complains(1, &["no target `v2ray`", "sing-box, xray"]);
}

#[test]
fn nothing_counted_yet_is_no_failure() {
    let history = History::new("UTC");
    let table = history.run("report", &[]);
    assert_eq!((table.code, table.out.as_str()), (Some(0), "No target has been counted yet.\n"));
    assert!(table.err.contains("has no target"), "{table:?}");
    let report = history.json(&["--by", "day"]);
    assert_eq!((&report["targets"], &report["rows"]), (&json!([]), &json!([])));
}

#[test]
fn no_history_or_one_of_another_program_says_what_to_do() {
    let directory = tempfile::TempDir::with_prefix("ta-report-").unwrap();
    run("report", directory.path(), &[])
        .assert_complains(1, &["no history in", "traffic-agent run", "--state-dir"]);
    let missing = directory.path().join("missing");
    run("report", &missing, &[]).assert_complains(1, &["no history in", "missing"]);
    fs::write(
        directory.path().join("history.db"),
        "this is no database, and longer than a header of one is: it is a text",
    )
    .unwrap();
    run("report", directory.path(), &[]).assert_complains(1, &["damaged", "mv "]);
}

#[test]
fn newer_history_is_refused_with_the_program_that_wrote_it() {
    let history = two_days();
    let path = history.path().join("history.db");
    let connection = rusqlite::Connection::open(&path).unwrap();
    connection
        .execute_batch(
            "PRAGMA user_version = 99; UPDATE meta SET value = '9.8.7' WHERE key = 'written_by'",
        )
        .unwrap();
    history.run("report", &[]).assert_complains(1, &["traffic-agent 9.8.7", "schema 99", "newer"]);
}

#[test]
fn wrong_words_are_wrong_usage() {
    let history = two_days();
    for (arguments, words) in [
        (&["--from", "tomorrow"][..], &["`tomorrow` is not a time", "last-month", "7d"][..]),
        (&["--from", "2026-11-24T10:17"], &["10:15", "10:30"]),
        (&["--from", "2026-11", "--to", "2026-11"], &["no time at all"]),
        (&["--time-zone", "Mars/Olympus"], &["`Mars/Olympus`", "Asia/Shanghai"]),
        (&["--by", "day,month"], &["--by day,month"]),
    ] {
        history.run("report", arguments).assert_complains(2, words);
    }
}

#[test]
fn a_span_before_the_first_count_has_no_rows() {
    let history = two_days();
    let finished = history.run("report", &["--by", "month", "--from", "2025", "--to", "2026"]);
    assert_eq!(finished.code, Some(0));
    assert!(finished.out.contains("nothing: it was not counted then"), "{}", finished.out);
}

#[test]
fn output_goes_to_a_file_whole() {
    let history = two_days();
    let path = history.path().join("report.json");
    let path = path.to_str().unwrap();
    let finished = history
        .run("report", &["--json", "-o", path, "--from", "2026-11-23", "--to", "2026-11-24"]);
    assert_eq!((finished.code, finished.out.as_str()), (Some(0), ""));
    let report: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    assert_eq!(totals(&report), [("interval", both(10_000))]);
}

/// 40 hours of a proxy that mostly sends: for each 100 MB to the clients 2 MB from them, and 204 to 208 MB that are
/// billed. Rules count the port from the 30th hour on; before, only the hook does.
fn forty_hours() -> History {
    let mut history = History::new("UTC");
    for hour in 0..40_u64 {
        let start = at("2026-11-23T00:00:00Z") + SignedDuration::from_hours(hour as i64);
        let end = start + SignedDuration::from_hours(1);
        let reading = |method, rules: bool| MethodReading {
            method,
            start,
            end,
            ingress: rules.then_some(2_000_000),
            egress: rules.then_some(100_000_000),
            exact: PortBytes { ingress: 102_000_000, egress: 102_000_000 + hour % 5 * 1_000_000 },
        };
        let rules = reading(Method::IptablesPort, hour >= 30);
        history.read("xray", end, vec![rules, reading(Method::HookPort, true)]);
    }
    history
}

#[test]
fn errors_of_the_estimates_are_those_of_the_time_in_which_they_were_read() {
    let history = forty_hours();
    let arguments = ["--estimates", "--by", "day", "--from", "2026-11-23", "--to", "2026-11-25"];
    let report = history.json(&arguments);
    let estimates = |row: usize| -> Vec<(String, String, u64, u64)> {
        let estimates = report["rows"][row]["estimates"].as_array().unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        estimates
            .iter()
            .map(|one| {
                let bytes = |key: &str| one[key].as_u64().unwrap();
                (
                    text(&one["name"]),
                    text(&one["source"]),
                    bytes("total_bytes") / 1_000_000,
                    bytes("exact_bytes") / 1_000_000,
                )
            })
            .collect()
    };
    let row =
        |name: &str, source: &str, total, exact| (name.to_owned(), source.to_owned(), total, exact);
    // 24 hours by the hook: 24 x 204 and (0 + 1 + 2 + 3 + 4) x 4 + 0 + 1 + 2 + 3 more.
    let first = estimates(0);
    assert_eq!(first[0], row("in-x2", "hook-port", 96, 4942));
    assert_eq!(first[3], row("sum-x2", "hook-port", 4896, 4942));
    // `calibrated` from the 20th hour on: the factor of 19 hours is 3912 / 1938 and more; hours 19 to 23 are
    // 208 + 204 + 205 + 206 + 207.
    assert_eq!((first[4].0.as_str(), first[4].3), ("calibrated", 1030));
    assert!((1028..1032).contains(&first[4].2), "{first:?}");
    // The day after, the rules from its 6th hour on: 10 hours, 10 x 204 + 2 x 10.
    let second = estimates(1);
    assert_eq!(second[0], row("in-x2", "iptables-port", 40, 2060));
    assert_eq!(second[1], row("out-x2", "iptables-port", 2000, 2060));
    let error = report["rows"][1]["estimates"][0]["error_percent"].as_f64().unwrap();
    assert_eq!(format!("{error:.3}"), "-98.058");
    assert_eq!(report["rows"][1]["estimates"][0]["claims"][0]["holds"], false);
    assert_eq!(report["rows"][1]["estimates"][0]["compared_seconds"], 36_000.0);
    // The 90 % of 40 hours between the second of each end, as factors 2.00 to 2.04.
    let calibration = &report["targets"][0]["calibration"];
    assert_eq!(
        (&calibration["source"], &calibration["samples"]),
        (&json!("hook-port"), &json!(40))
    );
    assert_eq!(
        (&calibration["hours_judged"], &calibration["hours_held"]),
        (&json!(21), &json!(21))
    );
    let [low, high] = ["low", "high"].map(|key| calibration[key].as_f64().unwrap());
    assert_eq!((low, high), (204.0 / 102.0, 208.0 / 102.0));
}

#[test]
fn estimates_are_divided_by_time_only() {
    let history = forty_hours();
    history.run("report", &["--estimates", "--by", "leg"]).assert_complains(2, &["divide by time"]);
    let days = ["--estimates", "--by", "day", "--from", "2026-11-23", "--to", "2026-11-25"];
    let table = history.run("report", &days).out;
    assert!(table.contains("Errors of the estimates"), "{table}");
    assert!(table.contains("held in 0 of 2 rows"), "{table}");
    let csv = history.run("report", &[&days[..], &["--format", "csv"]].concat()).out;
    assert_eq!(csv.lines().count(), 1 + 2 * 5, "{csv}");
    assert!(csv.starts_with("target,period,start,end,estimate,source,"), "{csv}");
}

#[test]
fn what_happened_to_the_rules_is_told_with_the_estimates() {
    let mut history = forty_hours();
    let event = |minute: i64| Event {
        start: at("2026-11-24T03:00:00Z") + SignedDuration::from_mins(minute),
        end: at("2026-11-24T03:00:00Z") + SignedDuration::from_mins(minute),
        kind: EventKind::Note,
        message: format!("rules-changed: number {minute}"),
    };
    history.flush("xray", "2026-11-24T17:00:00Z", vec![], vec![], (0..25).map(event).collect());
    let days = ["--by", "day", "--from", "2026-11-23", "--to", "2026-11-25"];
    let with_estimates = [&days[..], &["--estimates"]].concat();
    let notes = history.json(&with_estimates)["targets"][0]["estimate_notes"].clone();
    assert_eq!(notes.as_array().unwrap().len(), 25);
    assert_eq!(notes[0]["message"], "rules-changed: number 0");
    assert_eq!((&notes[0]["kind"], &notes[0]["start"]), (&json!("note"), &notes[0]["end"]));
    // They take nothing from the traffic, so its rows are as they were.
    let without = history.json(&days);
    assert_eq!(without["targets"][0].get("estimate_notes"), None);
    assert_eq!(without["targets"][0]["notes"], json!([]));
    let table = history.run("report", &with_estimates).out;
    assert!(table.contains("What happened to the rules and counters"), "{table}");
    assert!(table.contains("5 earlier ones are in --format json"), "{table}");
    assert!(table.contains("number 24") && !table.contains("number 4\n"), "{table}");
    // A span of which nothing could be read needs the reason most.
    let before = ["--estimates", "--by", "day", "--from", "2026-11-24T03", "--to", "2026-11-24T04"];
    assert!(history.run("report", &before).out.contains("number 7"));
}

#[test]
fn the_balance_takes_the_configured_link_overhead_unless_another_is_asked_for() {
    let mut history = History::new("UTC");
    history.observed("xray", "2026-11-24T10:00:00Z", "2026-11-24T10:10:00Z", vec![]);
    let used = Counters {
        wire_packets: 100,
        wire_bytes: 50_000,
        packets: 40,
        bytes: 46_880,
        ..Counters::default()
    };
    let series = HostSeries {
        cgroup: "/ssh.service".to_owned(),
        target: None,
        interface: "eth0".to_owned(),
        direction: Direction::Egress,
    };
    // A card with VLAN tags: 18 bytes before each packet.
    let counted = InterfaceCounters {
        egress_packets: 100,
        egress_bytes: 50_000 + 100 * 18,
        ..InterfaceCounters::default()
    };
    history.host(HostFlush {
        quarter: Quarter::of(at("2026-11-24T10:00:00Z")),
        postings: vec![(series, used)],
        interfaces: vec![("eth0".to_owned(), counted)],
        absolute: HostAbsolute::default(),
        events: vec![],
    });
    let by = ["--by", "cgroup", "--from", "2026-11-24", "--to", "2026-11-25"];
    let left = |history: &History, more: &[&str]| {
        let egress = history.json(&[&by[..], more].concat())["balance"][0]["egress"].clone();
        (egress["link_header_bytes"].clone(), egress["remainder"]["bytes"].clone())
    };
    assert_eq!(left(&history, &[]), (json!(14), json!(400)));
    history.keep_link_overhead(18);
    assert_eq!(left(&history, &[]), (json!(18), json!(0)));
    assert_eq!(left(&history, &["--link-overhead", "14"]), (json!(14), json!(400)));
}

#[test]
fn status_has_totals_since_the_start_and_events_of_a_day() {
    let now = Timestamp::now();
    let ago = |hours| (now - SignedDuration::from_hours(hours)).to_string();
    let event = |hours, message: &str| Event {
        start: at(&ago(hours)),
        end: at(&ago(hours)),
        kind: EventKind::Note,
        message: message.to_owned(),
    };
    let mut history = History::new("Asia/Kolkata");
    history.observed("xray", &ago(100), &ago(60), proxied(1_000));
    let events = vec![event(50, "upgraded"), event(3, "attached again")];
    let rest = spread(at(&ago(60)), now);
    history.flush("xray", &now.to_string(), rest, proxied(500), events);
    let status = history.run("status", &["--json"]).json();
    let target = &status["targets"][0];
    assert_eq!(
        (&target["total_wire_bytes"], &target["current"]),
        (&json!(both(1_500)), &json!(true))
    );
    assert_eq!((&target["complete"], &target["live"]), (&json!(true), &Value::Null));
    assert_eq!(target["observed_seconds"], 360_000.0);
    assert_eq!(target["today"]["billed"]["ingress"]["wire_packets"], 505);
    let events: Vec<_> = target["events"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["message"].as_str().unwrap())
        .collect();
    assert_eq!(events, ["attached again"]);
    // Nothing is counted there: so says the bpf filesystem, or that there is none.
    let table = history.run("status", &["--bpffs", "/nowhere"]);
    let words = "what is used now cannot be seen: /nowhere is no bpf filesystem";
    assert_eq!(table.code, Some(0));
    assert!(table.err.contains(words), "{}", table.err);
    assert!(table.out.contains("\n  in all "), "{}", table.out);
}

#[test]
fn status_of_a_history_that_stands_still_fails_only_if_strict() {
    let mut history = History::new("UTC");
    let then = (Timestamp::now() - SignedDuration::from_hours(2)).to_string();
    history.observed("xray", "2026-01-01T00:00:00Z", &then, proxied(1));
    let status = history.run("status", &["--json"]).json();
    assert_eq!(status["targets"][0]["current"], false);
    assert_eq!(status["targets"][0]["findings"][0]["code"], "history-not-current");
    assert_eq!(history.run("status", &["--strict"]).code, Some(3));
    run("status", &history.path().join("nowhere"), &[]).assert_complains(1, &["no history in"]);
}
