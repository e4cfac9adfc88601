//! Owns the check of a value against an OpenAPI schema as Kubernetes writes it. It finds what the API
//! server would find, all of it, and says it in words that lead out.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::translate::FieldError;

/// Adds every breach of `schema` in `value` to `errors`. `path` is where the value stands.
pub(super) fn check(schema: &Value, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    if !has_type(schema, value) {
        let quotes = schema["type"] == "string" && (value.is_number() || value.is_boolean());
        let advice = if quotes { "; put it in quotes" } else { "" };
        let reason = format!("{} where {} belongs{advice}", found(value), expected(schema));
        return errors.push(FieldError::new(path, reason));
    }
    match value {
        Value::Object(map) => object(schema, map, path, errors),
        Value::Array(items) => array(schema, items, path, errors),
        Value::String(text) => string(schema, text, path, errors),
        Value::Number(number) => range(schema, number.as_f64(), &number.to_string(), path, errors),
        Value::Bool(_) | Value::Null => {}
    }
    choice(schema, value, path, errors);
}

/// Adds every field of `value` that `schema` does not know to `errors`, and nothing else.
pub(super) fn find_unknown(schema: &Value, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        find_unknown(&schema["items"], item, &format!("{path}[{index}]"), errors);
    }
    let Some(fields) = schema["properties"].as_object() else { return };
    for (name, value) in value.as_object().into_iter().flatten() {
        match fields.get(name) {
            Some(field) => find_unknown(field, value, &join(path, name), errors),
            None => errors.push(FieldError::new(join(path, name), unknown_field(name, fields))),
        }
    }
}

/// Brings a value into the form the API server reads: without `null` fields, which it takes for absent, and with
/// `80.0` as the whole number it is.
pub(super) fn normalize(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(normalize);
        }
        Value::Array(items) => items.iter_mut().for_each(normalize),
        Value::Number(number) if number.is_f64() => {
            // Above 2^53 floats have gaps; no field of ours goes there.
            let whole = number.as_f64().filter(|it| it.fract() == 0.0 && it.abs() < 9.0e15);
            whole.into_iter().for_each(|it| *value = Value::from(it as i64));
        }
        _ => {}
    }
}

fn has_type(schema: &Value, value: &Value) -> bool {
    if schema["x-kubernetes-int-or-string"] == Value::Bool(true) {
        return value.is_i64() || value.is_string();
    }
    match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.is_i64() || value.is_u64(),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        _ => true,
    }
}

fn expected(schema: &Value) -> &str {
    match schema["type"].as_str() {
        Some("object") => "a block of fields",
        Some("array") => "a list",
        Some("string") => "a text",
        Some("integer") => "a whole number",
        Some("number") => "a number",
        Some("boolean") => "true or false",
        _ => "a whole number or a text",
    }
}

fn found(value: &Value) -> String {
    match value {
        Value::Null => "nothing stands".into(),
        Value::Bool(it) => format!("{it} stands"),
        Value::Number(it) => format!("the number {it} stands"),
        Value::String(it) => format!("the text `{it}` stands"),
        Value::Array(_) => "a list stands".into(),
        Value::Object(_) => "a block of fields stands".into(),
    }
}

fn object(schema: &Value, map: &Map<String, Value>, path: &str, errors: &mut Vec<FieldError>) {
    if let Some(each) = schema.get("additionalProperties") {
        map.iter().for_each(|(name, value)| check(each, value, &join(path, name), errors));
    }
    // Without a list of fields anything goes.
    let Some(fields) = schema["properties"].as_object() else { return };
    for (name, value) in map {
        match fields.get(name) {
            Some(field) => check(field, value, &join(path, name), errors),
            None => errors.push(FieldError::new(join(path, name), unknown_field(name, fields))),
        }
    }
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    for name in required.filter(|name| !map.contains_key(*name)) {
        errors.push(FieldError::new(join(path, name), "is missing"));
    }
}

fn unknown_field(name: &str, fields: &Map<String, Value>) -> String {
    if let Some(meant) = fields.keys().find(|field| field.eq_ignore_ascii_case(name)) {
        return format!("unknown field; write `{meant}`");
    }
    let known: Vec<&str> = fields.keys().map(String::as_str).collect();
    format!("unknown field; the fields here are {}", known.join(", "))
}

fn array(schema: &Value, items: &[Value], path: &str, errors: &mut Vec<FieldError>) {
    let count = items.len() as u64;
    if let Some(least) = schema["minItems"].as_u64().filter(|least| count < *least) {
        errors.push(FieldError::new(path, format!("has {count} entries; write at least {least}")));
    }
    if let Some(most) = schema["maxItems"].as_u64().filter(|most| count > *most) {
        errors.push(FieldError::new(path, format!("has {count} entries; write at most {most}")));
    }
    for (index, item) in items.iter().enumerate() {
        check(&schema["items"], item, &format!("{path}[{index}]"), errors);
    }
    unique_keys(schema, items, path, errors);
}

/// Lists with keys are maps to the API server: no two entries may have equal keys. In a set no two may be equal.
fn unique_keys(schema: &Value, items: &[Value], path: &str, errors: &mut Vec<FieldError>) {
    if schema["x-kubernetes-list-type"] == "set" {
        for (index, item) in items.iter().enumerate() {
            if let Some(first) = items[..index].iter().position(|it| it == item) {
                let reason = format!("{path}[{first}] is {item} already; leave one of the two out");
                errors.push(FieldError::new(format!("{path}[{index}]"), reason));
            }
        }
    }
    let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
    let keys: Vec<&str> = keys.filter_map(Value::as_str).collect();
    let mut seen = BTreeMap::new();
    for (index, item) in items.iter().enumerate().filter(|_| !keys.is_empty()) {
        let Some(values) = keys.iter().map(|key| item.get(*key)).collect::<Option<Vec<_>>>() else {
            continue;
        };
        let text = values.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        if let Some(first) = seen.insert(text.clone(), index) {
            let reason = format!("{path}[{first}] has {text} already; {} must differ", keys.join(" and "));
            errors.push(FieldError::new(format!("{path}[{index}]"), reason));
        }
    }
}

fn string(schema: &Value, text: &str, path: &str, errors: &mut Vec<FieldError>) {
    let length = text.chars().count() as u64;
    if let Some(least) = schema["minLength"].as_u64().filter(|least| length < *least) {
        let reason =
            if length == 0 { "is empty".into() } else { format!("is shorter than {least} characters") };
        return errors.push(FieldError::new(path, reason));
    }
    if let Some(most) = schema["maxLength"].as_u64().filter(|most| length > *most) {
        errors.push(FieldError::new(path, format!("has {length} characters; write at most {most}")));
    }
}

fn range(schema: &Value, number: Option<f64>, text: &str, path: &str, errors: &mut Vec<FieldError>) {
    let (least, most) = (schema["minimum"].as_f64(), schema["maximum"].as_f64());
    let Some(number) = number else { return };
    if least.is_none_or(|least| number >= least) && most.is_none_or(|most| number <= most) {
        return;
    }
    let bounds = match (least, most) {
        (Some(least), Some(most)) => format!("{least} to {most}"),
        (Some(least), None) => format!("at least {least}"),
        (None, Some(most)) => format!("at most {most}"),
        (None, None) => return,
    };
    let name = path.rsplit('.').next().unwrap_or(path);
    let what = if name == "port" { "is not a port" } else { "is out of range" };
    errors.push(FieldError::new(path, format!("{text} {what}; use {bounds}")));
}

fn choice(schema: &Value, value: &Value, path: &str, errors: &mut Vec<FieldError>) {
    let Some(choices) = schema["enum"].as_array() else { return };
    if choices.contains(value) {
        return;
    }
    let names: Vec<String> =
        choices.iter().map(|it| it.as_str().map_or_else(|| it.to_string(), Into::into)).collect();
    let value = value.as_str().map_or_else(|| value.to_string(), Into::into);
    errors.push(FieldError::new(path, format!("`{value}` is not supported; use {}", names.join(", "))));
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.into() } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::crd::manifest;

    /// Keywords that this module checks, or that say nothing about a value of a spec.
    const KNOWN: &[&str] = &[
        "type",
        "properties",
        "required",
        "items",
        "enum",
        "minimum",
        "maximum",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
        "format",
        "default",
        "description",
        "title",
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-int-or-string",
        // Anything goes there.
        "x-kubernetes-preserve-unknown-fields",
        // CEL, checked by the caller.
        "x-kubernetes-validations",
    ];

    fn each_schema(schema: &Value, visit: &mut impl FnMut(&Map<String, Value>)) {
        visit(schema.as_object().unwrap());
        schema["properties"].as_object().into_iter().flatten().for_each(|(_, it)| each_schema(it, visit));
        schema.get("items").into_iter().for_each(|it| each_schema(it, visit));
    }

    /// A pattern is none of them: the API server would show it in place of words.
    #[test]
    fn every_keyword_of_a_spec_is_checked() {
        each_schema(&manifest::schema().unwrap()["properties"]["spec"], &mut |schema| {
            for keyword in schema.keys() {
                assert!(KNOWN.contains(&keyword.as_str()), "{keyword} is not checked");
            }
        });
    }

    fn check_value(schema: Value, value: Value, expected: &[&str]) {
        let mut errors = Vec::new();
        check(&schema, &value, "spec.x", &mut errors);
        let found: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{schema}");
    }

    #[test]
    fn breaches_are_said_in_words_that_lead_out() {
        check_value(
            json!({"type": "integer"}),
            json!("a"),
            &["spec.x: the text `a` stands where a whole number belongs"],
        );
        check_value(
            json!({"type": "integer", "maximum": 9, "minimum": 1}),
            json!(10),
            &["spec.x: 10 is out of range; use 1 to 9"],
        );
        check_value(
            json!({"type": "string"}),
            json!(1),
            &["spec.x: the number 1 stands where a text belongs; put it in quotes"],
        );
        check_value(
            json!({"type": "string", "enum": ["A", "B"]}),
            json!("C"),
            &["spec.x: `C` is not supported; use A, B"],
        );
        check_value(
            json!({"type": "string", "maxLength": 2}),
            json!("äöü"),
            &["spec.x: has 3 characters; write at most 2"],
        );
        check_value(json!({"type": "string", "minLength": 1}), json!(""), &["spec.x: is empty"]);
        check_value(
            json!({"type": "array", "minItems": 1, "items": {}}),
            json!([]),
            &["spec.x: has 0 entries; write at least 1"],
        );
        check_value(
            json!({"x-kubernetes-int-or-string": true, "maximum": 9}),
            json!(10),
            &["spec.x: 10 is out of range; use at most 9"],
        );
        check_value(
            json!({"x-kubernetes-int-or-string": true}),
            json!(true),
            &["spec.x: true stands where a whole number or a text belongs"],
        );
    }

    #[test]
    fn all_breaches_of_an_object_are_found() {
        check_value(
            json!({
                "type": "object",
                "required": ["name"],
                "properties": {"name": {"type": "string"}, "tableSize": {"type": "integer"}},
            }),
            json!({"tablesize": 1, "color": "red", "tableSize": "1"}),
            &[
                "spec.x.color: unknown field; the fields here are name, tableSize",
                "spec.x.tableSize: the text `1` stands where a whole number belongs",
                "spec.x.tablesize: unknown field; write `tableSize`",
                "spec.x.name: is missing",
            ],
        );
    }

    #[test]
    fn entries_with_equal_keys_are_found() {
        check_value(
            json!({"type": "array", "items": {}, "x-kubernetes-list-map-keys": ["address", "port"]}),
            json!([{"address": "a", "port": 1}, {"address": "a", "port": 2}, {"address": "a", "port": 1}]),
            &["spec.x[2]: spec.x[0] has \"a\", 1 already; address and port must differ"],
        );
    }
}
