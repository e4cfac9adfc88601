//! Owns the answer to "on which line does this field stand?", and finds the words that kubectl reads
//! otherwise than they look. Values come from elsewhere; this reads a document's shape alone.

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle};

use super::kubectl;

/// The lines of one document's fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Marks {
    lines: HashMap<String, usize>,
    /// Path of plain words that kubectl reads otherwise than we do, and what to do about it.
    pub(super) ambiguous: Vec<(String, String)>,
    doubled: Vec<Doubled>,
}

/// A field that stands twice in one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Doubled {
    pub(super) path: String,
    pub(super) first: usize,
    pub(super) second: usize,
}

impl Marks {
    /// The line of the field at `path`, such as `spec.listeners[0].port`; of the nearest one around it where the
    /// field is missing.
    pub(super) fn line(&self, path: &str) -> usize {
        let mut path = path;
        loop {
            if let Some(line) = self.lines.get(path) {
                return *line;
            }
            let Some(end) = path.rfind(['.', '[']) else { break };
            path = &path[..end];
        }
        self.lines.get("").copied().unwrap_or(1)
    }
}

/// The marks of every document of `text` that is not empty, in order. Ends where the text is no YAML.
pub(super) fn read(text: &str) -> Vec<Marks> {
    let mut documents = Vec::new();
    let mut walk = Walk::default();
    for (event, span) in Parser::new_from_str(text).map_while(Result::ok) {
        match event {
            Event::DocumentStart(..) => walk = Walk::default(),
            Event::DocumentEnd if !walk.is_empty => documents.push(std::mem::take(&mut walk.marks)),
            event => walk.take(event, span.start.line()),
        }
    }
    documents
}

/// The first field of `text` that stands twice in one block.
pub(super) fn doubled(text: &str) -> Option<Doubled> {
    read(text).into_iter().find_map(|marks| marks.doubled.into_iter().next())
}

/// Where in a document the events are.
struct Walk {
    marks: Marks,
    open: Vec<Open>,
    is_empty: bool,
}

enum Open {
    Mapping { path: String, key: Option<String> },
    Sequence { path: String, next: usize },
}

impl Default for Walk {
    fn default() -> Self {
        Self { marks: Marks::default(), open: Vec::new(), is_empty: true }
    }
}

impl Walk {
    fn take(&mut self, event: Event<'_>, line: usize) {
        match event {
            Event::Scalar(text, style, _, tag) => {
                let is_word = style == ScalarStyle::Plain && tag.is_none();
                if let Some(Open::Mapping { path, key: key @ None }) = self.open.last_mut() {
                    let path = join(path, &text);
                    let first = *self.marks.lines.entry(path.clone()).or_insert(line);
                    *key = Some(path.clone());
                    let objection = is_word.then(|| kubectl::objection_to_key(&text)).flatten();
                    self.marks.ambiguous.extend(objection.map(|it| (path.clone(), it)));
                    if first != line {
                        self.marks.doubled.push(Doubled { path, first, second: line });
                    }
                    return;
                }
                let is_null = style == ScalarStyle::Plain && matches!(&*text, "" | "~" | "null");
                let path = self.enter(line, is_null);
                let objection = is_word.then(|| kubectl::objection(&text)).flatten();
                self.marks.ambiguous.extend(objection.map(|it| (path, it)));
            }
            Event::Alias(_) => drop(self.enter(line, false)),
            Event::SequenceStart(..) => {
                let path = self.enter(line, false);
                self.open.push(Open::Sequence { path, next: 0 });
            }
            Event::MappingStart(..) => {
                let path = self.enter(line, false);
                self.open.push(Open::Mapping { path, key: None });
            }
            Event::SequenceEnd | Event::MappingEnd => drop(self.open.pop()),
            _ => {}
        }
    }

    /// The path of the node that begins here.
    fn enter(&mut self, line: usize, is_null: bool) -> String {
        self.is_empty &= is_null;
        let path = match self.open.last_mut() {
            None => String::new(),
            Some(Open::Sequence { path, next }) => {
                let path = format!("{path}[{next}]");
                *next += 1;
                path
            }
            // Keys that are no words are nobody's fields.
            Some(Open::Mapping { path, key }) => match key.take() {
                Some(path) => path,
                None => {
                    *key = Some(join(path, "?"));
                    join(path, "?")
                }
            },
        };
        self.marks.lines.entry(path.clone()).or_insert(line);
        path
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.into() } else { format!("{path}.{key}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# first
metadata:
  name: web   # comment
spec:
  listeners:
  - name: web
    port: 8080
  - {name: alt,
     port: 70000}
  anchored: &a
    x: 1
  again: *a
  flow: [1, 2,
    3]
---
# nothing here
---
name: on
quoted: 'no'
count: 1_000
tagged: !!str yes
";

    fn check(document: usize, path: &str, expected: usize) {
        assert_eq!(read(TEXT)[document].line(path), expected, "{path}");
    }

    #[test]
    fn fields_have_the_lines_they_stand_on() {
        check(0, "metadata", 2);
        check(0, "metadata.name", 3);
        check(0, "spec.listeners[0].name", 6);
        check(0, "spec.listeners[0].port", 7);
        check(0, "spec.listeners[1]", 8);
        check(0, "spec.listeners[1].port", 9);
        check(0, "spec.anchored.x", 11);
        check(0, "spec.flow[2]", 14);
        check(1, "name", 18);
    }

    #[test]
    fn a_missing_field_has_the_line_of_what_should_hold_it() {
        check(0, "spec.listeners[0].protocol", 6);
        check(0, "spec.again.x", 12);
        check(0, "spec.backends[3].name", 4);
        check(0, "kind", 2);
        check(1, "", 18);
    }

    #[test]
    fn empty_documents_have_no_marks() {
        assert_eq!(read(TEXT).len(), 2);
        assert_eq!(read("---\n---\n# a\n").len(), 0);
    }

    #[test]
    fn words_that_kubectl_reads_otherwise_are_found() {
        let found = |text| read(text).pop().unwrap().ambiguous;
        let name = "kubectl reads `on` as true; write true, or put `on` in quotes";
        let count = "kubectl reads `1_000` as 1000; write 1000, or put `1_000` in quotes";
        assert_eq!(found(TEXT), [("name".into(), name.into()), ("count".into(), count.into())]);
        let key = "kubectl reads the key `012` as 10; put it in quotes";
        assert_eq!(found("labels: {012: a, '013': b}"), [("labels.012".into(), key.into())]);
    }
}
