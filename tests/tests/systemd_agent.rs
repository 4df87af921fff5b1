//! The agent's own unit, installed into a real systemd: in its sandbox, and through restarts under load.

use anyhow::Result;
use traffic_lab::Filter;
use traffic_lab::packet::Direction;
use traffic_tests::service::{Host, assert_all_counted, counted, restarts_and_kills};
use traffic_tests::systemd::assert_ended;

#[test]
fn systemd_restarts_lose_no_byte_with_install() -> Result<()> {
    let host = Host::with_relay()?;
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
    restarts_and_kills(&Host::with_relay()?)
}

#[test]
fn systemd_restarts_without_install_are_gaps_that_coverage_names() -> Result<()> {
    let host = Host::with_relay()?;
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
