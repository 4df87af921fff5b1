//! What can be set, and under which names: in the file, as a flag, in the environment.

/// One setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// In the file; a dot stands before what is in a table.
    pub key: &'static str,
    /// On the command line, without the dashes.
    pub flag: &'static str,
    /// In the environment.
    pub variable: &'static str,
    /// Whether a running agent cannot change it.
    pub needs_restart: bool,
}

const fn setting(key: &'static str, flag: &'static str, variable: &'static str) -> Setting {
    Setting { key, flag, variable, needs_restart: false }
}

const fn fixed(key: &'static str, flag: &'static str, variable: &'static str) -> Setting {
    Setting { key, flag, variable, needs_restart: true }
}

#[expect(missing_docs, reason = "documented at the field of `Config` of the same name")]
pub mod name {
    use super::{Setting, fixed, setting};

    pub const STATE_DIR: Setting = fixed("state_dir", "state-dir", "TRAFFIC_AGENT_STATE_DIR");
    pub const BPFFS: Setting = fixed("bpffs", "bpffs", "TRAFFIC_AGENT_BPFFS");
    pub const INTERVAL: Setting = setting("interval", "interval", "TRAFFIC_AGENT_INTERVAL");
    pub const FLUSH_INTERVAL: Setting =
        setting("flush_interval", "flush-interval", "TRAFFIC_AGENT_FLUSH_INTERVAL");
    pub const TIME_ZONE: Setting = setting("time_zone", "time-zone", "TRAFFIC_AGENT_TIME_ZONE");
    pub const HOST: Setting = setting("host", "host", "TRAFFIC_AGENT_HOST");
    pub const UNBILLED: Setting = setting("unbilled", "unbilled", "TRAFFIC_AGENT_UNBILLED");
    pub const PORTS: Setting = setting("ports", "port", "TRAFFIC_AGENT_PORTS");
    pub const ESTIMATE_PORTS: Setting =
        setting("estimate_ports", "estimate-port", "TRAFFIC_AGENT_ESTIMATE_PORTS");
    pub const LINK_OVERHEAD: Setting =
        setting("link_overhead", "link-overhead", "TRAFFIC_AGENT_LINK_OVERHEAD");
    pub const LOG_LEVEL: Setting = setting("log_level", "log-level", "TRAFFIC_AGENT_LOG_LEVEL");
    pub const LOOK_INTO: Setting = fixed("look_into", "look-into", "TRAFFIC_AGENT_LOOK_INTO");
    pub const QUARTERS_DAYS: Setting = setting(
        "retention.quarters_days",
        "retention-quarters-days",
        "TRAFFIC_AGENT_RETENTION_QUARTERS_DAYS",
    );
    pub const DAYS_DAYS: Setting =
        setting("retention.days_days", "retention-days-days", "TRAFFIC_AGENT_RETENTION_DAYS_DAYS");
    pub const EVENTS_DAYS: Setting = setting(
        "retention.events_days",
        "retention-events-days",
        "TRAFFIC_AGENT_RETENTION_EVENTS_DAYS",
    );
    pub const ESTIMATES_MINUTES_DAYS: Setting = setting(
        "retention.estimates_minutes_days",
        "retention-estimates-minutes-days",
        "TRAFFIC_AGENT_RETENTION_ESTIMATES_MINUTES_DAYS",
    );
    pub const ESTIMATES_QUARTERS_DAYS: Setting = setting(
        "retention.estimates_quarters_days",
        "retention-estimates-quarters-days",
        "TRAFFIC_AGENT_RETENTION_ESTIMATES_QUARTERS_DAYS",
    );
    /// In the file a table each; all others are replaced where flag or environment names one.
    pub const TARGETS: Setting = setting("target", "target", "TRAFFIC_AGENT_TARGETS");
}

/// All of them, in the order of the default file.
pub const ALL: [Setting; 18] = [
    name::TARGETS,
    name::PORTS,
    name::ESTIMATE_PORTS,
    name::UNBILLED,
    name::HOST,
    name::TIME_ZONE,
    name::LINK_OVERHEAD,
    name::INTERVAL,
    name::FLUSH_INTERVAL,
    name::QUARTERS_DAYS,
    name::DAYS_DAYS,
    name::EVENTS_DAYS,
    name::ESTIMATES_MINUTES_DAYS,
    name::ESTIMATES_QUARTERS_DAYS,
    name::LOG_LEVEL,
    name::LOOK_INTO,
    name::STATE_DIR,
    name::BPFFS,
];

/// Keys of a `[[target]]`.
pub const TARGET_KEYS: [&str; 5] = ["name", "targets", "ports", "estimate_ports", "unbilled"];

/// Keys that a table of the file may have: the root's for `""`.
pub fn keys_of(table: &str) -> Vec<&'static str> {
    if table == name::TARGETS.key {
        return TARGET_KEYS.to_vec();
    }
    let mut keys: Vec<&str> = ALL
        .iter()
        .filter_map(|setting| match (table, setting.key.split_once('.')) {
            ("", None) => Some(setting.key),
            ("", Some((parent, _))) => Some(parent),
            (table, Some((parent, key))) if parent == table => Some(key),
            _ => None,
        })
        .collect();
    keys.dedup();
    keys
}

/// The name that was most likely meant.
pub fn nearest<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase().replace('-', "_");
    let distance = |name: &str| {
        // A name that is one without its ending is near whatever the length: `zone`, `flush`.
        let part = word.len() >= 4 && (name.starts_with(&word) || name.ends_with(&word));
        if part { 1 } else { strsim::osa_distance(&word, &name.to_lowercase()) }
    };
    names
        .into_iter()
        .map(|name| (distance(name), name))
        .filter(|(distance, name)| *distance <= name.len().max(word.len()).div_ceil(3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found_and_what_is_far_is_not() {
        let near = |word| nearest(word, keys_of(""));
        assert_eq!(near("intervall"), Some("interval"));
        assert_eq!(near("state-dir"), Some("state_dir"));
        assert_eq!(near("StateDir"), Some("state_dir"));
        assert_eq!(near("zone"), Some("time_zone"));
        assert_eq!(near("flush"), Some("flush_interval"));
        assert_eq!(near("retenion"), Some("retention"));
        assert_eq!(near("password"), None);
        assert_eq!(near(""), None);
    }

    #[test]
    fn tables_have_their_keys() {
        assert!(keys_of("").contains(&"retention"));
        assert_eq!(keys_of("").iter().filter(|key| **key == "retention").count(), 1);
        assert!(keys_of("retention").contains(&"quarters_days"));
        assert_eq!(keys_of("target"), TARGET_KEYS);
    }
}
