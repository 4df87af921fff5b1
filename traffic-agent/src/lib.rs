//! traffic-agent: the library behind the command.

pub mod kernel;
pub mod method;
pub mod report;
