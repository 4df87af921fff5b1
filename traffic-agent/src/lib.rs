//! traffic-agent: the library behind the command.
