//! Owns when two spellings of a path are one: segments `.` and `..` are gone, and a character that needs no encoding is
//! the same encoded (RFC 3986 section 6.2.2). Whoever compares paths compares what comes from here.

use std::borrow::Cow;

/// The path as a backend that decodes it and follows its dots sees it, as far as that is certain: an encoded slash or
/// percent sign is not the character. What is in this form already, as nearly all paths are, is not copied.
pub fn resolved(path: &str) -> Cow<'_, str> {
    let bytes = path.as_bytes();
    let is_odd = |(at, byte): (usize, &u8)| match byte {
        b'%' => bytes.get(at + 1..at + 3).is_some_and(|digits| spelled(digits) != Spelling::Kept),
        b'.' => at > 0 && bytes[at - 1] == b'/' && is_dots(bytes[at..].split(|it| *it == b'/').next()),
        _ => false,
    };
    if !bytes.iter().enumerate().any(is_odd) {
        return path.into();
    }
    let decoded = decoded(path);
    let mut segments: Vec<&str> = Vec::new();
    for segment in decoded.split('/').skip(1) {
        match segment {
            "." => {}
            ".." => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/")).into()
}

fn is_dots(segment: Option<&[u8]>) -> bool {
    matches!(segment, Some(b"." | b".."))
}

fn decoded(path: &str) -> String {
    let mut parts = path.split('%');
    let mut decoded: String = parts.next().unwrap_or_default().into();
    for part in parts {
        let spelling = part.as_bytes().get(..2).map_or(Spelling::Kept, spelled);
        match spelling {
            Spelling::Plain(character) => decoded.push(character),
            Spelling::UpperCase => {
                decoded.push('%');
                decoded.push_str(&part[..2].to_ascii_uppercase());
            }
            Spelling::Kept => {
                decoded.push('%');
                decoded.push_str(part);
                continue;
            }
        }
        decoded.push_str(&part[2..]);
    }
    decoded
}

/// How a percent sign and the two bytes behind it are spelled in the form that is compared.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// As this character.
    Plain(char),
    /// Encoded, with its digits in upper case.
    UpperCase,
    /// As they are.
    Kept,
}

fn spelled(digits: &[u8]) -> Spelling {
    let digit = |at: usize| char::from(digits[at]).to_digit(16);
    let (Some(high), Some(low)) = (digit(0), digit(1)) else { return Spelling::Kept };
    let byte = (high * 16 + low) as u8;
    if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
        Spelling::Plain(byte.into())
    } else if digits.iter().any(u8::is_ascii_lowercase) {
        Spelling::UpperCase
    } else {
        Spelling::Kept
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spellings_of_one_path_are_one() {
        for (path, expected) in [
            ("/%61pi", "/api"),
            ("/%41%5a%30%2d%2e%5F%7e", "/AZ0-._~"),
            ("/./api", "/api"),
            ("/%2e/api", "/api"),
            ("/x/%2E%2e/api", "/api"),
            ("/x/.%2e/api/", "/api/"),
            ("/../..", "/"),
            ("/a/.", "/a"),
            ("/a%2fb", "/a%2Fb"),
            ("/%c3%a4", "/%C3%A4"),
        ] {
            assert_eq!(resolved(path), expected, "{path}");
        }
    }

    #[test]
    fn ordinary_paths_are_not_copied() {
        for path in [
            "/",
            "*",
            "//a",
            "/a/b.html",
            "/.well-known/x",
            "/a..b",
            "/...",
            "/a%20b",
            "/a%2Fb",
            "/%",
            "/%6",
            "/%zz",
            "/%\u{e4}",
            "/\u{e4}",
        ] {
            assert!(matches!(resolved(path), Cow::Borrowed(it) if it == path), "{path}");
        }
    }

    proptest! {
        /// The law: whichever of its characters are encoded, and in whichever case, a path is the same.
        #[test]
        fn encoding_what_needs_none_changes_nothing(
            path in "(/([a-z.~_-]|%2F|%20|\u{e4}){0,4}){1,4}",
            encoded in prop::collection::vec(0..3_u8, 64),
        ) {
            let encode = |(character, how): (char, &u8)| match how {
                1 if is_free(character) => format!("%{:02X}", character as u32),
                2 if is_free(character) => format!("%{:02x}", character as u32),
                _ => character.to_string(),
            };
            let spelled: String = path.chars().zip(encoded.iter().cycle()).map(encode).collect();
            let once = resolved(&spelled);
            prop_assert_eq!(&once, &resolved(&path));
            prop_assert_eq!(&resolved(&once), &once);
        }
    }

    /// Not digits and `F`, which stand in encodings here.
    fn is_free(character: char) -> bool {
        character.is_ascii_lowercase() || "-._~".contains(character)
    }
}
