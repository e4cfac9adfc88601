//! Throws made-up bytes at whatever reads what strangers send, and holds what comes out against the judge of
//! `tests/smuggling`. A second each with the other tests; fuzz/README.md says how to run one for long.

use std::net::IpAddr;

use bolero::check;

use super::filter::{self, Admitted};
use super::headers::{self, Hop, Scheme, Told};
use super::http1::{self, Asked, Decoder, Framing, RequestHead, ResponseHead, trailers};
use super::limits::MAX_INTERIM_BYTES;
use super::origin::{self, Beginning};
use super::trust::{self, Hearsay, Network};
use crate::balance::path;

#[path = "../../tests/smuggling/strict.rs"]
mod strict;

/// Bytes from 0x80 stand for these, so that an input made of chance, or changed by it, is more often half right. All
/// others stand for themselves.
const WORDS: &[&[u8]] = &[
    b"\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\r",
    b": ",
    b" ",
    b"\t",
    b", ",
    b"\0",
    b"\x0b",
    b"\x7f",
    b"\xff",
    b"\xc3\xa4",
    b"_",
    b"GET ",
    b"POST ",
    b"HEAD ",
    b"OPTIONS ",
    b"/",
    b"*",
    b"/a/../b",
    b"/%2e%2E/",
    b"?",
    b"http://",
    b"https://",
    b"@",
    b"a",
    b"shop.example",
    b"[::1]",
    b":80",
    b"%41",
    b" HTTP/1.1\r\n",
    b" HTTP/1.0\r\n",
    b"HTTP/1.1 200 OK\r\n",
    b"HTTP/1.1 103 \r\n",
    b"HTTP/1.1 204 \r\n",
    b"HTTP/1.0 200 \r\n",
    b"Host: ",
    b"Host: a\r\n",
    b"host:",
    b"Content-Length: ",
    b"content_length: ",
    b"Transfer-Encoding: ",
    b"chunked",
    b"gzip",
    b"Connection: ",
    b"close",
    b"keep-alive",
    b"Upgrade: ",
    b"websocket",
    b"h2c",
    b"upgrade",
    b"Expect: ",
    b"100-continue",
    b"TE: ",
    b"trailers",
    b"Trailer: ",
    b"Proxy: ",
    b"X: ",
    b"X-Forwarded-For: ",
    b"X-Forwarded-Host: ",
    b"X-Forwarded-Proto: ",
    b"Forwarded: ",
    b"X-Guideway-Hops: ",
    b"Date: ",
    b"0",
    b"1",
    b"9",
    b"10",
    b"18446744073709551615",
    b"0x",
    b"+1",
    b"-1",
    b";",
    b"=",
    b"\"",
    b"0\r\n\r\n",
    b"1\r\na\r\n",
    b"ffffffffffffffff\r\n",
    b"PROXY ",
    b"TCP4 ",
    b"TCP6 ",
    b"UNKNOWN",
    b"192.0.2.7",
    b"10.0.0.1",
    b"2001:db8::7",
    b"::ffff:10.0.0.1",
    b"65535",
    b"65536",
    b"\r\n\r\n\0\r\nQUIT\n",
    b"\x21",
    b"\x20",
    b"\x11",
    b"\x00\x0c",
    b"\x00\x24",
    b"unknown",
    b"x-sum: 1\r\n",
    b"etag:",
    b"x_sum: ",
    b"grpc-status:0\r\n",
    b"0\r\n",
];

fn spell(input: &[u8]) -> Vec<u8> {
    let spelled = |byte: &u8| match byte.checked_sub(0x80).map(|word| WORDS[usize::from(word) % WORDS.len()])
    {
        Some(word) => word.to_vec(),
        None => vec![*byte],
    };
    input.iter().flat_map(spelled).collect()
}

const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

fn trusted() -> Vec<Network> {
    ["10.0.0.0/8", "2001:db8::/32"].map(|range| range.parse().unwrap()).to_vec()
}

/// What a backend is sent of `wire`, once as from a stranger and once as from somebody trusted.
fn forwarded(wire: &[u8], look: impl Fn(&RequestHead<'_>, &Admitted<'_>, &[u8])) {
    let mut space = http1::space();
    let Ok(Some((head, length))) = RequestHead::parse(wire, &mut space) else { return };
    assert!(length <= wire.len());
    let Ok(admitted) = filter::admit(&head, Scheme::Http) else { return };
    let said = Hearsay::of(&head, PEER, Scheme::Http, &trusted());
    let own = headers::forwarded(PEER, Scheme::Https);
    for (lines, host) in [(&own[..], admitted.host), (&said.lines, said.host.or(admitted.host))] {
        let mut out = Vec::new();
        headers::to_backend(&mut out, &head, &admitted, Told { lines, host }, || "[::1]:80".into());
        look(&head, &admitted, &out);
    }
}

#[test]
fn a_request_that_is_passed_on_is_strict_and_the_same() {
    check!(name = "request").for_each(|input: &[u8]| {
        forwarded(&spell(input), |head, admitted, out| {
            let mut space = http1::space();
            let (again, length) = RequestHead::parse(out, &mut space).unwrap().unwrap();
            assert_eq!(length, out.len());
            assert_eq!((again.method, again.minor, again.framing), (head.method, 1, head.framing));
            let readmitted = filter::admit(&again, Scheme::Http).unwrap();
            assert_eq!((readmitted.path, readmitted.query), (admitted.path, admitted.query));
            if let Some(host) = admitted.host {
                assert_eq!(readmitted.host, Some(host));
            }
            let body = match head.framing {
                Framing::Length(length @ ..=1024) => vec![b'x'; length as usize],
                Framing::Length(_) | Framing::UntilClose => return,
                Framing::Chunked => b"1\r\nx\r\n0\r\n\r\n".to_vec(),
            };
            let whole = [out, &body[..]].concat();
            let (read, length) =
                strict::read(&whole).expect("a strict reader takes it").expect("it is complete");
            assert_eq!(length, whole.len());
            let allowed = |leak: &String| leak.starts_with("upgrade") || leak.starts_with("x-hop");
            assert!(read.leaks.iter().all(allowed), "{:?}", read.leaks);
        });
    });
}

#[test]
fn a_body_is_framed_the_same_however_it_is_cut() {
    check!(name = "body").for_each(|input: &[u8]| {
        let (cut, wire) = input.split_first().map_or((1, Vec::new()), |(cut, rest)| (*cut, spell(rest)));
        let decode = |step: usize| {
            let (mut decoder, mut data, mut left) = (Decoder::new(Framing::Chunked), Vec::new(), 0);
            for piece in wire.chunks(step) {
                let mut piece = piece.to_vec();
                let decoded = decoder.decode(&mut piece).ok()?;
                data.extend_from_slice(&piece[decoded.data]);
                left += piece.len() - decoded.used;
            }
            let behind = decoder.trailers().to_vec();
            Some((data, left, decoder.is_done(), behind))
        };
        let whole = decode(wire.len().max(1));
        assert_eq!(decode(usize::from(cut).max(1)), whole);
        let Some((_, _, _, behind)) = whole else { return };
        // What goes on behind a body is read by everybody as what it is.
        let mut again = Vec::new();
        trailers::each(&behind, |name, value| {
            assert!(trailers::may_follow(name.as_bytes()), "{name}");
            trailers::put(&mut again, name.as_bytes(), value);
        })
        .expect("they were written as fields");
        assert_eq!(again, behind);
    });
}

#[test]
fn a_path_is_resolved_once_and_for_all_and_a_host_is_a_host() {
    check!(name = "target").for_each(|input: &[u8]| {
        let text = spell(input);
        if let Some(host) = filter::checked_host(&text) {
            let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
            assert!(matches!(strict::read(request.as_bytes()), Ok(Some(_))), "{host}");
        }
        let Ok(path) = std::str::from_utf8(&text) else { return };
        if !path.starts_with('/') {
            return;
        }
        let resolved = path::resolved(path);
        assert!(resolved.starts_with('/'), "{path} {resolved}");
        assert!(resolved.split('/').all(|segment| segment != "." && segment != ".."), "{path} {resolved}");
        // What is left of a percent sign that encodes nothing may become one that does.
        let encodes =
            |rest: &str| rest.as_bytes().get(..2).is_some_and(|it| it.iter().all(u8::is_ascii_hexdigit));
        if path.split('%').skip(1).all(encodes) {
            assert_eq!(path::resolved(&resolved), resolved, "{path}");
        }
    });
}

#[test]
fn who_a_request_is_for_is_never_found_behind_a_stranger() {
    check!(name = "forwarded").for_each(|input: &[u8]| {
        let wire =
            [b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: ", &spell(input)[..], b"\r\n\r\n"].concat();
        let mut space = http1::space();
        let Ok(Some((head, _))) = RequestHead::parse(&wire, &mut space) else { return };
        let said = Hearsay::of(&head, PEER, Scheme::Http, &trusted());
        let lines = String::from_utf8_lossy(&said.lines).into_owned();
        assert_eq!(lines.matches(['\r', '\n']).count(), 4, "{lines:?}");
        let chain = lines.split("\r\n").nth(1).unwrap().strip_prefix("x-forwarded-for: ").unwrap().to_owned();
        // Everybody between whom it is for and us is trusted, and whoever it is for stands in the chain.
        let hops: Vec<&str> = chain.split(", ").collect();
        let address = |hop: &str| trust::address(hop.as_bytes());
        let at = hops.iter().rposition(|hop| address(hop) == Some(said.ip)).expect("it is in the chain");
        assert!(
            hops[at + 1..].iter().all(|hop| address(hop).is_some_and(|ip| trust::is_trusted(ip, &trusted())))
        );
    });
}

#[test]
fn a_header_of_the_proxy_protocol_is_read_the_same_however_much_follows() {
    check!(name = "origin").for_each(|input: &[u8]| {
        let bytes = spell(input);
        match origin::beginning(&bytes) {
            Beginning::Header { source, length } => {
                assert!(length <= bytes.len());
                assert_eq!(origin::beginning(&bytes[..length]), Beginning::Header { source, length });
                assert_eq!(origin::beginning(&bytes[..length - 1]), Beginning::Incomplete);
            }
            Beginning::Incomplete => assert!(bytes.len() < 5000),
            Beginning::Absent | Beginning::Malformed => {
                let longer = [&bytes[..], b"x"].concat();
                assert_eq!(origin::beginning(&longer), origin::beginning(&bytes));
            }
        }
    });
}

#[test]
fn an_answer_that_is_passed_on_has_one_end() {
    check!(name = "response").for_each(|input: &[u8]| {
        let wire = spell(input);
        for to_head in [false, true] {
            let (asked, mut space) = (Asked { head: to_head, upgrade: None }, http1::space());
            let Ok(Some((head, length))) = ResponseHead::parse(&wire, &mut space, asked) else { continue };
            assert!(length <= wire.len());
            let (mut out, mut left) = (Vec::new(), MAX_INTERIM_BYTES);
            if head.is_interim() {
                headers::interim(&mut out, &head, &mut left);
                assert_eq!(out.len() + left, MAX_INTERIM_BYTES);
                if out.is_empty() {
                    continue;
                }
            } else {
                let hop = Hop { minor: 1, to_head, keeps: true, date: b"now", switches_to: None };
                headers::to_client(&mut out, &head, &hop);
            }
            let mut space = http1::space();
            let (again, length) = ResponseHead::parse(&out, &mut space, asked).unwrap().unwrap();
            assert_eq!((again.status, length), (head.status, out.len()));
            let kept = matches!(head.framing, Framing::Length(_));
            assert!(!kept || again.framing == head.framing);
            assert!(kept || again.framing == Framing::Chunked);
        }
    });
}
