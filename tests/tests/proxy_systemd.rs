//! A real xray as a unit of a real systemd, restarted under load with the agent killed in between.

use anyhow::Result;
use traffic_tests::service::{Host, restarts_and_kills};

#[test]
fn a_real_xray_loses_no_byte_through_restarts_and_kills() -> Result<()> {
    restarts_and_kills(&Host::with_xray()?)
}
