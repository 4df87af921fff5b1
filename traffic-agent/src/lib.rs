//! traffic-agent: the library behind the command.

pub mod method;
pub mod report;
