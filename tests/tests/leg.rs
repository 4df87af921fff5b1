//! Which leg a packet belongs to: the socket's port decides, from the first packet on, whatever
//! listens, is translated, or comes and goes.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};
use nix::sys::socket::{SockaddrStorage, bind, setsockopt, sockopt};
use traffic_agent::report::{Leg, Protocol};
use traffic_agent::target::PortFilter;
use traffic_lab::Stack;
use traffic_lab::packet::Family;
use traffic_lab::topology::addresses;
use traffic_lab::workload::bind_far_end;
use traffic_tests::exchange::{carry, with_listener, with_listener_by, EXCHANGED_BYTES};
use traffic_tests::factory::{connect_to, listen_on};
use traffic_tests::figures::{self, Books};
use traffic_tests::rules;
use traffic_tests::site::{Site, any, tcp, udp};
