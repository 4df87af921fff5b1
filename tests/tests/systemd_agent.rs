//! The agent's own unit, installed into a real systemd: in its sandbox, and through restarts under load.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use traffic_lab::packet::{Direction, Family};
use traffic_lab::topology::{LabTrace, addresses};
use traffic_lab::workload::{Route, Server, Workload, run};
use traffic_lab::{Filter, Lab, Stack, Systemd};
use traffic_tests::systemd::{RELAY_PORT, assert_ended, relay_unit, start};

/// Where the server is that the relay connects to.
const SERVER_PORT: u16 = 5201;

/// How often the proxy is restarted.
const RESTARTS: usize = 20;

/// How much is to be transferred before each restart: connections are in the middle of it then.
const BETWEEN_RESTARTS: u64 = 500_000;

/// Nothing that is waited for takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// A lab whose proxy is a unit of a systemd.
struct Host {
    lab: Lab,
    systemd: Systemd,
    server: Server,
}

impl Host {
    fn new() -> Result<Self> {
        let lab = Lab::new(Stack::GsoGro)?;
        // As proxies run: not as root.
        let unit = relay_unit("User=nobody\nRestart=always\nRestartSec=0")
            .replace("[Service]", "StartLimitIntervalSec=0\n[Service]");
        let systemd = start(&lab.proxy, &[("/etc/systemd/system/relay.service", &unit)])?;
        let server = Server::start(&lab.upstream, format!("[::]:{SERVER_PORT}").parse()?)?;
        systemd.systemctl(["start", "relay"])?;
        Ok(Self { lab, systemd, server })
    }

    fn install(&self) -> Result<()> {
        let done = self.systemd.output("traffic-agent", ["install", "--unit", "relay", "--yes"])?;
        assert_ended(&done, 0, &["is in it"]);
        Ok(())
    }

    /// Drives connections through the relay, one after the other and four at a time, until it is told to
    /// stop. Those that a restart cuts are what it is for.
    fn load(&self, stop: &AtomicBool) {
        let to = addresses(Family::Ipv4);
        let route = Route {
            client: &self.lab.client,
            relay: Some((to.proxy_client, RELAY_PORT).into()),
            target: (to.upstream, SERVER_PORT).into(),
        };
        let workload = Workload {
            name: "cut",
            connections: 40,
            parallel: 4,
            upload_bytes: 10_000,
            download_bytes: 300_000,
            at_once: true,
        };
        while !stop.load(Ordering::Relaxed) {
            // Refused while the relay is away: then it is tried again without haste.
            if run(&workload, route, &self.server, &|_| ()).is_err() {
                thread::sleep(Duration::from_millis(5));
            }
        }
    }

    /// Runs `disturb` again and again under load; returns what both far ends saw.
    fn under_load(&self, mut disturb: impl FnMut(usize) -> Result<()>) -> Result<LabTrace> {
        let capture = self.lab.capture()?;
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let load = scope.spawn(|| self.load(&stop));
            let disturbed = (0..RESTARTS).try_for_each(|number| {
                self.wait_for_traffic(BETWEEN_RESTARTS)?;
                disturb(number)
            });
            let transferred = disturbed.and_then(|()| self.wait_for_traffic(BETWEEN_RESTARTS));
            stop.store(true, Ordering::Relaxed);
            load.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            transferred
        })?;
        let trace = capture.stop()?;
        trace.check()?;
        Ok(trace)
    }

    fn wait_for_traffic(&self, bytes: u64) -> Result<()> {
        let before = self.server.totals().sent_bytes;
        let begin = Instant::now();
        while self.server.totals().sent_bytes < before + bytes {
            ensure!(begin.elapsed() < PATIENCE, "the load stands still");
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Waits until systemd has started the agent again, and it is ready.
    fn wait_for_another_agent(&self, before: u32) -> Result<()> {
        let begin = Instant::now();
        loop {
            let active = self.systemd.property("traffic-agent", "ActiveState")? == "active";
            if active && self.systemd.main_pid("traffic-agent").is_ok_and(|pid| pid != before) {
                return Ok(());
            }
            ensure!(begin.elapsed() < PATIENCE, "{}", self.systemd.journal("traffic-agent")?);
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// What the history says when the agent has ended: its target.
    fn history(&self) -> Result<Value> {
        self.systemd.systemctl(["stop", "traffic-agent"])?;
        let text = self.systemd.run("traffic-agent", ["report", "--from", "1d", "--json"])?;
        let report: Value = serde_json::from_str(&text)?;
        Ok(report["targets"][0].clone())
    }
}

/// Bytes of a direction in the history, on the wire.
fn counted(target: &Value, direction: &str) -> Result<u64> {
    let pointer = format!("/totals/billed/{direction}/wire_bytes");
    let bytes = target.pointer(&pointer).and_then(Value::as_u64);
    bytes.with_context(|| format!("no {pointer} in {target:#}"))
}

/// Every byte that the far ends saw is in the history, and no other.
fn assert_all_counted(target: &Value, trace: &LabTrace) -> Result<()> {
    let pairs = [("ingress", Direction::Ingress), ("egress", Direction::Egress)];
    for (name, direction) in pairs {
        let seen = trace.sum(Filter::all().direction(direction)).l3_bytes;
        println!("{name}: {seen} B captured, {} counted", counted(target, name)?);
        assert_eq!(counted(target, name)?, seen, "{name}");
    }
    Ok(())
}

#[test]
fn systemd_restarts_lose_no_byte_with_install() -> Result<()> {
    let host = Host::new()?;
    host.install()?;
    let trace = host.under_load(|_| {
        host.systemd.systemctl(["restart", "relay"])?;
        Ok(())
    })?;
    let target = host.history()?;
    assert_eq!(target["complete"], true, "{target:#}");
    assert_all_counted(&target, &trace)
}

#[test]
fn systemd_restarts_and_kills_of_the_agent_lose_no_byte() -> Result<()> {
    let host = Host::new()?;
    host.install()?;
    let trace = host.under_load(|number| {
        if number % 2 == 1 {
            host.systemd.systemctl(["restart", "relay"])?;
            return Ok(());
        }
        let before = host.systemd.main_pid("traffic-agent")?;
        host.systemd.systemctl(["kill", "--signal=KILL", "traffic-agent"])?;
        // While it is away.
        host.systemd.systemctl(["restart", "relay"])?;
        host.wait_for_another_agent(before)
    })?;
    assert_all_counted(&host.history()?, &trace)
}

#[test]
fn systemd_restarts_without_install_are_gaps_that_coverage_names() -> Result<()> {
    let host = Host::new()?;
    host.install()?;
    let config = "[[target]]\ntargets = [\"unit:relay.service\"]\n";
    let undone = host.systemd.output("traffic-agent", ["uninstall", "--yes", "--purge"])?;
    assert_ended(&undone, 0, &["is as before", "is deleted"]);
    // The same agent, told of the unit itself.
    host.systemd.write("/etc/traffic-agent/config.toml", config)?;
    let unit = include_str!("../../packaging/traffic-agent.service");
    host.systemd.write("/etc/systemd/system/traffic-agent.service", unit)?;
    host.systemd.run("groupadd", ["--system", "--force", "traffic-agent"])?;
    host.systemd.systemctl(["daemon-reload"])?;
    host.systemd.systemctl(["start", "traffic-agent"])?;
    let trace = host.under_load(|_| {
        host.systemd.systemctl(["restart", "relay"])?;
        Ok(())
    })?;
    let target = host.history()?;
    for (name, direction) in [("ingress", Direction::Ingress), ("egress", Direction::Egress)] {
        let seen = trace.sum(Filter::all().direction(direction)).l3_bytes;
        let counted = counted(&target, name)?;
        println!("{name}: {seen} B captured, {counted} counted: {} missing", seen - counted);
        assert!(counted <= seen, "{name}: {counted} counted, {seen} captured");
    }
    println!("observed {} of {} s", target["observed_seconds"], target["observable_seconds"]);
    let notes = target["notes"].to_string();
    println!("{notes}");
    // Either each restart was met in time, or what was not is named.
    assert!(notes.contains("gap") || target["complete"] == true, "{target:#}");
    Ok(())
}
