//! A proxy that is a unit of a real systemd, under load, with the built agent beside it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use traffic_lab::packet::{Direction, Family};
use traffic_lab::proxy::Program;
use traffic_lab::topology::{LabTrace, addresses};
use traffic_lab::workload::{Route, Server, Workload, run};
use traffic_lab::{Filter, Lab, Stack, Systemd};

use crate::proxies;
use crate::systemd::{RELAY_PORT, assert_ended, relay_unit, start_with};

/// Where the server is that the relay connects to.
const SERVER_PORT: u16 = 5201;

/// How often the proxy is restarted.
pub const RESTARTS: usize = 20;

/// How much is to be transferred before each restart: connections are in the middle of it then.
const BETWEEN_RESTARTS: u64 = 500_000;

/// Nothing that is waited for takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// A lab whose proxy is a unit of a systemd.
pub struct Host {
    unit: &'static str,
    lab: Lab,
    /// The service manager.
    pub systemd: Systemd,
    server: Server,
}

/// What a real xray is told: SOCKS in, anything out.
const XRAY: &str = r#"{
    "log": { "loglevel": "warning" },
    "inbounds": [{ "listen": "::", "port": 1080, "protocol": "socks", "settings": { "udp": false } }],
    "outbounds": [{ "protocol": "freedom" }]
}"#;
const XRAY_UNIT: &str = "[Unit]\nStartLimitIntervalSec=0\n[Service]\nUser=nobody\nRestart=always\nRestartSec=0\n\
    ExecStart=/usr/bin/xray run -c /etc/xray.json\n";

impl Host {
    /// With the lab's relay as `relay.service`.
    pub fn with_relay() -> Result<Self> {
        // As proxies run: not as root.
        let unit = relay_unit("User=nobody\nRestart=always\nRestartSec=0")
            .replace("[Service]", "StartLimitIntervalSec=0\n[Service]");
        Self::with("relay", &[("/etc/systemd/system/relay.service", &unit)], &[])
    }

    /// With a real xray as `xray.service`.
    pub fn with_xray() -> Result<Self> {
        let program = proxies::find(Program::Xray)?;
        let files = [("/etc/systemd/system/xray.service", XRAY_UNIT), ("/etc/xray.json", XRAY)];
        Self::with("xray", &files, &[(&program, "/usr/bin/xray")])
    }

    fn with(
        unit: &'static str,
        files: &[(&str, &str)],
        programs: &[(&std::path::Path, &str)],
    ) -> Result<Self> {
        let lab = Lab::new(Stack::GsoGro)?;
        let systemd = start_with(&lab.proxy, files, programs)?;
        let server = Server::start(&lab.upstream, format!("[::]:{SERVER_PORT}").parse()?)?;
        systemd.systemctl(["start", unit])?;
        Ok(Self { unit, lab, systemd, server })
    }

    /// Lets the agent move it into a slice of its own.
    pub fn install(&self) -> Result<()> {
        let done =
            self.systemd.output("traffic-agent", ["install", "--unit", self.unit, "--yes"])?;
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
    pub fn under_load(&self, mut disturb: impl FnMut(usize) -> Result<()>) -> Result<LabTrace> {
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
    pub fn wait_for_another_agent(&self, before: u32) -> Result<()> {
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
    pub fn history(&self) -> Result<Value> {
        self.systemd.systemctl(["stop", "traffic-agent"])?;
        let text = self.systemd.run("traffic-agent", ["report", "--from", "1d", "--json"])?;
        let report: Value = serde_json::from_str(&text)?;
        Ok(report["targets"][0].clone())
    }
}

/// Bytes of a direction in the history, on the wire.
pub fn counted(target: &Value, direction: &str) -> Result<u64> {
    let pointer = format!("/totals/billed/{direction}/wire_bytes");
    let bytes = target.pointer(&pointer).and_then(Value::as_u64);
    bytes.with_context(|| format!("no {pointer} in {target:#}"))
}

/// Every byte that the far ends saw is in the history, and no other.
pub fn assert_all_counted(target: &Value, trace: &LabTrace) -> Result<()> {
    let pairs = [("ingress", Direction::Ingress), ("egress", Direction::Egress)];
    for (name, direction) in pairs {
        let seen = trace.sum(Filter::all().direction(direction)).l3_bytes;
        println!("{name}: {seen} B captured, {} counted", counted(target, name)?);
        assert_eq!(counted(target, name)?, seen, "{name}");
    }
    Ok(())
}

/// Restarts the proxy [`RESTARTS`] times under load, every other time with the agent killed before: history
/// and captures are the same to the byte.
pub fn restarts_and_kills(host: &Host) -> Result<()> {
    host.install()?;
    let trace = host.under_load(|number| {
        if number % 2 == 1 {
            host.systemd.systemctl(["restart", host.unit])?;
            return Ok(());
        }
        let before = host.systemd.main_pid("traffic-agent")?;
        host.systemd.systemctl(["kill", "--signal=KILL", "traffic-agent"])?;
        // While it is away.
        host.systemd.systemctl(["restart", host.unit])?;
        host.wait_for_another_agent(before)
    })?;
    assert_all_counted(&host.history()?, &trace)
}
