//! Socket options that the standard library and nix do not have.

use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result};
use nix::errno::Errno;

/// setsockopt with bytes as the value.
pub fn set(socket: &impl AsFd, level: i32, option: i32, value: &[u8]) -> Result<()> {
    // SAFETY: the pointer and the length are those of a live slice, which the kernel only reads.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            option,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    };
    Errno::result(result).map(drop).with_context(|| format!("setsockopt({level}, {option})"))
}

/// Sends every IPv4 packet of the socket with these options.
pub fn set_ipv4_options(socket: &impl AsFd, options: &[u8]) -> Result<()> {
    set(socket, libc::IPPROTO_IP, libc::IP_OPTIONS, options)
}

/// Sends every IPv6 packet of the socket with an extension header of `bytes` bytes, a multiple of 8,
/// that holds nothing of meaning: `IPV6_HOPOPTS` or `IPV6_DSTOPTS`.
pub fn set_ipv6_header(socket: &impl AsFd, option: i32, bytes: usize) -> Result<()> {
    set(socket, libc::IPPROTO_IPV6, option, &idle_header(bytes))
}

/// Next header (the kernel's to fill in), length in units of 8 beyond the first, then one option for
/// experiments that whoever does not know it shall skip (0x1e, RFC 4727). The kernel drops packets with
/// more than 7 bytes of padding.
fn idle_header(bytes: usize) -> Vec<u8> {
    assert!(bytes >= 8 && bytes.is_multiple_of(8), "a header of {bytes} bytes");
    let mut header = vec![0; bytes];
    header[1] = (bytes / 8 - 1) as u8;
    header[2] = 0x1e;
    header[3] = (bytes - 4) as u8;
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_says_its_length_and_that_of_its_option() {
        assert_eq!(idle_header(8), [0, 0, 0x1e, 4, 0, 0, 0, 0]);
        assert_eq!(idle_header(24)[..4], [0, 2, 0x1e, 20]);
    }
}
