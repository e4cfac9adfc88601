//! Owns the corpus: raw requests with their verdicts, read from the text files beside this module. README.md there
//! explains how they are written.

use std::fs;
use std::path::Path;

/// One payload.
#[derive(Clone, Debug)]
pub(crate) struct Payload {
    /// The file's name, the name of the payload, and which of its variants it is.
    pub(crate) name: String,
    pub(crate) bytes: Vec<u8>,
    pub(crate) verdict: Verdict,
}

/// What is to become of a payload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Nothing but clean bytes behind the proxy is asked for.
    pub(crate) is_open: bool,
    /// How many requests reach the backend and are answered by it.
    pub(crate) passed: usize,
    /// The statuses of which the proxy answers one itself. None if it does not answer.
    pub(crate) refused: Vec<u16>,
}

impl Payload {
    /// Whether it is one that every proxy should pass on.
    pub(crate) fn is_compliant(&self) -> bool {
        self.name.starts_with("compliant/")
    }

    /// The file it is from.
    pub(crate) fn family(&self) -> &str {
        self.name.split('/').next().unwrap_or_default()
    }
}

impl Verdict {
    fn parse(text: &str) -> Option<Self> {
        let mut verdict = Self::default();
        let mut words = text.split_whitespace().peekable();
        while let Some(word) = words.next() {
            match word {
                "either" => verdict.is_open = true,
                "pass" => verdict.passed = words.next_if(|next| *next != "refuse").map_or(Some(1), number)?,
                "refuse" => {
                    verdict.refused = words.next()?.split('/').map(number).collect::<Option<Vec<u16>>>()?;
                }
                _ => return None,
            }
        }
        Some(verdict)
    }
}

fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

/// All payloads, by file and in order.
pub(crate) fn load() -> Vec<Payload> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/smuggling/corpus");
    let mut files: Vec<_> = fs::read_dir(&folder)
        .expect("the corpus is there")
        .map(|entry| entry.expect("the folder can be read").path())
        .filter(|path| path.extension().is_some_and(|it| it == "http"))
        .collect();
    files.sort();
    files.iter().flat_map(|path| parse_file(path)).collect()
}

fn parse_file(path: &Path) -> Vec<Payload> {
    let family = path.file_stem().expect("it has an extension").to_string_lossy().into_owned();
    let text = fs::read_to_string(path).expect("the corpus is text");
    let sections = text.split("\n== ").skip(1);
    sections
        .flat_map(|section| parse_section(&family, section.strip_suffix('\n').unwrap_or(section)))
        .collect()
}

/// A heading `name | verdict`, the lines of the request, and the variants of its `{}`.
fn parse_section(family: &str, section: &str) -> Vec<Payload> {
    let (heading, text) = section.split_once('\n').unwrap_or((section, ""));
    let (name, verdict) = heading.split_once(" | ").unwrap_or((heading, "none"));
    let parse = |text: &str| {
        Verdict::parse(text).unwrap_or_else(|| panic!("{family}/{name}: no such verdict: {text}"))
    };
    let default = parse(verdict);
    let (variants, lines): (Vec<&str>, Vec<&str>) =
        text.split('\n').filter(|line| !line.starts_with("## ")).partition(|line| line.starts_with("--"));
    let template = lines.join("\n");
    let payload = |name: String, text: &str, verdict: Verdict| Payload { name, bytes: render(text), verdict };
    if variants.is_empty() {
        return vec![payload(format!("{family}/{name}"), &template, default)];
    }
    let variant = |(number, variant): (usize, &&str)| {
        let rest = &variant[2..];
        let (own, value) = match rest.strip_prefix('[').and_then(|rest| rest.split_once("] ")) {
            Some((own, value)) => (parse(own), value),
            None => (default.clone(), rest.strip_prefix(' ').unwrap_or(rest)),
        };
        payload(format!("{family}/{name}/{}", number + 1), &template.replace("{}", value), own)
    };
    variants.iter().enumerate().map(variant).collect()
}

/// The bytes of some lines: each ends with CRLF unless it ends with a backslash.
fn render(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for line in text.split('\n') {
        let (line, end) = match line.strip_suffix('\\') {
            Some(open) if !open.ends_with('\\') => (open, ""),
            _ => (line, "\r\n"),
        };
        unescape(line, &mut bytes);
        bytes.extend_from_slice(end.as_bytes());
    }
    bytes
}

fn unescape(mut text: &str, out: &mut Vec<u8>) {
    while let Some((plain, escaped)) = text.split_once('\\') {
        out.extend_from_slice(plain.as_bytes());
        let (taken, bytes) = escape(escaped).unwrap_or_else(|| panic!("no such escape: \\{escaped}"));
        out.extend_from_slice(&bytes);
        text = &escaped[taken..];
    }
    out.extend_from_slice(text.as_bytes());
}

/// What an escape stands for, and how long it is.
fn escape(text: &str) -> Option<(usize, Vec<u8>)> {
    let one = |byte: u8| Some((1, vec![byte]));
    match text.bytes().next()? {
        b'r' => one(b'\r'),
        b'n' => one(b'\n'),
        b't' => one(b'\t'),
        b's' => one(b' '),
        b'0' => one(0),
        b'\\' => one(b'\\'),
        b'x' => Some((3, vec![u8::from_str_radix(text.get(1..3)?, 16).ok()?])),
        b'{' => {
            let (count, repeated) = text[1..].split_once('}')?.0.split_once('*')?;
            let mut bytes = Vec::new();
            unescape(repeated, &mut bytes);
            Some((count.len() + repeated.len() + 3, bytes.repeat(count.parse().ok()?)))
        }
        _ => None,
    }
}
