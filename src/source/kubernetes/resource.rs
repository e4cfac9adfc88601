//! Owns what we keep of a `LoadBalancerPool`: the checked pool or what is wrong with it, its status as last
//! read, and what the lease holder decided in it. Pools are read field by field from raw objects, so one that cannot be read spoils no list.

use std::sync::{Arc, LazyLock};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::api::DynamicObject;
use serde_json::Value;

use super::facts::{Key, Keyed};
use crate::balance::backend::BackendId;
use crate::balance::pool::{Listener, PoolId, PortId};
use crate::balance::seats::{Occupant, Roster, RosterSeat};
use crate::crd::conditions::{PROGRAMMED, reasons};
use crate::crd::status::{InForce, Seat};
use crate::crd::{LoadBalancerPool, LoadBalancerPoolStatus, manifest};
use crate::source::reach::{self, Target};
use crate::source::schema;
use crate::source::translate::{self, FieldError, Translated};

/// A spec that makes sense.
#[derive(Clone, Debug)]
pub(super) struct Version {
    pub(super) generation: i64,
    pub(super) spec: Arc<Translated>,
    /// As it was written.
    pub(super) written: Arc<Value>,
}

impl Version {
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.spec, &other.spec) || self.spec == other.spec
    }
}

/// What the lease holder made of the latest spec of a pool, as its status tells.
#[derive(Clone, Debug)]
pub(super) enum Verdict {
    /// Nothing yet.
    None,
    /// Nothing yet; the one before it was in force and lacked nothing.
    Outdated,
    /// It is in force, whatever it lacks.
    Latest {
        /// Whether that is something that another pool has of a port.
        lacks_ports: bool,
    },
    /// An earlier one is in force.
    Earlier {
        version: Version,
        /// Because the latest asks for what another pool has of a port.
        for_its_ports: bool,
    },
}

/// A pool as the API server has it.
#[derive(Clone, Debug)]
pub(super) struct PoolResource {
    pub(super) key: Key,
    pub(super) uid: Arc<str>,
    pub(super) generation: i64,
    /// The latest spec, or every mistake in it.
    pub(super) wanted: Result<Version, Arc<[FieldError]>>,
    /// What the lease holder made of the latest spec.
    pub(super) verdict: Verdict,
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
        let generation = object.metadata.generation.unwrap_or_default();
        let spec = object.data.get("spec").cloned().unwrap_or_default();
        Some(Self {
            uid: object.metadata.uid.as_deref().unwrap_or_default().into(),
            generation,
            wanted: Version::read(&object.metadata, generation, spec).map_err(Arc::from),
            verdict: Verdict::read(&object.metadata, generation, &status),
            roster: roster_of(&key, &status).map(Arc::new),
            status: Arc::new(status),
            key,
        })
    }

    /// The pool, whose latest spec makes no sense if it asks for our own port.
    pub(super) fn unless_on(mut self, own: PortId) -> Self {
        let Ok(latest) = &self.wanted else { return self };
        let ours = |(index, _): (usize, &Listener)| {
            FieldError::new(format!("spec.listeners[{index}].port"), reach::is_our_own(own))
        };
        let listeners = latest.spec.pool.listeners.iter().enumerate();
        let mistakes: Arc<[FieldError]> = listeners.filter(|(_, it)| it.port_id() == own).map(ours).collect();
        if !mistakes.is_empty() {
            self.wanted = Err(mistakes);
        }
        self
    }

    /// Whether the latest spec of both comes to the same.
    pub(super) fn wants_the_same(&self, other: &Self) -> bool {
        match (&self.wanted, &other.wanted) {
            (Ok(ours), Ok(theirs)) => ours.says_the_same(theirs),
            (Err(ours), Err(theirs)) => ours == theirs,
            _ => false,
        }
    }

    pub(super) fn id(&self) -> PoolId {
        PoolId { namespace: self.key.namespace.clone(), name: self.key.name.clone() }
    }
}

impl Version {
    fn read(metadata: &ObjectMeta, generation: i64, written: Value) -> Result<Self, Vec<FieldError>> {
        let spec = Arc::new(translated(metadata, written.clone())?);
        Ok(Self { generation, spec, written: Arc::new(written) })
    }
}

impl Verdict {
    fn read(metadata: &ObjectMeta, generation: i64, status: &LoadBalancerPoolStatus) -> Self {
        if status.observed_generation != Some(generation) {
            // Until the holder has looked at the edit, what it served before it is in force.
            let served = status.conditions.iter().any(|it| it.type_ == PROGRAMMED && it.status == "True");
            let none = if served { Self::Outdated } else { Self::None };
            return status.in_force.as_ref().map_or(none, |it| Self::earlier(metadata, it, false));
        }
        let lost_a_port = |it: &&Condition| it.type_ == PROGRAMMED && it.reason == reasons::PORT_CONFLICT;
        let for_its_ports = status.conditions.iter().any(|it| lost_a_port(&it));
        let latest = Self::Latest { lacks_ports: for_its_ports };
        status.in_force.as_ref().map_or(latest, |it| Self::earlier(metadata, it, for_its_ports))
    }

    /// A spec that this version cannot read is no help; the one that is served by then stays.
    fn earlier(metadata: &ObjectMeta, in_force: &InForce, for_its_ports: bool) -> Self {
        match Version::read(metadata, in_force.generation, in_force.spec.clone()) {
            Ok(version) => Self::Earlier { version, for_its_ports },
            Err(mistakes) => {
                let (namespace, pool) = (metadata.namespace.as_deref(), metadata.name.as_deref());
                let mistake = mistakes.first().map(ToString::to_string);
                tracing::warn!(namespace, pool, mistake, "status.inForce makes no sense and is left aside");
                Self::None
            }
        }
    }

    /// Whether both come to the same.
    pub(super) fn says_the_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::None, Self::None) | (Self::Outdated, Self::Outdated) => true,
            (Self::Latest { lacks_ports }, Self::Latest { lacks_ports: theirs }) => lacks_ports == theirs,
            (
                Self::Earlier { version, for_its_ports },
                Self::Earlier { version: theirs, for_its_ports: of_theirs },
            ) => version.says_the_same(theirs) && for_its_ports == of_theirs,
            _ => false,
        }
    }
}

fn translated(metadata: &ObjectMeta, mut spec: Value) -> Result<Translated, Vec<FieldError>> {
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
    let resource = LoadBalancerPool { metadata: metadata.clone(), spec, status: None };
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
