//! `traffic-agent classic --port N`: the one line that the original script printed.
//!
//! `in_gb,out_gb,total_gb`, at once, from the counters of the rules themselves, which have grown
//! since the rules exist. `in` is what the `--dport` rules counted, `out` what the `--sport` rules
//! counted, and `total` is the published estimate, 2 x in: the line is for people who have it in a
//! script, errors of the formula included. Gigabytes are of 1024^3 bytes, and decimals behind the
//! second are cut off, not rounded.

use crate::report::{Direction, Protocol};

use super::firewall::{Firewall, Reading};
use super::{ListeningPort, run};

/// Why there is no line.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No such port.
    #[error("port 0 does not exist; ports are 1 to 65535")]
    NoSuchPort,
    /// No rule counts this direction of the port.
    #[error("{reason}; these rules count from now on:\n{commands}")]
    NoRule {
        /// What was found instead.
        reason: String,
        /// Commands to paste.
        commands: String,
    },
}

/// Reads the rules of this network namespace and returns the line.
///
/// # Errors
///
/// [`Error::NoRule`] says which rules to add.
pub fn run(port: u16) -> Result<String, Error> {
    if port == 0 {
        return Err(Error::NoSuchPort);
    }
    of(&Firewall::read(None, &ports(port)), port)
}

/// A rule for either protocol counts, as one for both does.
fn ports(port: u16) -> [ListeningPort; 2] {
    [Protocol::Tcp, Protocol::Udp].map(|protocol| ListeningPort { protocol, port })
}

fn of(reading: &Reading, port: u16) -> Result<String, Error> {
    let missing = |direction: Direction| {
        let rule = match direction {
            Direction::Ingress => format!("--dport {port} in INPUT"),
            Direction::Egress => format!("--sport {port} in OUTPUT"),
        };
        let reason = match reading.rules.iter().find(|rule| rule.direction == direction) {
            Some(near) => format!(
                "no rule counts exactly {rule} (`{}` of {}: {})",
                near.rule,
                near.chain,
                near.reason.as_deref().unwrap_or("not counted")
            ),
            None if reading.problems.is_empty() => format!("no rule counts {rule}"),
            None => format!("no rule counts {rule} ({})", reading.problems.join("; ")),
        };
        Error::NoRule { reason, commands: commands(port, direction) }
    };
    let ingress = reading.bytes(Direction::Ingress).ok_or_else(|| missing(Direction::Ingress))?;
    let egress = reading.bytes(Direction::Egress).ok_or_else(|| missing(Direction::Egress))?;
    Ok(line(ingress, egress))
}

/// Commands that make the rules of one direction, with the program that is there.
fn commands(port: u16, direction: Direction) -> String {
    let (chain, side) = match direction {
        Direction::Ingress => ("INPUT", "dport"),
        Direction::Egress => ("OUTPUT", "sport"),
    };
    if run::find("iptables").is_none() && run::find("nft").is_some() {
        let hook = chain.to_ascii_lowercase();
        return format!(
            "  nft add table inet count\n  \
             nft 'add chain inet count {hook} {{ type filter hook {hook} priority 1000; policy accept; }}'\n  \
             nft add rule inet count {hook} tcp {side} {port} counter"
        );
    }
    format!(
        "  iptables -I {chain} -p tcp --{side} {port}\n  ip6tables -I {chain} -p tcp --{side} {port}"
    )
}

/// `in_gb,out_gb,total_gb`, with total = 2 x in.
pub fn line(in_bytes: u64, out_bytes: u64) -> String {
    let [ingress, egress, total] =
        [in_bytes.into(), out_bytes.into(), 2 * u128::from(in_bytes)].map(gb);
    format!("{ingress},{egress},{total}")
}

/// Gigabytes of 1024^3 bytes with two decimals, cut off. Integers: a float is exact to 2^53 only.
fn gb(bytes: u128) -> String {
    let hundredths = bytes * 100 / (1 << 30);
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1 << 30;

    #[test]
    fn decimals_are_cut_off_not_rounded() {
        assert_eq!(line(0, 0), "0.00,0.00,0.00");
        // A hundredth is 10,737,418.24 bytes.
        assert_eq!(line(10_737_418, 10_737_419), "0.00,0.01,0.01");
        assert_eq!(line(GB - 1, GB), "0.99,1.00,1.99");
        assert_eq!(line(GB + GB / 2, 3 * GB), "1.50,3.00,3.00");
    }

    #[test]
    fn numbers_beyond_a_float_stay_exact() {
        // 2^53 + 1 bytes are 8,388,608 GB and one byte; one byte less is cut to .99.
        assert_eq!(line((1 << 53) + 1, (1 << 53) - 1), "8388608.00,8388607.99,16777216.00");
        assert_eq!(line(u64::MAX, 0), "17179869183.99,0.00,34359738367.99");
    }

    #[test]
    fn port_0_is_an_error() {
        assert!(matches!(run(0), Err(Error::NoSuchPort)));
    }
}
