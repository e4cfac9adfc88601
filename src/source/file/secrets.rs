//! Owns a Secret that stands in a file as it would in a cluster, and the lines of what it holds. What it holds is never
//! shown.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::ByteString;
use serde_json::Value;

use super::documents::Document;
use super::reading::{Place, Problem};
use crate::source::credentials::{Fault, SecretCredentials};
use crate::source::translate::FieldError;

/// A Secret in a file.
#[derive(Clone, PartialEq)]
pub(super) struct SecretDocument {
    namespace: Arc<str>,
    name: Arc<str>,
    place: Place,
    document: Document,
    content: Result<SecretCredentials, Vec<FieldError>>,
}

impl SecretDocument {
    /// The Secret that `document` of `file` is; `None` where it has no name, so that nobody can name it.
    pub(super) fn read(document: Document, file: &Arc<Path>) -> Option<Self> {
        let metadata = &document.value["metadata"];
        Some(Self {
            name: metadata["name"].as_str()?.into(),
            namespace: metadata["namespace"].as_str().unwrap_or("default").into(),
            place: Place { file: file.clone(), line: document.line("") },
            content: content(&document.value).map(|data| SecretCredentials::read(&data)),
            document,
        })
    }

    pub(super) fn is(&self, namespace: &str, name: &str) -> bool {
        *self.namespace == *namespace && *self.name == *name
    }

    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// What it holds, or what of it is not even bytes.
    pub(super) fn content(&self) -> &Result<SecretCredentials, Vec<FieldError>> {
        &self.content
    }

    pub(super) fn problem(&self, field: String, reason: String) -> Problem {
        let place = Place { file: self.place.file.clone(), line: self.document.line(&field) };
        Problem { place, field, reason }
    }

    /// The fault of one of its keys, which stand in one of two fields.
    pub(super) fn fault(&self, fault: &Fault) -> Problem {
        let key = fault.part.secret_key();
        let value = &self.document.value;
        let is_plain = value["stringData"].get(key).is_some() || value["data"].is_null();
        let field = if is_plain { "stringData" } else { "data" };
        self.problem(format!("{field}.{key}"), fault.reason.to_string())
    }
}

impl fmt::Debug for SecretDocument {
    /// Never what it holds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretDocument").field("place", &self.place).finish_non_exhaustive()
    }
}

/// The bytes under each key, as the API server would have them.
fn content(secret: &Value) -> Result<BTreeMap<String, ByteString>, Vec<FieldError>> {
    let mut errors = Vec::new();
    let mut content = BTreeMap::new();
    let fields = |field: &str| secret[field].as_object().cloned().into_iter().flatten();
    for (key, value) in fields("data") {
        let unwrapped = value.as_str().map(|text| text.split_ascii_whitespace().collect::<String>());
        match unwrapped.and_then(|text| serde_json::from_value(Value::String(text)).ok()) {
            Some(bytes) => drop(content.insert(key, bytes)),
            None => {
                let reason = "is no base64; encode it, or write it as it is under stringData";
                errors.push(FieldError::new(format!("data.{key}"), reason));
            }
        }
    }
    for (key, value) in fields("stringData") {
        match value {
            Value::String(text) => drop(content.insert(key, ByteString(text.into_bytes()))),
            _ => errors.push(FieldError::new(format!("stringData.{key}"), "is no text; write it as one")),
        }
    }
    if errors.is_empty() { Ok(content) } else { Err(errors) }
}
