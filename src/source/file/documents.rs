//! Owns the way from a file's text to its documents: values as a cluster would get them, and the line of
//! each of their fields.

use serde::Deserialize;
use serde_json::Value;

use super::marks::{self, Doubled, Marks};
use crate::source::translate::FieldError;

/// One document of a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Document {
    /// What it says.
    pub(super) value: Value,
    /// Where it stands in the file: empty, or `items[3].` in a list.
    prefix: String,
    marks: Marks,
}

/// A text that is no YAML.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NoYaml {
    pub(super) line: usize,
    pub(super) reason: String,
}

impl Document {
    /// The line of the field at `path`.
    pub(super) fn line(&self, path: &str) -> usize {
        self.marks.line(&format!("{}{path}", self.prefix))
    }

    /// Words that kubectl would send as something else than they look here.
    pub(super) fn ambiguities(&self) -> impl Iterator<Item = FieldError> {
        let of_this = |(path, reason): &(String, String)| {
            Some(FieldError::new(path.strip_prefix(&self.prefix)?, reason.clone()))
        };
        self.marks.ambiguous.iter().filter_map(of_this)
    }
}

/// The documents of `text` that are not empty. The items of a `List` count as documents.
pub(super) fn read(text: &str) -> Result<Vec<Document>, NoYaml> {
    // YAML allows it at the start (section 5.2), and some editors put it there.
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    let values = values(text)?;
    let mut marks = marks::read(text);
    marks.resize(values.len(), Marks::default());
    Ok(values.into_iter().zip(marks).flat_map(|(value, marks)| unlisted(value, &marks)).collect())
}

const BYTE_ORDER_MARK: char = '\u{feff}';

fn values(text: &str) -> Result<Vec<Value>, NoYaml> {
    let no_yaml = |error| no_yaml(error, text);
    let mut values = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        let mut value = serde_yaml::Value::deserialize(document).map_err(no_yaml)?;
        value.apply_merge().map_err(no_yaml)?;
        let value = serde_json::to_value(value)
            .map_err(|error| NoYaml { line: 1, reason: format!("cannot be written as JSON: {error}") })?;
        if !value.is_null() {
            values.push(value);
        }
    }
    Ok(values)
}

fn no_yaml(error: serde_yaml::Error, text: &str) -> NoYaml {
    let message = error.to_string();
    // What the library names is the line of the block around it.
    if message.contains("duplicate entry")
        && let Some(Doubled { path, first, second }) = marks::doubled(text)
    {
        let reason = format!("{path} stands on line {first} already; remove one of the two");
        return NoYaml { line: second, reason };
    }
    // The line is told apart from the reason.
    let reason = message.split(" at line ").next().unwrap_or(&message).to_owned();
    NoYaml { line: error.location().map_or(1, |it| it.line()), reason }
}

fn unlisted(mut value: Value, marks: &Marks) -> Vec<Document> {
    let is_list = value["apiVersion"] == "v1" && value["kind"] == "List";
    let items = if is_list { value["items"].as_array_mut() } else { None };
    let Some(items) = items else {
        return vec![Document { value, prefix: String::new(), marks: marks.clone() }];
    };
    let item = |(index, value)| Document { value, prefix: format!("items[{index}]."), marks: marks.clone() };
    std::mem::take(items).into_iter().enumerate().map(item).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_those_that_a_cluster_would_get() {
        let text =
            "a: 1\nb: [x, 'no', true]\nbase: &base {c: 1}\nd: {<<: *base, e: 2}\n---\n---\n{\"json\": 1.5}\n";
        let values: Vec<Value> = read(text).unwrap().into_iter().map(|it| it.value).collect();
        let first = json!({"a": 1, "b": ["x", "no", true], "base": {"c": 1}, "d": {"c": 1, "e": 2}});
        assert_eq!(values, [first, json!({"json": 1.5})]);
    }

    #[test]
    fn a_byte_order_mark_at_the_start_says_nothing() {
        let documents = read("\u{feff}# first\n---\nkind: A\n").unwrap();
        assert_eq!(documents[0].value, json!({"kind": "A"}));
        assert_eq!(documents[0].line("kind"), 3);
    }

    #[test]
    fn items_of_a_list_are_documents_with_lines_of_their_own() {
        let text = "apiVersion: v1\nkind: List\nitems:\n- kind: A\n- kind: B\n  name: x\n";
        let documents = read(text).unwrap();
        assert_eq!(documents.len(), 2);
        assert_eq!(documents[1].line("name"), 6);
        assert_eq!(documents[1].line("other"), 5);
    }

    #[test]
    fn a_text_that_is_no_yaml_names_its_line() {
        let no_yaml = read("a: 1\nb: [1, 2\nc: 3\n").unwrap_err();
        assert!(no_yaml.line >= 2, "{no_yaml:?}");
        assert!(!no_yaml.reason.contains("line"), "{no_yaml:?}");
        let text = "a: 0\n---\nspec:\n  x: {y: 1}\n  z: 2\n  x: {y: 2}\n";
        let reason = "spec.x stands on line 4 already; remove one of the two".into();
        assert_eq!(read(text).unwrap_err(), NoYaml { line: 6, reason });
    }

    #[test]
    fn words_that_kubectl_reads_otherwise_are_reported_with_their_field() {
        let document = read("metadata: {name: on}\n").unwrap().remove(0);
        let found: Vec<String> = document.ambiguities().map(|it| it.to_string()).collect();
        assert_eq!(found, ["metadata.name: kubectl reads `on` as true; write true, or put `on` in quotes"]);
    }
}
