//! `uninstall`: units back to where they were, and the agent away when nothing is left to count.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::service::{agree, check_host, installed_units, look_around, show, stop_empty_slice};
use super::{DONE, config};
use crate::cli::install::{Consent, Uninstall};
use crate::cli::run::Settings;
use crate::config::{Config, Invalid};
use crate::install::files::{self, Written};
use crate::install::plan::{AGENT, GROUP};
use crate::install::systemctl::{self, systemctl};
use crate::install::{Plan, Unit, config_text, plan, unit};
use crate::{daemon, lock, store};

/// Runs the command; returns the exit status.
pub fn run(args: &Uninstall) -> Result<i32> {
    check_host()?;
    // Before anything is written: the file may go with the last unit.
    let config = effective();
    let config = || config.as_ref().map_err(Invalid::clone);
    if args.purge {
        config()?;
    }
    let installed = installed_units();
    let names = match &args.unit {
        Some(name) => vec![unit::with_suffix(name)],
        None => installed.clone(),
    };
    if names.is_empty() {
        println!("no unit is installed; nothing changes");
        return if args.purge { purge(args, config()?) } else { Ok(DONE) };
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
        let last = last.then(config).transpose()?;
        show(&plan)?;
        println!("{}", consequence(&plan, args.consent, last.is_some()));
        if !agree(args.consent, "Go on?")? {
            if args.consent.dry_run {
                continue;
            }
            return Ok(DONE);
        }
        carry_out(&plan, args.consent, last)?;
    }
    if args.purge { purge(args, config()?) } else { Ok(DONE) }
}

/// What the agent's unit runs with: where the history and the pins are, and in which zone its days end.
fn effective() -> Result<Config, Invalid> {
    // To end counting no target needs to be configured.
    let settings = Settings { host: Some("true".to_owned()), ..Settings::default() };
    config::load(&settings).map(|loaded| loaded.config)
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

/// `last`: what the agent ran with, if it goes too.
fn carry_out(plan: &Plan, consent: Consent, last: Option<&Config>) -> Result<()> {
    if last.is_some() {
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
        if last.is_some() {
            systemctl(&["enable", "--quiet", AGENT])?;
        }
        return Err(error.context("what was removed is put back"));
    }
    written.keep();
    if let Some(config) = last {
        systemctl(&["stop", AGENT])?;
        // Its last word comes from the counters themselves.
        daemon::detach(config)?;
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
fn purge(args: &Uninstall, config: &Config) -> Result<i32> {
    let state_dir = &config.state_dir;
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
    let deleted = delete(state_dir);
    match deleted.with_context(|| format!("cannot delete {}", state_dir.display()))? {
        true => println!("{} is deleted", state_dir.display()),
        false => println!("the history in {} is deleted; the directory stays", state_dir.display()),
    }
    let packaged = !systemctl::property(AGENT, "FragmentPath")?.is_empty();
    if !packaged && nix::unistd::Group::from_name(GROUP)?.is_some() {
        systemctl::run("groupdel", &[GROUP])?;
    }
    Ok(DONE)
}

/// Deletes a state directory; false if it stays. The default one is the agent's alone; one that was configured
/// may hold what is not the agent's.
fn delete(state_dir: &Path) -> io::Result<bool> {
    if state_dir == Config::default().state_dir {
        return fs::remove_dir_all(state_dir).or_else(absent).map(|()| true);
    }
    store::remove(state_dir)?;
    fs::remove_file(state_dir.join(lock::FILE)).or_else(absent)?;
    // Not empty, or a mount point.
    Ok(fs::remove_dir(state_dir).or_else(absent).is_ok())
}

fn absent(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}
