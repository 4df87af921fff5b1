//! Which bytes of a TCP stream were received before, from the sequence numbers of its packets.

/// What one connection has received, in the order in which packets came.
///
/// `payload` bytes came, and they lie within a span of the stream. As long as that span has no holes,
/// `payload - span` bytes came more than once; while it has, at least so many. So what is told is
/// never too much, and right whenever the stream has no hole: reordering alone gives 0, and a hole that
/// is filled late is no repeat.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Payload bytes of all packets.
    payload: u64,
    /// Bytes from the first to the last of the stream.
    span: u64,
    /// Bytes that were told to be repeats.
    told: u64,
    /// Sequence number of the first byte.
    first: u32,
    /// Sequence number behind the last byte.
    end: u32,
}

const _: () = assert!(size_of::<Received>() == 32 && align_of::<Received>() == 8);

impl Received {
    /// While the span is shorter than this, a byte before the first one is told apart from one behind the
    /// last; later, a sequence number may mean either.
    const FIRST_IS_KNOWN: u64 = 1 << 30;

    /// A packet that is farther ahead was not sent by the peer: no window is larger. Source: RFC 7323,
    /// section 2.3.
    const LARGEST_WINDOW: i32 = 1 << 30;

    /// Whether nothing was taken yet.
    #[inline(always)]
    pub const fn is_new(&self) -> bool {
        self.payload == 0
    }

    /// Begins with what the socket has received already, `bytes` up to `next`, if nothing was taken yet.
    ///
    /// Not if the first packet, at `sequence`, is ahead of the socket, which then has others to take
    /// before: they would seem to be missing for ever.
    #[inline(always)]
    pub fn begin(&mut self, sequence: u32, next: u32, bytes: u64) {
        if self.is_new() && bytes != 0 && next.wrapping_sub(sequence) as i32 >= 0 {
            let first = next.wrapping_sub(bytes as u32);
            *self = Self { payload: bytes, span: bytes, told: 0, first, end: next };
        }
    }

    /// Takes a packet with `payload` bytes at `sequence`, and returns how many bytes are now known to
    /// have come again and were not told before.
    #[inline(always)]
    pub fn take(&mut self, sequence: u32, payload: u32) -> u32 {
        let end = sequence.wrapping_add(payload);
        if self.is_new() {
            *self = Self {
                payload: payload as u64,
                span: payload as u64,
                told: 0,
                first: sequence,
                end,
            };
            return 0;
        }
        let beyond = end.wrapping_sub(self.end) as i32;
        if beyond > Self::LARGEST_WINDOW {
            return 0;
        }
        self.payload += payload as u64;
        if beyond > 0 {
            self.span += beyond as u64;
            self.end = end;
        }
        let before = self.first.wrapping_sub(sequence) as i32;
        if before > 0 && self.span < Self::FIRST_IS_KNOWN {
            self.span += before as u64;
            self.first = sequence;
        }
        let repeated = self.payload.saturating_sub(self.span);
        if repeated <= self.told {
            return 0;
        }
        let new = (repeated - self.told) as u32;
        self.told = repeated;
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums what is told of packets of `(sequence, payload)`.
    fn told(packets: &[(u32, u32)]) -> u32 {
        let mut received = Received::default();
        packets.iter().map(|&(sequence, payload)| received.take(sequence, payload)).sum()
    }

    #[test]
    fn bytes_in_order_are_no_repeats() {
        assert_eq!(told(&[(1000, 100), (1100, 1448), (2548, 1)]), 0);
    }

    #[test]
    fn bytes_that_come_again_are_told_once_each_time() {
        assert_eq!(told(&[(0, 100), (0, 100), (0, 100)]), 200);
        // Half of it is new.
        assert_eq!(told(&[(0, 100), (50, 100)]), 50);
    }

    #[test]
    fn reordering_gives_nothing() {
        assert_eq!(told(&[(0, 100), (200, 100), (100, 100), (300, 100)]), 0);
        // Also if the first packet is overtaken.
        assert_eq!(told(&[(100, 100), (0, 100), (200, 100)]), 0);
    }

    #[test]
    fn repeat_while_a_hole_is_open_is_told_when_it_closes() {
        // 0..100, hole, 200..300 twice: 100 repeated, 100 missing. The hole closes: 100.
        assert_eq!(told(&[(0, 100), (200, 100), (200, 100)]), 0);
        assert_eq!(told(&[(0, 100), (200, 100), (200, 100), (100, 100)]), 100);
    }

    #[test]
    fn what_the_socket_had_before_is_known() {
        // 150 bytes completed the handshake; 100 of them come again, then new ones.
        let mut received = Received::default();
        received.begin(1050, 1150, 150);
        assert_eq!((received.take(1050, 100), received.take(1150, 100)), (100, 0));
        // What waits for the socket still is not missing.
        let mut behind = Received::default();
        behind.begin(5000, 1150, 150);
        assert_eq!((behind.take(5000, 100), behind.take(5000, 100)), (0, 100));
    }

    #[test]
    fn number_that_no_peer_sends_hides_nothing() {
        assert_eq!(told(&[(0, 100), (2_000_000_000, 100), (0, 100)]), 100);
    }

    #[test]
    fn numbers_may_wrap_many_times() {
        let mut received = Received::default();
        let mut sequence = u32::MAX - 5;
        let mut again = 0u64;
        for round in 0..200_000u32 {
            again += u64::from(received.take(sequence, 65_000));
            if round % 1000 == 0 {
                again += u64::from(received.take(sequence, 65_000));
            }
            sequence = sequence.wrapping_add(65_000);
        }
        // 13 GB, three times around; every 1,000th packet came twice.
        assert_eq!(again, 200 * 65_000);
    }
}
