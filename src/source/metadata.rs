//! Owns the check of a resource's metadata where no API server does it: the fields that there are, and the names, labels,
//! annotations and finalizers that it takes.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::schema;
use super::translate::FieldError;

/// Longest name of DNS, which the part of a key before its slash is.
const DNS_NAME_MAX: usize = 253;
/// Longest label of DNS; the part of a key behind its slash and the value of a label are as long at most.
const LABEL_MAX: usize = 63;
/// All annotations of an object together, keys and values.
const ANNOTATIONS_BYTES_MAX: usize = 256 * 1024;

/// Adds everything the API server would refuse the metadata of `object` for to `errors`.
pub(super) fn check(object: &Value, errors: &mut Vec<FieldError>) {
    let metadata = &object["metadata"];
    if !metadata.is_null() {
        schema::check(&fields(), metadata, "metadata", errors);
    }
    names(metadata, errors);
    labels(metadata, errors);
    annotations(metadata, errors);
    finalizers(metadata, errors);
    times(metadata, errors);
}

/// The fields of every resource's metadata and what stands in them, as a schema.
fn fields() -> Value {
    let (text, word, number) =
        (json!({"type": "string"}), json!({"type": "string", "minLength": 1}), json!({"type": "integer"}));
    let flag = json!({"type": "boolean"});
    let texts = json!({"type": "object", "additionalProperties": text});
    let owner = json!({
        "type": "object",
        "required": ["apiVersion", "kind", "name", "uid"],
        "properties": {
            "apiVersion": word, "kind": word, "name": word, "uid": word,
            "blockOwnerDeletion": flag, "controller": flag,
        },
    });
    let manager = json!({
        "type": "object",
        "properties": {
            "apiVersion": text, "fieldsType": text, "fieldsV1": {"type": "object"}, "manager": text,
            "operation": text, "subresource": text, "time": text,
        },
    });
    json!({
        "type": "object",
        "properties": {
            "annotations": texts, "creationTimestamp": text, "deletionGracePeriodSeconds": number,
            "deletionTimestamp": text, "finalizers": {"type": "array", "items": text}, "generateName": text,
            "generation": number, "labels": texts, "managedFields": {"type": "array", "items": manager},
            "name": text, "namespace": text, "ownerReferences": {"type": "array", "items": owner},
            "resourceVersion": text, "selfLink": text, "uid": text,
        },
    })
}

fn names(metadata: &Value, errors: &mut Vec<FieldError>) {
    match &metadata["name"] {
        Value::Null => errors.push(FieldError::new("metadata.name", "is missing; give the pool a name")),
        Value::String(name) if name.is_empty() => {
            errors.push(FieldError::new("metadata.name", "is empty; give the pool a name"));
        }
        Value::String(name) if !is_dns_name(name) => errors.push(FieldError::new(
            "metadata.name",
            format!("`{name}` is no name; use a-z, 0-9 and, not at its ends, - and ."),
        )),
        _ => {}
    }
    let namespace = metadata["namespace"].as_str();
    if let Some(namespace) = namespace.filter(|it| !is_name(it)) {
        let reason =
            format!("`{namespace}` is no namespace; use at most 63 of a-z, 0-9 and, not at its ends, -");
        errors.push(FieldError::new("metadata.namespace", reason));
    }
}

fn labels(metadata: &Value, errors: &mut Vec<FieldError>) {
    for (key, value) in entries(&metadata["labels"]) {
        let path = format!("metadata.labels.{key}");
        if !is_key(key) {
            errors.push(FieldError::new(&path, no_key(key)));
        }
        if let Some(value) = value.as_str().filter(|it| !it.is_empty() && !is_label(it)) {
            let reason = format!(
                "`{value}` is no value of a label; use at most 63 of A-Z, a-z, 0-9 and, not at its ends, -, _ and ."
            );
            errors.push(FieldError::new(path, reason));
        }
    }
}

fn annotations(metadata: &Value, errors: &mut Vec<FieldError>) {
    let mut bytes = 0;
    for (key, value) in entries(&metadata["annotations"]) {
        bytes += key.len() + value.as_str().map_or(0, str::len);
        // The prefix may have upper case here, unlike that of a label.
        if !is_key(&key.to_ascii_lowercase()) {
            errors.push(FieldError::new(format!("metadata.annotations.{key}"), no_key(key)));
        }
    }
    if bytes > ANNOTATIONS_BYTES_MAX {
        let reason = format!("has {bytes} bytes in all; keep it within {ANNOTATIONS_BYTES_MAX}");
        errors.push(FieldError::new("metadata.annotations", reason));
    }
}

fn finalizers(metadata: &Value, errors: &mut Vec<FieldError>) {
    for (index, name) in metadata["finalizers"].as_array().into_iter().flatten().enumerate() {
        if let Some(name) = name.as_str().filter(|it| !is_key(it)) {
            errors.push(FieldError::new(format!("metadata.finalizers[{index}]"), no_key(name)));
        }
    }
}

fn times(metadata: &Value, errors: &mut Vec<FieldError>) {
    for field in ["creationTimestamp", "deletionTimestamp"] {
        if let Some(time) = metadata[field].as_str().filter(|it| it.parse::<Timestamp>().is_err()) {
            let reason = format!("`{time}` is no time; leave it out, as the API server sets it");
            errors.push(FieldError::new(format!("metadata.{field}"), reason));
        }
    }
}

fn entries(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flat_map(Map::iter)
}

fn no_key(key: &str) -> String {
    format!(
        "`{key}` is no key; use at most 63 of A-Z, a-z, 0-9 and, not at its ends, -, _ and ., in front of them a name of \
         DNS and a slash where it belongs to somebody, such as example.com/owner"
    )
}

/// What Kubernetes calls a qualified name.
fn is_key(key: &str) -> bool {
    let (prefix, name) = key.split_once('/').map_or((None, key), |(prefix, name)| (Some(prefix), name));
    prefix.is_none_or(|it| it.len() <= DNS_NAME_MAX && is_dns_name(it)) && is_label(name)
}

fn is_label(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_end = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= LABEL_MAX
        && bytes.iter().copied().all(fits)
        && is_end(bytes.first())
        && is_end(bytes.last())
}

/// A subdomain of RFC 1123, as far as its characters go: what Kubernetes asks for in most names.
pub(super) fn is_dns_name(text: &str) -> bool {
    text.split('.').all(is_dns_label)
}

/// A label of RFC 1123, as Kubernetes asks for in names that become parts of others.
pub(super) fn is_name(text: &str) -> bool {
    text.len() <= LABEL_MAX && is_dns_label(text)
}

fn is_dns_label(text: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !text.is_empty() && text.bytes().all(fits) && !text.starts_with('-') && !text.ends_with('-')
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
        FieldsV1, ManagedFieldsEntry, ObjectMeta, OwnerReference, Time,
    };

    use super::*;

    fn found(metadata: Value) -> Vec<String> {
        let mut errors = Vec::new();
        check(&json!({"metadata": metadata}), &mut errors);
        errors.into_iter().map(|it| it.to_string()).collect()
    }

    /// Written without `..`, so that a field of a later Kubernetes does not go unnoticed.
    fn full() -> ObjectMeta {
        let time = || Some(Time(Timestamp::UNIX_EPOCH));
        let text = || Some("a".to_string());
        let texts = || Some([("example.com/a".to_string(), "a".to_string())].into());
        ObjectMeta {
            annotations: texts(),
            creation_timestamp: time(),
            deletion_grace_period_seconds: Some(1),
            deletion_timestamp: time(),
            finalizers: Some(vec!["example.com/a".into()]),
            generate_name: text(),
            generation: Some(1),
            labels: texts(),
            managed_fields: Some(vec![ManagedFieldsEntry {
                api_version: text(),
                fields_type: text(),
                fields_v1: Some(FieldsV1(json!({"f:spec": {}}))),
                manager: text(),
                operation: text(),
                subresource: text(),
                time: time(),
            }]),
            name: text(),
            namespace: text(),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                block_owner_deletion: Some(true),
                controller: Some(true),
                kind: "A".into(),
                name: "a".into(),
                uid: "a".into(),
            }]),
            resource_version: text(),
            self_link: text(),
            uid: text(),
        }
    }

    #[test]
    fn the_fields_are_those_of_kubernetes() {
        let metadata = serde_json::to_value(full()).unwrap();
        let names = |fields: &Value| fields.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&metadata), names(&fields()["properties"]));
        assert_eq!(found(metadata), Vec::<String>::new());
    }

    #[test]
    fn a_field_that_is_none_is_refused_and_so_is_what_belongs_into_no_field() {
        assert!(found(json!({"name": "a", "lables": {}}))[0].starts_with("metadata.lables: unknown field; "));
        assert_eq!(
            found(json!({"name": "a", "Labels": {}})),
            ["metadata.Labels: unknown field; write `labels`"]
        );
        assert_eq!(
            found(
                json!({"name": 123, "labels": {"a": true}, "ownerReferences": [{"apiVersion": "v1", "kind": "A", "uid": ""}]})
            ),
            [
                "metadata.labels.a: true stands where a text belongs; put it in quotes",
                "metadata.name: the number 123 stands where a text belongs; put it in quotes",
                "metadata.ownerReferences[0].uid: is empty",
                "metadata.ownerReferences[0].name: is missing",
            ]
        );
        assert_eq!(
            found(json!("web")),
            [
                "metadata: the text `web` stands where a block of fields belongs",
                "metadata.name: is missing; give the pool a name"
            ]
        );
        assert_eq!(
            found(json!({"name": "a", "creationTimestamp": "now"})),
            ["metadata.creationTimestamp: `now` is no time; leave it out, as the API server sets it"]
        );
    }

    #[test]
    fn keys_and_values_follow_the_rules_of_kubernetes() {
        let long = "a".repeat(64);
        for key in ["a b!", "-a", "a.", "", "a/", "/a", "a/b/c", "a_b/c", &long] {
            for field in ["labels", "annotations"] {
                let found = found(json!({"name": "a", field: {key: "x"}}));
                let start = format!("metadata.{field}.{key}: `{key}` is no key; use at most 63 of ");
                assert!(matches!(&found[..], [it] if it.starts_with(&start)), "{field} {key}: {found:?}");
            }
            assert_eq!(found(json!({"name": "a", "finalizers": ["a", key]})).len(), 1, "{key}");
        }
        for value in ["b c", "-b", "b.", "\u{e4}", &long] {
            let found = found(json!({"name": "a", "labels": {"a": value}}));
            let start = format!("metadata.labels.a: `{value}` is no value of a label; use at most 63 of ");
            assert!(matches!(&found[..], [it] if it.starts_with(&start)), "{value}: {found:?}");
        }
        let right = json!({"A_b.C-1": "", "app.kubernetes.io/name": "Web_1.0-a", "a": "a".repeat(63)});
        let notes = json!({"Example.COM/note": "anything, at any length", "b": "\n"});
        assert!(found(json!({"name": "a", "labels": right, "annotations": notes})).is_empty());
        assert_eq!(found(json!({"name": "a", "labels": {"Example.com/a": "b"}})).len(), 1);
        assert_eq!(
            found(json!({"name": "a", "annotations": {"a": "x".repeat(262_144)}})),
            ["metadata.annotations: has 262145 bytes in all; keep it within 262144"]
        );
    }
}
