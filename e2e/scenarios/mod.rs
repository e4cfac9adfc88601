//! Owns the list of scenarios.

mod access_log;
mod admission;
mod calls;
mod certificates;
mod kill;
mod outage;
mod propagation;
mod readiness;
mod replicas;
mod rollout;
mod scale;
mod serving;
mod sharing;
mod streams;
mod upgrade;
mod validation;

use std::time::Duration;

use crate::runner::{Company, Scenario};

macro_rules! scenario {
    ($module:ident :: $name:ident, $company:ident, $seconds:literal, $says:literal) => {
        Scenario {
            name: stringify!($name),
            says: $says,
            company: Company::$company,
            limit: Duration::from_secs($seconds),
            run: |test| Box::pin($module::$name(test)),
        }
    };
}

/// All scenarios, in the order they begin.
pub(crate) fn all() -> Vec<Scenario> {
    membership().into_iter().chain(traffic()).chain(alone()).collect()
}

/// What clients and backends see of the proxy.
fn traffic() -> Vec<Scenario> {
    vec![
        scenario!(
            serving::serves_a_pool,
            Shared,
            120,
            "a pool serves from all its pods, keeps every key and passes bodies unchanged"
        ),
        scenario!(
            sharing::pools_share_a_port,
            Shared,
            120,
            "pools share a port by host and path, and one that asks for another's part is told whose it is"
        ),
        scenario!(
            streams::bytes_and_datagrams_come_through,
            Shared,
            180,
            "connections of TCP and flows of UDP come through whole, those of one client at one pod"
        ),
        scenario!(
            calls::calls_are_balanced_one_by_one,
            Shared,
            180,
            "calls of gRPC on one connection reach all pods, each key always the same, and HTTP/1 reaches them too"
        ),
        scenario!(
            calls::backends_are_asked_within_tls,
            Shared,
            180,
            "backends are asked within TLS, in HTTP/2 and HTTP/1.1, and not at all under another authority"
        ),
        scenario!(
            access_log::requests_are_written_down,
            Shared,
            120,
            "every request of a pool with an access log is a line of JSON in the log of the replica that took it"
        ),
        scenario!(
            certificates::a_new_certificate_is_shown_within_two_seconds,
            Shared,
            180,
            "a Secret changes, breaks and goes: newcomers see the new certificate within 2 s, and no request is lost"
        ),
    ]
}

/// What becomes of pods and pools.
fn membership() -> Vec<Scenario> {
    vec![
        scenario!(
            rollout::rollout_keeps_keys,
            Shared,
            240,
            "a rolling update of ten pods loses no request and moves no key more than once"
        ),
        scenario!(
            readiness::follows_a_readiness_flip,
            Shared,
            120,
            "a pod that is not ready gets nothing; when it is back, every key is where it was"
        ),
        scenario!(
            validation::bad_pools_are_refused,
            Shared,
            60,
            "the API server refuses pools that cannot work and says why"
        ),
        scenario!(
            admission::files_are_checked_as_in_a_cluster,
            Shared,
            60,
            "an offline check refuses what the API server refuses, for the same fields, and nothing else"
        ),
        scenario!(
            validation::a_bad_reference_disturbs_nobody,
            Shared,
            120,
            "a reference to nothing shows in the conditions and leaves other pools alone"
        ),
        scenario!(
            scale::scaling_moves_only_the_needed_share,
            Shared,
            180,
            "new pods take only their share of the keys; pods that go give up only their own"
        ),
        scenario!(
            replicas::two_replicas_agree,
            Shared,
            120,
            "both replicas have the same table after every change"
        ),
    ]
}

fn alone() -> Vec<Scenario> {
    vec![
        scenario!(
            kill::a_killed_backend_costs_no_request,
            Alone,
            240,
            "one of four backends is killed twenty times at 800 requests/s; no request is lost"
        ),
        scenario!(
            propagation::readiness_spreads_within_50_ms,
            Alone,
            420,
            "100 readiness flips: 99 of 100 reach the traffic of both replicas within 50 ms"
        ),
        scenario!(
            upgrade::own_rollout_loses_no_request,
            Alone,
            180,
            "Guideway's own rolling update at 500 requests/s on keep-alive connections loses none, also under a bad edit"
        ),
        scenario!(
            outage::traffic_outlives_the_api_server,
            Alone,
            240,
            "the API server stops for 60 s: traffic goes on, the age of the watch shows it, and it passes"
        ),
    ]
}
