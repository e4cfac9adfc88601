//! Owns the cluster as a source: four kinds of objects are watched and Secrets looked at, joined per namespace and
//! handed to the programmer; the lease holder writes back what became of each pool. Losing the API server loses no
//! table.

mod absence;
mod connect;
mod controller;
mod edits;
mod entry;
mod facts;
mod guard;
mod index;
mod join;
mod keyring;
mod lease;
mod namespace;
mod resource;
mod secrets;
mod status;
mod status_writer;
mod throttle;
mod touch;
mod watch;
mod wire;
mod words;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, mpsc, watch as channel};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use self::controller::{Controller, Wires};
use self::secrets::{Named, SecretReader};
use self::status_writer::StatusQueue;
use self::touch::{Pulse, Touch};
use self::watch::{Event, Kind, Scope, Told, Watch};
use crate::crd::LoadBalancerPool;
use crate::metrics::ControlMetrics;
use crate::source::Outlets;

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
    /// Our name in the Lease; a random tail is added to it.
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

/// Watches the cluster and programs pools until `stop`. Ready with the first full picture published.
pub async fn run(
    client: Client,
    options: Options,
    outlets: Outlets,
    stop: CancellationToken,
) -> Result<(), Error> {
    let paces = Paces::default();
    // Two processes of one name must not take each other's lease for their own.
    let identity = format!("{}_{:08x}", options.identity, RandomState::new().hash_one(0) & 0xffff_ffff);
    let options = Options { identity, ..options };
    Source { client, options, paces, outlets }.run(stop).await
}

/// How patient the parts are.
#[derive(Clone, Copy, Debug, Default)]
struct Paces {
    watch: watch::Pace,
    lease: lease::Pace,
}

/// Everything the source is put together from.
struct Source {
    client: Client,
    options: Options,
    paces: Paces,
    outlets: Outlets,
}

impl Source {
    /// Runs all parts until `stop`, or until one of them ends, which none should.
    async fn run(self, stop: CancellationToken) -> Result<(), Error> {
        let Self { client, options, paces, outlets } = self;
        let Outlets { programmer, bindings, readiness, metrics } = outlets;
        let mut parts = JoinSet::new();
        let (told, events) = mpsc::channel(EVENTS_WAITING);
        let (secrets, named) = channel::channel(Named::new());
        let reader = SecretReader::new(client.clone(), named, told.clone());
        parts.spawn(ended("reader of Secrets", reader.run()));
        let (pulse, touch) = Pulse::new();
        let mut starter =
            Starter { client: &client, pace: paces.watch, touch, told, metrics: &metrics, parts: &mut parts };
        let relists = starter.watch_all(&options.namespaces);
        drop(starter);
        let (holds, lease) = channel::channel(false);
        let (namespace, identity) = (&options.lease_namespace, &options.identity);
        let candidate = lease::Candidate::new(client.clone(), namespace, identity, paces.lease, pulse);
        let mut candidate = tokio::spawn(candidate.run(holds, stop.clone()));
        let statuses = StatusQueue::default();
        parts.spawn(ended("status writer", statuses.clone().run(client.clone())));
        let wires = Wires { events, relists, secrets, lease, bindings, statuses, metrics: metrics.clone() };
        let controller = Controller::new(programmer, readiness, wires);
        let over = tokio::select! {
            () = controller.run(stop.clone()) => Over::Controller,
            Some(part) = parts.join_next() => Over::Part(part),
            lease = &mut candidate => Over::Lease(lease),
        };
        let asked = stop.is_cancelled();
        stop.cancel();
        match over {
            Over::Lease(Err(error)) => Err(Error::Died(error)),
            Over::Lease(Ok(())) if !asked => Err(Error::Ended("lease")),
            Over::Lease(Ok(())) => Ok(()),
            Over::Controller if asked => goodbye(candidate).await,
            Over::Controller => goodbye(candidate).await.and(Err(Error::Ended("watches"))),
            Over::Part(part) => {
                goodbye(candidate).await.and(Err(part.map_or_else(Error::Died, Error::Ended)))
            }
        }
    }
}

/// What ended first.
enum Over {
    Controller,
    Part(Result<&'static str, JoinError>),
    Lease(Result<(), JoinError>),
}

/// Waits until the lease is let go, but not for ever.
async fn goodbye(candidate: JoinHandle<()>) -> Result<(), Error> {
    match tokio::time::timeout(GOODBYE, candidate).await {
        Ok(Err(error)) => Err(Error::Died(error)),
        Ok(Ok(())) | Err(_) => Ok(()),
    }
}

async fn ended(name: &'static str, part: impl Future<Output = ()>) -> &'static str {
    part.await;
    name
}

/// Starts watches, which have all of this in common.
struct Starter<'a> {
    client: &'a Client,
    pace: watch::Pace,
    touch: Touch,
    told: mpsc::Sender<Told>,
    metrics: &'a ControlMetrics,
    parts: &'a mut JoinSet<&'static str>,
}

/// The bells that ask each watch for a second list.
type Bells = BTreeMap<(Kind, Scope), Arc<Notify>>;

impl Starter<'_> {
    /// Starts a watch for each kind in each of the namespaces, or in the whole cluster.
    fn watch_all(&mut self, namespaces: &[String]) -> Bells {
        let scopes: Vec<Scope> = match namespaces {
            [] => vec![None],
            some => some.iter().map(|name| Some(name.as_str().into())).collect(),
        };
        let mut bells = Bells::new();
        for scope in scopes {
            let pools = ApiResource::erase::<LoadBalancerPool>(&());
            let pools: Api<DynamicObject> = match &scope {
                Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &pools),
                None => Api::all_with(self.client.clone(), &pools),
            };
            let (services, slices, pods) = (self.api::<Service>(&scope), self.api(&scope), self.api(&scope));
            let mut add = |kind, bell| drop(bells.insert((kind, scope.clone()), bell));
            add(
                Kind::Pools,
                self.watch(Kind::Pools, &scope, pools, resource::PoolResource::from_object, Event::Pools),
            );
            add(
                Kind::Services,
                self.watch(Kind::Services, &scope, services, facts::Service::from_object, Event::Services),
            );
            add(
                Kind::Slices,
                self.watch(Kind::Slices, &scope, slices, facts::Slice::from_object, Event::Slices),
            );
            add(Kind::Pods, self.watch(Kind::Pods, &scope, pods, facts::Pod::from_object, Event::Pods));
        }
        bells
    }

    fn api<K>(&self, scope: &Scope) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        match scope {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    fn watch<K, T>(
        &mut self,
        kind: Kind,
        scope: &Scope,
        api: Api<K>,
        shrink: fn(&K) -> Option<T>,
        wrap: fn(watch::Change<T>) -> Event,
    ) -> Arc<Notify>
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
        T: Send + Sync + 'static,
    {
        let relist = Arc::new(Notify::new());
        let watch = Watch {
            kind,
            scope: scope.clone(),
            api,
            shrink,
            wrap,
            pace: self.pace,
            touch: self.touch.clone(),
            metrics: self.metrics.clone(),
            relist: relist.clone(),
            told: self.told.clone(),
        };
        self.parts.spawn(ended(kind.name(), watch.run()));
        relist
    }
}
