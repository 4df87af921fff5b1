//! Counters of years: beyond 2^32, where a 32-bit counter starts again, and beyond 2^53, where a float
//! skips every second integer, each figure is exact wherever it is printed; beyond 2^64 it says so.
//!
//! Nobody can send that much, so it is put into the maps of an agent that runs.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use traffic_ebpf::{
    Cell, EGRESS, INGRESS, INTERFACE_SLOT_LOOPBACK, INTERFACE_SLOT_OTHER, IPV4, IPV6,
    PORT_SLOT_CLIENT_TCP, PORT_SLOT_UPSTREAM_TCP, PORT_SLOT_UPSTREAM_UDP, TABLE_TCP, TABLE_UDP,
    cell_index,
};
use traffic_lab::Stack;
use traffic_lab::topology::{CLIENT_DEVICE, UPSTREAM_DEVICE};
use traffic_tests::agent::{Desk, Report, Running};
use traffic_tests::seed::{Seeds, cpus};
use traffic_tests::site::Site;

/// The counters of a cell in JSON and CSV.
const COUNTERS: [&str; 6] =
    ["packets", "bytes", "wire_packets", "wire_bytes", "payload_bytes", "retransmitted_bytes"];
/// Of which this is the exact figure.
const WIRE_BYTES: usize = 3;
const BYTES: usize = 1;

type Figures = [u64; 6];

/// The coordinates of a cell in JSON and CSV.
const COORDINATES: [&str; 8] =
    ["interface", "scope", "direction", "leg", "protocol", "port", "family", "origin"];

type Words = [&'static str; 8];

/// What is put into the maps: where it stands, what it is called, and how much on the first CPU.
struct Seed {
    interface_slot: u8,
    direction: u32,
    port: Port,
    family: u32,
    scope: &'static str,
    origin: &'static str,
    first_cpu: Figures,
}

#[derive(Clone, Copy, PartialEq)]
enum Port {
    /// A listening port, which has claimed a slot.
    Listening(u32, u16),
    /// A slot that has no port.
    Slot(u8),
}

impl Seed {
    /// Coordinates as JSON and CSV have them: [`COORDINATES`].
    fn words(&self) -> Words {
        let interface = match self.interface_slot {
            INTERFACE_SLOT_LOOPBACK => "lo",
            INTERFACE_SLOT_OTHER => "other",
            1 => CLIENT_DEVICE,
            _ => UPSTREAM_DEVICE,
        };
        let (leg, protocol, port) = match self.port {
            Port::Listening(TABLE_UDP, _) => ("client", "udp", "53"),
            Port::Listening(..) => ("client", "tcp", "443"),
            Port::Slot(PORT_SLOT_CLIENT_TCP) => ("client", "tcp", ""),
            Port::Slot(PORT_SLOT_UPSTREAM_UDP) => ("upstream", "udp", ""),
            Port::Slot(_) => ("upstream", "tcp", ""),
        };
        let direction = if self.direction == INGRESS { "ingress" } else { "egress" };
        let family = if self.family == IPV4 { "ipv4" } else { "ipv6" };
        [interface, self.scope, direction, leg, protocol, port, family, self.origin]
    }

    /// What each CPU has counted: an even number more than 2^32 on all but the first, so that what is
    /// odd stays odd. Where a packet had no socket, all CPUs share a counter.
    fn per_cpu(&self) -> Result<Vec<Figures>> {
        if self.origin == "kernel" {
            return Ok(vec![self.first_cpu]);
        }
        let other = |cpu: usize| [(1 << 32) + 2 * cpu as u64; 6];
        Ok((0..cpus()?).map(|cpu| if cpu == 0 { self.first_cpu } else { other(cpu) }).collect())
    }

    /// What they have counted together.
    fn sum(&self) -> Result<Figures> {
        Ok(self.per_cpu()?.into_iter().fold([0; 6], added))
    }
}

fn added(one: Figures, other: Figures) -> Figures {
    std::array::from_fn(|index| one[index] + other[index])
}

/// Six figures that no float can hold, others for each number.
fn beyond_floats(number: u64) -> Figures {
    std::array::from_fn(|index| (1 << 53) + 1 + 1_000_000 * number + 2 * index as u64)
}

const TCP_443: Port = Port::Listening(TABLE_TCP, 443);

/// A cell of each kind. The first is written last.
fn seeds() -> [Seed; 7] {
    let seed = |number, interface_slot, direction, port, family, scope| Seed {
        interface_slot,
        direction,
        port,
        family,
        scope,
        origin: "socket",
        first_cpu: beyond_floats(number),
    };
    let udp_53 = Port::Listening(TABLE_UDP, 53);
    [
        seed(1, 1, INGRESS, TCP_443, IPV4, "billed"),
        seed(2, 1, EGRESS, TCP_443, IPV6, "billed"),
        seed(3, 1, EGRESS, Port::Slot(PORT_SLOT_UPSTREAM_UDP), IPV4, "billed"),
        seed(4, 2, INGRESS, Port::Slot(PORT_SLOT_UPSTREAM_TCP), IPV6, "unbilled"),
        seed(5, INTERFACE_SLOT_LOOPBACK, INGRESS, udp_53, IPV4, "loopback"),
        seed(6, INTERFACE_SLOT_OTHER, EGRESS, Port::Slot(PORT_SLOT_CLIENT_TCP), IPV6, "billed"),
        Seed {
            origin: "kernel",
            ..seed(7, 1, EGRESS, Port::Slot(PORT_SLOT_UPSTREAM_TCP), IPV4, "billed")
        },
    ]
}

/// Puts the seeds into the maps of a running agent.
fn plant(running: &Running, site: &Site, seeds: &[Seed]) -> Result<()> {
    let mut maps = Seeds::of(running.pid())?;
    for (slot, device) in [(1, CLIENT_DEVICE), (2, UPSTREAM_DEVICE)] {
        let index = site.lab.proxy.run_in(|| nix::net::if_::if_nametoindex(device))??;
        maps.give_slot(slot, u16::try_from(index)?)?;
    }
    for seed in seeds.iter().rev() {
        let port_slot = match seed.port {
            Port::Listening(table, port) => maps.port_slot(table, port)?,
            Port::Slot(slot) => slot,
        };
        let per_cpu: Vec<Cell> = seed
            .per_cpu()?
            .into_iter()
            .map(
                |[packets, bytes, wire_packets, wire_bytes, payload_bytes, retransmitted_bytes]| {
                    Cell {
                        packets,
                        bytes,
                        wire_packets,
                        wire_bytes,
                        payload_bytes,
                        retransmitted_bytes,
                    }
                },
            )
            .collect();
        let index = cell_index(seed.direction, port_slot.into(), seed.family);
        match seed.origin {
            "socket" => maps.count(seed.interface_slot, index, &per_cpu)?,
            _ => maps.count_answered(seed.interface_slot, index, per_cpu[0])?,
        }
    }
    Ok(())
}

/// The sum of the seeds that `keep` selects.
fn sum(seeds: &[Seed], keep: impl Fn(&Words) -> bool) -> Result<Figures> {
    let kept = seeds.iter().filter(|seed| keep(&seed.words()));
    kept.map(Seed::sum).try_fold([0; 6], |sum, figures| Ok(added(sum, figures?)))
}

/// Bytes of the client leg of a direction, loopback included: what a rule for its ports counts.
fn hook_bytes(seeds: &[Seed], direction: &str) -> Result<u64> {
    Ok(sum(seeds, |words| words[2] == direction && words[3] == "client")?[BYTES])
}

/// Billed wire bytes of both directions.
fn total(seeds: &[Seed]) -> Result<u64> {
    Ok(sum(seeds, |words| words[1] == "billed")?[WIRE_BYTES])
}

fn figures(value: &Value) -> Result<Figures> {
    let mut figures = [0; 6];
    for (figure, counter) in figures.iter_mut().zip(COUNTERS) {
        *figure = value[counter].as_u64().with_context(|| format!("{counter} in {value}"))?;
    }
    Ok(figures)
}

/// The command line: what is counted, and how it is printed.
fn compare(site: &Site, format: &str) -> Vec<String> {
    let target = format!("proxy=cgroup:{}", site.cgroup.cgroup_path());
    let mut words = vec!["compare", "--format", format, "--units", "bytes", "--target", &target];
    words.extend(["--port", "tcp/443", "--port", "udp/53", "--unbilled", UPSTREAM_DEVICE]);
    words.extend(["-d", "1h", "-i", "100ms"]);
    words.into_iter().map(str::to_owned).collect()
}

/// Runs `compare`, seeds it, waits for what a line of an interval says of the seeds, and ends it.
fn run(site: &Site, format: &str, seeds: &[Seed], seen: &str) -> Result<String> {
    let desk = Desk::new()?;
    let mut running = desk.start(compare(site, format), None, |_| ())?;
    // The first line: the first reading is over.
    running.wait_for_output("ingress")?;
    plant(&running, site, seeds)?;
    running.wait_for_output(seen)?;
    running.signal(Signal::SIGINT)?;
    let ended = running.finish()?;
    ensure!(ended.code()? == 0 && !ended.stderr.contains("panicked"), "{ended:?}");
    Ok(ended.stdout)
}

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

/// Both directions of the port beyond 2^63: twice either, and their sum, are beyond a u64.
fn beyond_a_u64() -> [Seed; 2] {
    [(INGRESS, 5), (EGRESS, 7)].map(|(direction, more)| Seed {
        interface_slot: 1,
        direction,
        port: TCP_443,
        family: IPV4,
        scope: "billed",
        origin: "socket",
        first_cpu: [(1 << 63) + more; 6],
    })
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
