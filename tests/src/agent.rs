//! The built `traffic-agent`.
