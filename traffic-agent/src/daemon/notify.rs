//! What systemd is told. Outside of it nothing happens.

use sd_notify::NotifyState;

fn tell(states: &[NotifyState<'_>]) {
    // Nobody listens.
    let _ = sd_notify::notify(states);
}

/// Counting, and ready to be asked.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// One line for people.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// The configuration is read again.
pub fn reloading() {
    tell(&[NotifyState::Reloading]);
}

/// About to end.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Still at work.
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}
