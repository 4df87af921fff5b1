//! Another configuration under load, taken over with SIGHUP.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use traffic_lab::packet::Family;
use traffic_lab::process::Place;
use traffic_lab::role::Role;
use traffic_lab::sockets::Transport;
use traffic_lab::topology::addresses;
use traffic_lab::udp::{Receive, Send};
use traffic_lab::{CountedCgroup, Process, Stack};
use traffic_tests::daemon::{Home, pins};
use traffic_tests::figures::{Books, Key};
use traffic_tests::load::under_load;
use traffic_tests::role;
use traffic_tests::site::{Site, any};

use super::{assert_history_is, captured, doubts, times_in_log};
use traffic_agent::report::Leg;

const TAKEN: &str = "the configuration was read again";

/// A daemon with a configuration file.
struct Configured {
    home: Home,
    cgroup: String,
}

impl Configured {
    fn new(cgroup: String) -> Result<Self> {
        // The file's place is known only then.
        let mut home = Home::new(&[])?;
        let file = home.file("config.toml");
        home.add_flags(["--config", file.to_str().context("a path")?]);
        let configured = Self { home, cgroup };
        configured.write("", "", "")?;
        Ok(configured)
    }

    fn write(&self, settings: &str, of_target: &str, targets: &str) -> Result<()> {
        let text = format!(
            "interval = \"1s\"\nflush_interval = \"1s\"\n{settings}\n[[target]]\nname = \"counted\"\n\
             targets = [\"cgroup:{}\"]\n{of_target}\n{targets}\n",
            self.cgroup
        );
        Ok(fs::write(self.home.file("config.toml"), text)?)
    }

    /// Has the daemon read its configuration, and waits until it says so.
    fn reload(&self, words: &str) -> Result<()> {
        let before = times_in_log(&self.home, words);
        self.home.signal(Signal::SIGHUP)?;
        self.home.wait_until(words, |home| times_in_log(home, words) > before)
    }
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
    let site = Site::new(Stack::default())?;
    let _relay = site.relay()?;
    let mut configured = Configured::new(site.cgroup.cgroup_path())?;
    configured.home.start_and_wait()?;
    let capture = site.lab.capture()?;
    under_load(&site, || {
        let changes = [
            ("ports = [\"!tcp/11710\"]", ""),
            ("", "unbilled = [\"eth1\"]"),
            ("time_zone = \"Asia/Kathmandu\"", ""),
            ("time_zone = \"America/St_Johns\"", "ports = [\"tcp/9\", \"udp/20000-20010\"]"),
            ("host = true", "ports = [\"tcp/11710\"]"),
            ("flush_interval = \"2s\"", ""),
        ];
        // The setting stands once in the file.
        for (settings, of_target) in changes.into_iter().cycle().take(18) {
            let settings = settings.replace("flush_interval = \"2s\"", "log_level = \"debug\"");
            configured.write(&settings, of_target, "")?;
            configured.reload(TAKEN)?;
            thread::sleep(Duration::from_millis(fastrand::u64(..200)));
        }
        Ok(())
    })?;
    let trace = capture.stop()?;
    configured.home.stop()?;
    let counted = without_legs(&configured.home.books("counted")?);
    let captured = without_legs(&captured(&trace)?);
    assert_eq!(counted, captured, "history (left), capture (right)\n{}", configured.home.log());
    assert_eq!(doubts(&configured.home)?, []);
    Ok(())
}

#[test]
fn a_configuration_that_is_not_valid_changes_nothing() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let _relay = site.relay()?;
    let mut configured = Configured::new(site.cgroup.cgroup_path())?;
    configured.home.start_and_wait()?;
    let capture = site.lab.capture()?;
    under_load(&site, || {
        for (settings, of_target) in
            [("interval", ""), ("", "nothing = 1"), ("time_zone = \"Nowhere/At_all\"", "")]
        {
            configured.write(settings, of_target, "")?;
            configured.reload("the configuration stays as it was")?;
        }
        fs::remove_file(configured.home.file("config.toml"))?;
        configured.reload("the configuration stays as it was")
    })?;
    let trace = capture.stop()?;
    configured.home.stop()?;
    assert_eq!(doubts(&configured.home)?, []);
    assert_history_is(&configured.home, &captured(&trace)?)
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
    receiver.wait_for(Transport::Udp, 9998, Duration::from_secs(10))?;
    let place = Place { namespace: Some(&site.lab.proxy), cgroup: Some(cgroup), user: None };
    Process::spawn(role(&Role::UdpSend(send))?, place)?.output(Duration::from_secs(10))?;
    Ok(64 * (100 + 28))
}

fn sent(home: &Home) -> u64 {
    let books = home.books("other").unwrap_or_default();
    let egress = |key: &Key| key.direction == traffic_agent::report::Direction::Egress;
    traffic_tests::figures::sum(&books, egress).wire_bytes
}

#[test]
fn a_target_that_is_taken_away_loses_its_pins_and_keeps_its_history() -> Result<()> {
    let site = Site::new(Stack::default())?;
    let other = site.cgroup.child("other")?;
    let mut configured = Configured::new(format!("{}/none", site.cgroup.cgroup_path()))?;
    let both =
        format!("[[target]]\nname = \"other\"\ntargets = [\"cgroup:{}\"]", other.cgroup_path());
    configured.write("", "", &both)?;
    configured.home.start_and_wait()?;
    let expected = send(&site, &other)?;
    let abi = {
        let version = fs::read_dir(configured.home.bpffs().join("traffic-agent"))?.next();
        let name = version.context("no pins")??.file_name();
        name.to_string_lossy().trim_start_matches('v').parse()?
    };
    let is_pinned = |home: &Home| pins(home, abi, "other").is_ok_and(|pins| pins.exists());
    assert!(is_pinned(&configured.home));
    // What was not read yet is written before.
    configured.write("", "", "")?;
    configured.reload(TAKEN)?;
    assert!(!is_pinned(&configured.home), "{}", configured.home.log());
    assert_eq!(sent(&configured.home), expected, "{}", configured.home.log());
    send(&site, &other)?;
    // Added again, under the running daemon, and taken away while it does not run.
    configured.write("", "", &both)?;
    configured.reload(TAKEN)?;
    let again = send(&site, &other)?;
    configured.home.kill()?;
    configured.write("", "", "")?;
    configured.home.start_and_wait()?;
    configured.home.wait_until("its pins are gone", |home| !is_pinned(home))?;
    assert_eq!(sent(&configured.home), expected + again, "{}", configured.home.log());
    let events = configured.home.events("other")?;
    let gaps = |words: &str| events.iter().filter(|it| it.message.contains(words)).count();
    assert_eq!(gaps("counting ended"), 2, "{events:?}");
    configured.home.stop()
}
