//! `uninstall`: units back to where they were, and the agent away when nothing is left to count.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::DONE;
use super::service::{agree, check_host, installed_units, look_around, show, stop_empty_slice};
use crate::cli::install::{Consent, Uninstall};
use crate::config::Config;
use crate::daemon;
use crate::install::files::{self, Written};
use crate::install::plan::{AGENT, GROUP};
use crate::install::systemctl::{self, systemctl};
use crate::install::{Plan, Unit, config_text, plan, unit};

/// Runs the command; returns the exit status.
pub fn run(args: &Uninstall) -> Result<i32> {
    check_host()?;
    let installed = installed_units();
    let names = match &args.unit {
        Some(name) => vec![unit::with_suffix(name)],
        None => installed.clone(),
    };
    if names.is_empty() {
        println!("no unit is installed; nothing changes");
        return purge_if_asked(args);
    }
    let mut left = installed;
    for name in names {
        left.retain(|other| *other != name);
        let unit = look_up(&name)?;
        let found = look_around(&unit, None)?;
        let rest = plan::uninstall(&found, &unit, false)?;
        let Some(plan) = rest else {
            println!("{name} is not installed; nothing changes");
            continue;
        };
        // The agent goes with the last of its targets, and not while somebody has given it others.
        let last = left.is_empty() && !counts_after(&plan)?;
        let plan = if last { plan::uninstall(&found, &unit, true)?.unwrap_or(plan) } else { plan };
        show(&plan)?;
        println!("{}", consequence(&plan, args.consent, last));
        if !agree(args.consent, "Go on?")? {
            if args.consent.dry_run {
                continue;
            }
            return Ok(DONE);
        }
        carry_out(&plan, args.consent, last)?;
    }
    purge_if_asked(args)
}

/// A unit whose file is gone meanwhile is put back all the same.
fn look_up(name: &str) -> Result<Unit> {
    match systemctl::show(name) {
        Err(systemctl::Error::Unit(unit::Refusal::Missing(_) | unit::Refusal::Masked(_))) => {
            Ok(Unit {
                id: name.to_owned(),
                active: false,
                slice: "system.slice".to_owned(),
                control_group: String::new(),
                drop_ins: Vec::new(),
                weights: Vec::new(),
            })
        }
        other => Ok(other?),
    }
}

/// Whether the configuration has something to count when the plan is carried out.
fn counts_after(plan: &Plan) -> Result<bool> {
    let path = Path::new(crate::config::DEFAULT_FILE);
    let text = match plan.changes.iter().find(|change| change.path == path) {
        Some(change) => change.after.clone(),
        None => files::read(path)?,
    };
    Ok(text.is_some_and(|text| config_text::has_targets(&text)))
}

fn consequence(plan: &Plan, consent: Consent, last: bool) -> String {
    let unit = &plan.unit;
    let restart = match (plan.restart, consent.no_restart) {
        (false, _) => format!("{unit} is not restarted"),
        (true, true) => format!("{unit} stays in {} until its next restart", plan.slice),
        (true, false) => {
            format!("{unit} must restart to move back: its connections are cut once, now")
        }
    };
    let agent = match last {
        true => "; nothing is left to count, so the agent stops, and its programs are detached",
        false => "; the agent goes on with what is left",
    };
    format!("{restart}{agent}. The history is kept")
}

fn carry_out(plan: &Plan, consent: Consent, last: bool) -> Result<()> {
    if last {
        // While its unit is there: it says which links enabled it.
        systemctl(&["disable", "--quiet", AGENT])?;
    }
    let written = Written::write(&plan.changes)?;
    let moved = systemctl(&["daemon-reload"]).map_err(anyhow::Error::from).and_then(|_| {
        if plan.restart && !consent.no_restart {
            systemctl(&["try-restart", "--", &plan.unit])?;
        }
        Ok(())
    });
    if let Err(error) = moved {
        written.take_back()?;
        systemctl(&["daemon-reload"])?;
        if last {
            systemctl(&["enable", "--quiet", AGENT])?;
        }
        return Err(error.context("what was removed is put back"));
    }
    written.keep();
    if last {
        systemctl(&["stop", AGENT])?;
        // Its last word comes from the counters themselves.
        daemon::detach(&Config::default())?;
        systemctl(&["daemon-reload"])?;
    } else {
        systemctl(&["try-reload-or-restart", AGENT])?;
    }
    stop_empty_slice(&plan.slice)?;
    match consent.no_restart && plan.restart {
        true => println!("{} is as before from its next restart on", plan.unit),
        false => println!("{} is as before", plan.unit),
    }
    Ok(())
}

/// Deletes the history, its group, and whatever else was kept.
fn purge_if_asked(args: &Uninstall) -> Result<i32> {
    if !args.purge {
        return Ok(DONE);
    }
    let state_dir = Config::default().state_dir;
    if args.consent.dry_run {
        println!("{} would be deleted", state_dir.display());
        return Ok(DONE);
    }
    let left = installed_units();
    if !left.is_empty() {
        bail!("the history is kept, because these are counted still: {}", left.join(", "));
    }
    if systemctl::property(AGENT, "ActiveState")? == "active" {
        bail!("the history is kept, because {AGENT} runs and writes it; stop it first");
    }
    if !agree(args.consent, &format!("Delete {}, with all history?", state_dir.display()))? {
        return Ok(DONE);
    }
    match fs::remove_dir_all(&state_dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(source).with_context(|| format!("cannot delete {}", state_dir.display()));
        }
        _ => println!("{} is deleted", state_dir.display()),
    }
    let packaged = !systemctl::property(AGENT, "FragmentPath")?.is_empty();
    if !packaged && nix::unistd::Group::from_name(GROUP)?.is_some() {
        systemctl::run("groupdel", &[GROUP])?;
    }
    Ok(DONE)
}
