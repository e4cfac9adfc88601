//! Owns the roster: the seats as they are handed from the lease holder to the other replicas, or kept
//! over a restart.

use std::sync::Arc;

use crate::balance::backend::BackendId;

/// All seats of a pool, seat 0 first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    /// The seats; `seats[i].seat == i`.
    pub seats: Vec<RosterSeat>,
}

/// One seat of a roster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RosterSeat {
    /// Number of the seat.
    pub seat: u16,
    /// Name of the entry of `spec.backends` whose share the seat carries.
    pub group: Arc<str>,
    /// Weight within the group, at least 1.
    pub weight: u16,
    /// Who sits there, or sat there last.
    pub occupant: Option<Occupant>,
    /// When the occupant left, milliseconds since the UNIX epoch; `None` while it is there.
    pub vacated_ms: Option<u64>,
}

/// Who sits on a seat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occupant {
    /// Its identity.
    pub id: BackendId,
    /// What people call it. Pods of a StatefulSet keep their name, which finds them their seat again.
    pub name: Arc<str>,
}
