//! Kernel and end-to-end tests: one file in `tests/` per claim.

pub mod proxies;
