//! Owns one list-and-watch per kind of object. It is our own loop over plain list and watch calls because
//! bookmarks must count as signs of life, a resource version that leads nowhere must end in a new list, and
//! a list must arrive whole: never as a flood of deletes. Whatever fails here is retried for ever.

use std::fmt::Debug;
use std::hash::{BuildHasher, RandomState};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, timeout};

use super::facts::{Key, Pod, Service, Slice};
use super::keyring::Look;
use super::resource::PoolResource;
use super::touch::Touch;
use super::words::Words;
use crate::metrics::ControlMetrics;

/// Objects per page of a list, the page size of other Kubernetes clients.
const PAGE: u32 = 500;

/// The kinds of objects tables are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    Pools,
    Services,
    Slices,
    Pods,
    /// Not watched but looked at, one by one.
    Secrets,
}

impl Kind {
    /// The plural name in the API, used in logs and as a metric label.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Pools => "loadbalancerpools",
            Self::Services => "services",
            Self::Slices => "endpointslices",
            Self::Pods => "pods",
            Self::Secrets => "secrets",
        }
    }
}

/// The namespace a watch covers; `None` is the whole cluster.
pub(super) type Scope = Option<Arc<str>>;

/// Something the API server told us.
#[derive(Clone, Debug)]
pub(super) enum Event {
    Pools(Change<PoolResource>),
    Services(Change<Service>),
    Slices(Change<Slice>),
    Pods(Change<Pod>),
    Secret(Look),
}

/// What happened to the objects of one kind.
#[derive(Clone, Debug)]
pub(super) enum Change<T> {
    /// The whole truth about one scope; what is missing is gone.
    Relisted {
        scope: Scope,
        objects: Vec<T>,
    },
    Applied(T),
    Deleted(Key),
}

/// An event and the moment it arrived.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) event: Event,
    pub(super) at: Instant,
}

/// How patient a watch is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Wait after the first failure; doubles with every further one.
    pub(super) first_retry: Duration,
    /// Longest wait. After it a list must still fit into the 5 s in which recovery is promised.
    pub(super) longest_retry: Duration,
    /// Longest wait for the answer to a list, or for a watch to begin.
    pub(super) answer: Duration,
    /// A watch that says nothing for this long is taken for dead and begun again.
    pub(super) silence: Duration,
    /// Seconds after which the server ends a watch by itself, at most; a quarter less at least.
    pub(super) server_timeout: u32,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            first_retry: Duration::from_millis(50),
            longest_retry: Duration::from_secs(3),
            // The API server gives a list up to 60 s; one that takes 15 s for a page of 500 is better asked again.
            answer: Duration::from_secs(15),
            // Bookmarks come every 60 to 75 s, so 90 s of silence is a dead connection.
            silence: Duration::from_secs(90),
            server_timeout: 280,
        }
    }
}

/// One list-and-watch: where from, what to keep of an object, where to.
#[derive(Debug)]
pub(super) struct Watch<K, T> {
    pub(super) kind: Kind,
    pub(super) scope: Scope,
    pub(super) api: Api<K>,
    pub(super) shrink: fn(&K) -> Option<T>,
    pub(super) wrap: fn(Change<T>) -> Event,
    pub(super) pace: Pace,
    pub(super) touch: Touch,
    pub(super) metrics: ControlMetrics,
    /// Asks for a second list.
    pub(super) relist: Arc<Notify>,
    pub(super) told: mpsc::Sender<Told>,
}

/// Why a stream of events ended, and what follows.
#[derive(Debug)]
enum End {
    /// Watch on from the last version seen.
    Resume(Why),
    /// The version leads nowhere any more, or someone asked: list again.
    Relist(Why),
    /// Nobody listens: stop.
    Unheard,
}

#[derive(Debug, thiserror::Error)]
enum Why {
    #[error("the server ended the watch")]
    Ended,
    #[error("no event and no bookmark for {0:?}")]
    Silent(Duration),
    #[error("no answer within {0:?}")]
    Unanswered(Duration),
    #[error("a list without a resource version")]
    Unversioned,
    #[error("a second list was asked for")]
    Asked,
    #[error("the server is in reach again")]
    Regained,
    #[error("the call failed")]
    Failed(#[from] kube::Error),
}

impl<K, T> Watch<K, T>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    /// Lists and watches until nobody listens.
    pub(super) async fn run(self) {
        let mut patience = Patience::new(self.pace, self.touch.clone());
        self.heard();
        loop {
            let listed = tokio::select! {
                listed = self.list() => listed,
                () = patience.touch.regained() => Err(Why::Regained),
            };
            let mut version = match listed {
                Ok(Some(version)) => version,
                Ok(None) => return,
                Err(why) => {
                    self.pause(&why, "list", &mut patience).await;
                    continue;
                }
            };
            self.tell_regained(&mut patience);
            loop {
                match self.follow(&mut version, &mut patience).await {
                    End::Unheard => return,
                    End::Relist(Why::Asked) => break,
                    End::Resume(why) => self.pause(&why, "watch", &mut patience).await,
                    End::Relist(why) => {
                        self.pause(&why, "watch", &mut patience).await;
                        break;
                    }
                }
            }
        }
    }

    /// A watch that ends by itself after a good while is how the protocol works; all else is worth a line, but for good
    /// news, for which nobody waits either.
    async fn pause(&self, why: &Why, call: &'static str, patience: &mut Patience) {
        if matches!(why, Why::Regained) {
            return;
        }
        if !(matches!(why, Why::Ended) && patience.is_fresh()) {
            self.complain(why, patience, call);
        }
        patience.wait(why).await;
    }

    /// Only the first failure in a row is a warning: an API server that stays away must not fill the log.
    fn complain(&self, why: &Why, patience: &mut Patience, call: &'static str) {
        let (kind, scope) = (self.kind.name(), self.scope.as_deref().unwrap_or("*"));
        if patience.is_fresh() {
            patience.lost.get_or_insert_with(Instant::now);
            tracing::warn!(kind, scope, call, error = %Words(why), "lost touch with the API server, trying again; the tables stay");
        } else {
            tracing::debug!(kind, scope, call, error = %Words(why), attempt = patience.failures, "trying again");
        }
    }

    /// A call that is answered ends what was complained of.
    fn tell_regained(&self, patience: &mut Patience) {
        if let Some(lost) = patience.lost.take() {
            let (kind, scope) = (self.kind.name(), self.scope.as_deref().unwrap_or("*"));
            let away_ms = u64::try_from(lost.elapsed().as_millis()).unwrap_or(u64::MAX);
            tracing::info!(kind, scope, away_ms, "in touch with the API server again");
        }
    }

    /// Sends the whole list as one event and returns the version to watch from. `None` when nobody listens.
    async fn list(&self) -> Result<Option<String>, Why> {
        let mut params = ListParams::default().limit(PAGE);
        let mut objects = Vec::new();
        loop {
            let answer = timeout(self.pace.answer, self.api.list(&params)).await;
            let page = answer.map_err(|_| Why::Unanswered(self.pace.answer))??;
            self.heard();
            objects.extend(page.items.iter().filter_map(self.shrink));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => {
                    let version = page.metadata.resource_version.filter(|version| !version.is_empty());
                    let version = version.ok_or(Why::Unversioned)?;
                    let relisted = Change::Relisted { scope: self.scope.clone(), objects };
                    return Ok(self.tell(relisted).await.then_some(version));
                }
            }
        }
    }

    /// Watches from `version` on and keeps it up to date.
    async fn follow(&self, version: &mut String, patience: &mut Patience) -> End {
        let params = WatchParams::default().timeout(patience.lifetime());
        let answer = tokio::select! {
            answer = timeout(self.pace.answer, self.api.watch(&params, version)) => answer,
            () = patience.touch.regained() => return End::Resume(Why::Regained),
        };
        let stream = match answer {
            Err(_) => return End::Resume(Why::Unanswered(self.pace.answer)),
            Ok(Err(error)) => return end_of(error),
            Ok(Ok(stream)) => stream,
        };
        self.heard();
        self.tell_regained(patience);
        let begun = Instant::now();
        let mut stream = pin!(stream.into_stream());
        loop {
            let next = tokio::select! {
                next = timeout(self.pace.silence, stream.next()) => next,
                () = self.relist.notified() => return End::Relist(Why::Asked),
                () = patience.touch.regained() => return End::Resume(Why::Regained),
            };
            let event = match next {
                Err(_) => return End::Resume(Why::Silent(self.pace.silence)),
                Ok(None) => {
                    patience.lived(begun.elapsed());
                    return End::Resume(Why::Ended);
                }
                Ok(Some(Err(error))) => return end_of(error),
                Ok(Some(Ok(WatchEvent::Error(status)))) => return end_of(kube::Error::Api(status)),
                Ok(Some(Ok(event))) => event,
            };
            self.heard();
            patience.rest();
            if !self.pass_on(event, version).await {
                return End::Unheard;
            }
        }
    }

    /// Passes one event on. `false` when nobody listens.
    async fn pass_on(&self, event: WatchEvent<K>, version: &mut String) -> bool {
        let (object, deleted) = match event {
            WatchEvent::Bookmark(bookmark) => {
                *version = bookmark.metadata.resource_version;
                return true;
            }
            WatchEvent::Added(object) | WatchEvent::Modified(object) => (object, false),
            WatchEvent::Deleted(object) => (object, true),
            WatchEvent::Error(_) => return true,
        };
        if let Some(seen) = object.resource_version() {
            *version = seen;
        }
        let facts = if deleted { None } else { (self.shrink)(&object) };
        match (facts, Key::of(object.meta())) {
            (Some(facts), _) => self.tell(Change::Applied(facts)).await,
            (None, Some(key)) => self.tell(Change::Deleted(key)).await,
            (None, None) => true,
        }
    }

    fn heard(&self) {
        self.metrics.watch_heard(self.kind.name(), self.scope.clone());
    }

    async fn tell(&self, change: Change<T>) -> bool {
        let told = Told { event: (self.wrap)(change), at: Instant::now() };
        self.told.send(told).await.is_ok()
    }
}

/// A server that is busy or refuses for now may know the version still; any other refusal of a watch (410 Gone, 504 for a
/// version from the future after a restore) would come again for ever, so it ends in a new list.
fn end_of(error: kube::Error) -> End {
    match &error {
        kube::Error::Api(status) if !matches!(status.code, 401 | 403 | 429 | 503) => {
            End::Relist(error.into())
        }
        _ => End::Resume(error.into()),
    }
}

/// The waiting between attempts: short at first, doubling, jittered, forgotten after a success.
#[derive(Debug)]
struct Patience {
    pace: Pace,
    /// Ends every wait.
    touch: Touch,
    failures: u32,
    /// Since when, if that was complained of and not taken back.
    lost: Option<Instant>,
    jitter: RandomState,
}

impl Patience {
    fn new(pace: Pace, touch: Touch) -> Self {
        Self { pace, touch, failures: 0, lost: None, jitter: RandomState::new() }
    }

    fn is_fresh(&self) -> bool {
        self.failures == 0
    }

    /// Something useful came: the next failure is a first one again.
    fn rest(&mut self) {
        self.failures = 0;
    }

    /// A quiet stream counts as a success only when it lasted: a server that closes every watch at once must not be hammered.
    fn lived(&mut self, lifetime: Duration) {
        if lifetime >= self.pace.longest_retry {
            self.rest();
        }
    }

    /// Seconds for the next watch. Watches that began together do not end together.
    fn lifetime(&self) -> u32 {
        let most = self.pace.server_timeout;
        most - self.jitter.hash_one(most) as u32 % (most / 4 + 1)
    }

    async fn wait(&mut self, why: &Why) {
        let delay = self.delay().max(asked_by_server(why).min(self.pace.longest_retry));
        self.failures = self.failures.saturating_add(1);
        tokio::select! {
            () = sleep(delay) => {}
            () = self.touch.regained() => {}
        }
    }

    /// Between half and all of the doubled first delay, so that replicas do not come back in step.
    fn delay(&self) -> Duration {
        let doubled = self.pace.first_retry.saturating_mul(1 << self.failures.min(16));
        let half = doubled.min(self.pace.longest_retry) / 2;
        let share = self.jitter.hash_one(self.failures) % 1024;
        half + half.mul_f64(f64::from(u16::try_from(share).unwrap_or_default()) / 1024.0)
    }
}

/// What a busy server asked for (`Retry-After`).
fn asked_by_server(why: &Why) -> Duration {
    match why {
        Why::Failed(kube::Error::Api(status)) => {
            let seconds = status.details.as_ref().map_or(0, |details| details.retry_after_seconds);
            Duration::from_secs(seconds.into())
        }
        _ => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watches_that_begin_together_end_apart() {
        let patience = || Patience::new(Pace::default(), super::super::touch::Pulse::new().1);
        let lifetimes: Vec<u32> = (0..100).map(|_| patience().lifetime()).collect();
        assert!(lifetimes.iter().all(|seconds| (210..=280).contains(seconds)), "{lifetimes:?}");
        let distinct: std::collections::BTreeSet<_> = lifetimes.iter().collect();
        assert!(distinct.len() > 20, "{lifetimes:?}");
    }
}
