//! The Debian package, installed, upgraded, removed and purged under a real systemd that has a root of its
//! own: nothing of this machine changes.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use tempfile::TempDir;
use traffic_agent::history::Quarter;
use traffic_agent::report::Counters;
use traffic_agent::store::Reader;
use traffic_lab::systemd::Setup;
use traffic_lab::{Namespace, Systemd};
use traffic_tests::systemd::{HELPER, RELAY_PORT, relay_unit};
use traffic_tests::{helper, require_root};

const UNIT: &str = "traffic-agent.service";
const STATE: &str = "/var/lib/traffic-agent";
const CONFIG: &str = "/etc/traffic-agent/config.toml";
const PINS: &str = "/sys/fs/bpf/traffic-agent";
/// Where the packages are inside: the first, and one of a later version.
const FIRST: &str = "/srv/first.deb";
const LATER: &str = "/srv/later.deb";

/// The built package: `cargo xtask test` says where it is.
fn package() -> Result<PathBuf> {
    let path = std::env::var_os("TRAFFIC_DEB")
        .context("TRAFFIC_DEB does not name the built package: run `cargo xtask test`")?;
    Ok(PathBuf::from(path))
}

fn output(program: &str, arguments: &[&str]) -> Result<String> {
    let output = Command::new(program).args(arguments).output().context(program.to_owned())?;
    ensure!(output.status.success(), "{program} {arguments:?}: {output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

/// The same package under a later version.
fn later(package: &Path, directory: &Path) -> Result<PathBuf> {
    let (tree, later) = (directory.join("tree"), directory.join("later.deb"));
    let text = |path: &Path| path.to_str().map(str::to_owned).context("not UTF-8");
    output("dpkg-deb", &["-R", &text(package)?, &text(&tree)?])?;
    let control = tree.join("DEBIAN/control");
    let old = fs::read_to_string(&control)?;
    let new = old.replace("\nVersion: ", "\nVersion: 9:");
    ensure!(old != new, "{old}");
    fs::write(&control, new)?;
    output("dpkg-deb", &["-Znone", "--root-owner-group", "-b", &text(&tree)?, &text(&later)?])?;
    Ok(later)
}

#[test]
fn package_has_what_it_should_and_belongs_to_root() -> Result<()> {
    let package = package()?;
    let package = package.to_str().context("not UTF-8")?;
    let contents = output("dpkg-deb", &["-c", package])?;
    for (mode, path) in [
        ("-rwxr-xr-x", "usr/bin/traffic-agent"),
        ("-rw-r--r--", "usr/lib/systemd/system/traffic-agent.service"),
        ("-rw-r--r--", "etc/traffic-agent/config.toml"),
        ("-rw-r--r--", "usr/share/man/man1/traffic-agent.1.gz"),
        ("-rw-r--r--", "usr/share/man/man1/traffic-agent-run.1.gz"),
        ("-rw-r--r--", "usr/share/man/man5/traffic-agent-config.5.gz"),
        ("-rw-r--r--", "usr/share/bash-completion/completions/traffic-agent"),
        ("-rw-r--r--", "usr/share/zsh/vendor-completions/_traffic-agent"),
        ("-rw-r--r--", "usr/share/fish/vendor_completions.d/traffic-agent.fish"),
        ("-rw-r--r--", "usr/share/doc/traffic-agent/copyright"),
        ("-rw-r--r--", "usr/share/doc/traffic-agent/changelog.Debian.gz"),
        ("-rw-r--r--", "usr/share/doc/traffic-agent/README.md"),
        ("-rw-r--r--", "usr/share/doc/traffic-agent/accounting.md"),
    ] {
        let line = contents.lines().find(|line| line.ends_with(&format!(" ./{path}")));
        let line = line.with_context(|| format!("{path} is missing in\n{contents}"))?;
        assert!(line.starts_with(&format!("{mode} 0/0")), "{line}");
    }
    let conffiles = output("dpkg-deb", &["-I", package, "conffiles"])?;
    assert_eq!(conffiles.trim(), CONFIG);
    let depends = output("dpkg-deb", &["-f", package, "Depends"])?;
    assert!(depends.contains("libc6 (>=") && depends.contains("adduser"), "{depends}");
    Ok(())
}

/// A connection through the relay that stays open, so that each of its packets has a socket.
struct Connection {
    client: TcpStream,
    server: TcpStream,
}

impl Connection {
    fn open(namespace: &Namespace) -> Result<Self> {
        let listener = namespace.run_in(|| TcpListener::bind("127.0.0.1:0"))??;
        let mut client = namespace.run_in(|| TcpStream::connect(("127.0.0.1", RELAY_PORT)))??;
        let destination = listener.local_addr()?;
        write!(client, "CONNECT {destination} HTTP/1.1\r\nHost: {destination}\r\n\r\n")?;
        let (server, _) = listener.accept()?;
        let mut answer = [0; 4096];
        let length = client.read(&mut answer)?;
        ensure!(answer[..length].ends_with(b"\r\n\r\n"), "{:?}", &answer[..length]);
        Ok(Self { client, server })
    }

    /// Sends bytes through the relay and waits for them.
    fn carry(&mut self, bytes: usize) -> Result<()> {
        let mut received = vec![0; bytes];
        let mut client = self.client.try_clone()?;
        let sender = std::thread::spawn(move || client.write_all(&vec![7; bytes]));
        self.server.read_exact(&mut received)?;
        Ok(sender.join().expect("writing does not panic")?)
    }
}

/// What the loopback device of a namespace has carried: packets, and bytes from the IP header on.
fn carried(namespace: &Namespace) -> Result<(u64, u64)> {
    let text = namespace.run_in(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:")).context("no lo")?;
    let mut numbers = line.split_whitespace().map(str::parse);
    let (bytes, packets) = (numbers.next().context("bytes")??, numbers.next().context("packets")??);
    Ok((packets, bytes))
}

fn history(systemd: &Systemd, directory: &Path) -> Result<Counters> {
    // A copy: the reader follows links, and the one to another root leads it to this one's.
    let copy = directory.join("state");
    fs::create_dir(&copy)?;
    for entry in fs::read_dir(systemd.path(STATE))? {
        let entry = entry?;
        fs::copy(entry.path(), copy.join(entry.file_name()))?;
    }
    let reader = Reader::open(&copy)?;
    let mut sum = Counters::default();
    reader.quarters("relay", Quarter(0)..Quarter(i64::MAX), |_, _, counters| {
        sum += counters;
    })?;
    Ok(sum)
}

/// The pinned objects: an inode of bpffs is one as long as it is pinned.
fn pins(directory: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        match path.is_dir() {
            true => found.extend(pins(&path)?),
            false => found.push((path.clone(), path.symlink_metadata()?.ino())),
        }
    }
    found.sort();
    Ok(found)
}

fn dpkg(systemd: &Systemd, arguments: &[&str]) -> Result<String> {
    let settings = ["DEBIAN_FRONTEND=noninteractive", "dpkg"];
    let text = systemd.run("env", settings.iter().chain(arguments))?;
    let audit = systemd.run("dpkg", ["--audit"])?;
    ensure!(audit.is_empty(), "{audit}");
    Ok(text)
}

#[test]
fn package_is_installed_upgraded_removed_and_purged() -> Result<()> {
    require_root()?;
    let directory = TempDir::with_prefix("ta-package-")?;
    let (package, helper) = (package()?, helper()?);
    let later = later(&package, directory.path())?;
    let namespace = Namespace::new("package")?;
    let relay = relay_unit("");
    let systemd = Systemd::start(Setup {
        program: &helper,
        namespace: &namespace,
        files: &[("/etc/systemd/system/relay.service", &relay)],
        programs: &[(&package, FIRST), (&later, LATER), (&helper, HELPER)],
    })?;

    // A machine for building things may forbid packages to start services; this one is for services.
    systemd.run("rm", ["-f", "/usr/sbin/policy-rc.d"])?;

    // Installed: nothing to count yet, so nothing runs, and it says what to do.
    let said = dpkg(&systemd, &["-i", FIRST])?;
    assert!(said.contains("traffic-agent install --unit xray.service"), "{said}");
    assert!(systemd.read("/etc/group")?.contains("\ntraffic-agent:x:"));
    assert_eq!(systemd.property(UNIT, "ActiveState")?, "inactive");
    let check = systemd.output("traffic-agent", ["config", "check"])?;
    assert_eq!(check.status.code(), Some(1), "{check:?}");

    // Configured and started, before the unit that it counts.
    let config = systemd.read(CONFIG)? + "\n[[target]]\ntargets = [\"unit:relay.service\"]\n";
    systemd.write(CONFIG, &config)?;
    systemd.systemctl(["enable", "--now", UNIT])?;
    systemd.systemctl(["start", "relay.service"])?;
    let port = format!(":{RELAY_PORT:04X} ");
    wait_until("the relay listens", || {
        Ok(namespace.run_in(|| fs::read_to_string("/proc/thread-self/net/tcp6"))??.contains(&port))
    })?;
    wait_until("the agent counts it", || {
        Ok(systemd.journal(UNIT)?.contains("relay.service was made anew, and is counted since"))
    })?;

    // Upgraded in the middle of a connection.
    let before = carried(&namespace)?;
    let mut connection = Connection::open(&namespace)?;
    connection.carry(200_000)?;
    let (pinned, pid) = (pins(&systemd.path(PINS))?, systemd.main_pid(UNIT)?);
    std::thread::scope(|scope| -> Result<()> {
        let upgrade = scope.spawn(|| dpkg(&systemd, &["-i", LATER]));
        while !upgrade.is_finished() {
            // Not so fast that the loopback device's queue overflows: a packet that it drops has been
            // counted on its way out, and not by the device.
            connection.carry(10_000)?;
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        upgrade.join().expect("dpkg does not panic").map(drop)
    })?;
    connection.carry(200_000)?;
    assert_ne!(systemd.main_pid(UNIT)?, pid, "the agent is the old one");
    // All that counted then counts still; a new agent may add to it.
    let now = pins(&systemd.path(PINS))?;
    for pin in pinned.iter().filter(|(path, _)| !is_tracepoint(path)) {
        assert!(now.contains(pin), "{pin:?} is not among {now:?}");
    }
    assert_eq!(systemd.read(CONFIG)?, config);

    // A removal stops the agent, which writes what it has, and takes its programs out of the kernel.
    let still = carried_at_rest(&namespace)?;
    dpkg(&systemd, &["-r", "traffic-agent"])?;
    assert_eq!(carried(&namespace)?, still, "something else used the loopback device");
    let history = history(&systemd, directory.path())?;
    // The device counts segments: it splits what is larger than its MTU.
    let device = (still.0 - before.0, still.1 - before.1);
    assert_eq!((history.wire_packets, history.wire_bytes), device);
    assert!(pins(&systemd.path(PINS)).unwrap_or_default().is_empty());
    assert_eq!(systemd.read(CONFIG)?, config);
    assert_eq!(systemd.property(UNIT, "LoadState")?, "not-found");

    // A purge takes the rest.
    dpkg(&systemd, &["-P", "traffic-agent"])?;
    for gone in [STATE, CONFIG, "/etc/traffic-agent", "/usr/bin/traffic-agent"] {
        assert!(!systemd.path(gone).exists(), "{gone} is left");
    }
    let links =
        systemd.run("find", ["/etc/systemd", "/usr/lib/systemd", "-name", "traffic-agent*"])?;
    assert_eq!(links, "");
    Ok(())
}

/// Links to tracepoints carry a generation in their name (`t1_`) and may be made anew.
fn is_tracepoint(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    name.starts_with('t') && path.parent().is_some_and(|parent| parent.ends_with("links"))
}

/// What was carried when the last acknowledgements have come.
fn carried_at_rest(namespace: &Namespace) -> Result<(u64, u64)> {
    let mut last = carried(namespace)?;
    loop {
        // Longer than a delayed acknowledgement.
        std::thread::sleep(std::time::Duration::from_millis(500));
        match carried(namespace)? {
            now if now == last => return Ok(now),
            now => last = now,
        }
    }
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    for _ in 0..600 {
        if is_so()? {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    anyhow::bail!("in 30 s it did not come that {what}")
}
