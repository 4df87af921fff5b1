//! What `config check` says, in the shape in which it is printed: the types are the JSON format.

use jiff::tz::TimeZone;
use serde::Serialize;

use super::settings::{Setting, name};
use super::source::{Place, Problem};
use super::{Config, ConfigFile, Invalid, Loaded, Sampling, Target};
use crate::report::FORMAT;
use crate::units::format_duration;

/// The result of `config check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConfigReport {
    /// [`FORMAT`].
    pub format: u32,
    /// `config check`.
    pub command: &'static str,
    /// Whether `run` would take it.
    pub valid: bool,
    /// The file that was looked for.
    pub file: String,
    /// Whether it is there.
    pub file_exists: bool,
    /// All that is wrong; empty if valid.
    pub problems: Vec<ProblemReport>,
    /// What is in force, in the order of the default file; empty if not valid.
    pub settings: Vec<SettingReport>,
    /// What is counted; empty if not valid.
    pub targets: Vec<TargetReport>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ProblemReport {
    /// File with line and column, variable or flag; empty if it is nowhere.
    pub place: String,
    /// Key in the file; empty if of none.
    pub key: String,
    /// What, and what to write instead.
    pub message: String,
}

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SettingReport {
    /// Key in the file.
    pub key: &'static str,
    /// As the file has it.
    pub value: String,
    /// `flag`, `environment`, `file` or `default`.
    pub origin: &'static str,
    /// Where exactly; empty for a default.
    pub place: String,
}

/// One target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TargetReport {
    /// Its name.
    pub name: String,
    /// What it consists of.
    pub targets: Vec<String>,
    /// Ports that are added to and taken from those found.
    pub ports: Vec<String>,
    /// Ports that estimates read; empty for all.
    pub estimate_ports: Vec<String>,
    /// Interfaces whose traffic is free.
    pub unbilled: Vec<String>,
}

impl ConfigReport {
    /// Of what was read.
    pub fn new(file: &ConfigFile, loaded: &Result<Loaded, Invalid>) -> Self {
        let (problems, found) = match loaded {
            Ok(loaded) => (Vec::new(), Some(loaded)),
            Err(invalid) => (invalid.problems.iter().map(ProblemReport::from).collect(), None),
        };
        Self {
            format: FORMAT,
            command: "config check",
            valid: found.is_some(),
            file: file.path().display().to_string(),
            file_exists: found.map_or_else(|| file.path().exists(), |found| found.file.is_some()),
            problems,
            settings: found.map(settings).unwrap_or_default(),
            targets: found
                .map(|found| found.config.targets.iter().map(TargetReport::from).collect())
                .unwrap_or_default(),
        }
    }
}

impl From<&Problem> for ProblemReport {
    fn from(problem: &Problem) -> Self {
        Self {
            place: shown(&problem.place),
            key: problem.key.clone(),
            message: problem.message.clone(),
        }
    }
}

impl From<&Target> for TargetReport {
    fn from(target: &Target) -> Self {
        Self {
            name: target.spec.name.clone(),
            targets: target.spec.selectors.iter().map(ToString::to_string).collect(),
            ports: target.ports.0.iter().map(ToString::to_string).collect(),
            estimate_ports: target.estimate_ports.0.iter().map(ToString::to_string).collect(),
            unbilled: target.unbilled.clone(),
        }
    }
}

fn shown(place: &Place) -> String {
    match place {
        Place::Nowhere => String::new(),
        place => place.to_string(),
    }
}

fn settings(loaded: &Loaded) -> Vec<SettingReport> {
    let report = |(setting, place): &(Setting, Place)| {
        let value = value_of(&loaded.config, *setting)?;
        let origin = match place {
            Place::Flag(_) => "flag",
            Place::Environment(_) => "environment",
            Place::File { .. } | Place::WholeFile(_) => "file",
            Place::Nowhere => "default",
        };
        Some(SettingReport { key: setting.key, value, origin, place: shown(place) })
    };
    loaded.origins.iter().filter_map(report).collect()
}

/// A value as the file has it; `None` for what each target shows itself.
fn value_of(config: &Config, setting: Setting) -> Option<String> {
    let quoted = |text: &str| format!("{text:?}");
    let days = |days: Option<u32>| days.map_or_else(|| quoted("forever"), |days| days.to_string());
    let retention = &config.retention;
    Some(match setting {
        name::STATE_DIR => quoted(&config.state_dir.to_string_lossy()),
        name::BPFFS => quoted(&config.bpffs.to_string_lossy()),
        name::INTERVAL => match config.interval {
            Sampling { least, most } if least == most => quoted(&format_duration(least)),
            Sampling { least, most } => {
                format!("\"auto\" ({} to {})", format_duration(least), format_duration(most))
            }
        },
        name::FLUSH_INTERVAL => quoted(&format_duration(config.flush_interval)),
        name::TIME_ZONE => zone(&config.time_zone),
        name::HOST => config.host.to_string(),
        name::UNBILLED => format!("{:?}", config.unbilled),
        name::LINK_OVERHEAD => config.link_overhead.to_string(),
        name::LOG_LEVEL => quoted(&config.log_level.as_str().to_ascii_lowercase()),
        name::LOOK_INTO => quoted(config.look_into.word()),
        name::QUARTERS_DAYS => days(retention.quarters_days),
        name::DAYS_DAYS => days(retention.days_days),
        name::EVENTS_DAYS => days(retention.events_days),
        name::ESTIMATES_MINUTES_DAYS => days(retention.estimates_minutes_days),
        name::ESTIMATES_QUARTERS_DAYS => days(retention.estimates_quarters_days),
        _ => return None,
    })
}

fn zone(zone: &TimeZone) -> String {
    match zone.iana_name() {
        Some(name) => format!("{name:?}"),
        None if zone.is_unknown() => "\"system\" (not set: UTC)".to_owned(),
        None => "\"system\" (from /etc/localtime, which has no name)".to_owned(),
    }
}
