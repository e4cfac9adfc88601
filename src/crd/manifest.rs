//! Owns the CustomResourceDefinition as it is installed: the derived one, brought into the form that the API
//! server takes without warnings and that Go's YAML reads back as it was written.

use kube::CustomResourceExt;
use serde_json::{Map, Value};

use super::pool::LoadBalancerPool;

/// Why the definition could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// As JSON.
    #[error("the definition is no JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// As YAML.
    #[error("the definition cannot be written as YAML: {0}")]
    Yaml(#[from] serde_saphyr::ser::Error),
}

/// The CustomResourceDefinition of `LoadBalancerPool` as YAML.
pub fn yaml() -> Result<String, ManifestError> {
    Ok(serde_saphyr::to_string(&definition()?)?)
}

/// The CustomResourceDefinition of `LoadBalancerPool`.
pub fn definition() -> Result<Value, ManifestError> {
    let mut definition = serde_json::to_value(LoadBalancerPool::crd())?;
    tidy(&mut definition);
    Ok(definition)
}

/// The OpenAPI schema of `LoadBalancerPool` that the API server checks resources against.
pub fn schema() -> Result<Value, ManifestError> {
    let mut definition = definition()?;
    Ok(definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"].take())
}

/// What the derive writes and the API server would rather not see.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(map) => {
            tidy_schema(map);
            map.values_mut().for_each(tidy);
        }
        Value::Array(list) => list.iter_mut().for_each(tidy),
        Value::Number(number) => {
            // Limits are floats in the Rust type; `maximum: 65535` reads better than `65535.0`.
            if let Some(whole) = number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 9.0e15) {
                *value = Value::from(whole as i64);
            }
        }
        _ => {}
    }
}

fn tidy_schema(map: &mut Map<String, Value>) {
    // `field: null` is a mistake to report, not one more way to leave a field out.
    if map.get("nullable").is_some_and(Value::is_boolean) {
        map.remove("nullable");
    }
    // The API server warns of formats it does not know.
    match map.get("format").and_then(Value::as_str) {
        Some("uint16" | "uint32") => map.insert("format".into(), "int32".into()),
        Some("uint64") => map.insert("format".into(), "int64".into()),
        _ => None,
    };
    // Doc comments are wrapped by line; readers wrap paragraphs themselves.
    if let Some(Value::String(text)) = map.get_mut("description") {
        *text =
            text.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect::<Vec<_>>().join("\n\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMITTED: &str = include_str!("../../crds/loadbalancerpools.guideway.dev.yaml");

    #[test]
    fn the_committed_definition_is_the_generated_one() {
        assert_eq!(
            COMMITTED,
            yaml().unwrap(),
            "write `guideway crd` to crds/loadbalancerpools.guideway.dev.yaml"
        );
    }

    #[test]
    fn the_written_definition_reads_back_the_same() {
        let read: Value = serde_yaml::from_str(&yaml().unwrap()).unwrap();
        assert_eq!(read, definition().unwrap());
    }
}
