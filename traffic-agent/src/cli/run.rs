//! `run` and `config`: every setting of the file as a flag and a variable too.
//!
//! Values stay text here: `config` reads them, so that all that is wrong with a configuration is said at
//! once, wherever it was written.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::config::ConfigFile;
use crate::config::settings::{Setting, name};
use crate::config::source::Given;

/// `run`.
#[derive(Args, Clone, Debug)]
pub struct Run {
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at their type")]
    pub settings: Settings,
}

/// What `run` does with a configuration.
#[derive(Args, Clone, Debug, Default)]
pub struct Settings {
    /// The configuration; without it /etc/traffic-agent/config.toml, if that exists
    #[arg(short, long, value_name = "FILE", env = "TRAFFIC_AGENT_CONFIG")]
    pub config: Option<PathBuf>,
    /// What to count, in place of the file's targets: unit:NAME, cgroup:PATH, container:NAME,
    /// process:NAME or pid:N; a bare xray.service or /path is understood
    #[arg(value_name = "TARGET")]
    pub targets: Vec<String>,
    /// The same as an option, with an optional name; several of one name are summed
    #[arg(
        long = "target",
        value_name = "[NAME=]KIND:VALUE",
        env = "TRAFFIC_AGENT_TARGETS",
        value_delimiter = ','
    )]
    pub named_targets: Vec<String>,
    /// A port that belongs to the client leg besides those found: 443, tcp/443, udp/8443; with a
    /// leading ! one that does not
    #[arg(
        long = "port",
        value_name = "[!][PROTOCOL/]PORT",
        env = "TRAFFIC_AGENT_PORTS",
        value_delimiter = ','
    )]
    pub ports: Vec<String>,
    /// Which ports the estimates read, if not all listening ones; other than that as --port
    #[arg(
        long = "estimate-port",
        value_name = "[PROTOCOL/]PORT",
        env = "TRAFFIC_AGENT_ESTIMATE_PORTS",
        value_delimiter = ','
    )]
    pub estimate_ports: Vec<String>,
    /// An interface whose traffic is free, such as a private network
    #[arg(long, value_name = "INTERFACE", env = "TRAFFIC_AGENT_UNBILLED", value_delimiter = ',')]
    pub unbilled: Vec<String>,
    /// Count the whole host too, by cgroup
    #[arg(
        long,
        value_name = "true|false",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        env = "TRAFFIC_AGENT_HOST"
    )]
    pub host: Option<String>,
    /// In which days end: a name such as Europe/Berlin, UTC, or system [default: system]
    #[arg(long, value_name = "ZONE", env = "TRAFFIC_AGENT_TIME_ZONE")]
    pub time_zone: Option<String>,
    /// Link-layer bytes per packet of the modelled column [default: 14, Ethernet]
    #[arg(long, value_name = "BYTES", env = "TRAFFIC_AGENT_LINK_OVERHEAD")]
    pub link_overhead: Option<String>,
    /// How often counters are read: 1s to 1m, or auto, 1 s under traffic and up to 10 s without
    /// [default: auto]
    #[arg(short, long, value_name = "TIME", env = "TRAFFIC_AGENT_INTERVAL")]
    pub interval: Option<String>,
    /// How often the history is written, the most that a power cut takes: 1s to 10m [default: 10s]
    #[arg(long, value_name = "TIME", env = "TRAFFIC_AGENT_FLUSH_INTERVAL")]
    pub flush_interval: Option<String>,
    /// What to log: error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL", env = "TRAFFIC_AGENT_LOG_LEVEL")]
    pub log_level: Option<String>,
    /// For how much more than counting it keeps rights: nothing, processes (whose sockets are whose),
    /// namespaces (targets in other network namespaces: nearly root), or auto, what was granted on
    /// purpose or, of root's whole power, what the targets need [default: auto]
    #[arg(long, value_name = "WHAT", env = "TRAFFIC_AGENT_LOOK_INTO")]
    pub look_into: Option<String>,
    /// Where history and lock are [default: /var/lib/traffic-agent]
    #[arg(long, value_name = "DIR", env = "TRAFFIC_AGENT_STATE_DIR")]
    pub state_dir: Option<String>,
    /// Where the BPF filesystem is mounted [default: /sys/fs/bpf]
    #[arg(long, value_name = "DIR", env = "TRAFFIC_AGENT_BPFFS")]
    pub bpffs: Option<String>,
    // Last: its heading goes on to the end of the help.
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at their type")]
    pub retention: RetentionArgs,
}

/// How long history is kept.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "How long history is kept, in days or `forever`")]
pub struct RetentionArgs {
    /// Quarters of an hour [default: 800]
    #[arg(long, value_name = "DAYS", env = "TRAFFIC_AGENT_RETENTION_QUARTERS_DAYS")]
    pub retention_quarters_days: Option<String>,
    /// Days [default: forever]
    #[arg(long, value_name = "DAYS", env = "TRAFFIC_AGENT_RETENTION_DAYS_DAYS")]
    pub retention_days_days: Option<String>,
    /// Events, such as gaps [default: 800]
    #[arg(long, value_name = "DAYS", env = "TRAFFIC_AGENT_RETENTION_EVENTS_DAYS")]
    pub retention_events_days: Option<String>,
    /// Estimates by the minute [default: 14]
    #[arg(long, value_name = "DAYS", env = "TRAFFIC_AGENT_RETENTION_ESTIMATES_MINUTES_DAYS")]
    pub retention_estimates_minutes_days: Option<String>,
    /// Estimates by the quarter of an hour [default: 800]
    #[arg(long, value_name = "DAYS", env = "TRAFFIC_AGENT_RETENTION_ESTIMATES_QUARTERS_DAYS")]
    pub retention_estimates_quarters_days: Option<String>,
}

impl Settings {
    /// Which file to read.
    pub fn file(&self) -> ConfigFile {
        ConfigFile::new(self.config.clone())
    }

    /// What flags and the environment give. `environment` looks a variable up.
    ///
    /// clap has put the two together: what has the variable's value comes from there, and where a flag
    /// says the same it does not matter.
    pub fn given(&self, environment: &dyn Fn(&str) -> Option<String>) -> Vec<Given> {
        let one = |setting, word: &Option<String>| {
            Some(given(setting, word.as_slice(), environment))
                .filter(|given| !given.words.is_empty())
        };
        let list = |setting, words: &[String]| {
            Some(given(setting, words, environment)).filter(|given| !given.words.is_empty())
        };
        let named = list(name::TARGETS, &self.named_targets);
        let targets = match (self.targets.is_empty(), named) {
            (true, named) => named,
            // The variable gives way to what stands on the command line.
            (false, Some(named)) if !named.from_environment => {
                let words = [self.targets.as_slice(), &named.words].concat();
                Some(Given { setting: name::TARGETS, from_environment: false, words })
            }
            (false, _) => Some(Given {
                setting: name::TARGETS,
                from_environment: false,
                words: self.targets.clone(),
            }),
        };
        let retention = &self.retention;
        [
            targets,
            list(name::PORTS, &self.ports),
            list(name::ESTIMATE_PORTS, &self.estimate_ports),
            list(name::UNBILLED, &self.unbilled),
            one(name::HOST, &self.host),
            one(name::TIME_ZONE, &self.time_zone),
            one(name::LINK_OVERHEAD, &self.link_overhead),
            one(name::INTERVAL, &self.interval),
            one(name::FLUSH_INTERVAL, &self.flush_interval),
            one(name::QUARTERS_DAYS, &retention.retention_quarters_days),
            one(name::DAYS_DAYS, &retention.retention_days_days),
            one(name::EVENTS_DAYS, &retention.retention_events_days),
            one(name::ESTIMATES_MINUTES_DAYS, &retention.retention_estimates_minutes_days),
            one(name::ESTIMATES_QUARTERS_DAYS, &retention.retention_estimates_quarters_days),
            one(name::LOG_LEVEL, &self.log_level),
            one(name::LOOK_INTO, &self.look_into),
            one(name::STATE_DIR, &self.state_dir),
            one(name::BPFFS, &self.bpffs),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

fn given(
    setting: Setting,
    words: &[String],
    environment: &dyn Fn(&str) -> Option<String>,
) -> Given {
    let value = environment(setting.variable);
    let from_environment = value.is_some_and(|value| value == words.join(","));
    // An empty variable is as good as none, as a service's EnvironmentFile= may have it.
    let words = match from_environment {
        true => words.iter().filter(|word| !word.is_empty()).cloned().collect(),
        false => words.to_vec(),
    };
    Given { setting, from_environment, words }
}

/// `config`.
#[derive(Clone, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Say what would be in force and where each value comes from, or all that is wrong
    ///
    /// Takes what `run` takes: what it says is what `run` would do. Exit status: 0 valid, 1 not.
    Check(Box<ConfigCheck>),
    /// Print the commented default file, which is the manual
    Default,
}

/// `config check`.
#[derive(Args, Clone, Debug)]
pub struct ConfigCheck {
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at their type")]
    pub settings: Settings,
    /// How to print
    #[arg(long, value_parser = ["table", "json"], default_value = "table")]
    pub format: String,
    /// Short for --format json
    #[arg(long)]
    pub json: bool,
}
