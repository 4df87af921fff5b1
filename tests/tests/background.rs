//! The daemon's readings of the rules: whatever is done to the firewall, a span has no reading, or exactly what
//! the hook saw of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, thread};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use traffic_agent::background::Minute;
use traffic_agent::history::Method;
use traffic_lab::packet::Family;
use traffic_lab::workload::Server;
use traffic_lab::{Namespace, Stack};
use traffic_tests::background::{Watched, script, seen, workload};
use traffic_tests::site::{RELAY_PORT, Site};

/// Something that counts the relay's port.
struct Backend {
    add: String,
    /// Takes the rules away.
    flush: &'static str,
    /// Sets counters to zero and leaves the rules.
    zero: Option<&'static str>,
}

fn iptables(kind: &str) -> Backend {
    let programs = [format!("iptables-{kind}"), format!("ip6tables-{kind}")];
    let rules = programs.map(|program| {
        format!(
            "{program} -w -A INPUT -p tcp --dport {RELAY_PORT}\n\
             {program} -w -A OUTPUT -p tcp --sport {RELAY_PORT}\n"
        )
    });
    let [flush, zero] = match kind {
        "nft" => {
            ["iptables-nft -w -F; ip6tables-nft -w -F", "iptables-nft -w -Z; ip6tables-nft -w -Z"]
        }
        _ => [
            "iptables-legacy -w -F; ip6tables-legacy -w -F",
            "iptables-legacy -w -Z; ip6tables-legacy -w -Z",
        ],
    };
    Backend { add: rules.concat(), flush, zero: Some(zero) }
}

fn nft() -> Backend {
    let add = format!(
        "nft -f - <<'END'
table inet count {{
    chain input {{ type filter hook input priority 0; tcp dport {RELAY_PORT} counter; }}
    chain output {{ type filter hook output priority 0; tcp sport {RELAY_PORT} counter; }}
}}
END
"
    );
    Backend { add, flush: "nft delete table inet count", zero: None }
}

/// A span whose bytes the rules have counted, all of them.
#[track_caller]
fn assert_equal(minute: &Minute) {
    let hook = seen(minute, Method::HookPort).expect("the hook always counts");
    assert!(hook.ingress > 0 && hook.egress > 0, "nothing was driven");
    let rules = seen(minute, Method::IptablesPort);
    assert_eq!(rules, Some(hook), "rules (left), hook (right); {:?}", minute.events);
    let interface = seen(minute, Method::Interface).expect("no interface came or went");
    assert!(interface.ingress >= hook.ingress && interface.egress >= hook.egress);
    assert!(minute.events.is_empty(), "{:?}", minute.events);
}

/// A span without a reading of the rules, for a reason that is recorded.
#[track_caller]
fn assert_gap(minute: &Minute, reason: &str) {
    assert_eq!(seen(minute, Method::IptablesPort), None, "{:?}", minute.events);
    assert!(seen(minute, Method::HookPort).is_some());
    let [event] = minute.events.as_slice() else { panic!("{:?}", minute.events) };
    assert!(event.message.contains(reason), "{}", event.message);
}

fn check(backend: &Backend) -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let _relay = site.relay()?;
    let server = site.server()?;
    let proxy = &site.lab.proxy;
    script(proxy, &backend.add)?;
    let mut watched = Watched::start(&site)?;
    assert_equal(&watched.drive_and_look(3_000_000, &server)?);
    assert_equal(&watched.drive_and_look(500_000, &server)?);

    if let Some(zero) = backend.zero {
        script(proxy, zero)?;
        assert_gap(&watched.drive_and_look(400_000, &server)?, "set to zero");
        assert_equal(&watched.drive_and_look(400_000, &server)?);
    }
    // Made anew: the counters begin at 0.
    script(proxy, &format!("{}\n{}", backend.flush, backend.add))?;
    let minute = watched.drive_and_look(300_000, &server)?;
    assert_gap(&minute, "rules-changed");
    assert_equal(&watched.drive_and_look(300_000, &server)?);

    script(proxy, backend.flush)?;
    assert_gap(&watched.drive_and_look(200_000, &server)?, "vanished");
    assert_gap(&watched.drive_and_look(200_000, &server)?, "no rule counts port");
    script(proxy, &backend.add)?;
    assert_gap(&watched.drive_and_look(200_000, &server)?, "added");
    assert_equal(&watched.drive_and_look(200_000, &server)?);
    Ok(())
}

#[test]
fn rules_of_iptables_nft_are_followed_through_every_change() -> Result<()> {
    check(&iptables("nft"))
}

#[test]
fn rules_of_iptables_legacy_are_followed_through_every_change() -> Result<()> {
    check(&iptables("legacy"))
}

#[test]
fn rules_of_nft_are_followed_through_every_change() -> Result<()> {
    check(&nft())
}

#[test]
fn counters_that_were_zeroed_and_have_caught_up_are_no_reading() -> Result<()> {
    for kind in ["nft", "legacy"] {
        let backend = iptables(kind);
        let site = Site::new(Stack::GsoGro)?;
        let _relay = site.relay()?;
        let server = site.server()?;
        script(&site.lab.proxy, &backend.add)?;
        let mut watched = Watched::start(&site)?;
        assert_equal(&watched.drive_and_look(1_000_000, &server)?);
        watched.drive(4_000_000, &server)?;
        script(&site.lab.proxy, backend.zero.context("iptables -Z")?)?;
        // 3 MB are more than the 1 MB of before: the counters alone look as if nothing had been done.
        assert_gap(&watched.drive_and_look(3_000_000, &server)?, "set to zero in between");
        assert_equal(&watched.drive_and_look(1_000_000, &server)?);
        assert!(watched.findings().is_empty());
    }
    Ok(())
}

/// Looks while traffic flows. A reading in the middle may differ from the hook's by what passed while the
/// programs ran; from silence to silence they add up to the same.
fn under_traffic(
    site: &Site,
    watched: &mut Watched<'_>,
    server: &Server,
    meanwhile: impl Fn(usize, &mut Watched<'_>) -> Result<()>,
) -> Result<Vec<Minute>> {
    let done = AtomicBool::new(false);
    let minutes = thread::scope(|scope| {
        let driver = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::Relaxed) {
                site.drive(&workload(4_000_000), Family::Ipv4, server)?;
            }
            Ok(())
        });
        let mut look = || -> Result<Vec<Minute>> {
            let mut minutes = Vec::new();
            for number in 0..12 {
                watched.wait_for(1_000_000)?;
                meanwhile(number, watched)?;
                watched.wait_for(1_000_000)?;
                minutes.push(watched.look()?);
            }
            Ok(minutes)
        };
        let minutes = look();
        done.store(true, Ordering::Relaxed);
        driver.join().map_err(|_| anyhow::anyhow!("the driver panicked"))??;
        minutes
    });
    let mut minutes = minutes?;
    // The last bytes, with nothing in flight.
    minutes.push(watched.drive_and_look(100_000, server)?);
    Ok(minutes)
}

fn sum(minutes: &[Minute], method: Method) -> (u64, u64) {
    let seen = minutes.iter().filter_map(|minute| seen(minute, method));
    seen.fold((0, 0), |(ingress, egress), seen| (ingress + seen.ingress, egress + seen.egress))
}

#[test]
fn looks_under_traffic_add_up_to_what_the_hook_saw() -> Result<()> {
    for backend in [iptables("nft"), iptables("legacy"), nft()] {
        let site = Site::new(Stack::GsoGro)?;
        let _relay = site.relay()?;
        let server = site.server()?;
        script(&site.lab.proxy, &backend.add)?;
        let mut watched = Watched::start(&site)?;
        let minutes = under_traffic(&site, &mut watched, &server, |_, _| Ok(()))?;
        assert!(minutes.iter().all(|minute| seen(minute, Method::IptablesPort).is_some()));
        assert!(minutes.iter().all(|minute| minute.events.is_empty()), "{minutes:?}");
        assert_eq!(sum(&minutes, Method::IptablesPort), sum(&minutes, Method::HookPort));
    }
    Ok(())
}

/// The looks before which the rules are changed.
const CHANGES: [usize; 3] = [3, 6, 9];
/// Carried before a change, which takes it from the counters. If twenty times as much passed before the next look,
/// it would be less than rules may fall short of the hook: so it is much, or a test that stands still for a second
/// while the traffic goes on finds no gap.
const BEFORE_A_CHANGE: u64 = 50_000_000;

#[test]
fn changes_under_traffic_cost_their_span_and_nothing_is_counted_twice() -> Result<()> {
    let backend = iptables("nft");
    let site = Site::new(Stack::GsoGro)?;
    let _relay = site.relay()?;
    let server = site.server()?;
    script(&site.lab.proxy, &backend.add)?;
    let mut watched = Watched::start(&site)?;
    let proxy = &site.lab.proxy;
    let minutes = under_traffic(&site, &mut watched, &server, |number, watched| {
        if CHANGES.contains(&number) {
            watched.wait_for(BEFORE_A_CHANGE)?;
        }
        match number {
            3 => script(proxy, "iptables-nft -w -Z; ip6tables-nft -w -Z").map(drop),
            6 => script(proxy, &format!("{}\n{}", backend.flush, backend.add)).map(drop),
            9 => {
                // As a file that replaces the ruleset, counters and all.
                let reload = "(echo flush ruleset; nft -s list ruleset) > \"$0\"";
                let file = tempfile::NamedTempFile::new()?;
                let path = file.path().to_str().context("a temporary path is UTF-8")?;
                let reload = reload.replace("\"$0\"", path);
                script(proxy, &format!("{reload}; nft -f {path}")).map(drop)
            }
            _ => Ok(()),
        }
    })?;
    let gaps: Vec<usize> = (0..minutes.len())
        .filter(|&number| seen(&minutes[number], Method::IptablesPort).is_none())
        .collect();
    assert_eq!(gaps, CHANGES, "{minutes:?}");
    for &gap in &gaps {
        ensure!(minutes[gap].events.iter().any(|event| event.message.contains("rules-changed")));
    }
    let (rules, hook) = (sum(&minutes, Method::IptablesPort), sum(&minutes, Method::HookPort));
    ensure!(rules.0 < hook.0 && rules.1 < hook.1, "{rules:?} of {hook:?}");
    Ok(())
}

/// ufw with a configuration of its own, in a mount namespace of each call.
struct Ufw {
    directory: TempDir,
}

impl Ufw {
    /// Its rules for the relay stand where ufw's own documentation has them: in before.rules, in front of the
    /// one that accepts ESTABLISHED.
    fn new() -> Result<Self> {
        let directory = TempDir::new()?;
        let path = directory.path().display();
        let status = std::process::Command::new("sh")
            .args([
                "-ec",
                &format!("cp -a /etc/ufw {path}/ufw; cp -a /etc/default/ufw {path}/default"),
            ])
            .status()?;
        ensure!(status.success(), "cannot copy ufw's configuration: install ufw");
        for (file, chains) in [("before.rules", "ufw"), ("before6.rules", "ufw6")] {
            let file = directory.path().join("ufw").join(file);
            let rules = fs::read_to_string(&file)?;
            let counting = format!(
                "# End required lines\n\
                 -A {chains}-before-input -p tcp --dport {RELAY_PORT}\n\
                 -A {chains}-before-output -p tcp --sport {RELAY_PORT}\n"
            );
            ensure!(rules.contains("# End required lines"), "ufw has other rules than expected");
            fs::write(&file, rules.replacen("# End required lines\n", &counting, 1))?;
        }
        Ok(Self { directory })
    }

    fn run(&self, proxy: &Namespace, arguments: &str) -> Result<()> {
        let path = self.directory.path().display();
        let inner = format!(
            "mount --make-rprivate /; mount --bind {path}/ufw /etc/ufw; \
             mount --bind {path}/default /etc/default/ufw; ufw {arguments}"
        );
        script(proxy, &format!("unshare --mount sh -ec '{inner}'")).map(drop)
    }
}

#[test]
fn a_reload_of_ufw_opens_a_new_span() -> Result<()> {
    let site = Site::new(Stack::GsoGro)?;
    let _relay = site.relay()?;
    let server = site.server()?;
    let ufw = Ufw::new()?;
    ufw.run(&site.lab.proxy, "--force enable")?;
    ufw.run(&site.lab.proxy, &format!("allow {RELAY_PORT}/tcp"))?;
    let mut watched = Watched::start(&site)?;
    assert_equal(&watched.drive_and_look(1_000_000, &server)?);
    ufw.run(&site.lab.proxy, "reload")?;
    assert_gap(&watched.drive_and_look(200_000, &server)?, "rules-changed");
    assert_equal(&watched.drive_and_look(300_000, &server)?);
    Ok(())
}
