//! The command line. Only here: clap.

pub mod detach;
pub mod install;
pub mod report;
pub mod run;

use std::{ffi::OsString, path::PathBuf, time::Duration};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::units::{self, Units};

/// Counts what a proxy's traffic really costs, beside what people estimate.
///
/// An eBPF program on the proxy's cgroup counts every byte in and out, headers of every segment
/// included, split into the leg to the clients and the leg to the upstreams.
#[derive(Debug, Parser)]
#[command(
    name = "traffic-agent",
    version,
    max_term_width = 100,
    after_help = "Examples:\n  \
        traffic-agent demo                              see it work, no proxy needed\n  \
        traffic-agent selftest                          prove it on this kernel, to the byte\n  \
        traffic-agent compare xray.service -d 60s       exact totals beside every estimate\n  \
        traffic-agent exec -- curl -O https://...       what one command used\n  \
        traffic-agent doctor xray.service               what stands in the way\n  \
        traffic-agent report --by day                   what was used, from the history\n\n\
        Exit status: 0 done, 1 failed, 2 wrong usage, 3 incomplete (with --strict).\n\
        `exec` and `compare -- CMD` exit as CMD did; 125 the agent failed, 126 CMD not executable, \
        127 not found."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Measure for a while; print the exact totals beside every estimate and its error
    #[command(after_help = "Examples:\n  \
        traffic-agent compare                           the only running known proxy, 60 s\n  \
        traffic-agent compare xray.service -d 10m -i 1m --format csv\n  \
        traffic-agent compare --target proxy=container:xray --target proxy=process:nginx\n  \
        traffic-agent compare --add-rules xray.service  with counting rules of its own, removed at the end\n  \
        traffic-agent compare -- curl -O https://...    while a command runs in its own cgroup")]
    Compare(Compare),
    /// Run a command and print what traffic it used, as `time` does for time
    #[command(after_help = "Examples:\n  \
        traffic-agent exec -- curl -sO https://example.com/file\n  \
        traffic-agent exec --output used.json --json -- apt-get update\n  \
        traffic-agent exec --user nobody -- xray run -c config.json")]
    Exec(Exec),
    /// Print `in_gb,out_gb,total_gb` from the counters of the port's firewall rules, at once
    ///
    /// The line of the original script: GB of 2^30 bytes since the rules were made, total = 2 x in. Rules
    /// that count must be there; none is added.
    #[command(after_help = "Example:\n  traffic-agent classic --port 443")]
    Classic {
        /// The proxy's listening port
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
        port: u16,
    },
    /// Check the kernel, the rights, the target and the rules; say what stands in the way
    #[command(after_help = "Examples:\n  \
        traffic-agent doctor                            this machine, and the proxy that runs\n  \
        traffic-agent doctor xray.service               this target\n\n\
        Exit status: 0 nothing stands in the way, 1 a line is an error")]
    Doctor(Doctor),
    /// Show the main job on this machine: a lab of three namespaces, a relay, four workloads
    #[command(after_help = "Examples:\n  \
        traffic-agent demo                              as root; some seconds, leaves nothing behind\n  \
        traffic-agent demo --real xray                  with the xray that is in PATH")]
    Demo(Demo),
    /// Prove on this kernel that every byte is counted: known traffic, held against captures outside
    ///
    /// Makes a lab of three network namespaces and a relay in a cgroup of its own, drives TCP and UDP
    /// over IPv4 and IPv6 through it, with super-packets and without, and prints what the hook counted
    /// beside what the far ends captured. Leaves nothing behind. Exit status: 0 every byte is counted
    /// or of a class that is known not to be, 1 otherwise.
    #[command(after_help = "Examples:\n  \
        traffic-agent selftest                          as root; some seconds\n  \
        traffic-agent selftest --format json -o proof.json\n  \
        traffic-agent selftest --bytes 1000000          on a slow machine\n  \
        traffic-agent selftest --verbose                with packets as the hook saw them")]
    Selftest(Selftest),
    /// Count for months: keep the history of one or more targets, as a service does
    #[command(after_help = "Examples:\n  \
        traffic-agent run                               what /etc/traffic-agent/config.toml says\n  \
        traffic-agent run xray.service                  one target, no file needed\n  \
        traffic-agent run --state-dir /srv/count --target proxy=unit:xray --host\n\n\
        Flags win over the environment, the environment over the file, the file over defaults. Of \
        targets and lists the whole is replaced. SIGHUP reads all again without losing a byte.\n\n\
        Exit status: 0 ended by a signal, 1 failed, 2 wrong configuration: starting it again will not \
        help.")]
    Run(Box<run::Run>),
    /// End counting for good: write what was counted to the history, remove all that is pinned
    ///
    /// The daemon leaves its programs attached when it ends, so that nothing is missed until it starts
    /// again. This detaches them. The daemon must not run.
    #[command(after_help = detach::EXAMPLES)]
    Detach(detach::Detach),
    /// Check, show or print the daemon's configuration
    #[command(after_help = "Examples:\n  \
        traffic-agent config check                      what is in force, and who said so\n  \
        traffic-agent config default > /etc/traffic-agent/config.toml")]
    Config {
        /// What of it
        #[command(subcommand)]
        command: run::ConfigCommand,
    },
    /// Count a service without a gap: put it into a slice of its own, and the agent's unit before it
    ///
    /// A restart makes a unit a new cgroup, and what counts in the old one is gone until the agent sees the
    /// new one. The cgroup of a slice stays. Shows what it will write, says which restart that needs, and asks.
    #[command(after_help = "Examples:\n  \
        traffic-agent install --unit xray.service --dry-run      what would be written\n  \
        traffic-agent install --unit xray.service --yes          without a terminal\n  \
        traffic-agent install --unit xray.service --no-restart   in force at its next restart\n  \
        traffic-agent install --container xray                   what to add to a container")]
    Install(install::Install),
    /// Undo `install`; keep the history
    #[command(after_help = "Examples:\n  \
        traffic-agent uninstall --unit xray.service           this one\n  \
        traffic-agent uninstall --purge                       all of them, and the history")]
    Uninstall(install::Uninstall),
    /// Print what was used: today, this month, by hour, day, port, ... from what `run` keeps
    ///
    /// Reads the history in the state directory; needs no agent that runs, and no rights but to read it.
    #[command(after_help = report::EXAMPLES)]
    Report(report::Report),
    /// Print how counting goes: what was used today and in all, and what happened in the last 24 hours
    ///
    /// Reads what `run` wrote last, a few seconds ago; needs no rights but to read it.
    #[command(after_help = "Examples:\n  \
        traffic-agent status                            of all targets, with what is used now\n  \
        traffic-agent status --strict --json            for monitoring\n\n\
        Exit status: 0 done, 1 failed, 3 with --strict: a history is not kept up, its agent does not run")]
    Status(report::Status),
    /// Print a shell's completions
    #[command(after_help = "Examples:\n  \
        traffic-agent completions bash > /etc/bash_completion.d/traffic-agent\n  \
        traffic-agent completions zsh > /usr/local/share/zsh/site-functions/_traffic-agent\n  \
        traffic-agent completions fish > ~/.config/fish/completions/traffic-agent.fish")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write those of all commands
    #[command(after_help = "Examples:\n  \
        traffic-agent man | man -l -                    read it\n  \
        traffic-agent man --directory ./pages            traffic-agent.1, ... and the .5 of the file")]
    Man {
        /// Write the page of each command, and that of the configuration, into this directory
        #[arg(long, value_name = "DIR")]
        directory: Option<PathBuf>,
    },
}

/// Which targets, and how their traffic is divided.
#[derive(Args, Clone, Debug, Default)]
pub struct Targets {
    /// What to measure: unit:NAME, cgroup:PATH, container:NAME, process:NAME or pid:N; a bare
    /// xray.service or /path is understood. Without one: the only running known proxy
    #[arg(value_name = "TARGET")]
    pub targets: Vec<String>,
    /// The same as an option, with an optional name; several of one name are summed
    #[arg(long = "target", value_name = "[NAME=]KIND:VALUE")]
    pub named_targets: Vec<String>,
    /// A port that belongs to the client leg besides those found: 443, tcp/443, udp/8443; with a
    /// leading ! one that does not
    #[arg(long = "port", value_name = "[!][PROTOCOL/]PORT")]
    pub ports: Vec<String>,
}

impl Targets {
    /// All targets, however they were given.
    pub fn all(&self) -> impl Iterator<Item = &str> {
        self.targets.iter().chain(&self.named_targets).map(String::as_str)
    }
}

/// How a report is printed.
#[derive(Args, Clone, Debug)]
pub struct Printing {
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Short for --format json
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// iec: KiB, MiB, GiB; si: kB, MB, GB; bytes: exact
    #[arg(long, value_enum, default_value_t = UnitsArg::Iec)]
    pub units: UnitsArg,
    /// Show packets, payload and the rules behind the numbers too
    #[arg(short, long)]
    pub verbose: bool,
    /// Write the report to a file instead; it is opened before anything starts
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Exit with status 3 if the answer is incomplete
    #[arg(long)]
    pub strict: bool,
}

impl Printing {
    /// The format, however it was given.
    pub fn format(&self) -> Format {
        if self.json { Format::Json } else { self.format }
    }
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For scripts; integers in bytes.
    Json,
    /// One row per figure.
    Csv,
}

/// Units of byte figures in tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum UnitsArg {
    /// KiB, MiB, GiB.
    Iec,
    /// kB, MB, GB.
    Si,
    /// Exact bytes.
    Bytes,
}

impl UnitsArg {
    /// The units.
    pub fn units(self) -> Units {
        match self {
            Self::Iec => Units::Iec,
            Self::Si => Units::Si,
            Self::Bytes => Units::Bytes,
        }
    }
}

/// What applies to measuring.
#[derive(Args, Clone, Debug)]
pub struct Measuring {
    /// An interface whose traffic is free, such as a private network
    #[arg(long, value_name = "INTERFACE")]
    pub unbilled: Vec<String>,
    /// Print a line for each of the first N packets, for debugging
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub trace_packets: u32,
}

/// `compare`.
#[derive(Args, Debug)]
pub struct Compare {
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at their type")]
    pub targets: Targets,
    /// How long: 60s, 10m, 1h30m. Without it: until Ctrl-C on a terminal, else 60s
    #[arg(short, long, value_parser = duration)]
    pub duration: Option<Duration>,
    /// Print a line per interval as it goes
    #[arg(short, long, value_parser = duration)]
    pub interval: Option<Duration>,
    /// Which ports the estimate reads, if not all listening ones; other than that as --port
    #[arg(long, value_name = "[PROTOCOL/]PORT")]
    pub estimate_port: Vec<String>,
    /// Where `traffic-agent run` keeps its history: with some of this target, `calibrated` is among the
    /// estimates
    #[arg(
        long,
        value_name = "DIR",
        env = "TRAFFIC_AGENT_STATE_DIR",
        default_value = "/var/lib/traffic-agent"
    )]
    pub state_dir: PathBuf,
    /// Add counting rules for the listening ports, and remove them at the end
    #[arg(long)]
    pub add_rules: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at their type")]
    pub measuring: Measuring,
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at their type")]
    pub printing: Printing,
    /// Run the command as this user
    #[arg(long, value_name = "NAME", requires = "command")]
    pub user: Option<String>,
    /// Measure this command, in a cgroup of its own, while it runs
    #[arg(last = true, value_name = "CMD", conflicts_with_all = ["targets", "named_targets", "duration"])]
    pub command: Vec<OsString>,
}

/// `exec`.
#[derive(Args, Debug)]
pub struct Exec {
    /// Run the command as this user
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// A port that belongs to the client leg besides those found: 443, tcp/443, udp/8443; with a
    /// leading ! one that does not
    #[arg(long = "port", value_name = "[!][PROTOCOL/]PORT")]
    pub ports: Vec<String>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at their type")]
    pub measuring: Measuring,
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at their type")]
    pub printing: Printing,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// `doctor`.
#[derive(Args, Debug)]
pub struct Doctor {
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at their type")]
    pub targets: Targets,
    /// How to print
    #[arg(long, value_parser = ["table", "json"], default_value = "table")]
    pub format: String,
    /// Short for --format json
    #[arg(long, action = ArgAction::SetTrue)]
    pub json: bool,
}

/// `demo`.
#[derive(Args, Debug)]
pub struct Demo {
    /// Use this program as the proxy instead of the built-in relay
    #[arg(long, value_enum)]
    pub real: Option<RealProxy>,
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at their type")]
    pub printing: Printing,
}

/// `selftest`.
#[derive(Args, Debug)]
pub struct Selftest {
    /// Bytes of each bulk transfer, per direction; without it, what this machine carries in a fraction
    /// of a second
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(100_000..=1_000_000_000))]
    pub bytes: Option<u64>,
    /// How to print
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
    /// Short for --format json
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// Show packets and bytes as the hook saw them, and payload, too
    #[arg(short, long)]
    pub verbose: bool,
    /// Write the report to a file instead; it is opened before anything starts
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}

/// Real programs that `demo` can drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the programs' names")]
pub enum RealProxy {
    Xray,
    #[value(name = "sing-box")]
    SingBox,
    V2ray,
}

/// Reads `60s`, `10m`, `1h30m`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a duration; write 60s, 10m or 1h30m");
    let duration = units::parse_duration(text).ok_or_else(wrong)?;
    if duration < Duration::from_millis(100) {
        return Err(format!("`{text}` is too short; 0.1s is the least"));
    }
    Ok(duration)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!(duration("60").unwrap(), Duration::from_secs(60));
        assert_eq!(duration("60s").unwrap(), Duration::from_secs(60));
        assert_eq!(duration("1h30m").unwrap(), Duration::from_secs(5400));
        for wrong in ["", "-5s", "0", "abc", "5 parsecs", "99999999999999999999"] {
            assert!(duration(wrong).is_err(), "{wrong:?} was accepted");
        }
    }

    #[test]
    fn a_command_and_a_target_exclude_each_other() {
        assert!(
            Cli::try_parse_from(["traffic-agent", "compare", "a.service", "--", "true"]).is_err()
        );
        assert!(Cli::try_parse_from(["traffic-agent", "compare", "--", "true"]).is_ok());
        assert!(Cli::try_parse_from(["traffic-agent", "exec"]).is_err());
        assert!(Cli::try_parse_from(["traffic-agent", "classic", "--port", "0"]).is_err());
    }
}
