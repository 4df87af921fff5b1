//! Reports for scripts, as JSON. The shape is that of the types themselves: `report` and `check`.
//!
//! One value, indented, with a newline behind it. Where `--interval` prints as it goes, standard
//! output is JSON lines instead: one object per line, each of them with `"record": "interval"`
//! ([`super::interval`]), and the report itself as the last line ([`write_line`]).

use std::io::{self, Write};

use serde::Serialize;

/// Writes a report, indented for people who look at it nevertheless.
pub fn write(report: &impl Serialize, out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, report)?;
    out.write_all(b"\n")
}

/// Writes a report or record as one line.
pub fn write_line(record: &impl Serialize, out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, record)?;
    out.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::{super::fixture, *};

    fn keys(value: &Value) -> Vec<&str> {
        let object = value.as_object().expect("an object");
        let mut keys: Vec<_> = object.keys().map(String::as_str).collect();
        // Their order is a feature of serde_json that any other crate may turn on.
        keys.sort_unstable();
        keys
    }

    #[test]
    fn keys_are_those_of_the_documented_format() {
        let report = fixture::compare();
        let text = fixture::text(|out| write(&report, out));
        assert!(text.ends_with("}\n"));
        let json: Value = serde_json::from_str(&text).expect("well-formed JSON");
        assert_eq!(keys(&json), ["command", "format", "interval", "targets"]);
        assert_eq!((&json["format"], &json["command"]), (&1.into(), &"compare".into()));
        assert_eq!(
            json["interval"],
            serde_json::json!({
                "start": "2026-11-23T10:00:00.25+08:00",
                "end": "2026-11-23T10:01:00.25+08:00",
                "seconds": 60.0
            })
        );
        let target = &json["targets"][0];
        assert_eq!(
            keys(target),
            [
                "capture_rates",
                "cells",
                "cgroups",
                "complete",
                "estimates",
                "findings",
                "methods",
                "name",
                "observed_seconds",
                "ports",
                "processes",
                "ratio",
                "selector",
                "total_wire_bytes",
                "totals",
                "unattributed",
                "verdict"
            ]
        );
        assert_eq!(target["total_wire_bytes"], 3_003_000_000_u64);
        assert_eq!(target["cgroups"][0]["path"], "/system.slice/xray.service");
        assert_eq!(target["processes"][0]["pid"], 100);
        assert_eq!(keys(&target["totals"]), ["billed", "loopback", "unbilled"]);
        assert_eq!(
            target["totals"]["billed"]["ingress"],
            serde_json::json!({
                "packets": 25_025, "bytes": 1_450_749_300, "wire_packets": 1_001_000,
                "wire_bytes": 1_501_500_000, "payload_bytes": 1_449_448_000,
                "retransmitted_bytes": 0
            })
        );
        assert_eq!(keys(&target["ports"][0]), ["egress", "ingress", "port", "protocol"]);
        let cell = &target["cells"][0];
        assert_eq!(
            [&cell["interface"], &cell["scope"], &cell["origin"], &cell["direction"]],
            ["eth0", "billed", "socket", "ingress"]
        );
        assert_eq!([&cell["leg"], &cell["protocol"], &cell["family"]], ["client", "tcp", "ipv4"]);
        assert_eq!((&cell["port"], &cell["wire_bytes"]), (&443.into(), &1_500_000.into()));
        let (read, missing) = (&target["methods"][2], &target["methods"][3]);
        assert_eq!(
            [&read["name"], &read["covers"], &read["layer"]],
            ["iptables-port", "client-leg", "l3"]
        );
        assert_eq!(read["reason"], Value::Null);
        assert_eq!(read["rules"][0]["chain"], "INPUT");
        assert_eq!(
            (&missing["available"], &missing["ingress_bytes"]),
            (&false.into(), &Value::Null)
        );
        let estimate = &target["estimates"][0];
        assert_eq!([&estimate["name"], &estimate["source"]], ["in-x2", "iptables-port"]);
        assert_eq!(estimate["claims"][0]["holds"], false);
        assert_eq!(target["capture_rates"][0]["reference"], "exact");
        assert_eq!(keys(&target["ratio"]), ["egress_per_ingress"]);
    }

    #[test]
    fn command_has_its_exit_status_and_no_estimates() {
        let text = fixture::text(|out| write(&fixture::exec(), out));
        let json: Value = serde_json::from_str(&text).expect("well-formed JSON");
        assert_eq!(json["exit_status"], serde_json::json!({ "code": 0, "signal": null }));
        let target = &json["targets"][0];
        assert!(target.get("methods").is_none() && target.get("estimates").is_none());
    }

    #[test]
    fn no_byte_is_lost_beyond_the_integers_of_a_float() {
        let mut report = fixture::exec();
        report.targets[0].total_wire_bytes = u64::MAX;
        report.targets[0].cells[0].counters.wire_bytes = (1 << 53) + 1;
        let text = fixture::text(|out| write(&report, out));
        assert!(text.contains("\"total_wire_bytes\": 18446744073709551615,"), "{text}");
        assert!(text.contains("\"wire_bytes\": 9007199254740993,"), "{text}");
    }

    #[test]
    fn line_is_one_line() {
        let text = fixture::text(|out| write_line(&fixture::compare(), out));
        assert_eq!(text.matches('\n').count(), 1);
        assert!(text.starts_with("{\"format\":1,\"command\":\"compare\","), "{text}");
    }

    #[test]
    fn closed_pipe_is_still_recognised() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let report = fixture::compare();
        let json = write(&report, &mut Closed).unwrap_err().kind();
        let csv = super::super::csv::write_rows(&report, &mut Closed).unwrap_err().kind();
        assert_eq!([json, csv], [io::ErrorKind::BrokenPipe; 2]);
    }
}
