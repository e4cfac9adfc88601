//! Throws made-up text at whatever reads the files and Secrets that people write. A second each with the other
//! tests; fuzz/README.md says how to run one for long.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use bolero::check;

use super::admission::Admission;
use super::credentials;
use super::credentials::ocsp::tests::response_on;
use super::credentials::tests::{Pair, pair};
use super::file::reading;
use super::reach::Target;

/// Bytes from 0x80 stand for these, so that an input made of chance, or changed by it, is more often half right.
const WORDS: &[&str] = &[
    "apiVersion: guideway.dev/v1alpha1\nkind: LoadBalancerPool\nmetadata: {name: a, namespace: b}\nspec:\n",
    "  listeners: [{name: web, port: 8080, protocol: HTTP}]\n",
    "  backends: [{name: a, endpoints: [{address: 192.0.2.7, port: 80}]}]\n",
    "  backends: [{name: a, service: {name: a, port: http}, weight: 1}]\n",
    "  algorithm: {type: Maglev, hashOn: [{type: ClientIP}]}\n",
    "---\n",
    "\n",
    "  ",
    "    ",
    "- ",
    ": ",
    ", ",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "'",
    "|\n",
    ">\n",
    "&a ",
    "*a",
    "!!str ",
    "#",
    "\t",
    "null",
    "true",
    "~",
    "0",
    "-1",
    "65536",
    "1e400",
    "0x10",
    ".inf",
    "1s",
    "PT1S",
    "é",
    "\u{feff}",
    "\u{2028}",
    "\0",
    "listeners",
    "hostnames",
    "paths",
    "tls",
    "timeouts",
    "backends",
    "endpoints",
    "address",
    "weight",
    "name",
    "port",
    "protocol",
    "HTTP",
    "HTTPS",
    "hashOn",
    "type",
    "Header",
    "Cookie",
    "tableSize",
    "2001:db8::7",
    "*.example.com",
    "/a",
    "-----BEGIN CERTIFICATE-----\n",
    "-----END CERTIFICATE-----\n",
    "-----BEGIN PRIVATE KEY-----\n",
    "-----END PRIVATE KEY-----\n",
    "-----BEGIN EC PRIVATE KEY-----\n",
    "MIIB",
    "AAAA",
    "====",
    "\r\n",
    "-----",
];

fn spell(input: &[u8]) -> String {
    let spelled = |byte: &u8| match byte.checked_sub(0x80) {
        Some(word) => WORDS[usize::from(word) % WORDS.len()].to_owned(),
        None => char::from(*byte).to_string(),
    };
    input.iter().map(spelled).collect()
}

#[test]
fn a_file_of_pools_is_read_or_every_mistake_has_its_line() {
    static ADMISSION: LazyLock<Admission> =
        LazyLock::new(|| Admission::new().expect("our own schema compiles"));
    check!(name = "pools").for_each(|input: &[u8]| {
        let (text, file) = (spell(input), Arc::from(Path::new("pools.yaml")));
        // YAML knows more ends of a line than one, and what is missing at the end is missed behind it.
        let lines = text.matches(['\r', '\n', '\u{85}', '\u{2028}', '\u{2029}']).count() + 2;
        for target in [Target::Cluster, Target::Standalone] {
            let reading = reading::read(&text, &file, &ADMISSION, target);
            let of_pools = reading.pools.iter().filter_map(|pool| pool.outcome.as_ref().err()).flatten();
            for problem in of_pools.chain(&reading.loose) {
                assert!((1..=lines).contains(&problem.place.line), "{problem} of {lines} lines");
                assert!(!problem.reason.is_empty(), "{problem:?}");
            }
        }
    });
}

#[test]
fn what_is_no_certificate_is_said_to_be_none() {
    check!(name = "pem").for_each(|input: &[u8]| {
        let text = spell(input);
        if let Err(faults) = credentials::certificate(text.as_bytes(), text.as_bytes(), Some(input)) {
            assert!(!faults.is_empty(), "refused without a reason");
        }
        if let Err(faults) = credentials::authorities(text.as_bytes()) {
            assert!(!faults.is_empty(), "refused without a reason");
        }
    });
}

#[test]
fn an_ocsp_response_is_stapled_as_it_is_or_left_out_with_a_reason() {
    static GOOD: LazyLock<(Pair, Vec<u8>)> = LazyLock::new(|| {
        let pair = pair(&["a.test"]);
        let response = response_on(&pair.chain);
        (pair, response)
    });
    check!(name = "ocsp").for_each(|input: &[u8]| {
        let (pair, response) = &*GOOD;
        // A good one with some bytes changed, since chance alone makes none.
        let mut der = response.clone();
        for change in input.chunks_exact(3) {
            let at = usize::from(u16::from_be_bytes([change[0], change[1]])) % der.len();
            der[at] = change[2];
        }
        for der in [&der[..], input] {
            let checked = credentials::certificate(pair.chain.as_bytes(), pair.key.as_bytes(), Some(der));
            let checked = checked.expect("the certificate is good whatever lies beside it");
            match &checked.certificate.ocsp {
                Some(stapled) => assert_eq!((&stapled[..], checked.unstapled), (der, None)),
                None => assert!(checked.unstapled.is_some(), "left out without a reason"),
            }
        }
    });
}
