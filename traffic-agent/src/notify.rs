//! What the service manager is told, by sd_notify(3). Without one nothing happens.
//!
//! The messages suit Type=notify (any systemd) and Type=notify-reload (since 253), which wants
//! MONOTONIC_USEC with RELOADING=1 in one message and waits for the READY=1 that follows.

use std::time::Duration;

use log::debug;
use sd_notify::NotifyState;

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        debug!("the service manager could not be told: {error}");
    }
}

/// Counting; also the end of a reload.
pub fn ready(status: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(&one_line(status))]);
}

/// One line for people, in `systemctl status`.
pub fn status(status: &str) {
    tell(&[NotifyState::Status(&one_line(status))]);
}

/// The configuration is read again; to be followed by [`ready`], whatever came of it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(error) => debug!("no monotonic clock: {error}"),
    }
}

/// About to end.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Still at work: to be said at least once in [`watchdog_interval`].
pub fn alive() {
    tell(&[NotifyState::Watchdog]);
}

/// How often to say [`alive`]: twice as often as the service manager asks for, as sd_watchdog_enabled(3)
/// advises. `None` if it does not watch this process.
pub fn watchdog_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

/// A line break would begin another message, and what is in a status may come from elsewhere: names.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::process::Command;

    use super::*;

    /// Says which of the messages a test started again as a child is to send.
    const SEND: &str = "TRAFFIC_TEST_NOTIFY";

    /// Not a test: the child of the next one, which alone has the socket in its environment.
    #[test]
    fn a_child_tells() {
        match std::env::var(SEND).as_deref() {
            Ok("ready") => ready("2 targets\nREADY=0"),
            Ok("status") => status("up"),
            Ok("reloading") => reloading(),
            Ok("stopping") => stopping(),
            Ok("alive") => alive(),
            Ok("watchdog") => status(&format!("{:?}", watchdog_interval())),
            _ => {}
        }
    }

    fn sent(what: &str, watchdog_usec: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let done = Command::new(std::env::current_exe().unwrap())
            .arg("notify::tests::a_child_tells")
            .env(SEND, what)
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", watchdog_usec)
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
        let mut message = [0; 200];
        let length = socket.recv(&mut message).unwrap();
        String::from_utf8(message[..length].to_vec()).unwrap()
    }

    #[test]
    fn messages_are_those_that_the_service_manager_knows() {
        assert_eq!(sent("ready", ""), "READY=1\nSTATUS=2 targets READY=0\n");
        assert_eq!(sent("status", ""), "STATUS=up\n");
        assert_eq!(sent("stopping", ""), "STOPPING=1\n");
        assert_eq!(sent("alive", ""), "WATCHDOG=1\n");
        let reloading = sent("reloading", "");
        let usec = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").expect(&reloading);
        assert!(usec.trim_end().parse::<u64>().is_ok(), "{reloading}");
    }

    #[test]
    fn the_watchdog_is_fed_twice_as_often_as_it_asks() {
        assert_eq!(sent("watchdog", "30000000"), "STATUS=Some(15s)\n");
        assert_eq!(sent("watchdog", ""), "STATUS=None\n");
    }
}
