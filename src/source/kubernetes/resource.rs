//! Owns what we keep of a `LoadBalancerPool`: the checked pool or what is wrong with it, and its status as last
//! read. Pools are read field by field from raw objects, so one that cannot be read spoils no list.

use std::sync::{Arc, LazyLock};

use kube::api::DynamicObject;
use serde_json::Value;

use super::facts::{Key, Keyed};
use crate::balance::backend::BackendId;
use crate::balance::pool::PoolId;
use crate::balance::seats::{Occupant, Roster, RosterSeat};
use crate::crd::status::Seat;
use crate::crd::{LoadBalancerPool, LoadBalancerPoolStatus, manifest};
use crate::source::reach::{self, Target};
use crate::source::schema;
use crate::source::translate::{self, FieldError, Translated};

/// A pool as the API server has it.
#[derive(Clone, Debug)]
pub(super) struct PoolResource {
    pub(super) key: Key,
    pub(super) uid: Arc<str>,
    pub(super) generation: i64,
    /// The spec as a checked pool, or every mistake in it.
    pub(super) wanted: Result<Arc<Translated>, Arc<[FieldError]>>,
    /// The status somebody wrote last.
    pub(super) status: Arc<LoadBalancerPoolStatus>,
    /// The seats in that status; `None` where no holder has told of any table yet, or where they cannot be read.
    pub(super) roster: Option<Arc<Roster>>,
}

impl Keyed for PoolResource {
    fn key(&self) -> &Key {
        &self.key
    }
}

impl PoolResource {
    pub(super) fn from_object(object: &DynamicObject) -> Option<Self> {
        let key = Key::of(&object.metadata)?;
        let status = object.data.get("status").cloned().unwrap_or_default();
        let status: LoadBalancerPoolStatus = serde_json::from_value(status).unwrap_or_default();
        Some(Self {
            uid: object.metadata.uid.as_deref().unwrap_or_default().into(),
            generation: object.metadata.generation.unwrap_or_default(),
            wanted: read(object).map(Arc::new).map_err(Arc::from),
            roster: roster_of(&key, &status).map(Arc::new),
            status: Arc::new(status),
            key,
        })
    }

    pub(super) fn id(&self) -> PoolId {
        PoolId { namespace: self.key.namespace.clone(), name: self.key.name.clone() }
    }
}

fn read(object: &DynamicObject) -> Result<Translated, Vec<FieldError>> {
    let mut spec = object.data.get("spec").cloned().unwrap_or_default();
    schema::normalize(&mut spec);
    // A field that is not known here may be one that keeps somebody out, so leaving it aside is no choice.
    let mistakes = unsupported(&spec);
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let read = serde_path_to_error::deserialize(spec);
    let spec = read.map_err(|error: serde_path_to_error::Error<serde_json::Error>| {
        let path = error.path().to_string();
        let path = if path == "." { "spec".into() } else { format!("spec.{path}") };
        vec![FieldError::new(path, error.into_inner().to_string())]
    })?;
    let resource = LoadBalancerPool { metadata: object.metadata.clone(), spec, status: None };
    translate::pool(&resource).and_then(|translated| reach::check(translated, Target::Cluster))
}

/// What this version's own definition would refuse. The API server let it pass, so the one installed is of another
/// version: most likely a newer one that came before the Guideway it belongs to.
fn unsupported(spec: &Value) -> Vec<FieldError> {
    static SCHEMA: LazyLock<Option<Value>> = LazyLock::new(|| manifest::schema().ok());
    let mut mistakes = Vec::new();
    if let Some(schema) = &*SCHEMA {
        schema::check(&schema["properties"]["spec"], spec, "spec", &mut mistakes);
    }
    for mistake in &mut mistakes {
        let version = env!("CARGO_PKG_VERSION");
        mistake.reason = format!(
            "{}; or upgrade Guideway: this is {version}, older than the definition that allows it",
            mistake.reason
        );
    }
    mistakes
}

/// Seats that cannot be read are no reason to stop: the pool goes on with those it has.
fn roster_of(key: &Key, status: &LoadBalancerPoolStatus) -> Option<Roster> {
    let seats = status.all_seats().inspect_err(|error| {
        let (namespace, pool) = (&key.namespace, &key.name);
        tracing::warn!(%namespace, %pool, %error, "the seats in the status cannot be read and are left aside");
    });
    let seats = seats.ok()?;
    let in_order = seats.iter().enumerate().all(|(at, seat)| at == usize::from(seat.seat));
    // A holder without seats tells of a table without seats. A status that tells of neither says nothing.
    let is_told = !seats.is_empty() || status.table.as_ref().is_some_and(|table| table.seats == 0);
    (in_order && is_told).then(|| Roster { seats: seats.iter().map(roster_seat).collect() })
}

fn roster_seat(seat: &Seat) -> RosterSeat {
    let occupant = seat.uid.as_deref().zip(seat.occupant.as_deref());
    RosterSeat {
        seat: seat.seat,
        group: seat.backend.as_str().into(),
        weight: seat.weight.max(1),
        occupant: occupant.map(|(uid, name)| Occupant { id: BackendId::from(uid), name: name.into() }),
        vacated_ms: seat.vacated.as_ref().and_then(|time| u64::try_from(time.0.as_millisecond()).ok()),
    }
}

/// The seats as the status has them.
pub(super) fn seats_of(roster: &Roster) -> Vec<Seat> {
    roster.seats.iter().map(seat_of).collect()
}

fn seat_of(seat: &RosterSeat) -> Seat {
    let vacated =
        seat.vacated_ms.and_then(|ms| jiff::Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok());
    Seat {
        seat: seat.seat,
        backend: seat.group.to_string(),
        occupant: seat.occupant.as_ref().map(|occupant| occupant.name.to_string()),
        uid: seat.occupant.as_ref().map(|occupant| occupant.id.to_string()),
        weight: seat.weight,
        vacated: vacated.map(k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime),
    }
}
