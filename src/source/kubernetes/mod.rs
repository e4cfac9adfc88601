//! Owns the cluster as a source: four kinds of objects are watched, joined per namespace and handed to the
//! programmer; the lease holder writes back what became of each pool. Losing the API server loses no table.

mod connect;
mod controller;
mod facts;
mod guard;
mod index;
mod join;
mod lease;
mod namespace;
mod resource;
mod status;
mod status_writer;
mod watch;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, mpsc, watch as channel};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use self::controller::{Controller, Wires};
use self::status_writer::StatusQueue;
use self::watch::{Event, Kind, Scope, Told, Watch};
use crate::crd::LoadBalancerPool;
use crate::handoff::BindingsReader;
use crate::metrics::ControlMetrics;
use crate::readiness::Latch;
use crate::source::programmer::Programmer;

pub use self::connect::connect;

/// Events on their way to the controller. When it is busy the watches wait, and the API server with them.
const EVENTS_WAITING: usize = 1024;
/// How long letting go of the lease may hold up the end.
const GOODBYE: Duration = Duration::from_secs(3);

/// What the source must know.
#[derive(Clone, Debug)]
pub struct Options {
    /// The namespaces to watch; all when empty.
    pub namespaces: Vec<String>,
    /// The namespace of the Lease.
    pub lease_namespace: String,
    /// Our name in the Lease, different on every replica.
    pub identity: String,
}

/// Why the source ended although nobody asked for it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A part that never ends ended.
    #[error("the {0} of the Kubernetes source ended by itself; this is a defect")]
    Ended(&'static str),
    /// A part died.
    #[error("a part of the Kubernetes source died; this is a defect")]
    Died(#[source] JoinError),
}

/// Watches the cluster and programs pools until `stop`. Releases `readiness` with the first full picture published.
pub async fn run(
    client: Client,
    options: Options,
    programmer: Programmer,
    bindings: BindingsReader,
    readiness: Latch,
    metrics: ControlMetrics,
    stop: CancellationToken,
) -> Result<(), Error> {
    let mut parts = JoinSet::new();
    let (told, events) = mpsc::channel(EVENTS_WAITING);
    let relists = watch_all(&client, &options.namespaces, &told, &metrics, &mut parts);
    drop(told);
    let (holds, lease) = channel::channel(false);
    let candidate = lease::Candidate::new(
        client.clone(),
        &options.lease_namespace,
        &options.identity,
        lease::Pace::default(),
    );
    let candidate = tokio::spawn(candidate.run(holds, stop.clone()));
    let statuses = StatusQueue::default();
    parts.spawn(ended("status writer", statuses.clone().run(client)));
    let wires = Wires { events, relists, lease, bindings, statuses, metrics };
    let controller = Controller::new(programmer, readiness, wires);
    let result = tokio::select! {
        () = controller.run(stop.clone()) => Ok(()),
        Some(part) = parts.join_next() => Err(match part {
            Ok(name) => Error::Ended(name),
            Err(error) => Error::Died(error),
        }),
    };
    stop.cancel();
    match tokio::time::timeout(GOODBYE, candidate).await {
        Ok(Err(error)) => result.and(Err(Error::Died(error))),
        _ => result,
    }
}

async fn ended(name: &'static str, part: impl Future<Output = ()>) -> &'static str {
    part.await;
    name
}

/// Starts a watch for each kind and scope. Returns the bells that ask each for a second list.
fn watch_all(
    client: &Client,
    namespaces: &[String],
    told: &mpsc::Sender<Told>,
    metrics: &ControlMetrics,
    parts: &mut JoinSet<&'static str>,
) -> BTreeMap<(Kind, Scope), Arc<Notify>> {
    let scopes: Vec<Scope> = match namespaces {
        [] => vec![None],
        some => some.iter().map(|name| Some(name.as_str().into())).collect(),
    };
    let mut relists = BTreeMap::new();
    for scope in scopes {
        let mut start = Start { scope: &scope, told, metrics, parts, relists: &mut relists };
        let pools = ApiResource::erase::<LoadBalancerPool>(&());
        let pools: Api<DynamicObject> = match &scope {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &pools),
            None => Api::all_with(client.clone(), &pools),
        };
        start.watch(Kind::Pools, pools, resource::PoolResource::from_object, Event::Pools);
        start.watch(
            Kind::Services,
            scoped::<Service>(client, &scope),
            facts::Service::from_object,
            Event::Services,
        );
        start.watch(
            Kind::Slices,
            scoped::<EndpointSlice>(client, &scope),
            facts::Slice::from_object,
            Event::Slices,
        );
        start.watch(Kind::Pods, scoped::<Pod>(client, &scope), facts::Pod::from_object, Event::Pods);
    }
    relists
}

fn scoped<K>(client: &Client, scope: &Scope) -> Api<K>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    K::DynamicType: Default,
{
    match scope {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

/// What the watches of one scope have in common.
struct Start<'a> {
    scope: &'a Scope,
    told: &'a mpsc::Sender<Told>,
    metrics: &'a ControlMetrics,
    parts: &'a mut JoinSet<&'static str>,
    relists: &'a mut BTreeMap<(Kind, Scope), Arc<Notify>>,
}

impl Start<'_> {
    fn watch<K, T>(
        &mut self,
        kind: Kind,
        api: Api<K>,
        shrink: fn(&K) -> Option<T>,
        wrap: fn(watch::Change<T>) -> Event,
    ) where
        K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
        T: Send + Sync + 'static,
    {
        let relist = Arc::new(Notify::new());
        self.relists.insert((kind, self.scope.clone()), relist.clone());
        let watch = Watch {
            kind,
            scope: self.scope.clone(),
            api,
            shrink,
            wrap,
            pace: watch::Pace::default(),
            metrics: self.metrics.clone(),
            relist,
            told: self.told.clone(),
        };
        self.parts.spawn(ended(kind.name(), watch.run()));
    }
}
