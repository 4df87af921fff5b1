//! Traffic through the relay for as long as something else is done.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use traffic_lab::packet::Family;
use traffic_lab::workload::Workload;

use crate::site::Site;

/// What is carried again and again.
pub const TRAFFIC: Workload = Workload {
    name: "steady",
    connections: 20,
    parallel: 4,
    upload_bytes: 20_000,
    download_bytes: 200_000,
    at_once: false,
};

/// Drives traffic while something is done, which tells how long.
pub fn under_load<T>(site: &Site, meanwhile: impl FnOnce() -> Result<T>) -> Result<T> {
    under_paced_load(site, Duration::ZERO, meanwhile)
}

/// The same with a pause between two rounds, for what takes long.
pub fn under_paced_load<T>(
    site: &Site,
    pause: Duration,
    meanwhile: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let server = site.server()?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let driving = scope.spawn(|| -> Result<u32> {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                let family = if rounds % 2 == 0 { Family::Ipv4 } else { Family::Ipv6 };
                site.drive(&TRAFFIC, family, &server)?;
                rounds += 1;
                thread::sleep(pause);
            }
            Ok(rounds)
        });
        let result = meanwhile();
        done.store(true, Ordering::Relaxed);
        let rounds = driving.join().expect("the driver does not panic").context("the traffic")?;
        println!("{rounds} rounds of {} bytes", TRAFFIC.total_bytes());
        result
    })
}
