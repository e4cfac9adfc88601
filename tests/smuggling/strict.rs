//! Owns the judge's reading of requests: RFC 9112 to the letter, but for bytes in a target that browsers do not
//! encode. What it cannot read is dirt, because a proxy wrote it.

use std::net::Ipv6Addr;

/// A request as a backend sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) target: String,
    /// Fields that should have ended at the proxy.
    pub(crate) leaks: Vec<String>,
}

/// Reads the request at the start of `bytes`, and its length. `None` while it is incomplete; what is wrong otherwise.
pub(crate) fn read(bytes: &[u8]) -> Result<Option<(Request, usize)>, String> {
    let mut lines = Lines { bytes, at: 0 };
    let Some(line) = lines.next()? else { return Ok(None) };
    let (method, target, minor) = request_line(line)?;
    let mut fields = Vec::new();
    loop {
        match lines.next()? {
            None => return Ok(None),
            Some(b"") => break,
            Some(line) => fields.push(field(line)?),
        }
    }
    let complete = match framing(&fields, minor)? {
        Framing::Length(length) => lines.skip(length),
        Framing::Chunked => chunks(&mut lines)?,
    };
    host(&fields, minor)?;
    let request = Request { target: format!("{method} {target}"), leaks: leaks(&fields) };
    Ok(complete.then_some((request, lines.at)))
}

struct Lines<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Lines<'a> {
    /// The next line without its end, if all of it is there.
    fn next(&mut self) -> Result<Option<&'a [u8]>, String> {
        let rest = &self.bytes[self.at..];
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else { return Ok(None) };
        let line = rest[..end].strip_suffix(b"\r").ok_or_else(|| wrong("a bare line feed", &rest[..end]))?;
        if line.contains(&b'\r') {
            return Err(wrong("a bare carriage return", line));
        }
        self.at += end + 1;
        Ok(Some(line))
    }

    /// Whether so many bytes are there to be skipped.
    fn skip(&mut self, length: u64) -> bool {
        let fits = usize::try_from(length).is_ok_and(|length| self.bytes.len() - self.at >= length);
        self.at += if fits { length as usize } else { 0 };
        fits
    }
}

fn wrong(what: &str, bytes: &[u8]) -> String {
    let start = &bytes[..bytes.len().min(80)];
    format!("{what}: {:?}", String::from_utf8_lossy(start))
}

fn request_line(line: &[u8]) -> Result<(&str, String, u8), String> {
    let words: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let [method, target, version] = words[..] else { return Err(wrong("a request line", line)) };
    let minor = match version {
        b"HTTP/1.1" => 1,
        b"HTTP/1.0" => 0,
        _ => return Err(wrong("a version", line)),
    };
    let is_origin = target.starts_with(b"/") || target == b"*" && method == b"OPTIONS";
    if !is_origin || !target.iter().all(|byte| matches!(byte, 0x21..=0x7e | 0x80..) && *byte != b'#') {
        return Err(wrong("a target", line));
    }
    let method = std::str::from_utf8(method).ok().filter(|it| is_token(it.as_bytes()));
    Ok((method.ok_or_else(|| wrong("a method", line))?, String::from_utf8_lossy(target).into_owned(), minor))
}

struct Field {
    name: String,
    value: Vec<u8>,
}

impl Field {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.value).into_owned()
    }
}

fn field(line: &[u8]) -> Result<Field, String> {
    let colon = line.iter().position(|byte| *byte == b':').ok_or_else(|| wrong("a field", line))?;
    let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
    if !is_token(name) {
        return Err(wrong("a field's name", line));
    }
    if !value.iter().all(|byte| matches!(byte, b'\t' | 0x20..=0x7e | 0x80..)) {
        return Err(wrong("a field's value", line));
    }
    let name = String::from_utf8_lossy(name).to_ascii_lowercase();
    let dashed = name.replace('_', "-");
    if name != dashed && is_ours(&dashed) {
        return Err(wrong("an imitation of a framing or forwarding field", line));
    }
    Ok(Field { name, value: value.to_vec() })
}

fn is_ours(name: &str) -> bool {
    let ours =
        ["host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "expect"];
    ours.contains(&name) || name.starts_with("x-forwarded-") || name == "forwarded" || name == "x-real-ip"
}

fn is_token(bytes: &[u8]) -> bool {
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !bytes.is_empty() && bytes.iter().all(is_token)
}

enum Framing {
    Length(u64),
    Chunked,
}

fn framing(fields: &[Field], minor: u8) -> Result<Framing, String> {
    let named = |name: &str| fields.iter().filter(|field| field.name == name).collect::<Vec<_>>();
    match (&named("content-length")[..], &named("transfer-encoding")[..]) {
        ([], []) => Ok(Framing::Length(0)),
        ([length], []) if length.value.iter().all(u8::is_ascii_digit) => {
            let length = length.text().parse().map_err(|_| wrong("a length", &length.value))?;
            Ok(Framing::Length(length))
        }
        ([], [coding]) if minor == 1 && coding.value.eq_ignore_ascii_case(b"chunked") => Ok(Framing::Chunked),
        (lengths, codings) => {
            let said: Vec<String> = lengths
                .iter()
                .chain(codings)
                .map(|field| format!("{}: {}", field.name, field.text()))
                .collect();
            Err(format!("the framing: {said:?}"))
        }
    }
}

fn chunks(lines: &mut Lines<'_>) -> Result<bool, String> {
    loop {
        let Some(line) = lines.next()? else { return Ok(false) };
        let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
        let (size, extension) = line.split_at(digits);
        let size = std::str::from_utf8(size).ok().and_then(|size| u64::from_str_radix(size, 16).ok());
        let size = size.ok_or_else(|| wrong("a chunk's size", line))?;
        if !(extension.is_empty() || extension.starts_with(b";")) {
            return Err(wrong("a chunk's extension", line));
        }
        if size == 0 {
            break;
        }
        if !lines.skip(size) {
            return Ok(false);
        }
        match lines.next()? {
            None => return Ok(false),
            Some(b"") => {}
            Some(more) => return Err(wrong("the end of a chunk", more)),
        }
    }
    loop {
        match lines.next()? {
            None => return Ok(false),
            Some(b"") => return Ok(true),
            Some(line) if is_ours(&field(line)?.name) => return Err(wrong("a trailer", line)),
            Some(_) => {}
        }
    }
}

fn host(fields: &[Field], minor: u8) -> Result<(), String> {
    let hosts: Vec<String> = fields.iter().filter(|field| field.name == "host").map(Field::text).collect();
    match &hosts[..] {
        [] if minor == 0 => Ok(()),
        [host] if is_host(host) => Ok(()),
        _ => Err(format!("the host: {hosts:?}")),
    }
}

/// `uri-host [":" port]`.
fn is_host(host: &str) -> bool {
    let (name, port) = match host.rfind(':').filter(|at| !host[*at..].contains(']')) {
        Some(at) => (&host[..at], &host[at + 1..]),
        None => (host, ""),
    };
    if let Some(address) = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')) {
        return address.parse::<Ipv6Addr>().is_ok();
    }
    let mut bytes = name.bytes();
    let mut is_name = true;
    while let Some(byte) = bytes.next() {
        is_name &= match byte {
            b'%' => (0..2).all(|_| bytes.next().is_some_and(|it| it.is_ascii_hexdigit())),
            _ => byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=".contains(&byte),
        };
    }
    is_name && !name.contains(',') && port.bytes().all(|byte| byte.is_ascii_digit())
}

/// Fields that end at a proxy. The corpus nominates fields that begin with `x-hop`.
fn leaks(fields: &[Field]) -> Vec<String> {
    let is_leak = |field: &&Field| match field.name.as_str() {
        "connection" => {
            let known = ["", "close", "keep-alive", "upgrade"];
            !field.text().split(',').all(|it| known.contains(&it.trim().to_ascii_lowercase().as_str()))
        }
        "upgrade" => field.text().to_ascii_lowercase().contains("h2c"),
        "proxy" | "keep-alive" | "proxy-connection" | "te" | "http2-settings" => true,
        name => name.starts_with("x-hop"),
    };
    fields.iter().filter(is_leak).map(|field| format!("{}: {}", field.name, field.text())).collect()
}

#[test]
fn what_is_complete_is_read_and_what_follows_is_not() {
    let wire =
        b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\n\r\nNEXT";
    let whole = wire.len() - 4;
    for end in 0..whole {
        assert_eq!(read(&wire[..end]), Ok(None), "{end}");
    }
    let request = Request { target: "POST /a".into(), leaks: vec![] };
    assert_eq!(read(wire), Ok(Some((request, whole))));
}

#[test]
fn dirt_is_seen() {
    for dirty in [
        "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a%0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n folded\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: 1\rY: 2\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent_Length: 1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n 1\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1 \r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nHost: b\r\n",
    ] {
        assert!(read(dirty.as_bytes()).is_err(), "{dirty:?}");
    }
}

#[test]
fn what_should_have_ended_at_the_proxy_is_seen() {
    let wire = b"GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: x-hop\r\nX-Hop: 1\r\nX: 1\r\n\r\n";
    assert_eq!(read(wire).unwrap().unwrap().0.leaks, ["te: trailers", "connection: x-hop", "x-hop: 1"]);
}
