//! Owns the text form of a duration, the one of the Gateway API (GEP-2257): whole numbers with the
//! units h, m, s and ms, at most four of them, such as `1m30s`. No sign, no fraction, no bare number.

use std::borrow::Cow;
use std::time::Duration;

use kube::core::Rule;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// What the API server accepts.
const FORM: &str = "self.matches('^([0-9]{1,5}(h|m|s|ms)){1,4}$')";

/// A limit to a duration, which is not asked about a text that is none.
pub(super) fn limit(rule: &str, words: &str) -> Rule {
    Rule::new(format!("!{FORM} || ({rule})")).message(words)
}

/// A duration as written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DurationText(pub String);

impl DurationText {
    /// The duration, or `None` where the text is not one.
    pub fn parse(&self) -> Option<Duration> {
        let mut rest = self.0.as_str();
        let mut total = Duration::ZERO;
        let mut parts = 0;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            let (number, tail) = rest.split_at(digits);
            let unit = tail.bytes().take_while(u8::is_ascii_alphabetic).count();
            let (unit, tail) = split_unit(tail, unit)?;
            parts += 1;
            if digits > 5 || parts > 4 {
                return None;
            }
            total += unit.checked_mul(number.parse().ok()?)?;
            rest = tail;
        }
        (parts > 0).then_some(total)
    }
}

/// The unit at the start of `text` and what follows it.
fn split_unit(text: &str, letters: usize) -> Option<(Duration, &str)> {
    let (unit, rest) = text.split_at(letters);
    let unit = match unit {
        "h" => Duration::from_secs(3600),
        "m" => Duration::from_secs(60),
        "s" => Duration::from_secs(1),
        "ms" => Duration::from_millis(1),
        _ => return None,
    };
    Some((unit, rest))
}

impl From<&str> for DurationText {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl JsonSchema for DurationText {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Duration".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // 28 characters: four times five digits and two letters. CEL needs the limit to bound its cost.
        let form = Rule::new(FORM)
            .message("this is no duration: write whole numbers with h, m, s or ms, such as 1m30s or 1500ms");
        json_schema!({ "type": "string", "maxLength": 28, "x-kubernetes-validations": [form] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected_ms: Option<u64>) {
        assert_eq!(DurationText::from(text).parse(), expected_ms.map(Duration::from_millis), "{text:?}");
    }

    #[test]
    fn units_add_up() {
        check("0s", Some(0));
        check("250ms", Some(250));
        check("1m30s", Some(90_000));
        check("1h1m1s1ms", Some(3_661_001));
        check("99999h", Some(359_996_400_000));
    }

    #[test]
    fn everything_else_is_no_duration() {
        for text in ["", "5", "1.5s", "-1s", "s", "1d", "1 s", "123456s", "1s1s1s1s1s", "1sm", "١s"] {
            check(text, None);
        }
    }
}
