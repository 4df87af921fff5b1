//! The kinds of traffic of the matrix.

use traffic_lab::topology::{CLIENT_DEVICE, UPSTREAM_DEVICE};

use super::datagram::{Datagrams, Sending};
use super::stream::Streams;
use super::writing::Writing;

/// Some super-packets of 64 KiB on each leg, in each direction that is bulk.
const BULK: usize = 2_000_000;
/// Too little for a packet to be full, and still thousands of writes.
const TINY: usize = 6_000;
/// Of a small answer, or a question.
const SMALL: usize = 500;

/// Traffic of a cell.
#[derive(Debug, Clone, Copy)]
pub enum Traffic {
    /// TCP.
    Streams(Streams),
    /// UDP.
    Datagrams(Datagrams),
}

/// One kind of traffic, and what of it must be seen for the cell to prove what it says.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// For the label.
    pub name: &'static str,
    /// What is driven.
    pub traffic: Traffic,
    /// With offloads, the proxy's stack must send super-packets on these devices.
    pub merged_egress: &'static [&'static str],
    /// And receive some on these.
    pub merged_ingress: &'static [&'static str],
}

/// Both devices of the proxy.
pub(super) const BOTH: &[&str] = &[CLIENT_DEVICE, UPSTREAM_DEVICE];
const STREAMS: Streams = Streams {
    connections: 1,
    parallel: 1,
    up: BULK,
    down: BULK,
    at_once: false,
    writing: Writing::Copy,
};

/// TCP in all its kinds.
pub static TCP: [Kind; 8] = {
    const fn kind(name: &'static str, streams: Streams) -> Kind {
        let traffic = Traffic::Streams(streams);
        Kind { name, traffic, merged_egress: BOTH, merged_ingress: BOTH }
    }
    [
        Kind {
            merged_egress: &[CLIENT_DEVICE],
            merged_ingress: &[UPSTREAM_DEVICE],
            ..kind("bulk down", Streams { up: SMALL, ..STREAMS })
        },
        Kind {
            merged_egress: &[UPSTREAM_DEVICE],
            merged_ingress: &[CLIENT_DEVICE],
            ..kind("bulk up", Streams { down: SMALL, ..STREAMS })
        },
        kind(
            "bulk both ways at once",
            Streams {
                connections: 2,
                parallel: 2,
                up: BULK / 2,
                down: BULK / 2,
                at_once: true,
                ..STREAMS
            },
        ),
        Kind {
            merged_egress: &[],
            merged_ingress: &[],
            ..kind(
                "short connections",
                Streams { connections: 80, parallel: 4, up: 200, down: 1_000, ..STREAMS },
            )
        },
        Kind {
            merged_egress: &[],
            merged_ingress: &[],
            ..kind(
                "tiny writes",
                Streams { up: TINY, down: TINY, writing: Writing::Tiny, ..STREAMS },
            )
        },
        kind("sendfile", Streams { writing: Writing::Sendfile, ..STREAMS }),
        kind("splice", Streams { writing: Writing::Splice, ..STREAMS }),
        kind("MSG_ZEROCOPY", Streams { writing: Writing::ZeroCopy, ..STREAMS }),
    ]
};

/// Payloads of 500 datagrams, the last of them short.
const MANY: [usize; 500] = {
    let mut payloads = [1_200; 500];
    payloads[499] = 321;
    payloads
};
/// Payloads of zero to seven bytes.
const FEW_BYTES: [usize; 400] = {
    let mut payloads = [0; 400];
    let mut number = 0;
    while number < 400 {
        payloads[number] = number % 8;
        number += 1;
    }
    payloads
};
const ONE: &[usize] = &[SMALL];
const DATAGRAMS: Datagrams = Datagrams {
    flows: 1,
    up: &MANY,
    down: &MANY,
    far: Sending::Plain,
    proxy: Sending::Plain,
    gro: false,
};

/// UDP in all its kinds.
pub static UDP: [Kind; 8] = {
    const fn kind(name: &'static str, datagrams: Datagrams) -> Kind {
        let traffic = Traffic::Datagrams(datagrams);
        Kind { name, traffic, merged_egress: &[], merged_ingress: &[] }
    }
    [
        kind("bulk down", Datagrams { up: ONE, ..DATAGRAMS }),
        kind("bulk up", Datagrams { down: ONE, ..DATAGRAMS }),
        kind("short flows", Datagrams { flows: 60, up: &[60], down: &[300], ..DATAGRAMS }),
        kind("tiny writes", Datagrams { up: &FEW_BYTES, down: &FEW_BYTES, ..DATAGRAMS }),
        kind("sendfile", Datagrams { proxy: Sending::Sendfile, ..DATAGRAMS }),
        kind("MSG_ZEROCOPY", Datagrams { proxy: Sending::ZeroCopy, ..DATAGRAMS }),
        Kind {
            merged_egress: BOTH,
            ..kind("UDP_SEGMENT", Datagrams { proxy: Sending::Segmented, ..DATAGRAMS })
        },
        Kind {
            merged_egress: BOTH,
            merged_ingress: BOTH,
            ..kind(
                "UDP_SEGMENT and UDP_GRO",
                Datagrams {
                    far: Sending::Segmented,
                    proxy: Sending::Segmented,
                    gro: true,
                    ..DATAGRAMS
                },
            )
        },
    ]
};

/// Of each protocol, the kind with the most super-packets both ways, and the short one.
pub static ESSENCE: [&Kind; 4] = [&TCP[5], &TCP[3], &UDP[7], &UDP[2]];
