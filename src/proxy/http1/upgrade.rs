//! Owns the switch of a connection to another protocol (RFC 9110 section 7.8): which ones may be asked for, and
//! whether an answer is the switch that was asked for.

use super::field::{Fields, Role};

/// Longest name of a protocol that is switched to; `websocket` and its like are far shorter.
const MAX_NAME: usize = 32;

/// The protocol that a head switches to or asks for. None where it names several: whoever asked could not tell
/// which one it is.
pub(super) fn protocol<'a>(fields: &Fields<'a>) -> Option<&'a str> {
    let mut named = fields.iter().filter(|field| field.role == Role::Upgrade);
    let (only, more) = (named.next()?, named.next());
    let name = std::str::from_utf8(only.value.trim_ascii()).ok()?;
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"/.-_".contains(&byte);
    let fits = more.is_none() && !name.is_empty() && name.len() <= MAX_NAME && name.bytes().all(is_name);
    (fits && fields.nominate("upgrade")).then_some(name)
}

/// Whether we pass on the wish for it. Another version of HTTP would carry requests past our eyes, and TLS is
/// between a client and us.
pub(super) fn may_be_asked(protocol: &str) -> bool {
    let family = protocol.split('/').next().unwrap_or_default();
    !["h2c", "h2", "h3", "http", "https", "tls"].iter().any(|refused| family.eq_ignore_ascii_case(refused))
}
