//! traffic-agent: the library behind the command.

pub mod background;
pub mod calendar;
pub mod check;
pub mod child;
pub mod cli;
pub mod commands;
pub mod comparison;
pub mod config;
pub mod estimate;
pub mod history;
pub mod kernel;
pub mod ledger;
pub mod measure;
pub mod method;
pub mod netns;
pub mod network;
pub mod past;
pub mod proof;
pub mod render;
pub mod report;
pub mod signals;
pub mod store;
pub mod target;
pub mod units;
