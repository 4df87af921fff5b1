//! From what there is to what is to be written. Pure: neither reads nor writes anything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::unit::Unit;
use super::{config_text, slice};

/// Name of the agent's own unit.
pub const AGENT: &str = "traffic-agent.service";
/// The group that may read the history.
pub const GROUP: &str = "traffic-agent";
/// Where an administrator's units are.
const UNITS: &str = "/etc/systemd/system";
/// The unit that is shipped.
const AGENT_UNIT: &str = include_str!("../../../packaging/traffic-agent.service");
/// Where the shipped unit expects the program.
const PROGRAM: &str = "/usr/bin/traffic-agent";
/// Begins each file that is ours, so that none is taken for ours that is not.
const OURS: &str = "# written by `traffic-agent install`";
/// In the drop-in: what stood in the configuration before.
const REPLACED: &str = "# config.toml said: ";

/// The drop-in that moves a unit.
pub fn drop_in(unit: &str) -> PathBuf {
    Path::new(UNITS).join(format!("{unit}.d")).join("50-traffic-agent.conf")
}

/// The file of a slice.
pub fn slice_file(slice: &str) -> PathBuf {
    Path::new(UNITS).join(slice)
}

/// The agent's unit where no package brings one.
pub fn agent_file() -> PathBuf {
    Path::new(UNITS).join(AGENT)
}

/// The drop-in that orders the agent before a unit.
pub fn order(unit: &str) -> PathBuf {
    Path::new(UNITS).join(format!("{AGENT}.d")).join(format!("50-{unit}.conf"))
}

/// The units that the drop-ins of the agent, by their file names, belong to.
pub fn installed(names: &[String]) -> Vec<String> {
    let units = names.iter().filter_map(|name| name.strip_prefix("50-")?.strip_suffix(".conf"));
    units.filter(|unit| unit.ends_with(".service")).map(str::to_owned).collect()
}

/// What there is.
#[derive(Clone, Debug)]
pub struct Found {
    /// The contents of files that exist.
    pub files: BTreeMap<PathBuf, String>,
    /// The configuration.
    pub config: PathBuf,
    /// Where the agent's unit comes from if a package brings it.
    pub packaged_unit: Option<String>,
    /// The running program.
    pub program: PathBuf,
    /// Whether [`GROUP`] exists.
    pub has_group: bool,
}

impl Found {
    fn file(&self, path: &Path) -> Option<&str> {
        self.files.get(path).map(String::as_str)
    }

    /// The slice that our drop-in names, if there is one.
    pub fn slice_of(&self, unit: &str) -> Option<&str> {
        let text = self.file(&drop_in(unit)).filter(|text| text.starts_with(OURS))?;
        text.lines().find_map(|line| line.strip_prefix("Slice="))
    }
}

/// One file that is written, changed or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which.
    pub path: PathBuf,
    /// Its content now; none if it does not exist.
    pub before: Option<String>,
    /// Its content then; none if it is removed.
    pub after: Option<String>,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The unit.
    pub unit: String,
    /// Its slice.
    pub slice: String,
    /// In the order in which they are written. Empty if all is as it should be.
    pub changes: Vec<Change>,
    /// Whether the group has to be made.
    pub make_group: bool,
    /// Whether the unit runs where it should not, so that only a restart moves it.
    pub restart: bool,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The name given for the slice.
    #[error("{0:?} is no name of a slice; write one such as proxies.slice, without a slash or --")]
    BadSlice(String),
    /// No name can be made.
    #[error("the name of {0} is too long for a slice made of it; give one: --slice NAME.slice")]
    LongName(String),
    /// It is in another slice of ours.
    #[error(
        "{unit} is in {slice} already; to change that, `traffic-agent uninstall --unit {unit}` first"
    )]
    OtherSlice {
        /// The unit.
        unit: String,
        /// Where it is.
        slice: String,
    },
    /// A drop-in that is read after ours.
    #[error(
        "{} says Slice=, and is read after what would be written here; take that line out of it, or give its \
         slice as --slice, if nothing else is in it", .0.display()
    )]
    Overruled(PathBuf),
    /// A file in the way.
    #[error(
        "{} was not written by `traffic-agent install`, so it is not overwritten; {remedy}", path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What to do.
        remedy: &'static str,
    },
    /// The program is where a hardened unit does not see it.
    #[error(
        "the agent's unit cannot run {}: it sees no home directories and no temporary files; \
         `install -m 755 {} /usr/local/bin/traffic-agent` and run that", .0.display(), .0.display()
    )]
    Program(PathBuf),
    /// The configuration.
    #[error("cannot add the target to {}: {source}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: config_text::Refusal,
    },
}

/// Plans a slice of its own for a unit.
pub fn install(found: &Found, unit: &Unit, asked: Option<&str>) -> Result<Plan, Refusal> {
    let slice = choose_slice(found, unit, asked)?;
    if let Some(other) = overruling(found, unit) {
        return Err(Refusal::Overruled(other));
    }
    let cgroup = slice::cgroup(&slice);
    let config = add_to_config(found, &unit.id, &slice)?;
    let mut plan = Plan {
        unit: unit.id.clone(),
        slice: slice.clone(),
        changes: Vec::new(),
        make_group: !found.has_group,
        restart: unit.active && !unit.control_group.starts_with(&format!("{cgroup}/")),
    };
    let mut put = |path: PathBuf, text: String, remedy: Option<&'static str>| {
        let before = found.file(&path).map(str::to_owned);
        if let (Some(before), Some(remedy)) = (&before, remedy)
            && !before.starts_with(OURS)
        {
            return Err(Refusal::Foreign { path, remedy });
        }
        if before.as_deref() != Some(&text) {
            plan.changes.push(Change { path, before, after: Some(text) });
        }
        Ok(())
    };
    if found.packaged_unit.is_none() {
        let text = agent_unit(&found.program)?;
        put(agent_file(), text, Some("move it away, or install the package traffic-agent"))?;
    }
    put(found.config.clone(), config.text, None)?;
    let remedy = "choose another slice: --slice NAME.slice";
    put(
        slice_file(&slice),
        slice_unit(unit, found.slice_of(&unit.id).is_some(), found.file(&slice_file(&slice))),
        Some(remedy),
    )?;
    put(order(&unit.id), order_unit(&unit.id, &slice), Some("move it away"))?;
    // The line of what was replaced is written once: at the second time the slice stands there already.
    let existing = found.file(&drop_in(&unit.id)).filter(|_| config.replaced.is_none());
    let text = match existing.filter(|text| text.starts_with(OURS)) {
        Some(text) => text.to_owned(),
        None => moving_unit(&slice, config.replaced.as_deref()),
    };
    put(drop_in(&unit.id), text, Some("move it away"))?;
    Ok(plan)
}

/// Plans the way back. `last`: no other unit is installed.
pub fn uninstall(found: &Found, unit: &Unit, last: bool) -> Result<Option<Plan>, Refusal> {
    let Some(slice) = found.slice_of(&unit.id) else { return Ok(None) };
    let cgroup = slice::cgroup(slice);
    let mut plan = Plan {
        unit: unit.id.clone(),
        slice: slice.to_owned(),
        changes: Vec::new(),
        make_group: false,
        restart: unit.active && unit.control_group.starts_with(&format!("{cgroup}/")),
    };
    let mut take = |path: PathBuf| {
        if let Some(before) = found.file(&path).filter(|text| text.starts_with(OURS)) {
            let before = Some(before.to_owned());
            plan.changes.push(Change { path, before, after: None });
        }
    };
    // The reverse of how they were written.
    take(drop_in(&unit.id));
    take(order(&unit.id));
    take(slice_file(slice));
    if last {
        take(agent_file());
    }
    let drop_in = found.file(&drop_in(&unit.id)).unwrap_or_default();
    let replaced = drop_in.lines().find_map(|line| line.strip_prefix(REPLACED));
    if let Some(text) = found.file(&found.config) {
        let rest = config_text::remove(text, &unit.id, slice, replaced)
            .map_err(|source| Refusal::Config { path: found.config.clone(), source })?;
        if rest.as_deref() != Some(text) {
            let before = Some(text.to_owned());
            plan.changes.push(Change { path: found.config.clone(), before, after: rest });
        }
    }
    Ok(Some(plan))
}

fn choose_slice(found: &Found, unit: &Unit, asked: Option<&str>) -> Result<String, Refusal> {
    let asked = asked.map(|asked| match asked.ends_with(".slice") {
        true => asked.to_owned(),
        false => format!("{asked}.slice"),
    });
    if let Some(bad) = asked.as_ref().filter(|asked| !slice::is_valid(asked)) {
        return Err(Refusal::BadSlice(bad.clone()));
    }
    match (found.slice_of(&unit.id), asked) {
        (Some(ours), Some(asked)) if ours != asked => {
            Err(Refusal::OtherSlice { unit: unit.id.clone(), slice: ours.to_owned() })
        }
        (Some(ours), _) => Ok(ours.to_owned()),
        (None, Some(asked)) => Ok(asked),
        (None, None) => {
            slice::name(&unit.slice, &unit.id).ok_or_else(|| Refusal::LongName(unit.id.clone()))
        }
    }
}

/// A drop-in that sets the slice and wins against ours: they are read in the order of their names.
fn overruling(found: &Found, unit: &Unit) -> Option<PathBuf> {
    let ours = drop_in(&unit.id);
    let wins = |path: &&PathBuf| path.file_name() > ours.file_name();
    let sets = |path: &&PathBuf| {
        let text = found.file(path).unwrap_or_default();
        text.lines().any(|line| line.trim_start().starts_with("Slice="))
    };
    let paths: Vec<PathBuf> = unit.drop_ins.iter().map(PathBuf::from).collect();
    paths.iter().filter(wins).find(sets).cloned()
}

fn add_to_config(found: &Found, unit: &str, slice: &str) -> Result<config_text::Edited, Refusal> {
    config_text::add(found.file(&found.config), unit, slice)
        .map_err(|source| Refusal::Config { path: found.config.clone(), source })
}

/// The shipped unit, with the place of the running program.
fn agent_unit(program: &Path) -> Result<String, Refusal> {
    let hidden = ["/home", "/root", "/run/user", "/tmp", "/var/tmp"];
    let path = program.to_str().filter(|path| !path.contains(char::is_whitespace));
    let seen = path.filter(|_| !hidden.iter().any(|hidden| program.starts_with(hidden)));
    let path = seen.ok_or_else(|| Refusal::Program(program.to_owned()))?;
    Ok(format!("{OURS}\n{}", AGENT_UNIT.replace(PROGRAM, path)))
}

/// What weighs the unit against its siblings weighs its slice. Once the unit is in it, its file stays: the
/// unit's settings may have been meant for the slice's inside since.
fn slice_unit(unit: &Unit, installed: bool, existing: Option<&str>) -> String {
    if let Some(text) = existing.filter(|text| installed && text.starts_with(OURS)) {
        return text.to_owned();
    }
    let weights: String =
        unit.weights.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    format!(
        "{OURS}\n[Unit]\nDescription=Slice of {} alone, in which traffic-agent counts\n\n[Slice]\n\
         # Before 249 systemd holds the cgroup of a unit with accounting for itself.\n\
         IPAccounting=no\n{weights}",
        unit.id
    )
}

/// The agent starts behind the slice, which it attaches to, and before the unit, so that no socket is made
/// uncounted.
fn order_unit(unit: &str, slice: &str) -> String {
    format!("{OURS}\n[Unit]\nWants={slice}\nAfter={slice}\nBefore={unit}\n")
}

fn moving_unit(slice: &str, replaced: Option<&str>) -> String {
    let replaced = replaced.map_or_else(String::new, |text| format!("{REPLACED}{text}\n"));
    format!(
        "{OURS}; `traffic-agent uninstall` removes it\n{replaced}# A restart makes the unit a new cgroup. \
         That of its slice stays, with what counts in it.\n[Service]\nSlice={slice}\n"
    )
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
