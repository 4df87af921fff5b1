//! `exec -- CMD` is to CMD as if it were not there, and counts what CMD used to the byte.

use std::ffi::OsString;
use std::fs::{self, File};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use traffic_lab::packet::Family;
use traffic_lab::role::Role;
use traffic_lab::topology::addresses;
use traffic_lab::workload::Workload;
use traffic_lab::{Lab, Stack};
use traffic_tests::agent::Desk;
use traffic_tests::site::{RELAY_PORT, SERVER_PORT, Site, any, tcp};
use traffic_tests::{figures, helper, role};

/// Nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn exit_statuses_are_those_of_the_command() -> Result<()> {
    let desk = Desk::new()?;
    for (script, code) in [("true", 0), ("exit 42", 42), ("kill -9 $$", 137), ("kill $$", 143)] {
        let ended = desk.exec_shell(&[], script)?;
        assert_eq!(ended.code()?, code, "{script}: {ended:?}");
        let report = desk.report()?;
        let status = &report.0["exit_status"];
        let expected =
            if code < 128 { (Some(code.into()), None) } else { (None, Some(code - 128)) };
        assert_eq!(
            (status["code"].as_i64(), status["signal"].as_i64().map(|n| n as i32)),
            expected
        );
        assert_eq!(report.0["command"], "exec");
        desk.assert_nothing_left();
    }
    Ok(())
}

#[test]
fn what_cannot_be_run_is_126_or_127_and_leaves_nothing() -> Result<()> {
    let desk = Desk::new()?;
    let missing = desk.run(["exec", "--", "/no/such/program"])?;
    missing.assert_complains(127, &["command not found", "/no/such/program"]);
    let file = desk.file("not-executable");
    fs::write(&file, "#!/bin/sh\n")?;
    let refused = desk.run(["exec".as_ref(), "--".as_ref(), file.as_os_str()])?;
    refused.assert_complains(126, &["cannot execute", "not-executable"]);
    desk.run(["exec", "--", "/"])?.assert_complains(126, &["cannot execute /"]);
    desk.assert_nothing_left();
    Ok(())
}

#[test]
fn an_output_that_cannot_be_written_is_125_before_the_command_starts() -> Result<()> {
    let desk = Desk::new()?;
    let trace = desk.file("was-here");
    let touch = format!("touch {}", trace.display());
    let arguments = ["exec", "--output", "/no/such/directory/report", "--", "sh", "-c", &touch];
    desk.run(arguments)?.assert_complains(125, &["/no/such/directory/report"]);
    let user = ["exec", "--user", "no-such-user-here", "--", "sh", "-c", &touch];
    desk.run(user)?.assert_complains(125, &["no-such-user-here"]);
    let port = ["exec", "--port", "tcp/0", "--", "sh", "-c", &touch];
    assert_ne!(desk.run(port)?.code()?, 0);
    assert!(!trace.exists(), "the command ran");
    desk.assert_nothing_left();
    Ok(())
}

#[test]
fn input_and_output_pass_through() -> Result<()> {
    let desk = Desk::new()?;
    let input = desk.file("input");
    fs::write(&input, "first\nlast without an end")?;
    let source = File::open(&input)?;
    let script = "cat; echo remark >&2; exit 3";
    let ended = desk
        .start_exec(&[], ["sh", "-c", script], None, |command| {
            command.stdin(source);
        })?
        .finish()?;
    assert_eq!(ended.code()?, 3);
    assert_eq!(ended.stdout, fs::read_to_string(&input)?);
    assert_eq!(ended.stderr, "remark\n");

    // Without --output the report is beside the command's remarks, not in its data.
    let ended = desk.run(["exec", "--", "echo", "data"])?;
    assert_eq!(ended.stdout, "data\n");
    assert!(ended.stderr.contains("echo"), "{ended:?}");
    Ok(())
}

#[test]
fn signals_are_passed_on() -> Result<()> {
    let desk = Desk::new()?;
    let wait = "echo ready; while :; do sleep 0.02; done";
    for (signal, name) in [(Signal::SIGTERM, "TERM"), (Signal::SIGINT, "INT")] {
        let trap = format!("trap 'exit 7' {name}; {wait}");
        for (script, code) in [(trap.as_str(), 7), (wait, 128 + signal as i32)] {
            let mut running = desk.start_exec(&[], ["sh", "-c", script], None, |_| ())?;
            running.wait_for_output("ready")?;
            running.signal(signal)?;
            let ended = running.finish()?;
            assert_eq!(ended.code()?, code, "{signal}: {ended:?}");
            desk.report()?;
            desk.assert_nothing_left();
        }
    }
    Ok(())
}

#[test]
fn a_user_has_its_own_rights_and_no_more() -> Result<()> {
    let desk = Desk::new()?;
    let script = "id -un; id -Gn; echo $HOME; cat /etc/shadow";
    let ended = desk.exec_shell(&["--user", "nobody"], script)?;
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(lines, ["nobody", "nogroup", "/nonexistent"], "{ended:?}");
    assert!(ended.stderr.contains("Permission denied"), "{ended:?}");
    assert_eq!(ended.code()?, 1);
    desk.assert_nothing_left();
    Ok(())
}

#[test]
fn the_command_is_born_in_the_counted_cgroup_which_is_removed() -> Result<()> {
    let desk = Desk::new()?;
    let ended = desk.exec_shell(&[], "cat /proc/self/cgroup")?;
    let report = desk.report()?;
    let path = report.target()["cgroups"][0]["path"].as_str().context("no path")?;
    assert!(ended.stdout.contains(&format!("0::{path}\n")), "{path}: {ended:?}");
    // What never sends used nothing.
    assert_eq!(report.number("/total_wire_bytes")?, 0);
    assert_eq!(report.target()["complete"], true);
    desk.assert_nothing_left();
    Ok(())
}

/// The report names what goes on as it is called when the command ends: `sh` until it has become `sleep`.
const UNTIL_IT_SLEEPS: &str = "until [ \"$(cat /proc/$!/comm)\" = sleep ]; do :; done";

#[test]
fn descendants_that_stay_alive_are_named() -> Result<()> {
    let desk = Desk::new()?;
    for (options, code) in [(&[][..], 0), (&["--strict"][..], 3)] {
        let script = format!("sleep 60 & {UNTIL_IT_SLEEPS}; echo $!");
        let ended = desk.exec_shell(options, &script)?;
        assert_eq!(ended.code()?, code, "{ended:?}");
        let pid = ended.stdout.trim();
        let report = desk.report()?;
        assert_eq!(report.target()["complete"], false);
        let message = report.message("still-running")?;
        assert!(message.contains(&format!("sleep (pid {pid})")), "{message}");
        assert!(desk.members()?.contains(&pid.parse()?), "it goes on where the agent was");
        desk.assert_no_cgroup_left();
    }
    Ok(())
}

#[test]
fn a_sub_cgroup_of_the_command_is_removed_too() -> Result<()> {
    let desk = Desk::new()?;
    let mount = traffic_lab::cgroup::mount()?;
    let script = format!(
        "own={}$(sed -n s/^0:://p /proc/self/cgroup); mkdir -p $own/a/b; \
         (echo 0 > $own/a/b/cgroup.procs; exec sleep 60) & {UNTIL_IT_SLEEPS}",
        mount.display()
    );
    desk.exec_shell(&[], &script)?;
    assert!(desk.report()?.message("still-running")?.contains("sleep"));
    desk.assert_no_cgroup_left();
    Ok(())
}

#[test]
fn what_a_killed_agent_leaves_is_removed_by_the_next() -> Result<()> {
    let desk = Desk::new()?;
    let script = "echo $$; exec sleep 60";
    let mut running = desk.start_exec(&[], ["sh", "-c", script], None, |_| ())?;
    running.wait_for_output("\n")?;
    running.signal(Signal::SIGKILL)?;
    let killed = running.finish()?;
    assert_eq!(killed.status.code(), None);
    // The command goes on where it was, which nobody removes under it.
    desk.exec_shell(&[], "true")?;
    let command = nix::unistd::Pid::from_raw(killed.stdout.trim().parse()?);
    nix::sys::signal::kill(command, Signal::SIGKILL).context("it does not go on")?;
    // Its parent is init now, which reaps it when it likes.
    let begin = Instant::now();
    while nix::sys::signal::kill(command, None) != Err(Errno::ESRCH) {
        ensure!(begin.elapsed() < PATIENCE, "{command} is killed and not gone");
        thread::sleep(Duration::from_millis(10));
    }
    desk.exec_shell(&[], "true")?;
    desk.assert_nothing_left();
    Ok(())
}

#[test]
fn a_download_equals_the_capture() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let server = site.server()?;
    let desk = Desk::new()?;
    for family in [Family::Ipv4, Family::Ipv6] {
        let to = (addresses(family).upstream, SERVER_PORT);
        let to = std::net::SocketAddr::from(to).to_string();
        let capture = site.lab.capture()?;
        let program = helper()?;
        let program = program.to_str().context("not UTF-8")?;
        let command = [program, "fetch", &to, "100000", "3000000"];
        let ended = desk.start_exec(&[], command, Some(&site.lab.proxy), |_| ())?.finish()?;
        assert_eq!(ended.code()?, 0, "{ended:?}");
        let trace = capture.stop()?;
        trace.check()?;
        let report = desk.report()?;
        assert_eq!(report.books()?, figures::of_capture(&trace, &[]), "{family:?}");
        let wire = trace.sum(traffic_lab::Filter::all()).l3_bytes;
        assert_eq!(report.number("/total_wire_bytes")?, wire);
        assert_eq!(report.target()["complete"], true, "{:?}", report.codes());
    }
    assert_eq!(server.totals().sent_bytes, 6_000_000);
    desk.assert_nothing_left();
    Ok(())
}

#[test]
fn a_server_under_exec_has_a_client_leg_that_equals_the_capture() -> Result<()> {
    let lab = Lab::new(Stack::GsoGro)?;
    let server = traffic_lab::workload::Server::start(&lab.upstream, any(SERVER_PORT))?;
    let desk = Desk::new()?;
    let relay = role(&Role::Relay { listen: any(RELAY_PORT) })?;
    // Not in the agent's own environment: it knows the lab's roles itself.
    let mut command: Vec<OsString> = vec!["env".into()];
    for (name, value) in relay.get_envs() {
        let mut assignment = name.to_owned();
        assignment.push("=");
        assignment.push(value.unwrap_or_default());
        command.push(assignment);
    }
    command.push(helper()?.into());
    let capture = lab.capture()?;
    let running = desk.start_exec(&[], command, Some(&lab.proxy), |_| ())?;
    let addresses = addresses(Family::Ipv4);
    let route = traffic_lab::workload::Route {
        client: &lab.client,
        relay: Some((addresses.proxy_client, RELAY_PORT).into()),
        target: (addresses.upstream, SERVER_PORT).into(),
    };
    let workload = Workload {
        name: "small",
        connections: 10,
        parallel: 2,
        upload_bytes: 200,
        download_bytes: 100_000,
        at_once: false,
    };
    // No packet before it listens.
    let begin = Instant::now();
    while !desk.members()?.iter().any(|pid| listens(*pid)) {
        ensure!(begin.elapsed() < PATIENCE, "the relay does not listen");
        thread::sleep(Duration::from_millis(10));
    }
    traffic_lab::workload::run(&workload, route, &server, &|_| ())?;
    capture.settle()?;
    running.signal(Signal::SIGTERM)?;
    assert_eq!(running.finish()?.code()?, 143);
    let trace = capture.stop()?;
    trace.check()?;
    assert_eq!(desk.report()?.books()?, figures::of_capture(&trace, &[tcp(RELAY_PORT)]));
    desk.assert_nothing_left();
    Ok(())
}

/// Whether somebody in the process's namespace listens on the relay's port.
fn listens(pid: u32) -> bool {
    use traffic_lab::sockets::{Transport, open_ports};
    open_ports(pid, Transport::Tcp).is_ok_and(|ports| ports.contains(&RELAY_PORT))
}
