//! Real proxies in the lab: a server instance in the counted cgroup, and a client instance of the same
//! program beside the workload, which it serves as a SOCKS5 relay.
//!
//! Nothing is looked up and nothing outside is reached: addresses only, certificates made on the spot,
//! no geographic data. The users, passwords and keys here protect nothing.

mod sing_box;
mod xray;

use std::fmt;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::TempDir;

use crate::cgroup::CountedCgroup;
use crate::packet::Family;
use crate::process::{Place, Process};
use crate::sockets::Transport;
use crate::topology::{Lab, addresses};
use crate::workload::Route;

/// Where the server instance listens, both families.
pub const PORT: u16 = 11710;
/// Where the client instance takes what shall go to the server by IPv4, and by IPv6.
const SOCKS: [(Family, u16); 2] = [(Family::Ipv4, 10804), (Family::Ipv6, 10806)];
/// How long an instance may take to listen: a large Go program on a busy machine.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long the server instance may take to close its connections.
const IDLE_WITHIN: Duration = Duration::from_secs(60);

/// In the certificate, instead of a name that would have to be looked up.
const SERVER_NAME: &str = "lab.test";
/// The user of VLESS and VMess.
const USER: &str = "5c1f3b52-6b0e-4c3e-9d0a-2f1f6f3c7a11";
/// Of Shadowsocks 2022: 16 bytes in base64.
const KEY: &str = "bGFiLWxhYi1sYWItbGFiIQ==";
/// Of the other protocols.
const PASSWORD: &str = "lab";

/// A program that can be a proxy's server and client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Xray-core.
    Xray,
    /// sing-box 1.11 or later.
    SingBox,
    /// V2Ray 4.
    V2ray,
}

impl Program {
    /// The name of its file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Xray => "xray",
            Self::SingBox => "sing-box",
            Self::V2ray => "v2ray",
        }
    }

    /// The protocols that [`Proxy::start`] can make it speak; the first is the plainest.
    pub fn protocols(self) -> &'static [Protocol] {
        use Protocol::{
            Http, Hysteria2, Shadowsocks, Shadowsocks2022, Socks, TrojanTls, VlessGrpc,
            VlessHttpUpgrade, VlessTcp, VlessTlsVision, VlessXhttp, VmessTcp, VmessWs,
        };
        match self {
            Self::Xray => &[
                VlessTcp,
                VlessTlsVision,
                VlessGrpc,
                VlessXhttp,
                VlessHttpUpgrade,
                VmessTcp,
                VmessWs,
                TrojanTls,
                Shadowsocks,
                Shadowsocks2022,
                Socks,
                Http,
            ],
            Self::SingBox => &[VlessTcp, Shadowsocks2022, Hysteria2],
            Self::V2ray => &[VmessTcp, VmessWs, VlessTcp, Shadowsocks],
        }
    }

    /// A command that runs it with a configuration.
    fn command(self, binary: &Path, configuration: &Path) -> Command {
        let mut command = Command::new(binary);
        match self {
            Self::Xray | Self::SingBox => command.arg("run").arg("-c"),
            Self::V2ray => command.arg("-config"),
        };
        command.arg(configuration);
        command
    }
}

impl fmt::Display for Program {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// What the two instances speak with each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// VLESS over TCP, without encryption.
    VlessTcp,
    /// VLESS over TLS over TCP with the flow xtls-rprx-vision.
    VlessTlsVision,
    /// VLESS over gRPC over TCP.
    VlessGrpc,
    /// VLESS over XHTTP over TCP.
    VlessXhttp,
    /// VLESS over an upgraded HTTP connection.
    VlessHttpUpgrade,
    /// VMess over TCP.
    VmessTcp,
    /// VMess over WebSocket over TCP.
    VmessWs,
    /// Trojan over TLS over TCP.
    TrojanTls,
    /// SOCKS5, without authentication.
    Socks,
    /// HTTP CONNECT.
    Http,
    /// Shadowsocks with aes-128-gcm.
    Shadowsocks,
    /// Shadowsocks with 2022-blake3-aes-128-gcm.
    Shadowsocks2022,
    /// Hysteria 2: QUIC, so UDP.
    Hysteria2,
}

impl Protocol {
    /// What the server instance listens on.
    pub fn transport(self) -> Transport {
        match self {
            Self::Hysteria2 => Transport::Udp,
            _ => Transport::Tcp,
        }
    }

    /// Whether the client instance keeps its connections to the server instance for later ones. It ends
    /// them, and talks on them, when it likes: hysteria2 every ten seconds.
    pub fn keeps_connections(self) -> bool {
        matches!(self, Self::VlessGrpc | Self::VlessXhttp | Self::Hysteria2)
    }

    /// Whether the server instance needs a certificate.
    fn has_tls(self) -> bool {
        matches!(self, Self::VlessTlsVision | Self::TrojanTls | Self::Hysteria2)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::VlessTcp => "VLESS tcp",
            Self::VlessTlsVision => "VLESS TLS vision",
            Self::VmessTcp => "VMess tcp",
            Self::VmessWs => "VMess ws",
            Self::VlessGrpc => "VLESS gRPC",
            Self::VlessXhttp => "VLESS XHTTP",
            Self::VlessHttpUpgrade => "VLESS HTTPUpgrade",
            Self::TrojanTls => "Trojan TLS",
            Self::Socks => "SOCKS",
            Self::Http => "HTTP",
            Self::Shadowsocks => "Shadowsocks",
            Self::Shadowsocks2022 => "Shadowsocks 2022",
            Self::Hysteria2 => "hysteria2",
        })
    }
}

/// A program and what it shall speak.
#[derive(Debug, Clone)]
pub struct Proxy {
    /// Which program it is.
    pub program: Program,
    /// Its file.
    pub binary: PathBuf,
    /// One of [`Program::protocols`].
    pub protocol: Protocol,
}

impl Proxy {
    /// Starts the server instance in `cgroup` in the proxy's namespace and the client instance in the
    /// client's, and waits until both listen. No packet is sent for that.
    pub fn start(&self, lab: &Lab, cgroup: &CountedCgroup) -> Result<RunningProxy> {
        let Self { program, binary, protocol } = self;
        if !program.protocols().contains(protocol) {
            bail!("no configuration is known that makes {program} speak {protocol}");
        }
        let configurations = self.configure()?;
        let directory = TempDir::with_prefix("ta-lab-").context("no place for configurations")?;
        // A proxy may have been built to give up its rights.
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o755))?;
        let start = |role: &str, configuration: &Value, place: Place<'_>| -> Result<Process> {
            let file = directory.path().join(format!("{role}.json"));
            fs::write(&file, format!("{configuration:#}"))?;
            Process::spawn(program.command(binary, &file), place)
                .with_context(|| format!("the {role} instance, {}", binary.display()))
        };
        let place = Place { namespace: Some(&lab.proxy), cgroup: Some(cgroup), user: None };
        let mut server = start("server", &configurations.server, place)?;
        server.wait_for(protocol.transport(), PORT, READY_WITHIN)?;
        let place = Place { namespace: Some(&lab.client), ..Place::default() };
        let mut client = start("client", &configurations.client, place)?;
        for (_, port) in SOCKS {
            client.wait_for_port(port, READY_WITHIN)?;
        }
        Ok(RunningProxy { protocol: *protocol, client, server, _directory: directory })
    }

    /// The configurations of both instances.
    fn configure(&self) -> Result<Configurations> {
        let certificate = match self.protocol.has_tls() {
            true => Some(Certificate::make(self.program, &self.binary)?),
            false => None,
        };
        let certificate = certificate.as_ref();
        match self.program {
            Program::SingBox => sing_box::configure(self.protocol, certificate),
            Program::Xray | Program::V2ray => {
                xray::configure(self.program, self.protocol, certificate)
            }
        }
    }
}

/// What both instances are told.
struct Configurations {
    server: Value,
    client: Value,
}

/// The name of what belongs to a family in the client's configuration.
fn tag(family: Family) -> &'static str {
    match family {
        Family::Ipv4 => "ipv4",
        Family::Ipv6 => "ipv6",
    }
}

/// A certificate for [`SERVER_NAME`] and its key, as lines of PEM. Both are put into configurations,
/// so that no file must be readable by whom the proxy becomes.
struct Certificate {
    certificate: Vec<String>,
    key: Vec<String>,
}

impl Certificate {
    /// Lets the proxy make one itself: then nothing else needs to be installed.
    fn make(program: Program, binary: &Path) -> Result<Self> {
        let mut command = Command::new(binary);
        match program {
            Program::Xray => command.args(["tls", "cert", "-json", "-domain", SERVER_NAME]),
            Program::SingBox => command.args(["generate", "tls-keypair", SERVER_NAME]),
            Program::V2ray => bail!("{program} is not asked for certificates"),
        };
        let mut make = || -> Result<Self> {
            let output = command.stdin(Stdio::null()).output()?;
            let text = String::from_utf8(output.stdout)?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                bail!("{}: {text}{}", output.status, said.trim());
            }
            Self::parse(&text)
                .ok_or_else(|| anyhow!("its output has no certificate or no key: {text}"))
        };
        make().with_context(|| format!("{program} makes no certificate ({})", binary.display()))
    }

    /// Takes PEM, or what xray prints: the lines of PEM in JSON, which are the same but for quotes.
    fn parse(text: &str) -> Option<Self> {
        let lines = || text.lines().map(|line| line.trim_matches([' ', '"', ',']));
        let block = |kind: &str| -> Option<Vec<String>> {
            let lines = lines().skip_while(|line| !is_mark(line, "BEGIN", kind));
            let mut block: Vec<String> = Vec::new();
            for line in lines {
                block.push(line.to_owned());
                if is_mark(line, "END", kind) {
                    return Some(block);
                }
            }
            None
        };
        Some(Self { certificate: block("CERTIFICATE")?, key: block("PRIVATE KEY")? })
    }
}

/// Whether a line begins or ends a block of PEM, as in `-----BEGIN EC PRIVATE KEY-----`.
fn is_mark(line: &str, mark: &str, kind: &str) -> bool {
    line.strip_prefix("-----")
        .and_then(|line| line.strip_suffix("-----"))
        .is_some_and(|line| line.starts_with(mark) && line.ends_with(kind))
}

/// Both instances. Dropped, both are killed and reaped.
#[derive(Debug)]
pub struct RunningProxy {
    protocol: Protocol,
    // In this order: the server's last packets are answered by nobody who then tries again.
    client: Process,
    server: Process,
    _directory: TempDir,
}

impl RunningProxy {
    /// What the two instances speak with each other.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// The process id of the server instance, which is the one to be measured.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// The way through both instances to a server on `port` at the upstream, by one family all along.
    pub fn route<'l>(&self, lab: &'l Lab, family: Family, port: u16) -> Route<'l> {
        let relay = SOCKS.iter().find(|(of, _)| *of == family);
        Route {
            client: &lab.client,
            relay: relay.map(|&(_, port)| SocketAddr::from((Ipv4Addr::LOCALHOST, port))),
            target: (addresses(family).upstream, port).into(),
        }
    }

    /// Waits until the server instance has no TCP connection left, but in TIME_WAIT, or kept for later:
    /// xray takes about a second to close one whose bytes it let the kernel pass on (splice).
    pub fn wait_until_idle(&self) -> Result<()> {
        let kept = self.protocol.keeps_connections().then_some(PORT);
        wait_until_closed(self.server.pid(), kept, IDLE_WITHIN)
    }

    /// Stops both instances, if they talk on connections that they keep: then the link is silent.
    pub fn hush(&self) -> Result<()> {
        self.signal_if_keeping(Signal::SIGSTOP)
    }

    /// Lets them go on.
    pub fn resume(&self) -> Result<()> {
        self.signal_if_keeping(Signal::SIGCONT)
    }

    fn signal_if_keeping(&self, signal: Signal) -> Result<()> {
        if self.protocol.keeps_connections() {
            for process in [&self.client, &self.server] {
                kill(Pid::from_raw(process.pid() as i32), signal).context("has it ended?")?;
            }
        }
        Ok(())
    }

    /// What both instances have written, for an error's message; empty if they were silent.
    pub fn logs(&self) -> String {
        let mut logs = String::new();
        for (role, process) in [("server", &self.server), ("client", &self.client)] {
            let log = process.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(10)..].join("\n    ");
            logs += &format!("\n  last lines of the {role} instance:\n    {last}");
        }
        logs
    }
}

/// Waits until no TCP connection is left in the network namespace of a process, but in TIME_WAIT, or of a
/// local port whose connections are kept.
pub fn wait_until_closed(pid: u32, kept: Option<u16>, at_most: Duration) -> Result<()> {
    let begin = Instant::now();
    loop {
        let open = open_connections(pid, kept).context("has the server ended?")?;
        if open == 0 {
            return Ok(());
        }
        if begin.elapsed() > at_most {
            bail!("{open} sockets are still open after {at_most:?}");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// TCP sockets in the network namespace of a process that neither listen nor are in TIME_WAIT, but for
/// those of a local port whose connections are kept.
fn open_connections(pid: u32, kept: Option<u16>) -> Result<usize> {
    let mut open = 0;
    for table in ["tcp", "tcp6"] {
        let file = format!("/proc/{pid}/net/{table}");
        match fs::read_to_string(&file) {
            Ok(text) => open += count_open(&text, kept),
            // A kernel without IPv6 has no tcp6.
            Err(_) if table == "tcp6" => {}
            Err(error) => return Err(error).with_context(|| format!("cannot read {file}")),
        }
    }
    Ok(open)
}

fn count_open(table: &str, kept: Option<u16>) -> usize {
    // sl local_address rem_address st ...; TCP_LISTEN is 0A, TCP_TIME_WAIT 06.
    let kept = kept.map(|port| format!(":{port:04X}"));
    let open = table.lines().skip(1).filter(|line| {
        let mut columns = line.split_whitespace().skip(1);
        let local = columns.next().unwrap_or_default();
        let state = columns.nth(1);
        state.is_some_and(|state| !matches!(state, "0A" | "06"))
            && !kept.as_ref().is_some_and(|port| local.ends_with(port))
    });
    open.count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_and_key_are_found_in_either_order() {
        let key = "-----BEGIN RSA PRIVATE KEY-----\nb\n-----END RSA PRIVATE KEY-----\n";
        let certificate = "-----BEGIN CERTIFICATE-----\na\n-----END CERTIFICATE-----\n";
        let json = "{ \"certificate\": [\n  \"-----BEGIN CERTIFICATE-----\",\n  \"a\",\n  \
                    \"-----END CERTIFICATE-----\"\n],\n\"key\": [\n  \"-----BEGIN PRIVATE KEY-----\",\n  \
                    \"b\",\n  \"-----END PRIVATE KEY-----\"\n] }";
        let pems =
            [format!("{key}\n{certificate}"), format!("{certificate}{key}"), json.to_owned()];
        for pem in pems {
            let made = Certificate::parse(&pem).unwrap();
            assert_eq!(made.certificate[1], "a");
            assert_eq!(made.key.len(), 3);
        }
        assert!(Certificate::parse(key).is_none());
        assert!(Certificate::parse("-----BEGIN CERTIFICATE-----\na\n").is_none());
    }

    #[test]
    fn listeners_and_time_wait_are_no_open_connections() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue
   0: 00000000:2DBE 00000000:0000 0A 0 0
   1: 0100007F:2DBE 0100007F:0050 01 0 0
   2: 0100007F:2DBE 0100007F:0051 06 0 0
   3: 0100007F:0BBE 0100007F:0052 05 0 0
";
        assert_eq!(count_open(table, None), 2);
        assert_eq!(count_open(table, Some(11710)), 1);
    }

    #[test]
    fn every_protocol_of_every_program_has_configurations_for_both_families() {
        let pem = Certificate { certificate: vec!["a".into()], key: vec!["b".into()] };
        for program in [Program::Xray, Program::SingBox, Program::V2ray] {
            for &protocol in program.protocols() {
                let certificate = protocol.has_tls().then_some(&pem);
                let made = match program {
                    Program::SingBox => sing_box::configure(protocol, certificate),
                    _ => xray::configure(program, protocol, certificate),
                };
                let made = made.unwrap_or_else(|error| panic!("{program} {protocol}: {error}"));
                for (family, port) in SOCKS {
                    let client = made.client.to_string();
                    let server = addresses(family).proxy_client.to_string();
                    assert!(client.contains(&server), "{program} {protocol}: {client}");
                    assert!(client.contains(&port.to_string()), "{program} {protocol}: {client}");
                }
                assert!(made.server.to_string().contains(&PORT.to_string()));
            }
        }
    }
}
