//! A unit into a slice of its own, and back: `install` and `uninstall`.
//!
//! systemd makes a unit a new cgroup at every restart, and what is attached to the old one is gone with it.
//! The cgroup of a slice stays. [`plan`], [`unit`], [`slice`] and [`config_text`] decide and are pure;
//! [`systemctl`] asks and tells systemd, [`files`] writes.

pub mod config_text;
pub mod diff;
pub mod files;
pub mod plan;
pub mod slice;
pub mod systemctl;
pub mod unit;

pub use plan::{Change, Found, Plan};
pub use unit::Unit;
