//! Owns the date that an answer states, as text (RFC 9110 section 5.6.7).

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;

/// A point in time, as `Sun, 06 Nov 1994 08:49:37 GMT`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Date {
    text: [u8; 29],
}

impl Date {
    /// The time now.
    pub(super) fn now() -> Self {
        Self::of(Timestamp::now())
    }

    fn of(time: Timestamp) -> Self {
        let text = DateTimePrinter::new().timestamp_to_rfc9110_string(&time).unwrap_or_default();
        // The form has a fixed width up to the year 9999, where jiff's time ends too.
        Self { text: text.as_bytes().try_into().unwrap_or(*b"Thu, 01 Jan 1970 00:00:00 GMT") }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_written_as_the_rfc_does() {
        let time = Timestamp::from_second(784_111_777).unwrap();
        assert_eq!(Date::of(time).as_bytes(), b"Sun, 06 Nov 1994 08:49:37 GMT");
        assert!(
            Date::now().as_bytes().ends_with(b" GMT")
                && !Date::now().as_bytes().starts_with(b"Thu, 01 Jan 1970")
        );
    }
}
