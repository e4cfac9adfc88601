//! Owns what a pool's status says: conditions, counts, table and seats, from what the controller knows.
//! Pure, so that the same state is always told in the same words and nothing is written twice.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::SocketAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::Value;

use super::entry::PoolEntry;
use super::join::{Problem, bare_id};
use super::keyring::{Miss, SecretProblem, Shown, Trouble};
use super::resource::{Version, seats_of};
use crate::balance::backend::Member;
use crate::balance::pool::{Listener, Pool, PoolId, PortId};
use crate::balance::routes::Match;
use crate::crd::LoadBalancerPoolStatus;
use crate::crd::conditions::{self, ACCEPTED, PROGRAMMED, READY, RESOLVED_REFS, reasons};
use crate::crd::status::{EndpointCounts, InForce, TableStatus};
use crate::handoff::BindState;
use crate::source::claims::{Conflict, Contested};
use crate::source::programmer::Report;
use crate::source::tls::{Asker, Side};

/// Mistakes told in one message; who has more of them corrects these first.
const MISTAKES_TOLD: usize = 20;

/// What is known of a pool when its status is written.
pub(super) struct View<'a> {
    pub(super) pool: &'a PoolEntry,
    /// What the programmer made of it; `None` when no spec of it was ever in force.
    pub(super) report: Option<&'a Report>,
    /// The spec in force.
    pub(super) serving: Option<&'a Pool>,
    pub(super) ports: &'a BTreeMap<PortId, BindState>,
}

/// A verdict: type, status, reason, message.
struct Verdict {
    kind: &'static str,
    status: Status,
    reason: &'static str,
    message: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Status {
    Holds,
    Fails,
    Unknown,
}

impl Verdict {
    fn holds(kind: &'static str, message: String) -> Self {
        Self { kind, status: Status::Holds, reason: kind, message }
    }

    fn fails(kind: &'static str, reason: &'static str, message: String) -> Self {
        Self { kind, status: Status::Fails, reason, message }
    }

    fn unknown(kind: &'static str, reason: &'static str, message: String) -> Self {
        Self { kind, status: Status::Unknown, reason, message }
    }

    fn condition(&self, generation: i64, now: &Time) -> Condition {
        let generation = Some(generation);
        let (kind, reason, message) = (self.kind, self.reason, &self.message);
        match self.status {
            Status::Holds => conditions::holds(kind, message, generation, now.clone()),
            Status::Fails => conditions::fails(kind, reason, message, generation, now.clone()),
            Status::Unknown => conditions::unknown(kind, reason, message, generation, now.clone()),
        }
    }
}

impl View<'_> {
    /// The status to write. Conditions that `before` has keep their time of transition where their status stays.
    pub(super) fn status(&self, before: &LoadBalancerPoolStatus, now: &Time) -> LoadBalancerPoolStatus {
        let generation = self.pool.resource.generation;
        let verdicts = [self.accepted(), self.resolved(now), self.programmed()];
        let ready = self.ready(&verdicts);
        let mut status = LoadBalancerPoolStatus {
            observed_generation: Some(generation),
            conditions: before.conditions.clone(),
            in_force: self.pool.earlier().map(in_force),
            ..LoadBalancerPoolStatus::default()
        };
        for verdict in verdicts.iter().chain([&ready]) {
            conditions::set(&mut status.conditions, verdict.condition(generation, now));
        }
        if let Some(report) = self.report {
            status.endpoints = Some(EndpointCounts::new(report.total, report.ready, report.draining));
            status.table = Some(TableStatus {
                digest: format!("{:016x}", report.digest),
                size: report.table_size,
                bytes: report.table_bytes as u64,
                seats: u32::try_from(report.seats).unwrap_or(u32::MAX),
            });
            status.set_seats(seats_of(&report.roster));
        } else {
            // Nothing is served; who sat where still counts when something is again.
            (status.seats, status.packed_seats) = (before.seats.clone(), before.packed_seats.clone());
        }
        status
    }

    fn accepted(&self) -> Verdict {
        match &self.pool.resource.wanted {
            Ok(_) => Verdict::holds(ACCEPTED, "The spec makes sense.".into()),
            Err(mistakes) => Verdict::fails(ACCEPTED, reasons::INVALID, self.with_fallback(&list(mistakes))),
        }
    }

    fn resolved(&self, now: &Time) -> Verdict {
        if self.pool.resource.wanted.is_err() {
            return Verdict::unknown(RESOLVED_REFS, reasons::INVALID, "The spec is not accepted.".into());
        }
        let problems = &self.pool.problems;
        let message = || self.with_fallback(&list(problems));
        match (problems.iter().find(|it| !it.is_pending()), problems.first()) {
            (Some(first), _) => Verdict::fails(RESOLVED_REFS, reason_of(first), message()),
            (None, Some(_)) => Verdict::unknown(RESOLVED_REFS, reasons::PENDING, message()),
            (None, None) => {
                let remarks = self.expiries(now);
                Verdict::holds(RESOLVED_REFS, format!("Every Service, port and Secret exists.{remarks}"))
            }
        }
    }

    /// What the other side will say of the certificates in use.
    fn expiries(&self, now: &Time) -> String {
        let now = u64::try_from(now.0.as_second()).unwrap_or_default();
        let remark = |it: &Shown| {
            let remark = it.validity.remark(now)?;
            Some(format!("{}: the certificate of Secret {} {remark}", it.asker, it.secret))
        };
        let remarks: Vec<String> = self.pool.shown.iter().filter_map(remark).collect();
        if remarks.is_empty() { String::new() } else { format!(" But {}.", list(&remarks)) }
    }

    fn programmed(&self) -> Verdict {
        let (Some(report), Some(pool)) = (self.report, self.serving) else {
            return match self.pool.resource.wanted {
                Ok(_) => Verdict::unknown(PROGRAMMED, reasons::PENDING, "The table is being built.".into()),
                Err(_) => {
                    Verdict::fails(PROGRAMMED, reasons::INVALID, "No spec of this pool was ever good.".into())
                }
            };
        };
        if let Some(conflict) = self.pool.conflicts.first() {
            return Verdict::fails(PROGRAMMED, reasons::PORT_CONFLICT, self.with_fallback(&told(conflict)));
        }
        if let Some(conflict) = report.port_conflicts.first() {
            return Verdict::fails(PROGRAMMED, reasons::PORT_CONFLICT, format!("{}.", told(conflict)));
        }
        if let Some((problem, asker)) = self.unserved(pool) {
            return Verdict::fails(PROGRAMMED, reason_of(problem), lack_of(asker));
        }
        let ports = pool.listeners.iter().map(Listener::port_id);
        let mut states = ports.map(|port| (port, self.ports.get(&port)));
        match states.find(|(_, state)| *state != Some(&BindState::Bound)) {
            Some((port, Some(BindState::Failed { reason }))) => {
                Verdict::fails(PROGRAMMED, reasons::PORT_UNAVAILABLE, format!("Port {port}: {reason}"))
            }
            _ if let Some(earlier) = self.pool.earlier() => {
                let (used, latest) = (earlier.generation, self.pool.resource.generation);
                let message =
                    format!("Generation {used} stays in use until generation {latest} can be served.");
                Verdict::fails(PROGRAMMED, reasons::EARLIER_GENERATION, message)
            }
            Some((port, _)) => {
                Verdict::unknown(PROGRAMMED, reasons::PENDING, format!("Port {port} is being opened."))
            }
            None => {
                let remark = report.size_remark.as_ref().map_or(String::new(), |it| format!(" But {it}."));
                Verdict::holds(PROGRAMMED, format!("The ports are open and the table is in use.{remark}"))
            }
        }
    }

    /// A listener or backend of the spec in force that lacks a credential, and which.
    fn unserved(&self, pool: &Pool) -> Option<(&Problem, &Asker)> {
        if self.pool.earlier().is_some() {
            return None;
        }
        self.pool.problems.iter().find_map(|problem| match problem {
            Problem::Secret(SecretProblem { asker, .. }) => {
                (!asker.is_served(pool)).then_some((problem, asker))
            }
            _ => None,
        })
    }

    fn ready(&self, others: &[Verdict]) -> Verdict {
        if let Some(missing) = others.iter().find(|verdict| verdict.status != Status::Holds) {
            let word = if missing.status == Status::Fails { "False" } else { "Unknown" };
            let message = format!("{} is {word}: {}", missing.kind, missing.message);
            return match missing.status {
                Status::Unknown if missing.reason == reasons::PENDING => {
                    Verdict::unknown(READY, missing.reason, message)
                }
                _ => Verdict::fails(READY, missing.reason, message),
            };
        }
        let Some(report) = self.report else {
            return Verdict::unknown(READY, reasons::PENDING, "The table is being built.".into());
        };
        let none = |why: String| Verdict::fails(READY, reasons::NO_READY_ENDPOINTS, why);
        match (report.ready, report.idle, report.total) {
            // A table that is built beside the loop may be behind what is known.
            (0, _, 0) if self.pool.absences.is_empty() => {
                Verdict::unknown(READY, reasons::PENDING, "The table is being built.".into())
            }
            (0, _, 0) => none(format!("There are no endpoints: {}.", list(&self.pool.absences))),
            (0, 0, total) => none(format!("None of {total} endpoints is ready; {}.", self.who_says_ready())),
            (0, idle, total) => none(format!(
                "None of {total} endpoints takes requests: the {idle} that are ready have weight 0; give their backend a weight."
            )),
            (ready, _, total) => {
                Verdict::holds(READY, format!("{ready} of {total} endpoints take requests."))
            }
        }
    }

    /// Where to look when nobody is ready.
    fn who_says_ready(&self) -> &'static str {
        let has_pod = |it: &Member| bare_id(&it.backend.id).parse::<SocketAddr>().is_err();
        match self.pool.members().iter().any(has_pod) {
            true => "check the pods' readiness probes",
            false => "they have no pods, so their EndpointSlices must say conditions.ready: true",
        }
    }

    fn with_fallback(&self, message: &str) -> String {
        match self.pool.earlier().is_some() {
            true => format!("{message}. The last good spec stays in force."),
            false => format!("{message}."),
        }
    }
}

fn lack_of(asker: &Asker) -> String {
    let name = &asker.name;
    match asker.side {
        Side::Listener { .. } => {
            format!("Listener {name} is not open: it has no good certificate, or no good clientCA.")
        }
        Side::Backend { .. } => {
            format!("Backend {name} takes no requests: it has no good ca, or no good clientCertificate.")
        }
    }
}

fn in_force(version: &Version) -> InForce {
    InForce { generation: version.generation, spec: Value::clone(&version.written) }
}

fn told(Conflict { port, over, holder }: &Conflict) -> String {
    match over {
        Contested::Part(all) if *all == Match::all() => format!(
            "Port {port} belongs to pool {holder}; choose another port, name hosts or paths, or remove that pool"
        ),
        Contested::Part(part) => format!(
            "On port {port}, {part} belongs to pool {holder}; choose another port, host or path, or remove that pool"
        ),
        Contested::Protocol => disagreement("protocol", *port, holder),
        Contested::Clients(host) => format!(
            "Pool {holder} asks clients of host {host} on port {port} for another minVersion or clientCA; use the \
             same, or another host or port"
        ),
        Contested::ProxyProtocol => disagreement("proxyProtocol", *port, holder),
    }
}

fn disagreement(field: &str, port: PortId, holder: &PoolId) -> String {
    format!("Pool {holder} has another {field} on port {port}; use the same, or another port")
}

fn reason_of(problem: &Problem) -> &'static str {
    match problem {
        Problem::ServiceNotFound { .. } => reasons::SERVICE_NOT_FOUND,
        Problem::PortNotFound { .. } => reasons::PORT_NOT_FOUND,
        Problem::ExternalName { .. } => reasons::UNSUPPORTED_SERVICE,
        Problem::Secret(problem) => match &problem.trouble {
            Trouble::Unseen => reasons::PENDING,
            Trouble::Missed(Miss::NotFound) => reasons::SECRET_NOT_FOUND,
            Trouble::Missed(Miss::Forbidden(_)) => reasons::SECRET_FORBIDDEN,
            Trouble::Missed(Miss::Unreadable(_)) => reasons::SECRET_UNREADABLE,
            Trouble::Faulty(_) | Trouble::Unstapled(_) => reasons::INVALID_SECRET,
        },
    }
}

fn list<T: Display>(items: &[T]) -> String {
    let told: Vec<String> = items.iter().take(MISTAKES_TOLD).map(ToString::to_string).collect();
    match items.len().saturating_sub(MISTAKES_TOLD) {
        0 => told.join("; "),
        more => format!("{}; and {more} more", told.join("; ")),
    }
}
