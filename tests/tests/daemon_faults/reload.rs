//! Another configuration under load, taken over with SIGHUP.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use traffic_agent::report::{Direction, Leg};
use traffic_lab::packet::Family;
use traffic_lab::process::Place;
use traffic_lab::role::Role;
use traffic_lab::sockets::Transport;
use traffic_lab::topology::addresses;
use traffic_lab::udp::{Receive, Send};
use traffic_lab::{CountedCgroup, Process, Stack};
use traffic_tests::accounted::{Accounted, PAUSE, TARGET};
use traffic_tests::daemon::{Home, pins};
use traffic_tests::figures::{Books, Key};
use traffic_tests::role;
use traffic_tests::site::{Site, any};

const TAKEN: &str = "the configuration was read again";
const AS_IT_WAS: &str = "the configuration stays as it was";

/// A daemon with a configuration file, in which a cgroup is counted.
fn configured(cgroup: &str) -> Result<Home> {
    // The file's place is known only then.
    let mut home = Home::new(&[])?;
    let file = home.file("config.toml");
    home.add_flags(["--config", file.to_str().context("a path")?]);
    write(&home, cgroup, "", "", "")?;
    Ok(home)
}

fn write(home: &Home, cgroup: &str, settings: &str, of_target: &str, targets: &str) -> Result<()> {
    let text = format!(
        "interval = \"1s\"\nflush_interval = \"1s\"\n{settings}\n[[target]]\nname = \"{TARGET}\"\n\
         targets = [\"cgroup:{cgroup}\"]\n{of_target}\n{targets}\n",
    );
    Ok(fs::write(home.file("config.toml"), text)?)
}

/// Has the daemon read its configuration, and waits until it says so.
fn reload(home: &Home, words: &str) -> Result<()> {
    let before = home.times_in_log(words);
    home.signal(Signal::SIGHUP)?;
    home.wait_until(words, |home| home.times_in_log(words) > before)
}

/// The books without what depends on which ports are the proxy's.
fn without_legs(books: &Books) -> Books {
    let mut merged = Books::new();
    for (key, figures) in books {
        let sum = merged.entry(Key { leg: Leg::Client, port: None, ..key.clone() }).or_default();
        *sum = *sum + *figures;
    }
    merged
}

#[test]
fn settings_that_change_under_load_lose_and_double_nothing() -> Result<()> {
    let mut counted = Accounted::by(configured)?;
    let cgroup = counted.site.cgroup.cgroup_path();
    counted.home.start_and_wait()?;
    let captured = counted.under_paced_load(PAUSE, |home| {
        let changes = [
            ("ports = [\"!tcp/11710\"]", ""),
            ("", "unbilled = [\"eth1\"]"),
            ("time_zone = \"Asia/Kathmandu\"", ""),
            ("time_zone = \"America/St_Johns\"", "ports = [\"tcp/9\", \"udp/20000-20010\"]"),
            ("host = true", "ports = [\"tcp/11710\"]"),
            ("log_level = \"debug\"", ""),
        ];
        for (settings, of_target) in changes.into_iter().cycle().take(18) {
            write(home, &cgroup, settings, of_target, "")?;
            reload(home, TAKEN)?;
            thread::sleep(Duration::from_millis(fastrand::u64(..200)));
        }
        Ok(())
    })?;
    counted.home.stop()?;
    let books = without_legs(&counted.home.books(TARGET)?);
    let log = counted.home.log();
    assert_eq!(books, without_legs(&captured), "history (left), capture (right)\n{log}");
    assert_eq!(counted.doubts()?, []);
    Ok(())
}

#[test]
fn a_configuration_that_is_not_valid_changes_nothing() -> Result<()> {
    let mut counted = Accounted::by(configured)?;
    let cgroup = counted.site.cgroup.cgroup_path();
    counted.home.start_and_wait()?;
    let captured = counted.under_paced_load(PAUSE, |home| {
        for (settings, of_target) in
            [("interval", ""), ("", "nothing = 1"), ("time_zone = \"Nowhere/At_all\"", "")]
        {
            write(home, &cgroup, settings, of_target, "")?;
            reload(home, AS_IT_WAS)?;
        }
        fs::remove_file(home.file("config.toml"))?;
        reload(home, AS_IT_WAS)
    })?;
    counted.assert_ends_with(&captured)
}

/// Sends from a cgroup, and returns how many bytes of IP packets that were.
fn send(site: &Site, cgroup: &CountedCgroup) -> Result<u64> {
    let send = Send {
        target: (addresses(Family::Ipv4).upstream, 9998).into(),
        sockets: 1,
        datagram_bytes: 100,
        total_bytes: 6_400,
        segmented: false,
        await_echo: false,
    };
    // Somebody who takes it: an answer that nobody listens would end the sender.
    let receive = Receive { listen: any(9998), echo: false, gro: false };
    let place = Place { namespace: Some(&site.lab.upstream), cgroup: None, user: None };
    let mut receiver = Process::spawn(role(&Role::UdpReceive(receive))?, place)?;
    receiver.wait_for(Transport::Udp, 9998, Duration::from_secs(60))?;
    let place = Place { namespace: Some(&site.lab.proxy), cgroup: Some(cgroup), user: None };
    Process::spawn(role(&Role::UdpSend(send))?, place)?.output(Duration::from_secs(60))?;
    Ok(64 * (100 + 28))
}

fn sent(home: &Home) -> u64 {
    let books = home.books("other").unwrap_or_default();
    let egress = |key: &Key| key.direction == Direction::Egress;
    traffic_tests::figures::sum(&books, egress).wire_bytes
}

#[test]
fn a_target_that_is_taken_away_loses_its_pins_and_keeps_its_history() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let other = site.cgroup.child("other")?;
    let none = format!("{}/none", site.cgroup.cgroup_path());
    let mut home = configured(&none)?;
    let both =
        format!("[[target]]\nname = \"other\"\ntargets = [\"cgroup:{}\"]", other.cgroup_path());
    write(&home, &none, "", "", &both)?;
    home.start_and_wait()?;
    let expected = send(&site, &other)?;
    let is_pinned = |home: &Home| pins(home, "other").is_ok_and(|pins| pins.exists());
    assert!(is_pinned(&home));
    // What was not read yet is written before.
    write(&home, &none, "", "", "")?;
    reload(&home, TAKEN)?;
    assert!(!is_pinned(&home), "{}", home.log());
    assert_eq!(sent(&home), expected, "{}", home.log());
    send(&site, &other)?;
    // Added again, under the running daemon, and taken away while it does not run.
    write(&home, &none, "", "", &both)?;
    reload(&home, TAKEN)?;
    let again = send(&site, &other)?;
    home.kill()?;
    write(&home, &none, "", "", "")?;
    home.start_and_wait()?;
    home.wait_until("its pins are gone", |home| !is_pinned(home))?;
    assert_eq!(sent(&home), expected + again, "{}", home.log());
    let events = home.events("other")?;
    let gaps = |words: &str| events.iter().filter(|it| it.message.contains(words)).count();
    assert_eq!(gaps("counting ended"), 2, "{events:?}");
    home.stop()
}

/// The daemon audits for the first time 5 s after it was started, and then every 300 s.
const BEFORE_THE_FIRST_AUDIT: Duration = Duration::from_secs(4);

#[test]
fn a_target_that_a_reload_could_not_open_is_tried_again() -> Result<()> {
    let mut counted = Accounted::by(configured)?;
    let cgroup = counted.site.cgroup.cgroup_path();
    counted.home.start_and_wait()?;
    let captured = counted.under_paced_load(PAUSE, |home| {
        // On a machine that is slow now, once more: it would take 300 s to try again.
        for port in 1..10 {
            home.kill()?;
            let begun = Instant::now();
            home.start_and_wait()?;
            home.hide_bpf()?;
            write(home, &cgroup, "", &format!("ports = [\"tcp/{port}\"]"), "")?;
            let refused = reload(home, "cannot count target counted");
            home.unmount_bpf()?;
            refused?;
            if begun.elapsed() < BEFORE_THE_FIRST_AUDIT {
                break;
            }
        }
        home.wait_until("it is opened", |home| {
            let words = |words| home.log().rfind(words);
            words("target counted: now cgroup:") > words("cannot count target counted")
        })?;
        home.wait_for_flush()
    })?;
    counted.assert_ends_with(&captured)
}
