//! `report` and `status`: what the history says.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{Printing, UnitsArg};
use crate::calendar::{UNDERSTOOD, Unit};
use crate::past::tally::Dimension;

/// Examples and formats of `report`, for its help.
pub(super) const EXAMPLES: &str = "Examples:
  traffic-agent report                            today, yesterday, this month, last month
  traffic-agent report --by day                   the last 30 days, with bars
  traffic-agent report xray --by day,leg --from 2026-11 --to 2026-12
  traffic-agent report --by port --from 7d        which port used what since a week ago
  traffic-agent report --by hour --from yesterday --to today --time-zone Asia/Kolkata
  traffic-agent report --by cgroup --from today   what every service used, and the balance
  traffic-agent report --by month --from 2026 --format csv > 2026.csv
  traffic-agent report --by day --estimates       how wrong 2 x in and the others were, day by day

Spans are half-open: --from 2026-11 --to 2026-12 is November, all of it.
A row that was not observed all the time is marked with the share that was; what happened is below.

JSON: \"format\": 1, integers in bytes and packets, times RFC 3339; `rows` have target, period, start, \
end, day, what they are divided by, billed, unbilled and loopback by direction, total_wire_bytes \
(billed), observed_seconds, observable_seconds, complete and notes; `targets` have the sums of the whole \
interval.

CSV: the columns kind, target, period, start, end, interface, leg, protocol, port, scope, direction, \
packets, bytes, wire_packets, wire_bytes, payload_bytes, retransmitted_bytes, modelled_link_bytes, \
observed_seconds, observable_seconds, complete, note; one line per row, scope and direction.

With --estimates: target, period, start, end, estimate, source, estimated_bytes, exact_bytes, \
compared_seconds, error_percent, the three published claims (true, false or empty), factor, low, high, \
samples; one line per row and estimate. In JSON each row has estimates, and each target a calibration \
and estimate_notes.

Exit status: 0 done, 1 failed, 2 wrong usage, 3 incomplete (with --strict).";

/// Where the history is, and whose.
#[derive(Args, Clone, Debug)]
pub struct History {
    /// Names of targets, or what they were selected by; without one: all in the history
    #[arg(value_name = "TARGET")]
    pub targets: Vec<String>,
    /// Where `traffic-agent run` keeps its history
    #[arg(
        long,
        value_name = "DIR",
        env = "TRAFFIC_AGENT_STATE_DIR",
        default_value = "/var/lib/traffic-agent"
    )]
    pub state_dir: PathBuf,
    /// Cut the calendar in this time zone; without it, in the one of the history
    #[arg(long, value_name = "ZONE")]
    pub time_zone: Option<String>,
}

/// `report`.
#[derive(Args, Debug)]
pub struct Report {
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at their type")]
    pub history: History,
    #[arg(long, value_name = "TIME", help = format!("Begin here: {UNDERSTOOD}"))]
    #[expect(missing_docs, reason = "the help is its documentation")]
    pub from: Option<String>,
    /// End before this time; written like --from. Without it: now
    #[arg(long, value_name = "TIME")]
    pub to: Option<String>,
    /// A row for each of these; several divide further, but only one may be a unit of time. Without --from,
    /// rows by time begin 24 hours, 30 days, 12 weeks, 12 months or all years ago; others, with this month
    #[arg(long, value_enum, value_delimiter = ',', value_name = "WHAT")]
    pub by: Vec<By>,
    /// Add a column with N bytes more for each packet on the wire, a model of what interfaces count: 14 for
    /// Ethernet. With --by cgroup: balance with this many in place of the configured `link_overhead`
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(..=1_000))]
    pub link_overhead: Option<u32>,
    /// How wrong the estimates were in each row of time: of the rules' counters where they were read, else of
    /// the hook's
    #[arg(long)]
    pub estimates: bool,
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at their type")]
    pub printing: Printing,
}

/// `status`.
#[derive(Args, Debug)]
pub struct Status {
    #[command(flatten)]
    #[expect(missing_docs, reason = "documented at their type")]
    pub history: History,
    /// How to print
    #[arg(long, value_parser = ["table", "json"], default_value = "table")]
    pub format: String,
    /// Short for --format json
    #[arg(long, conflicts_with = "format")]
    pub json: bool,
    /// iec: KiB, MiB, GiB; si: kB, MB, GB; bytes: exact
    #[arg(long, value_enum, default_value_t = UnitsArg::Iec)]
    pub units: UnitsArg,
    /// Where the counters are pinned, for what is used now
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf", env = "TRAFFIC_AGENT_BPFFS")]
    pub bpffs: PathBuf,
    /// Exit with status 3 if the history of a target is not kept up
    #[arg(long)]
    pub strict: bool,
}

impl Status {
    /// Whether it is for scripts.
    pub fn is_json(&self) -> bool {
        self.json || self.format == "json"
    }
}

/// What a report has rows for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "the names say it")]
pub enum By {
    Hour,
    Day,
    /// From Monday on
    Week,
    Month,
    Year,
    /// Client and upstream
    Leg,
    /// Each listening port, and the upstream leg
    Port,
    /// tcp, udp, icmp, other
    Protocol,
    /// With its scope
    Interface,
    /// billed, unbilled, loopback
    Scope,
    /// Every cgroup of the host, and the balance with what the interfaces counted (`run` with `host = true`)
    Cgroup,
}

impl By {
    /// The unit of time that it is.
    pub fn unit(self) -> Option<Unit> {
        match self {
            Self::Hour => Some(Unit::Hour),
            Self::Day => Some(Unit::Day),
            Self::Week => Some(Unit::Week),
            Self::Month => Some(Unit::Month),
            Self::Year => Some(Unit::Year),
            Self::Leg
            | Self::Port
            | Self::Protocol
            | Self::Interface
            | Self::Scope
            | Self::Cgroup => None,
        }
    }

    /// The part of traffic that it is.
    pub fn dimension(self) -> Option<Dimension> {
        match self {
            Self::Leg => Some(Dimension::Leg),
            Self::Port => Some(Dimension::Port),
            Self::Protocol => Some(Dimension::Protocol),
            Self::Interface => Some(Dimension::Interface),
            Self::Scope => Some(Dimension::Scope),
            Self::Hour | Self::Day | Self::Week | Self::Month | Self::Year | Self::Cgroup => None,
        }
    }

    /// Its word, as it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
            Self::Year => "year",
            Self::Leg => "leg",
            Self::Port => "port",
            Self::Protocol => "protocol",
            Self::Interface => "interface",
            Self::Scope => "scope",
            Self::Cgroup => "cgroup",
        }
    }
}
