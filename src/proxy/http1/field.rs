//! Owns what a field of a head is to a proxy, by its name: ours to say, the next hop's business, or an
//! imitation of the former.

use httparse::Header;

use crate::proxy::limits::MAX_HEADER_FIELDS;

/// What a field is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Role {
    /// Nothing; it is between the two ends.
    Pass,
    /// It ends at this hop (RFC 9110 section 7.6.1).
    HopByHop,
    Connection,
    /// It ends at this hop too, but for a switch that both ends agree on.
    Upgrade,
    ContentLength,
    TransferEncoding,
    Host,
    Expect,
    /// It says what its sender takes.
    Te,
    /// It says what is behind the body, where that goes on.
    Trailer,
    Date,
    /// In it a hop tells the next one about the client.
    Forwarding,
}

/// A field as it was received.
#[derive(Clone, Copy, Debug)]
pub(in crate::proxy) struct Field<'a> {
    pub(in crate::proxy) role: Role,
    pub(in crate::proxy) name: &'a str,
    pub(in crate::proxy) value: &'a [u8],
}

/// The fields of one head, in order.
#[derive(Debug)]
pub(in crate::proxy) struct Fields<'a> {
    headers: &'a [Header<'a>],
    /// One for each of `headers`.
    roles: [Role; MAX_HEADER_FIELDS],
}

impl<'a> Fields<'a> {
    pub(in crate::proxy) fn new(headers: &'a [Header<'a>]) -> Self {
        let mut roles = [Role::Pass; MAX_HEADER_FIELDS];
        for (role, header) in roles.iter_mut().zip(headers) {
            *role = role_of(header.name.as_bytes());
        }
        Self { headers, roles }
    }

    pub(in crate::proxy) fn iter(&self) -> impl Iterator<Item = Field<'a>> {
        let fields = self.headers.iter().zip(&self.roles);
        fields.map(|(header, role)| Field { role: *role, name: header.name, value: header.value })
    }

    /// The first value of the field `name`.
    pub(in crate::proxy) fn get(&self, name: &str) -> Option<&'a [u8]> {
        self.all(name).next()
    }

    /// All values of the field `name`, in order.
    pub(in crate::proxy) fn all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let named = self.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| header.value)
    }

    /// Whether a `Connection` field names the field `name`, which then ends at this hop.
    pub(in crate::proxy) fn nominate(&self, name: &str) -> bool {
        let connections = self.iter().filter(|field| field.role == Role::Connection);
        connections
            .flat_map(|field| tokens(field.value))
            .any(|token| token.eq_ignore_ascii_case(name.as_bytes()))
    }
}

/// The members of a comma-separated field, empty ones included.
pub(in crate::proxy) fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// What a field of this name is to us.
pub(in crate::proxy) fn role_of(name: &[u8]) -> Role {
    let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
    match name.len() {
        2 if is("te") => Role::Te,
        4 if is("host") => Role::Host,
        4 if is("date") => Role::Date,
        // Servers that make environment variables of fields would take it for a setting of their own ("httpoxy").
        5 if is("proxy") => Role::HopByHop,
        6 if is("expect") => Role::Expect,
        7 if is("trailer") => Role::Trailer,
        7 if is("upgrade") => Role::Upgrade,
        9 if is("forwarded") || is("x-real-ip") => Role::Forwarding,
        10 if is("connection") => Role::Connection,
        10 if is("keep-alive") => Role::HopByHop,
        14 if is("content-length") => Role::ContentLength,
        14 if is("http2-settings") => Role::HopByHop,
        15 if is("x-guideway-hops") => Role::Forwarding,
        16 if is("proxy-connection") => Role::HopByHop,
        17 if is("transfer-encoding") => Role::TransferEncoding,
        12.. if name[..12].eq_ignore_ascii_case(b"x-forwarded-") => Role::Forwarding,
        _ => Role::Pass,
    }
}

/// Whether `name` is one of ours but for `_` in the place of `-`. Servers that make environment
/// variables of fields cannot tell `Content_Length` from `Content-Length`.
pub(in crate::proxy) fn is_imitation(name: &str) -> bool {
    const LONGEST: usize = 32;
    let name = name.as_bytes();
    if !name.contains(&b'_') {
        return false;
    }
    // All names of ours are shorter, and one prefix is enough to know a longer one.
    let mut dashed = [0; LONGEST];
    let length = name.len().min(LONGEST);
    for (dashed, byte) in dashed.iter_mut().zip(name) {
        *dashed = if *byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    }
    let dashed = &dashed[..length];
    dashed.starts_with(b"x-guideway-") || !matches!(role_of(dashed), Role::Pass | Role::Date)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn imitations_of_framing_and_forwarding_fields_are_known() {
        for name in [
            "content_length",
            "Transfer_Encoding",
            "x_forwarded_for",
            "x-forwarded_for",
            "X-Forwarded-My_Own",
            "x_forwarded_a_name_that_is_longer_than_the_buffer",
            "x_real_ip",
            "proxy_connection",
            "http2_settings",
            "x_guideway_reason",
        ] {
            assert!(is_imitation(name), "{name}");
        }
        for name in ["content-length", "transfer-encoding_", "my_field", "host", "x-forwarded-for"] {
            assert!(!is_imitation(name), "{name}");
        }
    }

    #[test]
    fn a_role_does_not_depend_on_case() {
        for (name, role) in [
            ("TE", Role::Te),
            ("Keep-Alive", Role::HopByHop),
            ("Trailer", Role::Trailer),
            ("Proxy", Role::HopByHop),
            ("HTTP2-Settings", Role::HopByHop),
            ("CONNECTION", Role::Connection),
            ("Content-length", Role::ContentLength),
            ("transfer-Encoding", Role::TransferEncoding),
            ("X-Forwarded-", Role::Forwarding),
            ("X-FORWARDED-client-cert", Role::Forwarding),
            ("X-Forwarded", Role::Pass),
            ("Hosts", Role::Pass),
        ] {
            assert_eq!(role_of(name.as_bytes()), role, "{name}");
        }
    }
}
