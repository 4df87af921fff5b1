//! The lab with a counted cgroup in its proxy namespace, and one measurement beside its captures.

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use traffic_agent::kernel::Sample;
use traffic_agent::measure::{Measurement, Plan};
use traffic_agent::method::ListeningPort;
use traffic_agent::report::{Finding, Protocol, TargetReport};
use traffic_agent::target::{Cgroup, Host, PortFilter};
use traffic_lab::kernel::Kernel;
use traffic_lab::packet::Family;
use traffic_lab::process::Place;
use traffic_lab::role::Role;
use traffic_lab::sockets::Transport;
use traffic_lab::topology::{LabCapture, LabTrace, addresses};
use traffic_lab::workload::{Outcome, Route, Server, Workload, run};
use traffic_lab::{CountedCgroup, Lab, Process, Stack};

use crate::factory::Factory;
use crate::figures::{self, Books};
use crate::{require_root, role};

/// Where the relay listens.
pub const RELAY_PORT: u16 = 11710;
/// Where the server at the upstream listens.
pub const SERVER_PORT: u16 = 8080;
/// How long a helper may take to start.
const STARTED_WITHIN: Duration = Duration::from_secs(60);

/// TCP, for lists of ports.
pub const fn tcp(port: u16) -> ListeningPort {
    ListeningPort { protocol: Protocol::Tcp, port }
}

/// UDP, for lists of ports.
pub fn udp(port: u16) -> ListeningPort {
    ListeningPort { protocol: Protocol::Udp, port }
}

/// The lab and the cgroup to be counted. Dropped, all of it is gone.
#[derive(Debug)]
pub struct Site {
    /// Makes sockets in the cgroup and the proxy's namespace. First, because it must end first.
    pub factory: Factory,
    /// The counted cgroup.
    pub cgroup: CountedCgroup,
    /// The namespaces.
    pub lab: Lab,
    /// The machine.
    pub host: Host,
}

impl Site {
    /// Makes the lab, the cgroup, and the factory in it.
    pub fn new(stack: Stack) -> Result<Self> {
        require_root()?;
        let lab = Lab::new(stack)?;
        let cgroup = CountedCgroup::new("counted")?;
        let factory = Factory::start(&lab.proxy, &cgroup)?;
        Ok(Self { factory, cgroup, lab, host: Host::detect()? })
    }

    /// Where counted processes run.
    pub fn place(&self) -> Place<'_> {
        Place { namespace: Some(&self.lab.proxy), cgroup: Some(&self.cgroup), user: None }
    }

    /// Starts a role of the lab in the counted cgroup.
    pub fn start(&self, what: &Role) -> Result<Process> {
        self.start_in(&self.cgroup, what)
    }

    /// Starts the relay and waits until it listens.
    pub fn relay(&self) -> Result<Process> {
        let mut relay = self.start(&Role::Relay { listen: any(RELAY_PORT) })?;
        relay.wait_for_port(RELAY_PORT, STARTED_WITHIN)?;
        Ok(relay)
    }

    /// Starts a receiver of UDP and waits until it is bound.
    pub fn udp_receiver(&self, receive: traffic_lab::udp::Receive) -> Result<Process> {
        let port = receive.listen.port();
        let mut process = self.start(&Role::UdpReceive(receive))?;
        process.wait_for(Transport::Udp, port, STARTED_WITHIN)?;
        Ok(process)
    }

    /// Starts the server at the upstream.
    pub fn server(&self) -> Result<Server> {
        Server::start(&self.lab.upstream, any(SERVER_PORT))
    }

    /// Drives a workload through the relay.
    pub fn drive(&self, workload: &Workload, family: Family, server: &Server) -> Result<Outcome> {
        self.drive_through(RELAY_PORT, workload, family, server)
    }

    /// Drives a workload through a relay in the proxy's namespace.
    pub fn drive_through(
        &self,
        port: u16,
        workload: &Workload,
        family: Family,
        server: &Server,
    ) -> Result<Outcome> {
        let addresses = addresses(family);
        let route = Route {
            client: &self.lab.client,
            relay: Some((addresses.proxy_client, port).into()),
            target: (addresses.upstream, server.address().port()).into(),
        };
        run(workload, route, server, &|_| ())
    }

    /// Sends datagrams of so many bytes from the counted cgroup to an address of the upstream, which sends each back.
    pub fn echo(&self, here: SocketAddr, payload: usize, datagrams: u64) -> Result<()> {
        let server = self.lab.upstream.run_in(|| UdpSocket::bind(here))??;
        let client = self.factory.udp_unbound(here)?;
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(Duration::from_secs(60)))?;
        }
        let mut received = vec![0; 2 * payload];
        for _ in 0..datagrams {
            client.send_to(&vec![1; payload], here)?;
            let (length, from) = server.recv_from(&mut received)?;
            server.send_to(&received[..length], from)?;
            client.recv(&mut received)?;
        }
        Ok(())
    }

    /// Starts something in a cgroup, in the proxy's namespace.
    pub fn start_in(&self, cgroup: &CountedCgroup, what: &Role) -> Result<Process> {
        let place = Place { namespace: Some(&self.lab.proxy), cgroup: Some(cgroup), user: None };
        Process::spawn(role(what)?, place)
    }

    /// What is measured unless a test wants something else.
    pub fn plan(&self) -> Result<Plan> {
        let path = self.cgroup.cgroup_path();
        let dir = self.cgroup.path().to_owned();
        Ok(Plan {
            name: "counted".to_owned(),
            selector: format!("cgroup:{path}"),
            selectors: vec![traffic_agent::target::Value::Cgroup(path.clone())],
            cgroups: vec![Cgroup { path, dir, id: self.cgroup.id()? }],
            notes: Vec::new(),
            ports: PortFilter::default(),
            unbilled: Vec::new(),
            trace_packets: 0,
        })
    }

    /// Starts to count and to capture.
    pub fn count(&self) -> Result<Counting<'_>> {
        self.count_as(self.plan()?)
    }

    /// Starts to count by a plan, and to capture.
    pub fn count_as(&self, plan: Plan) -> Result<Counting<'_>> {
        let measurement = Measurement::start(&self.host, plan)?;
        let capture = self.lab.capture()?;
        let start = measurement.sample()?;
        Ok(Counting { measurement, capture, start })
    }
}

/// A running measurement beside running captures.
pub struct Counting<'s> {
    /// The measurement.
    pub measurement: Measurement<'s>,
    capture: LabCapture<'s>,
    start: Sample,
}

impl Counting<'_> {
    /// Waits until the links are silent.
    pub fn settle(&self) -> Result<()> {
        self.capture.settle()
    }

    /// What was counted since the start, while it goes on.
    pub fn so_far(&mut self) -> Result<Vec<traffic_agent::report::CellReport>> {
        let now = self.measurement.sample()?;
        self.measurement.cells(&self.start, &now)
    }

    /// Waits for silence, ends the captures, and reads the counters.
    ///
    /// An error if a frame was lost between a far end and the proxy: the capture would be no truth.
    pub fn finish(mut self) -> Result<Counted> {
        let mut trace = self.capture.stop()?;
        trace.check()?;
        let unseen = Kernel::running()?.take_unseen(&mut trace);
        if unseen.packets > 0 {
            println!(
                "this kernel's hooks do not see SYN-ACKs of inbound IPv6 connections: {} packets, \
                 {} B less than captured",
                unseen.packets, unseen.l3_bytes
            );
        }
        let end = self.measurement.sample()?;
        let report = self.measurement.report(&self.start, &end)?;
        Ok(Counted { report, trace })
    }
}

/// What was counted, and what was captured meanwhile.
pub struct Counted {
    /// The report.
    pub report: TargetReport,
    /// The captures, less what this kernel's hooks do not see although a socket takes part.
    pub trace: LabTrace,
}

impl Counted {
    /// The books of the cells.
    pub fn books(&self) -> Books {
        figures::of_cells(&self.report.cells)
    }

    /// The books of the captures, if these ports are the client leg.
    pub fn captured(&self, listening: &[ListeningPort]) -> Books {
        figures::of_capture(&self.trace, listening)
    }

    /// The books of the cells, with the ports forgotten: those beyond the table have none.
    pub fn books_without_ports(&self) -> Books {
        figures::without_ports(self.books())
    }

    /// The same of the captures.
    pub fn captured_without_ports(&self, listening: &[ListeningPort]) -> Books {
        figures::without_ports(self.captured(listening))
    }

    /// Holds every cell against the capture: each coordinate, each figure, to the byte.
    #[track_caller]
    pub fn assert_books_equal_capture(&self, listening: &[ListeningPort]) {
        assert!(!self.books().is_empty(), "nothing was counted");
        assert_eq!(self.books(), self.captured(listening), "cells (left), capture (right)");
    }

    /// The finding of a code, if there is one.
    pub fn finding(&self, code: &str) -> Option<&Finding> {
        self.report.findings.iter().find(|finding| finding.code == code)
    }

    /// The finding of a code, which must be there.
    pub fn expect_finding(&self, code: &str) -> Result<&Finding> {
        let codes: Vec<_> = self.report.findings.iter().map(|finding| finding.code).collect();
        self.finding(code).with_context(|| format!("no finding {code} among {codes:?}"))
    }
}

/// `[::]`, both families.
pub fn any(port: u16) -> SocketAddr {
    (std::net::Ipv6Addr::UNSPECIFIED, port).into()
}
