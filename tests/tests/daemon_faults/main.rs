//! The daemon against faults: what was counted is what the far ends captured, to the byte, and where bytes
//! are missing the history says when.

mod clock;
mod disk;
mod history;
mod pins;
mod reload;
mod restarts;
