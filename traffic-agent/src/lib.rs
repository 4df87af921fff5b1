//! traffic-agent: the library behind the command.

pub mod method;
pub mod netns;
pub mod report;
pub mod target;
