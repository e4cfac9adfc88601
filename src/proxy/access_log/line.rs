//! Owns what a line of the access log says, as text and as JSON. Whatever a client made up is escaped to printable
//! ASCII and cut to a length, so that no request can forge a line, reach into a terminal or fill a disk by itself.

use std::fmt;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::LineForm;
use crate::balance::backend::Backend;
use crate::balance::pool::PoolId;
use crate::metrics::RescueReason;
use crate::proxy::limits::{MAX_LOGGED_HOST, MAX_LOGGED_METHOD, MAX_LOGGED_PATH};

/// What is kept of a request, connection or flow until its line is written, as its client wrote it.
#[derive(Debug)]
pub(in crate::proxy) struct Entry {
    protocol: &'static str,
    method: Box<str>,
    host: Box<str>,
    path: Box<str>,
    key: Option<u64>,
    /// For whom it is, if a trusted client said so.
    pub(in crate::proxy) on_behalf_of: Option<IpAddr>,
}

impl Entry {
    /// A request whose head could be read. The query stays out: it is where secrets are.
    pub(in crate::proxy) fn new(
        protocol: &'static str,
        method: &str,
        host: &[u8],
        target: &str,
        key: Option<u64>,
    ) -> Self {
        let path = target.split('?').next().unwrap_or_default();
        let host = String::from_utf8_lossy(host);
        Self {
            protocol,
            method: cut(method, MAX_LOGGED_METHOD).into(),
            host: cut(&host, MAX_LOGGED_HOST).into(),
            path: cut(path, MAX_LOGGED_PATH).into(),
            key,
            on_behalf_of: None,
        }
    }

    /// A connection or flow that has no requests.
    pub(in crate::proxy) fn without_request(protocol: &'static str, key: u64) -> Self {
        Self::new(protocol, "", b"", "", Some(key))
    }

    /// What could not be read as a request.
    pub(in crate::proxy) fn unreadable() -> Self {
        Self::new("", "", b"", "", None)
    }
}

/// The first bytes of `text`, `most` of them at most.
fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// One request, connection or flow that ended, as its line tells of it.
#[derive(Debug)]
pub(in crate::proxy) struct Line<'a> {
    /// When it ended.
    pub(in crate::proxy) time: Timestamp,
    pub(in crate::proxy) client: IpAddr,
    /// Unknown where somebody before us told who the client is, without it.
    pub(in crate::proxy) client_port: Option<u16>,
    pub(in crate::proxy) pool: &'a PoolId,
    pub(in crate::proxy) entry: &'a Entry,
    /// The last one it was sent to.
    pub(in crate::proxy) backend: Option<&'a Arc<Backend>>,
    /// Zero where there was no answer.
    pub(in crate::proxy) status: u16,
    pub(in crate::proxy) received: u64,
    pub(in crate::proxy) sent: u64,
    pub(in crate::proxy) took: Duration,
    /// From sending it to the end of the answer's head.
    pub(in crate::proxy) upstream: Option<Duration>,
    pub(in crate::proxy) retries: u32,
    /// Why it did not end with a backend's own answer.
    pub(in crate::proxy) reason: Option<RescueReason>,
}

impl Line<'_> {
    /// Writes it, with the end of the line.
    pub(super) fn write(&self, form: LineForm, out: &mut Vec<u8>) {
        let written = match form {
            LineForm::Text => self.write_text(out),
            LineForm::Json => self.write_json(out),
        };
        written.expect("memory takes every byte");
    }

    fn write_text(&self, out: &mut Vec<u8>) -> io::Result<()> {
        let Entry { protocol, method, host, path, key, .. } = self.entry;
        let PoolId { namespace, name } = self.pool;
        let client = match self.client_port {
            Some(port) => SocketAddr::new(self.client, port).to_string(),
            None => self.client.to_string(),
        };
        write!(out, "{:.3} {client} {}/{} ", self.time, Escaped(namespace), Escaped(name))?;
        if method.is_empty() {
            write!(out, "\"{}\"", Some(*protocol).filter(|it| !it.is_empty()).unwrap_or("-"))?;
        } else {
            write!(out, "\"{} {}{} {protocol}\"", Escaped(method), Escaped(host), Escaped(path))?;
        }
        let backend = self.backend.map(|it| format!("{}@{}", Escaped(&it.name), it.address));
        writeln!(
            out,
            " {} in={} out={} took={}ms backend={} upstream={} retries={} reason={} key={}",
            Or(self.status(), "-"),
            self.received,
            self.sent,
            Millis(self.took),
            Or(backend, "-"),
            Or(self.upstream.map(|it| format!("{}ms", Millis(it))), "-"),
            self.retries,
            Or(self.reason.map(RescueReason::label), "-"),
            Or(key.map(Hex), "-"),
        )
    }

    fn write_json(&self, out: &mut Vec<u8>) -> io::Result<()> {
        let Entry { protocol, method, host, path, key, .. } = self.entry;
        let key = key.map(|it| Hex(it).to_string());
        let address = self.backend.map(|it| it.address.to_string());
        let stated = |text| Quoted(Some(text).filter(|text: &&str| !text.is_empty()));
        write!(
            out,
            "{{\"time\":\"{:.3}\",\"client\":\"{}\",\"client_port\":{},\"namespace\":{},\"pool\":{},\
             \"method\":{},\"host\":{},\"path\":{},\"protocol\":{},\"status\":{},\"bytes_in\":{},\"bytes_out\":{}",
            self.time,
            self.client,
            Or(self.client_port, "null"),
            Quoted(Some(&self.pool.namespace)),
            Quoted(Some(&self.pool.name)),
            stated(method),
            stated(host),
            stated(path),
            stated(protocol),
            Or(self.status(), "null"),
            self.received,
            self.sent,
        )?;
        writeln!(
            out,
            ",\"duration_ms\":{},\"backend\":{},\"backend_id\":{},\"backend_address\":{},\"upstream_ms\":{},\
             \"retries\":{},\"reason\":{},\"key\":{}}}",
            Millis(self.took),
            Quoted(self.backend.map(|it| &*it.name)),
            Quoted(self.backend.map(|it| it.id.as_str())),
            Quoted(address.as_deref()),
            Or(self.upstream.map(Millis), "null"),
            self.retries,
            Quoted(self.reason.map(RescueReason::label)),
            Quoted(key.as_deref()),
        )
    }

    fn status(&self) -> Option<u16> {
        Some(self.status).filter(|status| *status > 0)
    }
}

/// A value, or what stands for none.
struct Or<T>(Option<T>, &'static str);

impl<T: fmt::Display> fmt::Display for Or<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str(self.1),
        }
    }
}

/// Milliseconds with three decimals.
struct Millis(Duration);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_micros();
        write!(f, "{}.{:03}", micros / 1000, micros % 1000)
    }
}

/// The hash of a key.
struct Hex(u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A text of JSON, or `null`.
struct Quoted<'a>(Option<&'a str>);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(text) => write!(f, "\"{}\"", Escaped(text)),
            None => f.write_str("null"),
        }
    }
}

/// A text as JSON has it between quotes, in printable ASCII alone.
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_plain = |char: char| matches!(char, ' '..='~') && char != '"' && char != '\\';
        for part in self.0.split_inclusive(|char| !is_plain(char)) {
            let plain = part.trim_end_matches(|char| !is_plain(char));
            f.write_str(plain)?;
            match &part[plain.len()..] {
                "" => {}
                "\"" => f.write_str("\\\"")?,
                "\\" => f.write_str("\\\\")?,
                special => special.encode_utf16().try_for_each(|unit| write!(f, "\\u{unit:04x}"))?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::backend::HttpVersion;

    fn backend() -> Arc<Backend> {
        Arc::new(Backend {
            id: "6f1c".into(),
            group: "stable".into(),
            name: "web-5d9c".into(),
            address: "10.0.0.7:8080".parse().unwrap(),
            http: HttpVersion::Http1,
        })
    }

    fn line<'a>(entry: &'a Entry, pool: &'a PoolId, backend: Option<&'a Arc<Backend>>) -> Line<'a> {
        Line {
            time: "2026-02-03T04:05:06.789123Z".parse().unwrap(),
            client: "192.0.2.1".parse().unwrap(),
            client_port: Some(51234),
            pool,
            entry,
            backend,
            status: 200,
            received: 80,
            sent: 512,
            took: Duration::from_micros(1_234_567),
            upstream: Some(Duration::from_micros(89)),
            retries: 1,
            reason: None,
        }
    }

    fn check(line: &Line<'_>, text: &str, json: &str) {
        for (form, expected) in [(LineForm::Text, text), (LineForm::Json, json)] {
            let mut out = Vec::new();
            line.write(form, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), format!("{expected}\n"));
        }
        serde_json::from_str::<serde_json::Value>(json).unwrap();
    }

    #[test]
    fn a_line_says_all_there_is_to_say_of_a_request() {
        let entry = Entry::new("HTTP/1.1", "GET", b"shop.example.com", "/cart?token=secret", Some(0xab));
        let (pool, backend) = (PoolId::new("shop", "web"), backend());
        check(
            &line(&entry, &pool, Some(&backend)),
            "2026-02-03T04:05:06.789Z 192.0.2.1:51234 shop/web \"GET shop.example.com/cart HTTP/1.1\" 200 in=80 \
             out=512 took=1234.567ms backend=web-5d9c@10.0.0.7:8080 upstream=0.089ms retries=1 reason=- \
             key=00000000000000ab",
            "{\"time\":\"2026-02-03T04:05:06.789Z\",\"client\":\"192.0.2.1\",\"client_port\":51234,\
             \"namespace\":\"shop\",\"pool\":\"web\",\"method\":\"GET\",\"host\":\"shop.example.com\",\
             \"path\":\"/cart\",\"protocol\":\"HTTP/1.1\",\"status\":200,\"bytes_in\":80,\"bytes_out\":512,\
             \"duration_ms\":1234.567,\"backend\":\"web-5d9c\",\"backend_id\":\"6f1c\",\
             \"backend_address\":\"10.0.0.7:8080\",\"upstream_ms\":0.089,\"retries\":1,\"reason\":null,\
             \"key\":\"00000000000000ab\"}",
        );
    }

    #[test]
    fn what_there_is_not_is_a_dash_or_null() {
        let (entry, pool) = (Entry::unreadable(), PoolId::new("shop", "web"));
        let line = Line {
            client: "2001:db8::7".parse().unwrap(),
            client_port: None,
            status: 0,
            upstream: None,
            reason: Some(RescueReason::ClientGone),
            ..line(&entry, &pool, None)
        };
        check(
            &line,
            "2026-02-03T04:05:06.789Z 2001:db8::7 shop/web \"-\" - in=80 out=512 took=1234.567ms backend=- \
             upstream=- retries=1 reason=client_gone key=-",
            "{\"time\":\"2026-02-03T04:05:06.789Z\",\"client\":\"2001:db8::7\",\"client_port\":null,\
             \"namespace\":\"shop\",\"pool\":\"web\",\"method\":null,\"host\":null,\"path\":null,\
             \"protocol\":null,\"status\":null,\"bytes_in\":80,\"bytes_out\":512,\"duration_ms\":1234.567,\
             \"backend\":null,\"backend_id\":null,\"backend_address\":null,\"upstream_ms\":null,\"retries\":1,\
             \"reason\":\"client_gone\",\"key\":null}",
        );
    }

    #[test]
    fn a_connection_without_requests_says_what_it_has() {
        let (entry, pool, backend) =
            (Entry::without_request("TCP", 0xab), PoolId::new("shop", "web"), backend());
        let line = Line { status: 0, upstream: None, ..line(&entry, &pool, Some(&backend)) };
        check(
            &line,
            "2026-02-03T04:05:06.789Z 192.0.2.1:51234 shop/web \"TCP\" - in=80 out=512 took=1234.567ms \
             backend=web-5d9c@10.0.0.7:8080 upstream=- retries=1 reason=- key=00000000000000ab",
            "{\"time\":\"2026-02-03T04:05:06.789Z\",\"client\":\"192.0.2.1\",\"client_port\":51234,\
             \"namespace\":\"shop\",\"pool\":\"web\",\"method\":null,\"host\":null,\"path\":null,\
             \"protocol\":\"TCP\",\"status\":null,\"bytes_in\":80,\"bytes_out\":512,\
             \"duration_ms\":1234.567,\"backend\":\"web-5d9c\",\"backend_id\":\"6f1c\",\
             \"backend_address\":\"10.0.0.7:8080\",\"upstream_ms\":null,\"retries\":1,\"reason\":null,\
             \"key\":\"00000000000000ab\"}",
        );
    }

    #[test]
    fn nobody_forges_a_line() {
        for (written, escaped) in [
            ("/a b", "/a b"),
            ("/\"} \\\"", "/\\\"} \\\\\\\""),
            ("/\r\n2026-", "/\\u000d\\u000a2026-"),
            ("/\u{1b}[2J\u{7f}\u{9b}\u{0}", "/\\u001b[2J\\u007f\\u009b\\u0000"),
            ("/\u{e4}\u{1f600}\u{202e}", "/\\u00e4\\ud83d\\ude00\\u202e"),
        ] {
            assert_eq!(Escaped(written).to_string(), escaped);
            let read: String = serde_json::from_str(&format!("\"{escaped}\"")).unwrap();
            assert_eq!(read, written, "JSON reads back what the client wrote");
        }
    }

    #[test]
    fn a_line_has_a_longest_length() {
        let long = "\u{e4}".repeat(100_000);
        let entry = Entry::new("HTTP/1.1", &long, long.as_bytes(), &long, None);
        let (pool, mut out) = (PoolId::new("shop", "web"), Vec::new());
        line(&entry, &pool, None).write(LineForm::Json, &mut out);
        let escaped = 3 * (MAX_LOGGED_METHOD + MAX_LOGGED_HOST + MAX_LOGGED_PATH);
        assert!((escaped..escaped + 600).contains(&out.len()), "{}", out.len());
    }
}
