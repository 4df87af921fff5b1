//! What the tests start in counted cgroups: a role of the lab, or the socket factory.

use anyhow::{Context, Result, bail};
use traffic_tests::factory;

fn main() -> Result<()> {
    traffic_lab::role::run_from_environment();
    let what = std::env::args().nth(1).context("what to do is missing")?;
    match what.as_str() {
        factory::ARGUMENT => factory::serve(),
        other => bail!("{other:?} is nothing to do"),
    }
}
