//! Which time-out is the next one.

use super::*;

const TIMEOUTS: Timeouts = Timeouts {
    connect: SECOND,
    first_byte: 15 * SECOND,
    between_bytes: 30 * SECOND,
    request: 60 * SECOND,
};

#[test]
fn the_nearest_ends_first() {
    let mut ends = Deadlines::new(TIMEOUTS, SECOND);
    assert_eq!(ends.next(), Some((61 * SECOND, Timeout::Request)));
    ends.begin(Timeout::Connect, 2 * SECOND);
    assert_eq!(ends.next(), Some((3 * SECOND, Timeout::Connect)));
    assert_eq!(ends.expired(3 * SECOND - 1), None);
    assert_eq!(ends.expired(3 * SECOND), Some(Timeout::Connect));
    ends.begin(Timeout::FirstByte, 3 * SECOND);
    assert_eq!(ends.next(), Some((18 * SECOND, Timeout::FirstByte)));
    for at in [18, 30] {
        ends.begin(Timeout::BetweenBytes, at * SECOND);
        assert_eq!(
            ends.next(),
            Some(((at + 30) * SECOND, Timeout::BetweenBytes))
        );
    }
    // The whole counts from the begin, however often a part begins anew.
    ends.begin(Timeout::BetweenBytes, 31 * SECOND);
    assert_eq!(ends.next(), Some((61 * SECOND, Timeout::Request)));
    assert_eq!(ends.left(31 * SECOND), Some(30 * SECOND));
    assert_eq!(ends.left(70 * SECOND), Some(0));
    ends.begin(Timeout::Request, 32 * SECOND);
    assert_eq!(ends.next(), Some((61 * SECOND, Timeout::Request)));
}

#[test]
fn what_is_off_never_ends() {
    let off = Timeouts {
        connect: 0,
        first_byte: 0,
        between_bytes: 0,
        request: 0,
    };
    let mut ends = Deadlines::new(off, SECOND);
    ends.begin(Timeout::FirstByte, SECOND);
    assert_eq!((ends.next(), ends.left(SECOND)), (None, None));
    assert_eq!(ends.expired(u64::MAX), None);
}

#[test]
fn a_whole_shorter_than_a_part_is_refused() {
    assert_eq!(TIMEOUTS.check(), Ok(()));
    for (inner, timeouts) in [
        (
            Timeout::Connect,
            Timeouts {
                connect: 61 * SECOND,
                ..TIMEOUTS
            },
        ),
        (
            Timeout::FirstByte,
            Timeouts {
                first_byte: 61 * SECOND,
                ..TIMEOUTS
            },
        ),
        (
            Timeout::BetweenBytes,
            Timeouts {
                between_bytes: 61 * SECOND,
                ..TIMEOUTS
            },
        ),
    ] {
        assert_eq!(timeouts.check(), Err(Shorter { inner }));
        assert_eq!(
            Timeouts {
                request: 0,
                ..timeouts
            }
            .check(),
            Ok(())
        );
        assert_eq!(
            Timeouts {
                request: 61 * SECOND,
                ..timeouts
            }
            .check(),
            Ok(())
        );
    }
    assert_eq!(
        Shorter {
            inner: Timeout::FirstByte
        }
        .to_string(),
        "`request` is shorter than `first_byte`, which could then never run out: \
         raise `request` or lower `first_byte`"
    );
}
