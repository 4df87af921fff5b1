//! Counters of years: beyond 2^32, where a 32-bit counter starts again, and beyond 2^53, where a float
//! skips every second integer, each figure is exact wherever it is printed; beyond 2^64 it says so.
//!
//! Nobody can send that much, so it is put into the maps of an agent that runs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use traffic_lab::topology::{UPSTREAM_DEVICE, addresses};
use traffic_lab::{Stack, packet};
use traffic_tests::agent::{Desk, Report};
use traffic_tests::rules;
use traffic_tests::site::Site;
use traffic_tests::years::{
    COORDINATES, COUNTERS, Figures, Seed, WIRE_BYTES, Words, added, beyond_a_u64, compare, figures,
    hook_bytes, plant, run, seeds, sum, total,
};

/// Holds totals, ports and cells of a target's JSON against the seeds.
fn check_target(target: &Value, seeds: &[Seed]) -> Result<()> {
    assert_eq!(target["total_wire_bytes"].as_u64(), Some(total(seeds)?));
    for scope in ["billed", "unbilled", "loopback"] {
        for direction in ["ingress", "egress"] {
            let expected = sum(seeds, |words| words[1..3] == [scope, direction])?;
            assert_eq!(figures(&target["totals"][scope][direction])?, expected, "{scope}");
        }
    }
    let ports = target["ports"].as_array().context("no ports")?;
    assert_eq!(ports.len(), 3, "{ports:?}");
    for port in ports {
        let name = port["port"].as_u64().map(|port| port.to_string()).unwrap_or_default();
        for direction in ["ingress", "egress"] {
            let expected = sum(seeds, |words| {
                words[3] == "client" && words[5] == name && words[2] == direction
            })?;
            assert_eq!(figures(&port[direction])?, expected, "{port}");
        }
    }
    let cells = target["cells"].as_array().context("no cells")?;
    assert_eq!(cells.len(), seeds.len());
    let mut named = BTreeMap::new();
    for cell in cells {
        let word = |key: &str| match &cell[key] {
            Value::String(word) => word.clone(),
            Value::Null => String::new(),
            number => number.to_string(),
        };
        named.insert(COORDINATES.map(word), figures(cell)?);
    }
    for seed in seeds {
        let cell = named.get(&seed.words().map(str::to_owned));
        assert_eq!(cell, Some(&seed.sum()?), "{:?} in {named:?}", seed.words());
    }
    Ok(())
}

/// Each figure tells whether a float was in its way.
fn assert_no_float_holds(seeds: &[Seed]) -> Result<()> {
    for figure in seeds.iter().map(Seed::sum).collect::<Result<Vec<_>>>()?.concat() {
        assert_ne!(figure as f64 as u64, figure);
    }
    Ok(())
}

#[test]
fn json_of_compare_keeps_every_byte_beyond_2_to_the_53() -> Result<()> {
    let (site, seeds) = (Site::new(Stack::GsoGro)?, seeds());
    assert_no_float_holds(&seeds)?;
    let seen = format!("\"total_wire_bytes\":{}}}", total(&seeds)?);
    let output = run(&site, "json", &seeds, &seen)?;

    // The lines of the intervals add up to the billed totals.
    let lines: Vec<&str> = output.lines().collect();
    let (report, intervals) = lines.split_last().context("no output")?;
    for direction in ["ingress", "egress"] {
        let mut gained = [0; 6];
        for line in intervals {
            let line: Value = serde_json::from_str(line)?;
            gained = added(gained, figures(&line[direction])?);
        }
        assert_eq!(gained, sum(&seeds, |words| words[1..3] == ["billed", direction])?);
    }

    let report = Report::parse(report)?;
    check_target(report.target(), &seeds)?;
    let [ingress, egress] = ["ingress", "egress"].map(|direction| hook_bytes(&seeds, direction));
    let (ingress, egress) = (ingress?, egress?);
    let billed = |direction| {
        Ok::<_, anyhow::Error>(
            sum(&seeds, |words| words[1..3] == ["billed", direction])?[WIRE_BYTES],
        )
    };
    for (method, expected) in
        [("ebpf", [billed("ingress")?, billed("egress")?]), ("hook-port", [ingress, egress])]
    {
        let row = named(report.target(), "methods", method)?;
        let read = ["ingress_bytes", "egress_bytes"].map(|key| row[key].as_u64());
        assert_eq!(read, expected.map(Some), "{method}");
    }
    for (name, expected) in estimates(ingress, egress) {
        let row = named(report.target(), "estimates", name)?;
        assert_eq!(row["total_bytes"].as_u64(), Some(expected), "{name}");
        assert!(row["error_percent"].is_f64(), "{row}");
    }
    let unique: BTreeSet<&str> = report.codes().into_iter().collect();
    assert!(!unique.contains("at-limit"), "{unique:?}");
    Ok(())
}

/// The four recipes.
fn estimates(ingress: u64, egress: u64) -> [(&'static str, u64); 4] {
    let sum = ingress + egress;
    [("in-x2", 2 * ingress), ("out-x2", 2 * egress), ("sum-x1", sum), ("sum-x2", 2 * sum)]
}

/// The element of a list that has this name.
fn named<'v>(target: &'v Value, list: &str, name: &str) -> Result<&'v Value> {
    let mut elements = target[list].as_array().into_iter().flatten();
    elements.find(|element| element["name"] == name).with_context(|| format!("no {name}: {target}"))
}

#[test]
fn csv_keeps_every_byte_beyond_2_to_the_53() -> Result<()> {
    let (site, seeds) = (Site::new(Stack::GsoGro)?, seeds());
    let first = seeds[0].sum()?;
    let output = run(&site, "csv", &seeds, &format!(",{},", first[WIRE_BYTES]))?;
    let mut reader = csv::Reader::from_reader(output.as_bytes());
    let rows: Vec<BTreeMap<String, String>> = reader.deserialize().collect::<Result<_, _>>()?;
    let of_kind = |kind: &'static str| rows.iter().filter(move |row| row["kind"] == kind);
    let counted = |row: &BTreeMap<String, String>| -> Result<Figures> {
        let mut figures = [0; 6];
        for (figure, counter) in figures.iter_mut().zip(COUNTERS) {
            *figure = row[counter].parse().with_context(|| format!("{counter} in {row:?}"))?;
        }
        Ok(figures)
    };

    // The first seed is the only billed ingress, so it is all of one line.
    let ingress: Vec<_> = of_kind("interval").filter(|row| row["direction"] == "ingress").collect();
    assert!(ingress.iter().any(|row| counted(row).is_ok_and(|figures| figures == first)));
    assert_eq!(of_kind("total").count(), 6);
    for row in of_kind("total") {
        let (scope, direction) = (row["scope"].as_str(), row["direction"].as_str());
        assert_eq!(counted(row)?, sum(&seeds, |words| words[1..3] == [scope, direction])?);
    }
    assert_eq!(of_kind("port").count(), 6);
    for row in of_kind("port") {
        let (direction, port) = (row["direction"].as_str(), row["port"].as_str());
        let wanted =
            |words: &Words| words[2] == direction && words[3] == "client" && words[5] == port;
        assert_eq!(counted(row)?, sum(&seeds, wanted)?, "{row:?}");
    }
    assert_eq!(of_kind("cell").count(), seeds.len());
    for seed in &seeds {
        let mut cells = of_kind("cell");
        let row = cells.find(|row| COORDINATES.map(|column| row[column].as_str()) == seed.words());
        assert_eq!(counted(row.context("no such cell")?)?, seed.sum()?);
    }
    for direction in ["ingress", "egress"] {
        let row = of_kind("method")
            .find(|row| row["name"] == "hook-port" && row["direction"] == direction)
            .context("no hook-port")?;
        assert_eq!(row["bytes"].parse::<u64>()?, hook_bytes(&seeds, direction)?);
    }
    let expected = estimates(hook_bytes(&seeds, "ingress")?, hook_bytes(&seeds, "egress")?);
    for (name, expected) in expected {
        let row = of_kind("estimate").find(|row| row["name"] == name).context("no estimate")?;
        assert_eq!(row["bytes"].parse::<u64>()?, expected, "{name}");
    }
    Ok(())
}

/// A comma between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .filter_map(|group| std::str::from_utf8(group).ok())
        .collect();
    groups.join(",")
}

#[test]
fn table_in_bytes_keeps_every_byte_beyond_2_to_the_53() -> Result<()> {
    let (site, seeds) = (Site::new(Stack::GsoGro)?, seeds());
    let first = seeds[0].sum()?[WIRE_BYTES];
    let output = run(&site, "table", &seeds, &format!("{} B", grouped(first)))?;
    let (ingress, egress) = (hook_bytes(&seeds, "ingress")?, hook_bytes(&seeds, "egress")?);
    let mut expected = vec![("exact".to_owned(), total(&seeds)?), ("hook".to_owned(), ingress)];
    expected.push(("hook".to_owned(), egress));
    expected.extend(estimates(ingress, egress).map(|(name, bytes)| (name.to_owned(), bytes)));
    for scope in ["billed", "unbilled", "loopback"] {
        for leg in ["client", "upstream"] {
            let bytes = sum(&seeds, |words| words[1] == scope && words[3] == leg)?[WIRE_BYTES];
            if bytes > 0 {
                expected.push((format!("{scope} {leg}"), bytes));
            }
        }
    }
    for (what, bytes) in expected {
        let figure = format!("{} B", grouped(bytes));
        assert!(output.contains(&figure), "{what}, {figure}, is not in:\n{output}");
    }
    Ok(())
}

#[test]
fn exec_keeps_every_byte_beyond_2_to_the_53() -> Result<()> {
    let (site, seeds) = (Site::new(Stack::GsoGro)?, seeds());
    let desk = Desk::new()?;
    let done = desk.file("done");
    let script = format!("while [ ! -e {} ]; do sleep 0.02; done", done.display());
    let options = ["--port", "tcp/443", "--port", "udp/53", "--unbilled", UPSTREAM_DEVICE];
    let namespace = Some(&site.lab.proxy);
    let started = format!("echo ready; {script}");
    let mut running = desk.start_exec(&options, ["sh", "-c", &started], namespace, |_| ())?;
    running.wait_for_output("ready")?;
    plant(&running, &site, &seeds)?;
    std::fs::write(&done, "")?;
    let ended = running.finish()?;
    ensure!(ended.code()? == 0, "{ended:?}");
    check_target(desk.report()?.target(), &seeds)?;
    desk.assert_nothing_left();
    Ok(())
}

#[test]
fn an_estimate_beyond_a_u64_stands_at_the_limit_and_says_so() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    // Ingress only: the exact figure still fits, twice of it does not.
    let [ingress, _] = beyond_a_u64();
    let exact = ingress.sum()?[WIRE_BYTES];
    let seen = format!("\"total_wire_bytes\":{exact}}}");
    let output = run(&site, "json", &[ingress], &seen)?;
    let report = Report::parse(output.lines().last().context("no report")?)?;
    assert_eq!(report.number("/total_wire_bytes")?, exact);
    let row = named(report.target(), "estimates", "in-x2")?;
    assert_eq!((&row["total_bytes"], &row["error_percent"]), (&u64::MAX.into(), &Value::Null));
    let row = named(report.target(), "estimates", "sum-x1")?;
    assert_eq!((&row["total_bytes"], &row["error_percent"]), (&exact.into(), &0.0.into()));
    assert!(report.message("at-limit")?.starts_with("estimates"), "{:?}", report.codes());
    assert_eq!(report.target()["complete"], true);
    Ok(())
}

#[test]
fn sums_beyond_a_u64_stand_at_the_limit_and_are_not_complete() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let limit = u64::MAX.to_string();
    for (format, seen) in [
        ("json", format!("\"total_wire_bytes\":{limit}}}")),
        ("csv", format!(",{},", beyond_a_u64()[0].sum()?[WIRE_BYTES])),
        ("table", format!("{} B", grouped(u64::MAX))),
    ] {
        let seeds = beyond_a_u64();
        let output = run(&site, format, &seeds, &seen)?;
        match format {
            "json" => {
                let report = Report::parse(output.lines().last().context("no report")?)?;
                assert_eq!(report.number("/total_wire_bytes")?, u64::MAX);
                for (seed, direction) in seeds.iter().zip(["ingress", "egress"]) {
                    let counted = figures(&report.target()["totals"]["billed"][direction])?;
                    assert_eq!(counted, seed.sum()?, "each fits by itself");
                }
                assert!(report.message("at-limit")?.contains(&limit));
                assert_eq!(report.target()["complete"], false);
            }
            "csv" => assert!(output.lines().last().is_some_and(|row| row.contains(",false,"))),
            _ => assert!(output.contains("counters have reached"), "{output}"),
        }
    }
    Ok(())
}

#[test]
fn a_sum_over_cpus_beyond_a_u64_stands_at_the_limit() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let [mut ingress, _] = beyond_a_u64();
    // Full on the first CPU, and something on the others.
    ingress.first_cpu = [u64::MAX; 6];
    let seeds = [ingress];
    let output = run(&site, "json", &seeds, &format!("\"total_wire_bytes\":{}}}", u64::MAX))?;
    let report = Report::parse(output.lines().last().context("no report")?)?;
    let cell = &report.target()["cells"][0];
    assert_eq!(figures(cell)?, [u64::MAX; 6]);
    assert_eq!(figures(&report.target()["totals"]["billed"]["ingress"])?, [u64::MAX; 6]);
    assert_eq!(report.target()["complete"], false);
    report.message("at-limit").map(drop)
}

/// What the rules have counted before, so that a float would see steps of 256 bytes.
const BEFORE: u64 = (1 << 60) + 1;
const UDP_PORT: u16 = 8443;

/// Rules of nft for the port, whose counters are large already.
fn nft_rules() -> String {
    let counter = format!("counter packets {BEFORE} bytes {BEFORE}");
    format!(
        "table inet long {{ chain in {{ type filter hook input priority 0; \
         udp dport {UDP_PORT} {counter}; }}; chain out {{ type filter hook output priority 0; \
         udp sport {UDP_PORT} {counter}; }}; }}"
    )
}

#[test]
fn rules_that_have_counted_for_years_gain_what_the_hook_counts() -> Result<()> {
    for backend in ["iptables", "nft"] {
        let site = Site::new(Stack::GsoGro)?;
        if backend == "nft" {
            let mut nft = Command::new("nft");
            let status = site.lab.proxy.command_in(nft.arg(nft_rules()))?.status();
            ensure!(status.context("cannot run nft")?.success(), "{}", nft_rules());
        } else {
            for rule in ["INPUT -p udp --dport", "OUTPUT -p udp --sport"] {
                let rule = format!("{rule} {UDP_PORT} -c {BEFORE} {BEFORE}");
                rules::add(&site.lab.proxy, packet::Family::Ipv4, &rule)?;
            }
        }
        let address = (addresses(packet::Family::Ipv4).proxy_client, UDP_PORT).into();
        let server = site.factory.udp(address)?;
        let desk = Desk::new()?;
        let mut running = desk.start(compare(&site, "json"), None, |_| ())?;
        running.wait_for_output("ingress")?;
        site.lab.client.run_in(|| -> Result<()> {
            let client = UdpSocket::bind("0.0.0.0:0")?;
            for socket in [&client, &server] {
                socket.set_read_timeout(Some(Duration::from_secs(60)))?;
            }
            for _ in 0..10 {
                client.send_to(&[1; 101], address)?;
                let (length, from) = server.recv_from(&mut [0; 200])?;
                server.send_to(&[2; 200][..2 * length - 3], from)?;
                client.recv(&mut [0; 200])?;
            }
            Ok(())
        })??;
        running.signal(Signal::SIGINT)?;
        let report = running.finish()?.last_report()?;
        // 101 and 199 bytes of payload behind 28 of headers.
        for method in ["iptables-port", "hook-port"] {
            let row = named(report.target(), "methods", method)?;
            let read = ["ingress_bytes", "egress_bytes"].map(|key| row[key].as_u64());
            assert_eq!(read, [Some(1290), Some(2270)], "{backend}: {row}");
        }
    }
    Ok(())
}
