use std::net::SocketAddr;

use proptest::prelude::*;

use super::*;
use crate::report::Family;

fn socket(protocol: Protocol, local: &str, state: State) -> Socket {
    let local: SocketAddr = local.parse().unwrap();
    Socket {
        protocol,
        family: if local.is_ipv4() { Family::Ipv4 } else { Family::Ipv6 },
        local,
        remote: "0.0.0.0:0".parse().unwrap(),
        state,
        inode: 1,
        uid: 0,
        cgroup_id: Some(1),
        transparent: false,
    }
}

fn filter(texts: &[&str]) -> PortFilter {
    PortFilter(texts.iter().map(|text| text.parse().unwrap()).collect())
}

fn port(text: &str) -> ListeningPort {
    let rule: PortRule = text.parse().unwrap();
    ListeningPort { protocol: rule.protocol.unwrap(), port: *rule.ports.start() }
}

#[test]
fn udp_port_outside_of_the_ephemeral_range_was_chosen_on_purpose() {
    let listens = |socket: &Socket| is_listening(socket, &DEFAULT_EPHEMERAL);
    assert!(listens(&socket(Protocol::Udp, "[::]:8443", State::CLOSE)));
    assert!(listens(&socket(Protocol::Udp, "0.0.0.0:61000", State::CLOSE)));
    assert!(!listens(&socket(Protocol::Udp, "0.0.0.0:32768", State::CLOSE)));
    assert!(!listens(&socket(Protocol::Udp, "0.0.0.0:60999", State::CLOSE)));
    assert!(!listens(&socket(Protocol::Udp, "10.0.0.1:8443", State::ESTABLISHED)));
    assert!(listens(&socket(Protocol::Tcp, "0.0.0.0:40000", State::LISTEN)));
    assert!(!listens(&socket(Protocol::Tcp, "0.0.0.0:443", State::ESTABLISHED)));
    assert!(!listens(&socket(Protocol::Tcp, "0.0.0.0:443", State::CLOSE)));
}

#[test]
fn ephemeral_range_is_read_as_the_kernel_writes_it() {
    assert_eq!(parse_ephemeral("32768\t60999\n"), Some(32768..=60999));
    for bad in ["", "1", "2 1", "a b", "1 2 3", "1 65536", "-1 2"] {
        assert_eq!(parse_ephemeral(bad), None, "{bad:?}");
    }
}

#[test]
fn port_rules_are_printed_as_they_are_written() {
    for text in ["443", "tcp/443", "udp/8443", "!udp/8443", "!53", "udp/20000-20050", "1-65535"] {
        assert_eq!(text.parse::<PortRule>().unwrap().to_string(), text);
    }
}

#[test]
fn ports_that_are_none_are_refused() {
    for text in [
        "",
        "0",
        "65536",
        "-1",
        "+80",
        "tcp/",
        "sctp/80",
        "tcp/0",
        "80-",
        "-80",
        "90-80",
        "!",
        "!!80",
        "80 ",
        "1e3",
        "tcp/udp/80",
        "99999999999999999999",
    ] {
        let error = text.parse::<PortRule>().unwrap_err().to_string();
        assert!(error.contains("udp/8443"), "{text:?}: {error}");
    }
}

#[test]
fn what_takes_away_wins() {
    let filter = filter(&["!udp/8443", "8440-8445", "!tcp/8440-8444"]);
    let added: Vec<_> = filter.added().into_iter().collect();
    let expected =
        ["tcp/8445", "udp/8440", "udp/8441", "udp/8442", "udp/8443", "udp/8444", "udp/8445"];
    let expected: Vec<_> =
        expected.map(port).into_iter().filter(|p| *p != port("udp/8443")).collect();
    assert_eq!(added, expected);
    assert!(filter.excludes(port("udp/8443")) && !filter.adds(port("udp/8443")));
    assert!(filter.adds(port("udp/8440")) && !filter.adds(port("tcp/8440")));
}

#[test]
fn one_port_of_several_sockets_is_listed_once() {
    let mut transparent = socket(Protocol::Tcp, "[::]:443", State::LISTEN);
    transparent.transparent = true;
    let plain = socket(Protocol::Tcp, "0.0.0.0:443", State::LISTEN);
    let udp = socket(Protocol::Udp, "0.0.0.0:53", State::CLOSE);
    let names = |name: &str| vec![name.to_owned()];
    let sockets = [
        (&transparent, names("b")),
        (&plain, names("a")),
        (&plain, names("b")),
        (&udp, Vec::new()),
    ];
    let found = collect(sockets.into_iter(), &filter(&["tcp/443", "udp/8443", "!53"]));
    assert_eq!(found.len(), 2);
    assert_eq!((found[0].port, found[1].port), (port("tcp/443"), port("udp/8443")));
    assert_eq!(found[0].processes, ["a", "b"]);
    assert!(found[0].transparent && found[0].since_before && found[0].configured);
    assert!(found[1].configured && !found[1].since_before);
}

proptest! {
    #[test]
    fn any_text_is_a_port_rule_or_an_error(text in "!?(tcp/|udp/)?[0-9]{1,6}(-[0-9]{1,6})?|\\PC*") {
        if let Ok(rule) = text.parse::<PortRule>() {
            prop_assert_eq!(rule.to_string().parse::<PortRule>(), Ok(rule.clone()));
            prop_assert!(*rule.ports.start() >= 1);
        }
    }
}
