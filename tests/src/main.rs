//! What the tests start in counted cgroups: a role of the lab, the socket factory, a client, or who
//! writes and reads a history. And the soak.

use std::time::Duration;

use anyhow::{Result, bail};
use traffic_tests::{exchange, factory, history, soak};

fn main() -> Result<()> {
    traffic_lab::role::run_from_environment();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        [factory::ARGUMENT] => factory::serve(),
        ["fetch", to, upload, download] => {
            exchange::fetch(to.parse()?, upload.parse()?, download.parse()?)
        }
        [history::WRITE, directory] => history::write(directory.as_ref()),
        [history::READ, directory] => history::read(directory.as_ref()),
        [soak::ARGUMENT, seconds] => soak::run(Duration::from_secs(seconds.parse()?)),
        _ => bail!("{arguments:?} is nothing to do"),
    }
}
