//! Owns what kubectl makes of a plain word of YAML, which it reads by YAML 1.1 and by the rules of Go for numbers, and
//! finds the words that it reads otherwise than we do. A pool means the same here and in a cluster, or it is refused.

use std::fmt;
use std::sync::LazyLock;

use regex::Regex;
use serde_yaml::Value;

/// What a plain word stands for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Meaning {
    Text,
    Null,
    Boolean(bool),
    Whole(i128),
    Fraction(f64),
}

impl fmt::Display for Meaning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text => f.write_str("a text"),
            Self::Null => f.write_str("null"),
            Self::Boolean(it) => write!(f, "{it}"),
            Self::Whole(it) => write!(f, "{it}"),
            Self::Fraction(it) => write!(f, "{it}"),
        }
    }
}

/// What is wrong with the plain word `text` as a value, if kubectl reads it otherwise than we do.
pub(super) fn objection(text: &str) -> Option<String> {
    let kubectl = disputed(text)?;
    match kubectl {
        Meaning::Fraction(it) if !it.is_finite() => Some(format!(
            "kubectl refuses `{text}`, which no JSON can hold; write a number, or put it in quotes"
        )),
        kubectl if is_alike(kubectl, ours(text)) => None,
        kubectl => {
            Some(format!("kubectl reads `{text}` as {kubectl}; write {kubectl}, or put `{text}` in quotes"))
        }
    }
}

/// The same of a key. The fractions of kubectl have fewer places there.
pub(super) fn objection_to_key(text: &str) -> Option<String> {
    let kubectl = disputed(text)?;
    let is_fraction = matches!(kubectl, Meaning::Fraction(_));
    (is_fraction || !is_alike(kubectl, ours(text)))
        .then(|| format!("kubectl reads the key `{text}` as {kubectl}; put it in quotes"))
}

/// What kubectl reads, unless it is plain that we read the same: nearly always, so this comes before all that is dear.
fn disputed(text: &str) -> Option<Meaning> {
    let is_plain_number = text.len() <= MANY_DIGITS
        && text.bytes().all(|it| it.is_ascii_digit())
        && (text.len() == 1 || !text.starts_with('0'));
    // Addresses and words over several lines mean no more than their text to anybody.
    let is_address = text.contains([':', '\n']) || text.matches('.').count() > 1;
    let is_undisputed = (is_plain_number || is_address) && !text.is_empty();
    let may_mean = text.is_empty() || text.starts_with(|it| "+-.~0123456789yYnNtTfFoO".contains(it));
    let meaning = (may_mean && !is_undisputed).then(|| meaning(text))?;
    // What is a text to kubectl is one to us, or too large a number, which is refused elsewhere.
    (meaning != Meaning::Text).then_some(meaning)
}

/// So many digits fit into any number.
const MANY_DIGITS: usize = 18;

/// What kubectl reads.
fn meaning(text: &str) -> Meaning {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Meaning::Null,
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return Meaning::Boolean(true);
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return Meaning::Boolean(false);
        }
        ".nan" | ".NaN" | ".NAN" => return Meaning::Fraction(f64::NAN),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => return Meaning::Fraction(f64::INFINITY),
        "-.inf" | "-.Inf" | "-.INF" => return Meaning::Fraction(f64::NEG_INFINITY),
        _ => {}
    }
    if text.starts_with('.') {
        let number = parts_digits(text).then(|| fraction(&text.replace('_', ""))).flatten();
        return number.map_or(Meaning::Text, Meaning::Fraction);
    }
    if !text.starts_with(|it: char| it == '+' || it == '-' || it.is_ascii_digit()) {
        return Meaning::Text;
    }
    let plain = text.replace('_', "");
    let number = whole(&plain).map(Meaning::Whole).or_else(|| fraction(&plain).map(Meaning::Fraction));
    number.or_else(|| late_binary(&plain).map(Meaning::Whole)).unwrap_or(Meaning::Text)
}

/// A whole number of 64 bits, as `ParseInt` and `ParseUint` of Go read it where the word tells the base: a leading zero
/// makes it octal.
fn whole(text: &str) -> Option<i128> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let bases = [("0x", 16), ("0X", 16), ("0o", 8), ("0O", 8), ("0b", 2), ("0B", 2), ("0", 8)];
    let based = bases.iter().find_map(|(prefix, base)| {
        unsigned.strip_prefix(prefix).filter(|it| !it.is_empty()).map(|digits| (digits, *base))
    });
    let (digits, base) = based.unwrap_or((unsigned, 10));
    let value = unsigned_digits(digits, base)?;
    match text.as_bytes().first() {
        Some(b'-') => Some(-value).filter(|it| *it >= i64::MIN.into()),
        Some(b'+') => Some(value).filter(|it| *it <= i64::MAX.into()),
        _ => Some(value).filter(|it| *it <= u64::MAX.into()),
    }
}

fn unsigned_digits(digits: &str, base: u32) -> Option<i128> {
    // The sign is taken off already; a second one makes it no number.
    digits.chars().all(|it| it.is_digit(base)).then(|| i128::from_str_radix(digits, base).ok())?
}

fn fraction(text: &str) -> Option<f64> {
    static FORM: LazyLock<Regex> = LazyLock::new(|| {
        Regex::new(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$").expect("a test uses it")
    });
    // What is too large is no number to Go.
    FORM.is_match(text).then(|| text.parse::<f64>().ok())?.filter(|it| it.is_finite())
}

/// Whether every underscore stands between digits. Behind another beginning than a dot it may stand anywhere.
fn parts_digits(text: &str) -> bool {
    let ends_in_digit = |it: &str| it.ends_with(|it: char| it.is_ascii_digit());
    let begins_with_digit = |it: &str| it.starts_with(|it: char| it.is_ascii_digit());
    text.match_indices('_').all(|(at, _)| ends_in_digit(&text[..at]) && begins_with_digit(&text[at + 1..]))
}

/// The sign may stand behind `0b`.
fn late_binary(text: &str) -> Option<i128> {
    let signed = text.strip_prefix("0b")?;
    let digits = signed.strip_prefix(['+', '-'])?;
    let value = unsigned_digits(digits, 2).filter(|it| *it <= i64::MAX.into())?;
    Some(if signed.starts_with('-') { -value } else { value })
}

/// What we read, asked of those who read it.
fn ours(text: &str) -> Option<Value> {
    let Value::Mapping(map) = serde_yaml::from_str(&format!("word: {text}")).ok()? else { return None };
    map.into_iter().next().map(|(_, value)| value)
}

fn is_alike(kubectl: Meaning, ours: Option<Value>) -> bool {
    match (kubectl, ours) {
        (Meaning::Null, Some(Value::Null)) => true,
        (Meaning::Boolean(theirs), Some(Value::Bool(ours))) => theirs == ours,
        (Meaning::Whole(theirs), Some(Value::Number(ours))) => {
            let whole = ours.as_i64().map(i128::from).or(ours.as_u64().map(i128::from));
            whole == Some(theirs) || (whole.is_none() && ours.as_f64() == Some(theirs as f64))
        }
        (Meaning::Fraction(theirs), Some(Value::Number(ours))) => ours.as_f64() == Some(theirs),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As sigs.k8s.io/yaml 1.6.0 turned them into JSON, which is what kubectl does.
    const MEANINGS: &[(&str, &str)] = &[
        ("true", "y Y yes Yes YES true True TRUE on On ON"),
        ("false", "n N no No NO false False FALSE off Off OFF"),
        ("null", "~ null Null NULL"),
        ("0", "0 00 00000 -0 +0 0_ 0x0 0b0 0o0 0. 0.0 0e5"),
        ("1", "1 01 +1 1_ 1__ 0_1 0b1 0B1 0b_1 0x_1 0b+1 1. 1.0 1e0"),
        ("-1", "-1 -01 -1_ -0b1 0b-1 -0x1 -1.0"),
        ("7", "7 07 0o7 0O7 0_7"),
        ("8", "8 08 010 +08 +010 08_"),
        ("9", "9 09 011 0x9"),
        ("10", "10 012 1_0 0b1010 0xA 0XA 0x_A 1e1 1E1 1e+1 1_0.0"),
        ("19", "19 019 0b10011"),
        ("31", "31 037 0x1F 0X1F 0x1_F +0x1f"),
        ("83", "83 0123"),
        ("899", "899 0899 +0899 0_899 0899_ 0899."),
        ("0.5", ".5 +.5 0.5 .5_0 0.5_0 .5e0 5e-1"),
        ("-0.5", "-.5 -0.5 -.5_0"),
        ("5000000000", "5e9 .5e1_0"),
        ("18446744073709551615", "18446744073709551615 0xFFFFFFFFFFFFFFFF"),
        ("18446744073709552000", "18446744073709551616"),
        ("-9223372036854775808", "-9223372036854775808"),
        ("9223372036854775807", "+9223372036854775807"),
        ("9223372036854775808", "9223372036854775808"),
        ("9223372036854776000", "+9223372036854775808"),
        ("NaN", ".nan .NaN .NAN"),
        ("inf", ".inf .Inf .INF +.inf +.Inf +.INF"),
        ("-inf", "-.inf -.Inf -.INF"),
        ("a text", "yEs oN tRue nULL nan inf .nAn .iNF ~~ t nothing"),
        ("a text", "1:30 12:30:45 190:20:30 2001-01-01 2001-01-01T10:00:00Z 192.0.2.1 0.1.2 1.5.0 1,000"),
        ("a text", "1e 1.0e e5 1a 08a 0b 0o 0x 0b2 0o9 0xg 0x1p4 -0b-1 0xFFFFFFFFFFFFFFFFF 1e500 -1e500"),
        ("a text", "_1 ._5 .5_ .5__0 .5e_1 . .. ... - + -- --- +-1 0x+1"),
    ];

    #[test]
    fn words_mean_what_kubectl_makes_of_them() {
        for (expected, words) in MEANINGS {
            for word in words.split(' ') {
                assert_eq!(meaning(word).to_string(), *expected, "{word}");
            }
        }
        assert_eq!(meaning(""), Meaning::Null);
    }

    /// What there is to say about each of these words as a value.
    fn objections(words: &str) -> Vec<String> {
        words.split(' ').filter_map(objection).collect()
    }

    #[test]
    fn words_that_mean_the_same_to_us_are_let_through() {
        let same = "web true False ~ NULL 80 -1 +1 0x1F 0o17 0b11 1e3 1.0 .5 1. 0.5 1.5e3 18446744073709551615 \
                    -9223372036854775808 1:30 2001-01-01 192.0.2.1 0.1.2 0899. nan tRue 1e 0b2 0xg _1 - + -- ... --- 1,000";
        assert_eq!(objections(same), Vec::<String>::new());
        assert_eq!(objection(""), None);
        assert_eq!(objection("1\n2"), None);
    }

    #[test]
    fn words_that_kubectl_reads_otherwise_are_refused_with_what_it_reads() {
        for (kubectl, words) in [
            ("true", "y Y yes on ON"),
            ("false", "n no NO Off"),
            ("0", "00 00000 0_"),
            ("8", "08 010 +08 +010"),
            ("10", "012 1_0 1_0.0 0XA 0x_A"),
            ("83", "0123"),
            ("899", "0899 0_899 0899_"),
            ("31", "0X1F 0x1_F"),
            ("7", "07 0O7"),
            ("1", "0B1 0b_1 0_1"),
            ("-1", "0b-1 -01"),
            ("0.5", ".5_0"),
        ] {
            let reads = |word| {
                format!("kubectl reads `{word}` as {kubectl}; write {kubectl}, or put `{word}` in quotes")
            };
            assert_eq!(objections(words), words.split(' ').map(reads).collect::<Vec<_>>());
        }
        let refuses = |word| {
            format!("kubectl refuses `{word}`, which no JSON can hold; write a number, or put it in quotes")
        };
        let words = ".inf -.INF .nan";
        assert_eq!(objections(words), words.split(' ').map(refuses).collect::<Vec<_>>());
    }

    #[test]
    fn keys_are_words_too() {
        for word in ["on", "012", "0899", "1_0", "1.10", ".inf"] {
            let objection = objection_to_key(word);
            assert!(objection.is_some_and(|it| it.ends_with("; put it in quotes")), "{word}");
        }
        for word in ["app", "name", "12", "example.com/owner", "true", "0x1F", "1e", "no-such"] {
            assert_eq!(objection_to_key(word), None);
        }
    }
}
