//! Owns the status of a pool as users read it. Only the controller writes it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, MicroTime};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::seats::{self, PackedSeats, SeatsError};

/// Status is what Guideway made of the pool. Only the controller writes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerPoolStatus {
    /// ObservedGeneration is the generation of the spec that the status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// InForce is the spec that is served while the latest one cannot be; absent where the latest is served. A replica
    /// that starts meanwhile begins with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_force: Option<InForce>,

    /// Conditions say how far the pool got. Accepted: the spec makes sense. ResolvedRefs: every Service and port it
    /// names exists. Programmed: its ports are open and its table is in use. Ready: it has an endpoint to serve
    /// requests, and all of the others hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,

    /// Endpoints counts the pool's endpoints by their state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<EndpointCounts>,

    /// Table describes the lookup table in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<TableStatus>,

    /// Seats says which endpoint sits where, for pools of up to 256 seats. A seat that its endpoint left waits for
    /// that endpoint's successor.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["seat"]))]
    pub seats: Vec<Seat>,

    /// PackedSeats says the same in a shorter form, for larger pools.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 4096), extend("x-kubernetes-list-type" = "atomic"))]
    pub packed_seats: Vec<PackedSeats>,
}

impl LoadBalancerPoolStatus {
    /// Writes the seats in the form that fits their number.
    pub fn set_seats(&mut self, list: Vec<Seat>) {
        if list.len() <= seats::READABLE {
            (self.seats, self.packed_seats) = (list, Vec::new());
        } else {
            (self.seats, self.packed_seats) = (Vec::new(), seats::pack(&list));
        }
    }

    /// The seats, whatever form they were written in, ascending.
    pub fn all_seats(&self) -> Result<Vec<Seat>, SeatsError> {
        if self.packed_seats.is_empty() { Ok(self.seats.clone()) } else { seats::unpack(&self.packed_seats) }
    }
}

/// The spec that is served while the latest cannot be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct InForce {
    /// Generation of the spec that is served.
    pub generation: i64,
    /// Spec that is served.
    #[schemars(schema_with = "any_object_schema")]
    pub spec: Value,
}

/// Endpoints by state.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EndpointCounts {
    /// Total is the number of endpoints that belong to the pool.
    pub total: u32,
    /// Ready is the number of endpoints that take new requests.
    pub ready: u32,
    /// Draining is the number of endpoints that only finish the requests they have.
    pub draining: u32,
    /// Summary is ready and total in one, such as 3/4.
    pub summary: String,
}

impl EndpointCounts {
    /// The counts with their summary.
    pub fn new(total: usize, ready: usize, draining: usize) -> Self {
        let count = |number| u32::try_from(number).unwrap_or(u32::MAX);
        Self {
            total: count(total),
            ready: count(ready),
            draining: count(draining),
            summary: format!("{ready}/{total}"),
        }
    }
}

/// The lookup table in use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TableStatus {
    /// Digest is a fingerprint of the table and its endpoints, 16 hexadecimal digits. Replicas with the same digest
    /// send every key to the same endpoint.
    #[schemars(length(max = 16))]
    pub digest: String,
    /// Size is the number of slots; with several backends, of the largest of their tables.
    pub size: u32,
    /// Bytes is the memory the table takes on each replica.
    pub bytes: u64,
    /// Seats is the number of seats, taken or not.
    pub seats: u32,
}

/// A seat: the stable place in the table that an endpoint takes and its successor inherits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Seat {
    /// Seat is its number.
    pub seat: u16,
    /// Backend is the entry of spec.backends it belongs to.
    #[schemars(length(max = 63))]
    pub backend: String,
    /// Occupant is the pod, or the address and port, that sits here or sat here last.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub occupant: Option<String>,
    /// Uid is the occupant's identity: the pod's UID, or the address and port.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub uid: Option<String>,
    /// Weight of the seat relative to the backend's other seats.
    pub weight: u16,
    /// Vacated is when the occupant left; absent while it sits here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "time_schema")]
    pub vacated: Option<MicroTime>,
}

/// The limits that Kubernetes' own `metav1.Condition` carries.
fn conditions_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 8,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "required": ["type", "status", "lastTransitionTime", "reason", "message"],
            "properties": {
                "type": {
                    "type": "string",
                    "description": "Type of the condition: Accepted, ResolvedRefs, Programmed or Ready.",
                    "maxLength": 316,
                },
                "status": {
                    "type": "string",
                    "description": "Status is True, False or Unknown.",
                    "enum": ["True", "False", "Unknown"],
                },
                "reason": {
                    "type": "string",
                    "description": "Reason is one word that says why, for programs.",
                    "minLength": 1,
                    "maxLength": 1024,
                    "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$",
                },
                "message": {
                    "type": "string",
                    "description": "Message says why and what to do, for people.",
                    "maxLength": 32768,
                },
                "lastTransitionTime": {
                    "type": "string",
                    "format": "date-time",
                    "description": "LastTransitionTime is when the status last changed.",
                },
                "observedGeneration": {
                    "type": "integer",
                    "format": "int64",
                    "minimum": 0,
                    "description": "ObservedGeneration is the generation of the spec that the condition speaks of.",
                },
            },
        },
    })
}

/// A spec was checked when it was written; one of another version must not spoil the whole status.
fn any_object_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

fn time_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "date-time" })
}
