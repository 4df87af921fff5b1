//! What becomes of readings: differences, and nothing else. Real programs are in the kernel tests
//! (tests/tests/background.rs).

use proptest::prelude::*;

use super::*;
use crate::estimate::PortBytes;
use crate::method::interface::InterfaceCounters;
use crate::method::tests::{of, tcp};
use crate::report::{Counters, Family, Leg, Origin, Protocol, Scope};

const IN: &str = "INPUT -p tcp -m tcp --dport 443";
const OUT: &str = "OUTPUT -p tcp -m tcp --sport 443";
const PORTS: [ListeningPort; 1] = [ListeningPort { protocol: Protocol::Tcp, port: 443 }];

fn cell(leg: Leg, direction: Direction, port: Option<u16>, counters: Counters) -> CellReport {
    CellReport {
        interface: "eth0".to_owned(),
        scope: Scope::Billed,
        origin: Origin::Socket,
        direction,
        leg,
        protocol: Protocol::Tcp,
        port,
        family: Family::Ipv4,
        counters,
    }
}

/// Traffic of a port: as many bytes at the hook, and four more for each hundred on the wire.
fn traffic(port: u16, ingress: u64, egress: u64) -> Vec<CellReport> {
    [(Direction::Ingress, ingress), (Direction::Egress, egress)]
        .map(|(direction, bytes)| {
            let wire_bytes = bytes + bytes / 25;
            let counters = Counters { bytes, wire_bytes, ..Counters::default() };
            cell(Leg::Client, direction, Some(port), counters)
        })
        .to_vec()
}

/// A look that finds these counters of the two rules.
fn rules(ingress: u64, egress: u64) -> Look {
    look(of(&[(1, ingress, IN), (1, egress, OUT)], &PORTS))
}

fn look(reading: firewall::Reading) -> Look {
    Look { namespace: 1, rules: Ok(Some(reading)), interfaces: Err("not read".to_owned()) }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_795_540_500 + second).unwrap()
}

/// A target that is looked at once a minute.
#[derive(Default)]
struct Target {
    background: Background,
    looks: i64,
}

impl Target {
    fn look(&mut self, posted: &[CellReport], look: &Look) -> Minute {
        self.background.post(posted);
        self.background.begin();
        let at = at(60 * self.looks);
        self.looks += 1;
        self.background.finish(look, &PORTS, at)
    }
}

fn reading(minute: &Minute, method: Method) -> Option<&MethodReading> {
    minute.readings.iter().find(|reading| reading.method == method)
}

fn by_rules(minute: &Minute) -> Option<(Option<u64>, Option<u64>)> {
    reading(minute, Method::IptablesPort).map(|reading| (reading.ingress, reading.egress))
}

/// The events, which must be one.
fn event(minute: &Minute) -> &str {
    let [event] = minute.events.as_slice() else { panic!("{:?}", minute.events) };
    &event.message
}

#[test]
fn a_minute_is_the_difference_of_two_looks_beside_what_is_exact() {
    let mut target = Target::default();
    // Counters that grew before the first look are nobody's.
    let first = target.look(&traffic(443, 50, 50), &rules(1000, 9000));
    assert!(first.readings.is_empty(), "{first:?}");
    let minute = target.look(&traffic(443, 100, 900), &rules(1100, 9900));
    let exact = PortBytes { ingress: 104, egress: 936 };
    let reading = |method| MethodReading {
        method,
        start: at(0),
        end: at(60),
        ingress: Some(100),
        egress: Some(900),
        exact,
    };
    assert_eq!(minute.readings, [reading(Method::IptablesPort), reading(Method::HookPort)]);
}

#[test]
fn upstream_and_unbilled_traffic_are_told_apart() {
    let mut target = Target::default();
    target.look(&[], &rules(0, 0));
    let counters = Counters { bytes: 300, wire_bytes: 312, ..Counters::default() };
    let upstream = cell(Leg::Upstream, Direction::Ingress, None, counters);
    let mut free = cell(Leg::Client, Direction::Ingress, Some(443), counters);
    free.scope = Scope::Loopback;
    let minute = target.look(&[upstream, free], &rules(300, 0));
    let hook = reading(&minute, Method::HookPort).unwrap();
    // Loopback is in what port counters see, the upstream leg in what is billed.
    assert_eq!((hook.ingress, hook.exact.ingress), (Some(300), 312));
}

#[test]
fn counters_set_to_zero_open_a_new_span() {
    let mut target = Target::default();
    target.look(&[], &rules(1000, 9000));
    // iptables -Z, then 40 of 100 bytes.
    let minute = target.look(&traffic(443, 100, 900), &rules(40, 500));
    assert_eq!(by_rules(&minute), None);
    let expected = "iptables-port: rules-changed: counters of iptables-nft INPUT were set to zero";
    assert!(event(&minute).starts_with(expected), "{:?}", minute.events);
    assert_eq!((minute.events[0].start, minute.events[0].end), (at(0), at(60)));
    // The hook goes on.
    assert_eq!(reading(&minute, Method::HookPort).unwrap().ingress, Some(100));
    let minute = target.look(&traffic(443, 7, 8), &rules(47, 508));
    assert_eq!(by_rules(&minute), Some((Some(7), Some(8))));
    assert!(minute.events.is_empty());
}

#[test]
fn a_rule_that_vanishes_and_comes_back_is_counted_while_it_is_there() {
    let mut target = Target::default();
    let without = || look(of(&[], &PORTS));
    target.look(&[], &rules(1000, 9000));
    let gone = target.look(&traffic(443, 1, 1), &without());
    assert!(event(&gone).contains("a rule vanished"), "{:?}", gone.events);
    let absent = target.look(&traffic(443, 2, 2), &without());
    assert!(event(&absent).contains("no rule counts port tcp/443"), "{:?}", absent.events);
    // It is said once.
    let absent = target.look(&traffic(443, 2, 2), &without());
    assert_eq!((by_rules(&absent), absent.events.len()), (None, 0));
    let back = target.look(&traffic(443, 3, 3), &rules(2, 2));
    assert!(event(&back).contains("a rule was added"), "{:?}", back.events);
    assert_eq!(by_rules(&back), None);
    let minute = target.look(&traffic(443, 4, 4), &rules(6, 6));
    assert_eq!(by_rules(&minute), Some((Some(4), Some(4))));
}

#[test]
fn counters_that_were_zeroed_and_have_caught_up_fall_short_of_the_hook() {
    const MB: u64 = 1_000_000;
    let mut target = Target::default();
    target.look(&[], &rules(MB, MB));
    // 10 MB passed, the counters were zeroed after 7 and stand at 3: 2 MB more than at the last look.
    let minute = target.look(&traffic(443, 10 * MB, 10 * MB), &rules(3 * MB, 3 * MB));
    assert_eq!(by_rules(&minute), None);
    assert!(event(&minute).contains("2000000 of 10000000 ingress bytes"), "{:?}", minute.events);
    let minute = target.look(&traffic(443, MB, MB), &rules(4 * MB, 4 * MB));
    assert_eq!(by_rules(&minute), Some((Some(MB), Some(MB))));
}

#[test]
fn rules_that_always_lack_something_keep_their_error() {
    const MB: u64 = 1_000_000;
    let mut target = Target::default();
    target.look(&[], &rules(0, 0));
    // Half of what the hook sees, minute by minute, and no rule of the table explains it.
    for minute in 1..=4 {
        let seen =
            target.look(&traffic(443, 4 * MB, 4 * MB), &rules(2 * MB * minute, 2 * MB * minute));
        let expected = (minute > 1).then_some((Some(2 * MB), Some(2 * MB)));
        assert_eq!(by_rules(&seen), expected, "minute {minute}");
    }
    let codes: Vec<_> = target.background.findings().iter().map(|one| one.code).collect();
    assert_eq!(codes, ["rules-fall-short"]);
}

#[test]
fn a_rule_behind_one_that_accepts_is_named_and_keeps_its_error() {
    const MB: u64 = 1_000_000;
    const ESTABLISHED: &str = "INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT";
    let shadowed = |all: u64, seen: u64| {
        look(of(&[(1, all, ESTABLISHED), (1, seen, IN), (1, all, OUT)], &PORTS))
    };
    let mut target = Target::default();
    target.look(&[], &shadowed(0, 0));
    let minute = target.look(&traffic(443, 5 * MB, 5 * MB), &shadowed(5 * MB, 60));
    assert_eq!(by_rules(&minute), Some((Some(60), Some(5 * MB))));
    assert!(event(&minute).starts_with("rule-shadowed"), "{:?}", minute.events);
    let minute = target.look(&traffic(443, 5 * MB, 5 * MB), &shadowed(10 * MB, 120));
    assert_eq!((by_rules(&minute).unwrap().0, minute.events.len()), (Some(60), 0));
}

#[test]
fn a_port_without_rule_that_had_traffic_leaves_no_reading_of_that_direction() {
    let mut target = Target::default();
    let ports = [tcp(443), tcp(8443)];
    let counted = |ingress: u64| {
        look(of(
            &[(1, ingress, IN), (1, 0, OUT), (1, 0, "OUTPUT -p tcp -m tcp --sport 8443")],
            &ports,
        ))
    };
    let mut look = |posted: &[CellReport], look: &Look| {
        target.background.post(posted);
        target.background.begin();
        target.looks += 1;
        target.background.finish(look, &ports, at(60 * target.looks))
    };
    look(&[], &counted(0));
    // Nothing of 8443 yet: the rules stand for all there was.
    let minute = look(&traffic(443, 100, 0), &counted(100));
    assert_eq!(by_rules(&minute), Some((Some(100), Some(0))));
    let minute = look(&traffic(8443, 10, 0), &counted(100));
    assert_eq!(by_rules(&minute), Some((None, Some(0))));
    assert!(event(&minute).contains("no rule counts tcp/8443"), "{:?}", minute.events);
}

#[test]
fn a_look_that_fails_is_an_error_said_once_and_the_next_one_is_of_both_spans() {
    let mut target = Target::default();
    target.look(&[], &rules(10, 10));
    let hangs = Look { rules: Err("a program hangs".to_owned()), ..rules(0, 0) };
    let minute = target.look(&traffic(443, 1, 1), &hangs);
    assert_eq!(event(&minute), "iptables-port: a program hangs");
    let minute = target.look(&traffic(443, 2, 2), &hangs);
    assert!(minute.events.is_empty() && by_rules(&minute).is_none());
    let minute = target.look(&traffic(443, 4, 4), &rules(17, 17));
    let reading = reading(&minute, Method::IptablesPort).unwrap();
    assert_eq!((reading.ingress, reading.exact.ingress), (Some(7), 7));
    assert_eq!((reading.start, reading.end), (at(0), at(180)));
}

#[test]
fn a_look_without_rules_makes_the_next_difference_longer() {
    let mut target = Target::default();
    target.look(&[], &rules(10, 10));
    let deferred = Look { rules: Ok(None), ..rules(0, 0) };
    let minute = target.look(&traffic(443, 5, 5), &deferred);
    assert!(minute.events.iter().all(|event| !event.message.contains("iptables")));
    let minute = target.look(&traffic(443, 6, 6), &rules(21, 21));
    assert_eq!(by_rules(&minute), Some((Some(11), Some(11))));
}

#[test]
fn another_namespace_has_other_counters() {
    let mut target = Target::default();
    target.look(&[], &rules(10, 10));
    let moved = Look { namespace: 2, ..rules(5000, 5000) };
    let minute = target.look(&traffic(443, 5, 5), &moved);
    assert_eq!(by_rules(&minute), None);
    assert!(event(&minute).contains("another network namespace"), "{:?}", minute.events);
}

fn interfaces(list: &[(&str, u32, u64)]) -> Look {
    let mut reading = InterfaceReading::default();
    for &(name, index, bytes) in list {
        let counters = InterfaceCounters {
            ingress_bytes: bytes,
            egress_bytes: 2 * bytes,
            ..Default::default()
        };
        reading.counters.insert(name.to_owned(), counters);
        reading.indexes.insert(name.to_owned(), index);
    }
    Look { namespace: 1, rules: Ok(None), interfaces: Ok(reading) }
}

#[test]
fn an_interface_made_anew_is_told_by_its_number() {
    let of_interfaces = |minute: &Minute| {
        reading(minute, Method::Interface).map(|reading| (reading.ingress, reading.egress))
    };
    let mut target = Target::default();
    target.look(&[], &interfaces(&[("lo", 1, 9), ("eth0", 2, 100)]));
    // A new one began at 0; loopback is in no sum.
    let minute = target.look(&[], &interfaces(&[("lo", 1, 99), ("eth0", 2, 150), ("tun0", 3, 7)]));
    assert_eq!(of_interfaces(&minute), Some((Some(57), Some(114))));
    // Made anew, and further than the old one ever was.
    let anew = [("lo", 1, 99), ("eth0", 2, 150), ("tun0", 4, 5000)];
    let minute = target.look(&[], &interfaces(&anew));
    assert_eq!(of_interfaces(&minute), None);
    assert_eq!(event(&minute), "interface: interface tun0 was made anew");
    let minute = target.look(&[], &interfaces(&[("lo", 1, 99), ("eth0", 2, 160)]));
    assert_eq!(event(&minute), "interface: interface tun0 vanished while measuring");
    let minute = target.look(&[], &interfaces(&[("lo", 1, 99), ("eth0", 2, 161)]));
    assert_eq!(of_interfaces(&minute), Some((Some(1), Some(2))));
}

/// What may be done to a pair of rules between two looks.
#[derive(Clone, Copy, Debug)]
enum Step {
    Traffic(u64),
    Zero,
    /// Deleted and made anew.
    Replace,
    Delete,
    Look,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0_u64..4_000_000).prop_map(Step::Traffic),
        1 => Just(Step::Zero),
        1 => Just(Step::Replace),
        1 => Just(Step::Delete),
        4 => Just(Step::Look),
    ];
    prop::collection::vec(step, 0..60)
}

proptest! {
    /// Whatever is done to the rules: a span has no reading, or what passed in it; never more, and where nothing
    /// was done not a byte less. A reset that leaves no trace in the counters costs at most 5 % and 256 KiB,
    /// unless the span before fell short, too.
    #[test]
    fn readings_are_never_more_than_what_passed(steps in steps()) {
        let mut target = Target::default();
        let mut counter = Some(0_u64);
        let (mut passed, mut touched, mut touched_before) = (0_u64, false, false);
        let (mut all, mut hook) = (0_u64, 0_u64);
        target.look(&[], &rules(0, 0));
        for step in steps {
            match step {
                Step::Traffic(bytes) => {
                    target.background.post(&traffic(443, bytes, bytes));
                    counter = counter.map(|counter| counter + bytes);
                    passed += bytes;
                    all += bytes;
                }
                Step::Zero => {
                    touched |= counter.is_some_and(|counter| counter > 0);
                    counter = counter.map(|_| 0);
                }
                Step::Replace => {
                    touched |= counter != Some(0);
                    counter = Some(0);
                }
                Step::Delete => {
                    touched = true;
                    counter = None;
                }
                Step::Look => {
                    touched |= counter.is_none();
                    let found = match counter {
                        Some(counter) => rules(counter, counter),
                        None => look(of(&[], &PORTS)),
                    };
                    let minute = target.look(&[], &found);
                    hook += reading(&minute, Method::HookPort).unwrap().ingress.unwrap();
                    if let Some((ingress, egress)) = by_rules(&minute) {
                        prop_assert_eq!(ingress, egress);
                        let seen = ingress.unwrap();
                        prop_assert!(seen <= passed, "{seen} of {passed}");
                        if !touched {
                            prop_assert_eq!(seen, passed);
                        } else if !touched_before {
                            prop_assert!(!falls_short(seen, passed), "{seen} of {passed}");
                        }
                    } else {
                        prop_assert!(touched || touched_before, "no reading, and nobody touched the rules");
                    }
                    (passed, touched_before, touched) = (0, touched, false);
                }
            }
        }
        // The hook's reading loses nothing, whatever becomes of the rules.
        prop_assert_eq!(hook, all - passed);
    }
}
