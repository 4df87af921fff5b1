//! What a measurement finds worth saying, in words. Pure.

use traffic_ebpf::INTERFACE_SLOT_OTHER;

use crate::anchor::{self, Why};
use crate::kernel::Unavailable;
use crate::ledger;
use crate::report::{CellReport, Directions, Family, Finding, Leg, Origin, Protocol, Severity};
use crate::target::Cgroup;

/// The classes and their sizes are those of docs/accounting.md.
pub(super) fn not_answered(reason: &Unavailable) -> Finding {
    Finding {
        severity: Severity::Info,
        code: "kernel-answers-not-counted",
        message: format!(
            "packets that the kernel exchanges without the target's socket are not counted: {}",
            reason.with_causes()
        ),
        remedy: "late packets of connections that the proxy closed first: 104 bytes each on IPv4, 144 on \
                 IPv6; up to 0.04 % of short connections was measured, and nothing of bulk traffic"
            .to_owned(),
        incomplete: false,
    }
}

/// Packets of the target's namespaces that may be anybody's.
pub(super) fn unattributed(Directions { ingress, egress }: Directions) -> Option<Finding> {
    (ingress.wire_packets + egress.wire_packets > 0).then(|| Finding {
        severity: Severity::Info,
        code: "kernel-unattributed",
        message: format!(
            "the kernel took {} packets ({} bytes) for no socket and answered with {} ({} bytes), \
             of no listening port and no known connection of the target: they are not counted",
            ingress.wire_packets, ingress.wire_bytes, egress.wire_packets, egress.wire_bytes
        ),
        remedy: "nothing: scans of closed ports look like this".to_owned(),
        incomplete: false,
    })
}

/// SYN-ACKs that nothing shows but the kernel's own counter.
pub(super) fn syn_cookies(sent: u64) -> Option<Finding> {
    (sent > 0).then(|| Finding {
        severity: Severity::Warning,
        code: "syn-cookies",
        message: format!(
            "the kernel answered {sent} SYNs with a cookie: these answers have no socket and are not \
             counted, 60 bytes each on IPv4, 80 on IPv6"
        ),
        remedy: "more connections came than a listener's queue holds, the target's or another's in its \
                 network namespace: a flood, or a queue that is too short (net.core.somaxconn)"
            .to_owned(),
        incomplete: false,
    })
}

/// Events during which the program was running already: the kernel leaves them out.
pub(super) fn answers_missed(missed: u64) -> Option<Finding> {
    (missed > 0).then(|| Finding {
        severity: Severity::Warning,
        code: "kernel-answers-missed",
        message: format!(
            "{missed} events of this host, among them perhaps packets for the target that met no socket, \
             came while another one was being looked at, and were not"
        ),
        remedy: "nothing; so many packets at most are missing".to_owned(),
        incomplete: true,
    })
}

/// ICMPv6 has no tracepoint, and the kernel sends no more than some: how many, nothing tells.
pub(super) fn icmpv6_not_counted(cells: &[CellReport]) -> Option<Finding> {
    let datagrams = ledger::sum(cells, |cell| {
        cell.origin != Origin::Socket
            && cell.protocol == Protocol::Udp
            && cell.family == Family::Ipv6
    });
    let datagrams = datagrams.ingress.wire_packets;
    (datagrams > 0).then(|| Finding {
        severity: Severity::Info,
        code: "icmpv6-answers-not-counted",
        message: format!(
            "{datagrams} IPv6 datagrams for the target met no socket; what the kernel answered with is not \
             counted: at most as many packets, of up to 1280 bytes each"
        ),
        remedy: "nothing; it sends about one a second to an address".to_owned(),
        incomplete: false,
    })
}

/// Interfaces beyond the table.
pub(super) fn interface_without_slot(cells: &[CellReport]) -> Option<Finding> {
    let beyond = ledger::sum(cells, |cell| cell.interface == "other").wire_bytes();
    (beyond > 0).then(|| Finding {
        severity: Severity::Info,
        code: "interface-without-slot",
        message: format!(
            "{beyond} bytes passed interfaces beyond the {} that are told apart; they are counted, as \
             billed, under `other`",
            INTERFACE_SLOT_OTHER - 1
        ),
        remedy: "nothing, unless one of them is free and named by --unbilled".to_owned(),
        incomplete: false,
    })
}

/// Listening ports beyond the table.
pub(super) fn port_without_slot(cells: &[CellReport]) -> Option<Finding> {
    let client = |cell: &CellReport| cell.leg == Leg::Client && cell.port.is_none();
    let beyond = ledger::sum(cells, client).wire_bytes();
    (beyond > 0).then(|| Finding {
        severity: Severity::Info,
        code: "port-without-slot",
        message: format!(
            "{beyond} bytes belong to listening ports beyond the 58 that are told apart; they are \
             counted, as client leg, in one sum per protocol"
        ),
        remedy: "take ports that do not matter away with --port '!tcp/N'".to_owned(),
        incomplete: false,
    })
}

pub(super) fn audit_failed(error: &anyhow::Error) -> Finding {
    Finding {
        severity: Severity::Warning,
        code: "audit-failed",
        message: format!("{error:#}"),
        remedy: "the totals are right; whether they are all of the target's traffic is not known"
            .to_owned(),
        incomplete: true,
    }
}

pub(super) fn cgroup_gone(cgroup: &Cgroup) -> Finding {
    Finding {
        severity: Severity::Error,
        code: "cgroup-gone",
        message: format!(
            "cgroup {} was removed while it was measured: what was counted until then is in the \
             report, what its successor did is not",
            cgroup.path
        ),
        remedy: "the service was restarted or stopped; measure again".to_owned(),
        incomplete: true,
    }
}

/// Sums that do not fit: no figure is ever smaller than before, or a panic, because of that.
pub fn at_limit(what: &str, incomplete: bool) -> Finding {
    Finding {
        severity: Severity::Error,
        code: "at-limit",
        message: format!(
            "{what} have reached {}, the largest that there is: they are at least that, and what is \
             made of them means nothing",
            u64::MAX
        ),
        remedy: "measure for a shorter time".to_owned(),
        incomplete,
    }
}

/// A cgroup that is counted without being hooked. `why`: as far as it can be told now.
pub(super) fn attached_above(cgroup: &Cgroup, anchor: &str, why: Option<&Why>) -> Finding {
    let why = why.map_or_else(|| "it must not be hooked itself".to_owned(), Why::to_string);
    Finding {
        severity: Severity::Warning,
        code: "attached-above",
        message: format!(
            "{} is counted by hooks on {anchor}, which select its packets: {why}",
            cgroup.path
        ),
        remedy: anchor::remedy(&cgroup.path),
        incomplete: false,
    }
}

pub(super) fn no_traffic() -> Finding {
    Finding {
        severity: Severity::Info,
        code: "no-traffic",
        message: "not one packet passed the target's sockets".to_owned(),
        remedy: "if it should have: is it the right target, and did its process start after its \
                 cgroup was made? `traffic-agent doctor` looks"
            .to_owned(),
        incomplete: false,
    }
}

pub(super) fn unparsable(log: Vec<String>) -> Option<Finding> {
    let first = log.first()?;
    Some(Finding {
        severity: Severity::Warning,
        code: "unparsable-packets",
        message: format!(
            "at least {} packets had headers that could not be read; they are counted with their \
             length as upstream, other. The first: {first}",
            log.len()
        ),
        remedy: "please report it with what runs in the cgroup".to_owned(),
        incomplete: false,
    })
}
