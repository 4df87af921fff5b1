//! What `install` and `uninstall` share: what there is, the plan shown and agreed to, systemd told.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::unistd::{Group, Uid};

use crate::cli::install::Consent;
use crate::config::DEFAULT_FILE;
use crate::install::plan::{self, AGENT, GROUP};
use crate::install::systemctl::{self, systemctl};
use crate::install::{Found, Plan, Unit, diff, files, slice};
use crate::kernel::attached::{Hook, program_names, query};
use crate::target::{Cgroup, Host};

/// Without a terminal to ask at, and without `--yes`.
#[derive(Debug, thiserror::Error)]
#[error("nobody can be asked here; add --yes to do it, or --dry-run to see it only")]
pub struct NobodyToAsk;

/// Refuses what cannot work.
pub fn check_host() -> Result<()> {
    systemctl::check_booted()?;
    if !Uid::effective().is_root() {
        bail!("units and their files are root's; run as root");
    }
    Ok(())
}

/// Reads all files that may have to be written for a unit.
pub fn look_around(unit: &Unit, asked_slice: Option<&str>) -> Result<Found> {
    let mut found = Found {
        files: BTreeMap::new(),
        config: PathBuf::from(DEFAULT_FILE),
        packaged_unit: packaged_unit()?,
        program: std::env::current_exe().context("cannot find the running program")?,
        has_group: Group::from_name(GROUP)?.is_some(),
    };
    let mut paths = vec![
        found.config.clone(),
        plan::agent_file(),
        plan::order(&unit.id),
        plan::drop_in(&unit.id),
    ];
    let asked = asked_slice.map(|name| name.strip_suffix(".slice").unwrap_or(name));
    paths.extend(asked.map(|name| plan::slice_file(&format!("{name}.slice"))));
    paths.extend(slice::name(&unit.slice, &unit.id).map(|name| plan::slice_file(&name)));
    paths.push(plan::slice_file(&unit.slice));
    // The others' drop-ins may say something about the slice.
    paths.extend(unit.drop_ins.iter().map(PathBuf::from));
    read_into(&mut found, &paths)?;
    // A unit that has not been restarted since is not there yet.
    if let Some(own) = found.slice_of(&unit.id).map(plan::slice_file) {
        read_into(&mut found, &[own])?;
    }
    Ok(found)
}

fn read_into(found: &mut Found, paths: &[PathBuf]) -> Result<()> {
    for path in paths {
        if let Some(text) = files::read(path)? {
            found.files.insert(path.clone(), text);
        }
    }
    Ok(())
}

/// Where the agent's unit comes from, unless that is a file of `install`, or there is none.
fn packaged_unit() -> Result<Option<String>> {
    let path = systemctl::property(AGENT, "FragmentPath")?;
    let own = plan::agent_file();
    Ok((!path.is_empty() && Path::new(&path) != own).then_some(path))
}

/// The units that are installed.
pub fn installed_units() -> Vec<String> {
    let directory = plan::order("").parent().map(Path::to_owned).unwrap_or_default();
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let names: Vec<String> =
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    plan::installed(&names)
}

/// Prints what a plan writes.
pub fn show(plan: &Plan) -> Result<()> {
    let mut out = io::stdout().lock();
    for change in &plan.changes {
        write!(out, "{}", diff::describe(change))?;
    }
    if plan.make_group {
        writeln!(out, "run groupadd --system {GROUP}")?;
    }
    Ok(out.flush()?)
}

/// Asks, unless that was answered on the command line. False if nothing is to be done.
pub fn agree(consent: Consent, question: &str) -> Result<bool> {
    if consent.dry_run {
        println!("nothing was done (--dry-run)");
        return Ok(false);
    }
    if consent.yes {
        return Ok(true);
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(NobodyToAsk.into());
    }
    eprint!("{question} [y/N] ");
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer).context("cannot read the answer")?;
    let agreed = matches!(answer.trim(), "y" | "Y" | "yes");
    if !agreed {
        println!("nothing was done");
    }
    Ok(agreed)
}

/// Whether a program of an agent counts in the slice's own cgroup.
pub fn is_attached(slice: &str) -> Result<bool> {
    let Some(cgroup) = cgroup_of(slice)? else { return Ok(false) };
    let directory = fs::File::open(&cgroup.dir)?;
    let names = program_names();
    let attached = query(&directory, Hook::Ingress)
        .with_context(|| format!("cannot ask what is attached to {}", cgroup.path))?;
    Ok(attached.programs.iter().any(|id| names.get(id).is_some_and(|name| name == "count_ingress")))
}

/// The slice's cgroup; none while the slice does not run.
fn cgroup_of(slice: &str) -> Result<Option<Cgroup>> {
    let host = Host::detect()?;
    Ok(host.cgroups.cgroup(&slice::cgroup(slice)).ok())
}

/// Stops a slice in which nothing runs. systemd would stop with it whatever is in it.
pub fn stop_empty_slice(slice: &str) -> Result<()> {
    let Some(cgroup) = cgroup_of(slice)? else { return Ok(()) };
    let events = fs::read_to_string(cgroup.dir.join("cgroup.events"))?;
    if events.lines().any(|line| line == "populated 0") {
        systemctl(&["stop", "--", slice])?;
    }
    Ok(())
}
