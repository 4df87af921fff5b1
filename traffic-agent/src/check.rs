//! What `doctor` looked at, in the shape in which it is printed.
//!
//! The types are the JSON format, as in `report`. Who checks is `commands`, who prints is `render`.

use serde::Serialize;

use crate::report::{CgroupReport, FORMAT, ProcessReport};

/// The result of `doctor`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DoctorReport {
    /// [`FORMAT`].
    pub format: u32,
    /// `doctor`.
    pub command: &'static str,
    /// In the order in which they were made.
    pub checks: Vec<Check>,
    /// Known proxies that run and could be measured.
    pub candidates: Vec<Candidate>,
}

impl DoctorReport {
    /// Returns a report of these checks.
    pub fn new(checks: Vec<Check>, candidates: Vec<Candidate>) -> Self {
        Self { format: FORMAT, command: "doctor", checks, candidates }
    }

    /// Returns the worst of all checks, which decides the exit status.
    pub fn status(&self) -> CheckStatus {
        self.checks.iter().map(|check| check.status).max().unwrap_or(CheckStatus::Ok)
    }
}

/// How a check ended. In order: the worst is the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// As it should be.
    Ok,
    /// It works, but the numbers mean less than they could.
    Warning,
    /// It does not work.
    Error,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// How it ended.
    pub status: CheckStatus,
    /// Stable name, such as `kernel` or `cgroup2`.
    pub name: &'static str,
    /// What was seen.
    pub message: String,
    /// What to do about it; none where nothing needs doing.
    pub remedy: Option<String>,
}

impl Check {
    /// Returns a check that found everything as it should be.
    pub fn ok(name: &'static str, message: impl Into<String>) -> Self {
        Self { status: CheckStatus::Ok, name, message: message.into(), remedy: None }
    }

    /// Returns a check that found something that makes the numbers mean less.
    pub fn warning(
        name: &'static str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (message, remedy) = (message.into(), Some(remedy.into()));
        Self { status: CheckStatus::Warning, name, message, remedy }
    }

    /// Returns a check that found something that does not work.
    pub fn error(
        name: &'static str,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (message, remedy) = (message.into(), Some(remedy.into()));
        Self { status: CheckStatus::Error, name, message, remedy }
    }
}

/// A known proxy that runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Candidate {
    /// The cgroup that would be counted.
    pub cgroup: CgroupReport,
    /// Its processes.
    pub processes: Vec<ProcessReport>,
    /// How to select it; null where nothing selects it without more of the host.
    pub selector: Option<String>,
    /// The command that measures it, to paste.
    pub command: Option<String>,
}
