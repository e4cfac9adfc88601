//! Owns the way from a file's text to the pools in it. Every mistake is a `Problem` with its file and line;
//! none of them hides another pool.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::documents::{self, Document};
use super::secrets::SecretDocument;
use crate::balance::pool::PoolId;
use crate::source::admission::Admission;
use crate::source::reach::{self, Target};
use crate::source::translate::{self, FieldError, Translated};

/// A line of a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file.
    pub file: Arc<Path>,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", printable(&self.file.to_string_lossy()), self.line)
    }
}

/// A mistake in a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// Which field; empty where it is the file or document as a whole.
    pub field: String,
    /// What is wrong and what to do about it.
    pub reason: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let colon = if self.field.is_empty() { "" } else { ": " };
        let (field, reason) = (printable(&self.field), printable(&self.reason));
        write!(f, "{}: {field}{colon}{reason}", self.place)
    }
}

/// Words of a file as they may be shown: nothing in them begins a line of its own, moves what is around it, or commands
/// a terminal.
pub fn printable(text: &str) -> String {
    let commands = |it: char| {
        it.is_control()
            || matches!(it, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
    };
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            it if commands(it) => shown.extend(it.escape_default()),
            it => shown.push(it),
        }
    }
    shown
}

/// What a file holds. Its pools have no terms of TLS before they are equipped.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// The pools, in the order written.
    pub pools: Vec<Found>,
    /// Mistakes that cannot be put down to a pool: which pools the file holds is uncertain then.
    pub loose: Vec<Problem>,
    /// Secrets, of which pools may make use.
    pub(super) secrets: Vec<SecretDocument>,
    /// Documents of other kinds, which are none of our business. Secrets are among them until a pool names them.
    pub others: Vec<(Place, String)>,
    /// What is in force all the same, but not as it should be.
    pub remarks: Vec<Problem>,
}

/// One pool of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Who it is.
    pub id: PoolId,
    /// Where its document begins.
    pub place: Place,
    /// The pool, or everything that is wrong with it.
    pub outcome: Result<Translated, Vec<Problem>>,
    document: Document,
}

impl Found {
    /// Where the field at `path` stands.
    pub fn place_of(&self, path: &str) -> Place {
        Place { file: self.place.file.clone(), line: self.document.line(path) }
    }
}

/// Reads the pools of `text`, the content of `file`.
pub fn read(text: &str, file: &Arc<Path>, admission: &Admission, target: Target) -> Reading {
    let mut reading = Reading::default();
    let documents = match documents::read(text) {
        Ok(documents) => documents,
        Err(error) => {
            let place = Place { file: file.clone(), line: error.line };
            reading.loose.push(Problem { place, field: String::new(), reason: error.reason });
            return reading;
        }
    };
    if documents.is_empty() {
        let reason = "holds no document; write a LoadBalancerPool".into();
        let place = Place { file: file.clone(), line: 1 };
        reading.loose.push(Problem { place, field: String::new(), reason });
    }
    for document in documents {
        take(document, file, admission, target, &mut reading);
    }
    reading
}

fn take(document: Document, file: &Arc<Path>, admission: &Admission, target: Target, reading: &mut Reading) {
    let at = |path: &str| Place { file: file.clone(), line: document.line(path) };
    let problem =
        |error: FieldError| Problem { place: at(&error.path), field: error.path, reason: error.reason };
    match kind(&document.value) {
        Kind::Pool => {}
        Kind::Other(name) => {
            reading.others.push((at(""), printable(&name)));
            reading
                .secrets
                .extend((name == "Secret").then(|| SecretDocument::read(document, file)).flatten());
            return;
        }
        Kind::Unclear(error) => return reading.loose.push(problem(error)),
    }
    let mut errors: Vec<FieldError> = document.ambiguities().collect();
    let translated = admission
        .admit(document.value.clone(), target)
        .and_then(|resource| translate::pool(&resource))
        .and_then(|translated| reach::check(translated, target));
    let translated = translated.map_err(|more| errors.extend(more)).ok();
    let problems = errors.into_iter().map(problem);
    let Some(id) = id(&document.value) else { return reading.loose.extend(problems) };
    let mut problems: Vec<Problem> = problems.collect();
    problems.sort();
    let place = at("");
    let outcome = translated.filter(|_| problems.is_empty()).ok_or(problems);
    reading.pools.push(Found { id, place, outcome, document });
}

enum Kind {
    Pool,
    Other(String),
    Unclear(FieldError),
}

fn kind(value: &Value) -> Kind {
    let (version, kind) = (value["apiVersion"].as_str(), value["kind"].as_str());
    match (version, kind) {
        (Some("guideway.dev/v1alpha1"), Some("LoadBalancerPool")) => Kind::Pool,
        (Some("guideway.dev/v1alpha1"), Some(other)) => Kind::Unclear(FieldError::new(
            "kind",
            format!("{other} is unknown; guideway.dev/v1alpha1 has LoadBalancerPool"),
        )),
        (Some("guideway.dev/v1alpha1"), None) => unclear(value, "kind", "LoadBalancerPool"),
        (Some(version), _) if version.starts_with("guideway.dev/") => Kind::Unclear(FieldError::new(
            "apiVersion",
            format!("{version} is unknown; write guideway.dev/v1alpha1"),
        )),
        (Some(_), Some(other)) => Kind::Other(other.into()),
        (None, _) => unclear(value, "apiVersion", "guideway.dev/v1alpha1"),
        (_, None) => unclear(value, "kind", "LoadBalancerPool"),
    }
}

fn unclear(value: &Value, field: &str, right: &str) -> Kind {
    let wrong = if value[field].is_null() { "is missing" } else { "is no text" };
    Kind::Unclear(FieldError::new(field, format!("{wrong}; write {right}")))
}

fn id(value: &Value) -> Option<PoolId> {
    let name = value["metadata"]["name"].as_str().filter(|name| !name.is_empty())?;
    Some(PoolId::new(value["metadata"]["namespace"].as_str().unwrap_or("default"), name))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A pool with one endpoint.
    pub(crate) fn pool(name: &str, port: u32) -> String {
        format!(
            "apiVersion: guideway.dev/v1alpha1\n\
             kind: LoadBalancerPool\n\
             metadata: {{name: {name}}}\n\
             spec:\n  \
               listeners:\n  \
               - name: web\n    \
                 port: {port}\n  \
               backends:\n  \
               - name: all\n    \
                 endpoints: [{{address: 192.0.2.1, port: 80}}]\n"
        )
    }

    /// A pool on port 8443 that speaks TLS on these terms.
    pub(crate) fn tls_pool(terms: &str) -> String {
        pool("a", 8443)
            .replace("port: 8443\n", &format!("port: 8443\n    protocol: HTTPS\n    tls:\n{terms}"))
    }

    /// A pool that speaks TLS with its backend on these terms.
    pub(crate) fn tls_backend_pool(terms: &str) -> String {
        format!("{}    tls:\n{terms}", pool("a", 8001))
    }

    fn check(text: &str, target: Target, expected: &[&str]) {
        let file: Arc<Path> = Path::new("pools.yaml").into();
        let reading = read(text, &file, &Admission::new().unwrap(), target);
        let of_pools = reading.pools.iter().flat_map(|it| it.outcome.as_ref().err().into_iter().flatten());
        let found: Vec<String> = of_pools.chain(&reading.loose).map(ToString::to_string).collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn mistakes_have_file_line_field_and_reason() {
        let text = format!("{}---\n{}", pool("a", 8080), pool("b", 70_000));
        check(
            &text,
            Target::Standalone,
            &["pools.yaml:18: spec.listeners[0].port: 70000 is not a port; use 1 to 65535"],
        );
        check("a: [", Target::Standalone, &["pools.yaml:2: did not find expected node content"]);
        check("", Target::Standalone, &["pools.yaml:1: holds no document; write a LoadBalancerPool"]);
        check(
            "kind: LoadBalancerPool\n",
            Target::Standalone,
            &["pools.yaml:1: apiVersion: is missing; write guideway.dev/v1alpha1"],
        );
        let text = pool("a", 80).replace("{name: a}", "{title: a}");
        check(
            &text,
            Target::Standalone,
            &[
                "pools.yaml:3: metadata.title: unknown field; the fields here are annotations, creationTimestamp, \
                 deletionGracePeriodSeconds, deletionTimestamp, finalizers, generateName, generation, labels, \
                 managedFields, name, namespace, ownerReferences, resourceVersion, selfLink, uid",
                "pools.yaml:3: metadata.name: is missing; give the pool a name",
            ],
        );
        let text = pool("123", 80);
        check(
            &text,
            Target::Standalone,
            &["pools.yaml:3: metadata.name: the number 123 stands where a text belongs; put it in quotes"],
        );
        let text = pool("a", 80).replace("LoadBalancerPool", "1");
        check(&text, Target::Standalone, &["pools.yaml:2: kind: is no text; write LoadBalancerPool"]);
        let text = pool("a", 80).replace("kind: LoadBalancerPool\n", "");
        check(&text, Target::Standalone, &["pools.yaml:1: kind: is missing; write LoadBalancerPool"]);
        let text = pool("a", 80).replace("LoadBalancerPool", "Pool");
        check(
            &text,
            Target::Standalone,
            &["pools.yaml:2: kind: Pool is unknown; guideway.dev/v1alpha1 has LoadBalancerPool"],
        );
        let text = pool("a", 80).replace("v1alpha1", "v9");
        check(
            &text,
            Target::Standalone,
            &["pools.yaml:1: apiVersion: guideway.dev/v9 is unknown; write guideway.dev/v1alpha1"],
        );
        check(
            &pool("off", 80),
            Target::Standalone,
            &[
                "pools.yaml:3: metadata.name: kubectl reads `off` as false; write false, or put `off` in quotes",
            ],
        );
    }

    #[test]
    fn mistakes_that_the_schema_cannot_see_have_their_line_too() {
        let twice = "[{address: 192.0.2.1, port: 80}]\n  - name: more\n    endpoints:\n    - {address: 192.0.2.1, port: 80}";
        let text = pool("a", 80).replace("[{address: 192.0.2.1, port: 80}]", twice);
        check(
            &text,
            Target::Standalone,
            &[
                "pools.yaml:13: spec.backends[1].endpoints[0]: spec.backends[0].endpoints[0] is 192.0.2.1:80 already; \
             list each address and port once",
            ],
        );
    }

    #[test]
    fn a_service_is_a_mistake_only_without_a_cluster() {
        let text = pool("a", 80)
            .replace("endpoints: [{address: 192.0.2.1, port: 80}]", "service: {name: web, port: 80}");
        check(&text, Target::Cluster, &[]);
        check(
            &text,
            Target::Standalone,
            &[
                "pools.yaml:10: spec.backends[0].service: Service web exists in a cluster only; list endpoints here",
            ],
        );
    }

    #[test]
    fn hosts_and_paths_are_refused_with_a_way_out() {
        let fields = "port: 80\n    hostnames: [A.test]\n    paths: [api]\n";
        let text = pool("a", 80).replace("port: 80\n  b", &format!("{fields}  b"));
        check(
            &text,
            Target::Standalone,
            &[
                "pools.yaml:8: spec.listeners[0].hostnames[0]: `A.test`: this is no host: write a name in lower case and \
                 without a port, such as shop.example.com, or *.example.com for all below it; leave hostnames out for all \
                 hosts",
                "pools.yaml:9: spec.listeners[0].paths[0]: `api`: this path does not begin with /: write the whole path, such \
                 as /api",
            ],
        );
    }

    #[test]
    fn nothing_in_a_file_can_forge_a_message() {
        let forged = "\"x\\nother.yaml:1: spec\\e[2J\\u202e\": 1";
        let text = pool("a", 80).replace("port: 80\n  b", &format!("port: 80\n    {forged}\n  b"));
        let file: Arc<Path> = Path::new("a\nb.yaml").into();
        let reading = read(&text, &file, &Admission::new().unwrap(), Target::Standalone);
        let problem = reading.pools[0].outcome.as_ref().unwrap_err()[0].to_string();
        let start =
            "a\\nb.yaml:8: spec.listeners[0].x\\nother.yaml:1: spec\\u{1b}[2J\\u{202e}: unknown field; ";
        assert!(problem.starts_with(start), "{problem}");
        let kind = "apiVersion: v1\nkind: \"A\\nB\"\n";
        let reading = read(kind, &file, &Admission::new().unwrap(), Target::Standalone);
        assert_eq!(reading.others[0].1, "A\\nB");
    }

    #[test]
    fn documents_of_other_kinds_are_left_alone() {
        let text = format!("apiVersion: v1\nkind: Service\n---\n{}", pool("a", 80));
        let file: Arc<Path> = Path::new("all.yaml").into();
        let reading = read(&text, &file, &Admission::new().unwrap(), Target::Cluster);
        assert_eq!(reading.others, [(Place { file: file.clone(), line: 1 }, "Service".into())]);
        assert_eq!(reading.pools[0].place, Place { file, line: 4 });
    }
}
