//! Which ports of a target are its clients' side.
//!
//! TCP says so itself (LISTEN). UDP has no such state: what the kernel program cannot announce,
//! because the socket is older than the agent, is judged by its port. A port outside of the range that
//! the kernel hands out was chosen on purpose.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::sockets::{Socket, State};
use crate::method::ListeningPort;
use crate::report::Protocol;

/// net.ipv4.ip_local_port_range where it cannot be read: the kernel's own default.
pub const DEFAULT_EPHEMERAL: RangeInclusive<u16> = 32768..=60999;

/// Parses /proc/sys/net/ipv4/ip_local_port_range.
pub fn parse_ephemeral(text: &str) -> Option<RangeInclusive<u16>> {
    let mut numbers = text.split_ascii_whitespace().map(str::parse);
    match (numbers.next(), numbers.next(), numbers.next()) {
        (Some(Ok(low)), Some(Ok(high)), None) if low <= high => Some(low..=high),
        _ => None,
    }
}

/// A listening port, and who has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listening {
    /// Protocol and port.
    pub port: ListeningPort,
    /// Whether a socket of it was there when the target was looked at. False for a port that only
    /// `--port` names.
    pub since_before: bool,
    /// Whether one of its sockets is transparent (TPROXY): accepted sockets then have other ports.
    pub transparent: bool,
    /// Whether `--port` names it.
    pub configured: bool,
    /// Names of the processes that have such a socket, sorted; empty where that cannot be seen.
    pub processes: Vec<String>,
}

/// Why a `--port` was not understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "port {text:?} is not valid: {why}; write 443, tcp/443, udp/8443 or udp/20000-20050, with ! in \
     front to take it away"
)]
pub struct ParseError {
    text: String,
    why: &'static str,
}

/// One `--port`: ports that are listening ports whatever the sockets say, or (`!`) are none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortRule {
    /// Takes away instead of adding.
    pub exclude: bool,
    /// None: tcp and udp.
    pub protocol: Option<Protocol>,
    /// The ports; 0 is never in it.
    pub ports: RangeInclusive<u16>,
}

impl PortRule {
    fn matches(&self, port: ListeningPort) -> bool {
        self.ports.contains(&port.port) && self.protocol.is_none_or(|it| it == port.protocol)
    }
}

impl FromStr for PortRule {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error = |why| ParseError { text: text.to_owned(), why };
        let number = |digits: &str| {
            // `parse` alone would also take `+80`.
            let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
            let port = plain.then(|| digits.parse().ok()).flatten();
            port.filter(|&port: &u16| port > 0)
                .ok_or_else(|| error("a port is a number from 1 to 65535"))
        };
        let (exclude, rest) = match text.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (protocol, rest) = match rest.split_once('/') {
            None => (None, rest),
            Some(("tcp", rest)) => (Some(Protocol::Tcp), rest),
            Some(("udp", rest)) => (Some(Protocol::Udp), rest),
            Some(_) => return Err(error("only tcp and udp have ports")),
        };
        let (low, high) = rest.split_once('-').unwrap_or((rest, rest));
        let (low, high) = (number(low)?, number(high)?);
        if low > high {
            return Err(error("the range ends before it begins"));
        }
        Ok(Self { exclude, protocol, ports: low..=high })
    }
}

impl fmt::Display for PortRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exclude = if self.exclude { "!" } else { "" };
        let protocol = match self.protocol {
            None => "",
            Some(Protocol::Udp) => "udp/",
            Some(_) => "tcp/",
        };
        write!(f, "{exclude}{protocol}{}", self.ports.start())?;
        match self.ports.start() == self.ports.end() {
            true => Ok(()),
            false => write!(f, "-{}", self.ports.end()),
        }
    }
}

/// All `--port` together. What takes away wins, whatever the order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortFilter(pub Vec<PortRule>);

impl PortFilter {
    /// Whether the port is taken away.
    pub fn excludes(&self, port: ListeningPort) -> bool {
        self.0.iter().any(|rule| rule.exclude && rule.matches(port))
    }

    /// Whether the port is added, and not taken away.
    pub fn adds(&self, port: ListeningPort) -> bool {
        self.0.iter().any(|rule| !rule.exclude && rule.matches(port)) && !self.excludes(port)
    }

    /// Every port that is added, and not taken away.
    pub fn added(&self) -> BTreeSet<ListeningPort> {
        self.named(false).filter(|port| !self.excludes(*port)).collect()
    }

    /// Every port that is taken away.
    pub fn excluded(&self) -> BTreeSet<ListeningPort> {
        self.named(true).collect()
    }

    fn named(&self, exclude: bool) -> impl Iterator<Item = ListeningPort> {
        let both = [Protocol::Tcp, Protocol::Udp];
        self.0
            .iter()
            .filter(move |rule| rule.exclude == exclude)
            .flat_map(|rule| rule.ports.clone().map(move |port| (rule, port)))
            .flat_map(move |(rule, port)| {
                both.map(|protocol| (rule, ListeningPort { protocol, port }))
            })
            .filter(|(rule, port)| rule.matches(*port))
            .map(|(_, port)| port)
    }
}

/// Whether a socket waits for clients, as far as the socket itself tells.
pub fn is_listening(socket: &Socket, ephemeral: &RangeInclusive<u16>) -> bool {
    match socket.protocol {
        Protocol::Tcp => socket.state == State::LISTEN,
        Protocol::Udp => {
            // A connected one talks to one peer, whichever port it has.
            let port = socket.local.port();
            socket.state == State::CLOSE && port != 0 && !ephemeral.contains(&port)
        }
        Protocol::Icmp | Protocol::Other => false,
    }
}

/// Collects the listening ports among sockets, each with the names of those who have it.
pub(super) fn collect<'a>(
    sockets: impl Iterator<Item = (&'a Socket, Vec<String>)>,
    filter: &PortFilter,
) -> Vec<Listening> {
    let mut found: BTreeMap<ListeningPort, Listening> = BTreeMap::new();
    let empty = |port, configured| Listening {
        port,
        since_before: false,
        transparent: false,
        configured,
        processes: Vec::new(),
    };
    for port in filter.added() {
        found.insert(port, empty(port, true));
    }
    for (socket, names) in sockets {
        let port = ListeningPort { protocol: socket.protocol, port: socket.local.port() };
        if filter.excludes(port) {
            continue;
        }
        let listening = found.entry(port).or_insert_with(|| empty(port, false));
        listening.since_before = true;
        listening.transparent |= socket.transparent;
        listening.processes.extend(names);
        listening.processes.sort();
        listening.processes.dedup();
    }
    found.into_values().collect()
}

#[cfg(test)]
#[path = "ports_tests.rs"]
mod tests;
