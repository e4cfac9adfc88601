//! Owns the conditions of a pool: their types and reasons, which scripts and alerts rely on, and the
//! rule that a condition's time changes only with its status.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The spec makes sense.
pub const ACCEPTED: &str = "Accepted";
/// Every Service, port and Secret that the spec names exists and can be used.
pub const RESOLVED_REFS: &str = "ResolvedRefs";
/// The ports are open and the table of this generation is in use.
pub const PROGRAMMED: &str = "Programmed";
/// The pool serves requests: the summary of the others.
pub const READY: &str = "Ready";

/// Reasons, the machine-readable word of a condition. Where a condition is true, its reason is its type.
pub mod reasons {
    /// Accepted is false: the spec asks for something that cannot work.
    pub const INVALID: &str = "Invalid";
    /// ResolvedRefs is false: a Service does not exist.
    pub const SERVICE_NOT_FOUND: &str = "ServiceNotFound";
    /// ResolvedRefs is false: a Service has no such port.
    pub const PORT_NOT_FOUND: &str = "PortNotFound";
    /// ResolvedRefs is false: a Service of type `ExternalName` has no pods.
    pub const UNSUPPORTED_SERVICE: &str = "UnsupportedService";
    /// ResolvedRefs is false: a Secret does not exist.
    pub const SECRET_NOT_FOUND: &str = "SecretNotFound";
    /// ResolvedRefs is false: a Secret lacks what it is named for, or holds something that cannot be used.
    pub const INVALID_SECRET: &str = "InvalidSecret";
    /// ResolvedRefs is false: Guideway may not read a Secret.
    pub const SECRET_FORBIDDEN: &str = "SecretForbidden";
    /// ResolvedRefs is false: the API server could not be brought to show a Secret.
    pub const SECRET_UNREADABLE: &str = "SecretUnreadable";
    /// Programmed is false: another pool has the port.
    pub const PORT_CONFLICT: &str = "PortConflict";
    /// Programmed is false: an earlier spec is in use, because the latest cannot be served.
    pub const EARLIER_GENERATION: &str = "EarlierGeneration";
    /// Programmed is false: the replica could not open the port.
    pub const PORT_UNAVAILABLE: &str = "PortUnavailable";
    /// Programmed is unknown: the port is about to be opened. ResolvedRefs is unknown: a Secret is about to be read.
    pub const PENDING: &str = "Pending";
    /// Ready is false: no endpoint may take a request.
    pub const NO_READY_ENDPOINTS: &str = "NoReadyEndpoints";
}

/// Puts `new` in the place of the condition of its type. The time of the last transition stays as long as the
/// status does. Says whether anything changed.
pub fn set(conditions: &mut Vec<Condition>, mut new: Condition) -> bool {
    let Some(old) = conditions.iter_mut().find(|old| old.type_ == new.type_) else {
        conditions.push(new);
        return true;
    };
    if old.status == new.status {
        new.last_transition_time = old.last_transition_time.clone();
    }
    let changed = *old != new;
    *old = new;
    changed
}

/// A condition that holds: its reason is its type.
pub fn holds(type_: &str, message: &str, generation: Option<i64>, now: Time) -> Condition {
    condition(type_, "True", type_, message, generation, now)
}

/// A condition that does not hold, and why.
pub fn fails(type_: &str, reason: &str, message: &str, generation: Option<i64>, now: Time) -> Condition {
    condition(type_, "False", reason, message, generation, now)
}

/// A condition of which nothing is known yet.
pub fn unknown(type_: &str, reason: &str, message: &str, generation: Option<i64>, now: Time) -> Condition {
    condition(type_, "Unknown", reason, message, generation, now)
}

fn condition(
    type_: &str,
    status: &str,
    reason: &str,
    message: &str,
    generation: Option<i64>,
    now: Time,
) -> Condition {
    Condition {
        type_: type_.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: generation,
        last_transition_time: now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Time {
        Time(jiff::Timestamp::from_second(second).unwrap())
    }

    #[test]
    fn the_time_of_a_condition_changes_only_with_its_status() {
        let mut conditions = Vec::new();
        assert!(set(&mut conditions, fails(READY, reasons::NO_READY_ENDPOINTS, "0 of 3", Some(1), at(10))));
        assert!(set(&mut conditions, fails(READY, reasons::NO_READY_ENDPOINTS, "0 of 4", Some(2), at(20))));
        assert_eq!(conditions[0].last_transition_time, at(10));
        assert!(set(&mut conditions, holds(READY, "4 of 4", Some(2), at(30))));
        assert_eq!(conditions[0].last_transition_time, at(30));
        assert_eq!(conditions.len(), 1);
    }

    #[test]
    fn the_same_condition_again_is_no_change() {
        let mut conditions = vec![holds(ACCEPTED, "", Some(1), at(10))];
        assert!(!set(&mut conditions, holds(ACCEPTED, "", Some(1), at(20))));
    }
}
