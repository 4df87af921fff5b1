//! `install`: a unit into a slice of its own, counted there by the agent's unit.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::service::{agree, check_host, is_attached, look_around, show, stop_empty_slice};
use super::{DONE, complain};
use crate::cli::install::{Consent, Install};
use crate::install::files::Written;
use crate::install::plan::{AGENT, GROUP};
use crate::install::systemctl::{self, systemctl};
use crate::install::{Plan, Unit, plan, slice, unit};
use crate::target::Host;

/// How long the agent may take to attach when it runs: it looks by itself at once, or with its next sample.
const ATTACHED_WITHIN: Duration = Duration::from_secs(15);

/// Runs the command; returns the exit status.
pub fn run(args: &Install) -> Result<i32> {
    if let Some(container) = &args.container {
        print!("{}", for_container(container));
        return Ok(DONE);
    }
    let name = unit::with_suffix(args.unit.as_deref().context("clap asks for a unit")?);
    unit::check_name(&name)?;
    check_host()?;
    let unit = look_up(&name)?;
    let found = look_around(&unit, args.slice.as_deref())?;
    let plan = plan::install(&found, &unit, args.slice.as_deref())?;
    show(&plan)?;
    if plan.changes.is_empty() && !plan.make_group && agent_runs()? {
        if !plan.restart {
            println!("{} is installed already; nothing changes", unit.id);
            return verify(&plan, args.consent.no_restart);
        }
        println!("all files are written already, and {} is not yet in {}", unit.id, plan.slice);
    }
    println!("{}", consequence(&plan, &unit, args.consent));
    if !agree(args.consent, "Go on?")? {
        return Ok(DONE);
    }
    carry_out(&plan, args.consent)?;
    verify(&plan, args.consent.no_restart)
}

fn agent_runs() -> Result<bool> {
    Ok(systemctl::property(AGENT, "ActiveState")? == "active")
}

/// Finds the unit, or says whose it is.
fn look_up(name: &str) -> Result<Unit> {
    let error = match systemctl::show(name) {
        Err(systemctl::Error::Unit(unit::Refusal::Missing(name))) => name,
        other => return Ok(other?),
    };
    let tree = Host::detect()?.cgroups.tree()?;
    let is_it =
        |path: &str| path.starts_with("/user.slice/") && path.rsplit('/').next() == Some(name);
    Err(match tree.into_iter().find(|cgroup| is_it(&cgroup.path)) {
        Some(cgroup) => unit::Refusal::OfUser {
            unit: error,
            cgroup: cgroup.path,
            slice: slice::name("app.slice", name).context("the name is too long")?,
        },
        None => unit::Refusal::Missing(error),
    }
    .into())
}

/// Which restart it needs, and what that means.
fn consequence(plan: &Plan, unit: &Unit, consent: Consent) -> String {
    let (id, slice) = (&unit.id, &plan.slice);
    if !unit.active {
        return format!("{id} does not run; it will be in {slice} when it starts");
    }
    if !plan.restart {
        return format!("{id} is in {slice} already and is not restarted");
    }
    match consent.no_restart {
        true => format!(
            "{id} must restart to move into {slice}: it moves at its next restart. What it transfers until \
             then is not counted, and coverage shows that"
        ),
        false => format!(
            "{id} must restart to move into {slice}: its connections are cut once, now. Later, at a time of \
             your choice: --no-restart"
        ),
    }
}

/// Writes, starts the agent, restarts the unit. After a failure all is as it was.
fn carry_out(plan: &Plan, consent: Consent) -> Result<()> {
    if plan.make_group {
        systemctl::run("groupadd", &["--system", GROUP])?;
    }
    let agent_ran = agent_runs()?;
    let written = Written::write(&plan.changes)?;
    let done = tell_systemd(plan, agent_ran)
        .and_then(|()| if consent.no_restart { Ok(()) } else { restart(plan) });
    let Err(error) = done else {
        written.keep();
        return Ok(());
    };
    let undone = written.take_back().map_err(anyhow::Error::from);
    if let Err(second) = undone.and_then(|()| undo(plan, agent_ran, consent)) {
        complain(&second.context("not all could be taken back"));
    }
    Err(error.context("what was written is taken back"))
}

/// Everything up to the restart of the unit, which is not disturbed by it.
fn tell_systemd(plan: &Plan, agent_ran: bool) -> Result<()> {
    systemctl(&["daemon-reload"])?;
    let (unit, wanted) = (&plan.unit, &plan.slice);
    let now = systemctl::property(unit, "Slice")?;
    // A unit that runs keeps its slice until it is restarted, and shows it: what counts is in its files.
    if now != *wanted && !plan.restart {
        bail!(
            "another file puts {unit} into {now} ({}); take Slice= out of it",
            systemctl::property(unit, "DropInPaths")?
        );
    }
    systemctl(&["start", "--", wanted])?;
    systemctl(&["enable", "--quiet", AGENT])?;
    systemctl(&[if agent_ran { "reload-or-restart" } else { "start" }, AGENT])
        .with_context(|| format!("see `journalctl -u {AGENT}`"))?;
    wait_until_attached(wanted)
}

fn wait_until_attached(slice: &str) -> Result<()> {
    let begin = Instant::now();
    while !is_attached(slice)? {
        ensure!(
            begin.elapsed() < ATTACHED_WITHIN,
            "the agent did not attach to {} within {} s; see `journalctl -u {AGENT}`",
            slice::cgroup(slice),
            ATTACHED_WITHIN.as_secs()
        );
        thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

fn restart(plan: &Plan) -> Result<()> {
    if !plan.restart {
        return Ok(());
    }
    systemctl(&["try-restart", "--", &plan.unit])?;
    let (now, wanted) = (systemctl::property(&plan.unit, "Slice")?, &plan.slice);
    ensure!(
        now == *wanted,
        "another file puts {} into {now} ({}); take Slice= out of it",
        plan.unit,
        systemctl::property(&plan.unit, "DropInPaths")?
    );
    Ok(())
}

/// systemd as before, when the files are.
fn undo(plan: &Plan, agent_ran: bool, consent: Consent) -> Result<()> {
    if !agent_ran {
        // Its unit is gone if we wrote it, and the link that enabled it is not.
        let _ = systemctl(&["disable", "--quiet", AGENT]);
        systemctl(&["stop", AGENT])?;
    }
    systemctl(&["daemon-reload"])?;
    if agent_ran {
        systemctl(&["reload-or-restart", AGENT])?;
    }
    let path = systemctl::property(&plan.unit, "ControlGroup")?;
    let moved = path.starts_with(&format!("{}/", slice::cgroup(&plan.slice)));
    if plan.restart && !consent.no_restart && moved {
        systemctl(&["try-restart", "--", &plan.unit])?;
    }
    stop_empty_slice(&plan.slice)
}

/// Says what is to be seen now.
fn verify(plan: &Plan, no_restart: bool) -> Result<i32> {
    let (unit, slice) = (&plan.unit, &plan.slice);
    let cgroup = slice::cgroup(slice);
    ensure!(
        is_attached(slice)?,
        "nothing is attached to {cgroup}; see `systemctl status {AGENT}` and `journalctl -u {AGENT}`"
    );
    println!("{AGENT} counts in {cgroup}");
    let inside = systemctl::property(unit, "ControlGroup")?;
    if inside.starts_with(&format!("{cgroup}/")) {
        println!("{unit} is in it: {inside}");
    } else if inside.is_empty() {
        println!("{unit} does not run; it will be in it when it starts");
    } else {
        ensure!(no_restart, "{unit} is still in {inside}; restart it: systemctl restart {unit}");
        println!("{unit} is still in {inside}, and not counted until it is restarted");
    }
    Ok(DONE)
}

/// What to write for a container. Its engine makes the cgroup, so nothing is changed here.
fn for_container(container: &str) -> String {
    // Any name will do, as long as it makes no slice in a slice.
    let name: String = container
        .trim_start_matches('/')
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    let slice = format!("{name}_traffic.slice");
    format!(
        "A container that is made anew gets another cgroup. Put it into a slice of its own, which stays:\n\n\
         docker compose, in the service {container}:\n    cgroup_parent: {slice}\n\n\
         docker and podman:\n    docker run --cgroup-parent={slice} ...\n    \
         podman run --cgroup-parent={slice} ...\n\n\
         and count the slice, in /etc/traffic-agent/config.toml:\n    [[target]]\n    name = \"{name}\"\n    \
         targets = [\"unit:{slice}\"]\n\n\
         Then make the container anew. Where `docker info` says `Cgroup Driver: cgroupfs`, write \
         /{name}_traffic for the slice, and targets = [\"cgroup:/{name}_traffic\"].\nNothing was changed.\n",
        name = name.to_lowercase()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_gets_one_slice_that_nests_in_none() {
        let text = for_container("x-ui");
        for line in ["cgroup_parent: x_ui_traffic.slice", "targets = [\"unit:x_ui_traffic.slice\"]"]
        {
            assert!(text.contains(line), "{text}");
        }
    }
}
