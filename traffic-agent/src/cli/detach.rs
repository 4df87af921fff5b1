//! `detach`.

use std::path::PathBuf;

use clap::Args;

use super::run::Settings;

/// Examples in `--help`.
pub const EXAMPLES: &str = "Examples:\n  \
    traffic-agent detach                            after `systemctl stop traffic-agent`\n  \
    traffic-agent detach --state-dir /srv/count     another agent's\n  \
    traffic-agent detach --discard                  when the history cannot be written";

/// `detach`.
#[derive(Args, Clone, Debug)]
pub struct Detach {
    /// The configuration that says where the state is; without it /etc/traffic-agent/config.toml, if that
    /// exists
    #[arg(short, long, value_name = "FILE", env = "TRAFFIC_AGENT_CONFIG")]
    pub config: Option<PathBuf>,
    /// Where history and lock are [default: /var/lib/traffic-agent]
    #[arg(long, value_name = "DIR", env = "TRAFFIC_AGENT_STATE_DIR")]
    pub state_dir: Option<String>,
    /// Where the BPF filesystem is mounted [default: /sys/fs/bpf]
    #[arg(long, value_name = "DIR", env = "TRAFFIC_AGENT_BPFFS")]
    pub bpffs: Option<String>,
    /// Do not write what was counted since the last flush to the history
    #[arg(long)]
    pub discard: bool,
}

impl Detach {
    /// The settings that it shares with `run`.
    pub fn settings(&self) -> Settings {
        Settings {
            config: self.config.clone(),
            state_dir: self.state_dir.clone(),
            bpffs: self.bpffs.clone(),
            // What is counted is what is pinned: no target needs to be configured.
            host: Some("true".to_owned()),
            ..Settings::default()
        }
    }
}
