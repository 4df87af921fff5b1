//! What a running agent can take over, and what needs a restart.

use super::Config;
use super::settings::{Setting, name};

/// What differs between the configuration in force and a new one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// What takes effect at once.
    pub applied: Vec<Setting>,
    /// What stays as it was until the agent is restarted.
    pub need_restart: Vec<Setting>,
}

impl Changes {
    /// Compares two.
    pub fn between(old: &Config, new: &Config) -> Self {
        let (need_restart, applied) =
            differing(old, new).into_iter().partition(|setting| setting.needs_restart);
        Self { applied, need_restart }
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.applied.is_empty() && self.need_restart.is_empty()
    }

    /// What to log about what was not taken over.
    pub fn restart_message(&self) -> Option<String> {
        let names: Vec<&str> = self.need_restart.iter().map(|setting| setting.key).collect();
        if names.is_empty() {
            return None;
        }
        Some(format!(
            "{} cannot change while the agent runs and stays as it was; restart it \
             (`systemctl restart traffic-agent`)",
            names.join(" and ")
        ))
    }
}

impl Config {
    /// What is in force after a reload: the new one, but for what needs a restart.
    pub fn reloaded(&self, new: Self) -> (Self, Changes) {
        let changes = Changes::between(self, &new);
        let (state_dir, bpffs) = (self.state_dir.clone(), self.bpffs.clone());
        (Self { state_dir, bpffs, look_into: self.look_into, ..new }, changes)
    }
}

fn differing(old: &Config, new: &Config) -> Vec<Setting> {
    // Without `..`: a new field must be thought of here.
    let Config {
        state_dir,
        bpffs,
        interval,
        flush_interval,
        time_zone,
        host,
        unbilled,
        link_overhead,
        log_level,
        look_into,
        retention,
        targets,
    } = new;
    let kept = &old.retention;
    [
        (name::STATE_DIR, old.state_dir != *state_dir),
        (name::BPFFS, old.bpffs != *bpffs),
        (name::INTERVAL, old.interval != *interval),
        (name::FLUSH_INTERVAL, old.flush_interval != *flush_interval),
        (name::TIME_ZONE, old.time_zone != *time_zone),
        (name::HOST, old.host != *host),
        (name::UNBILLED, old.unbilled != *unbilled),
        (name::LINK_OVERHEAD, old.link_overhead != *link_overhead),
        (name::LOG_LEVEL, old.log_level != *log_level),
        (name::LOOK_INTO, old.look_into != *look_into),
        (name::QUARTERS_DAYS, kept.quarters_days != retention.quarters_days),
        (name::DAYS_DAYS, kept.days_days != retention.days_days),
        (name::EVENTS_DAYS, kept.events_days != retention.events_days),
        (
            name::ESTIMATES_MINUTES_DAYS,
            kept.estimates_minutes_days != retention.estimates_minutes_days,
        ),
        (
            name::ESTIMATES_QUARTERS_DAYS,
            kept.estimates_quarters_days != retention.estimates_quarters_days,
        ),
        (name::TARGETS, old.targets != *targets),
    ]
    .into_iter()
    .filter(|(_, differs)| *differs)
    .map(|(setting, _)| setting)
    .collect()
}
