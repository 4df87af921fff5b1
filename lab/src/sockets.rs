//! Which ports have a socket, read from procfs: to wait for a server without sending it a packet.

use std::collections::BTreeSet;
use std::fs;
use std::io;

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP: a port is open when a socket listens.
    Tcp,
    /// UDP: a port is open when a socket without a peer is bound.
    Udp,
}

/// The open ports in the network namespace of a process, both families.
pub fn open_ports(pid: u32, transport: Transport) -> io::Result<BTreeSet<u16>> {
    let (tables, state) = match transport {
        // TCP_LISTEN; and TCP_CLOSE, which is what an unconnected UDP socket shows.
        Transport::Tcp => (["tcp", "tcp6"], "0A"),
        Transport::Udp => (["udp", "udp6"], "07"),
    };
    let mut ports = BTreeSet::new();
    for table in tables {
        match fs::read_to_string(format!("/proc/{pid}/net/{table}")) {
            Ok(text) => ports.extend(parse_ports(&text, state)),
            // A kernel without IPv6 has no tcp6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && table.ends_with('6') => {}
            Err(error) => return Err(error),
        }
    }
    Ok(ports)
}

/// The local ports of the lines in this state; what is no such line is skipped.
fn parse_ports<'t>(text: &'t str, state: &'t str) -> impl Iterator<Item = u16> + 't {
    // sl local_address rem_address st ..., addresses as hex:hex.
    text.lines().filter_map(move |line| {
        let mut columns = line.split_whitespace().skip(1);
        let (local, _, st) = (columns.next()?, columns.next()?, columns.next()?);
        (st == state).then_some(())?;
        u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listeners_are_open() {
        let text = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0100007F:1F91 0100007F:0050 01 00000000:00000000 00:00000000 00000000     0        0 2 1
   2: 00000000000000000000000000000000:2DBE 00000000000000000000000000000000:0000 0A 0 0 0 0 0
";
        assert_eq!(parse_ports(text, "0A").collect::<Vec<_>>(), [8080, 11710]);
        assert_eq!(parse_ports("1: nonsense\n\n2: a:zz b 0A\n", "0A").count(), 0);
    }
}
