//! The words by which coordinates and events are kept. They are the JSON's, and stay as they are.

use crate::{
    history::EventKind,
    report::{Direction, Family, Leg, Origin, Protocol, Scope},
};

/// Something that is kept by name.
pub(super) trait Named: Copy + 'static {
    /// What it is, for an error.
    const WHAT: &'static str;
    /// Every value.
    const ALL: &'static [Self];
    /// The name of one.
    fn name(self) -> &'static str;

    /// The value of a name.
    fn of(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|value| value.name() == name)
    }
}

macro_rules! named {
    ($type:ident, $what:literal, $($value:ident => $name:literal),+) => {
        impl Named for $type {
            const WHAT: &'static str = $what;
            const ALL: &'static [Self] = &[$(Self::$value),+];

            fn name(self) -> &'static str {
                match self {
                    $(Self::$value => $name),+
                }
            }
        }
    };
}

named!(Scope, "the scope", Billed => "billed", Unbilled => "unbilled", Loopback => "loopback");
named!(Origin, "the origin",
    Socket => "socket", Kernel => "kernel", KernelDerived => "kernel-derived");
named!(Direction, "the direction", Ingress => "ingress", Egress => "egress");
named!(Leg, "the leg", Client => "client", Upstream => "upstream");
named!(Protocol, "the protocol", Tcp => "tcp", Udp => "udp", Icmp => "icmp", Other => "other");
named!(Family, "the IP version", Ipv4 => "ipv4", Ipv6 => "ipv6");
named!(EventKind, "the kind of event",
    Gap => "gap", Late => "late", ClockStep => "clock-step", Note => "note");

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use super::*;

    fn as_in_json<T: Named + Serialize>() {
        for value in T::ALL {
            assert_eq!(serde_json::to_value(value).unwrap(), value.name());
        }
    }

    #[test]
    fn names_are_those_of_the_json() {
        as_in_json::<Scope>();
        as_in_json::<Origin>();
        as_in_json::<Direction>();
        as_in_json::<Leg>();
        as_in_json::<Protocol>();
        as_in_json::<Family>();
        for kind in EventKind::ALL {
            assert_eq!(Named::name(*kind), EventKind::name(*kind));
        }
    }
}
