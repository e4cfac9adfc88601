//! Owns the writing of statuses, by the lease holder alone. The latest status of a pool waits in one place until it
//! may be written: at once what somebody waits for, the rest with what else comes in half a second, again after a
//! failure, never twice.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Client, Resource};
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout};

use super::words::Words;
use crate::balance::pool::PoolId;
use crate::crd::{LoadBalancerPool, LoadBalancerPoolStatus};

/// Owner of the status in server-side apply. The same on every replica: a new lease holder takes over from the last.
const FIELD_MANAGER: &str = "guideway";
/// Five writes a second for a pool: enough to follow a rollout by eye, little enough for a thousand pools.
const BETWEEN_WRITES: Duration = Duration::from_millis(200);
/// What only reports waits for more of its kind. A status costs the API server more than the change it tells of,
/// and at that moment the server has to tell every replica.
const SETTLE: Duration = Duration::from_millis(500);
/// Longest wait between attempts to write a status again.
const LONGEST_RETRY: Duration = Duration::from_secs(5);
/// Longest wait for the answer to one write.
const ANSWER: Duration = Duration::from_secs(10);
/// Writes under way at a time.
const AT_A_TIME: usize = 8;

/// Where the controller leaves statuses. Holds at most one for each pool, so it is as bounded as the pools are.
#[derive(Clone, Debug, Default)]
pub(super) struct StatusQueue {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    pools: Mutex<BTreeMap<PoolId, Entry>>,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Entry {
    /// UID of the pool, so that a status never lands on a later pool of that name.
    uid: Arc<str>,
    /// What should stand there.
    wanted: Option<Arc<LoadBalancerPoolStatus>>,
    /// What stands there as far as we know.
    standing: Arc<LoadBalancerPoolStatus>,
    /// When it may be written again.
    not_before: Option<Instant>,
    /// Until when news is collected that nobody waits for; since the first of it, which need not be true any more.
    settled_at: Option<Instant>,
    failures: u32,
}

impl StatusQueue {
    /// The status of a pool as the API server told it.
    pub(super) fn observed(&self, id: &PoolId, uid: &Arc<str>, status: &Arc<LoadBalancerPoolStatus>) {
        let mut pools = self.pools();
        let entry = pools.entry(id.clone()).or_default();
        if entry.uid != *uid {
            *entry = Entry { uid: uid.clone(), ..Entry::default() };
        }
        entry.standing = status.clone();
        if entry.is_due_ever() {
            self.shared.filled.notify_one();
        }
    }

    /// Computes what should stand there from what does, and leaves it to be written.
    pub(super) fn write(
        &self,
        id: &PoolId,
        status: impl FnOnce(&LoadBalancerPoolStatus) -> LoadBalancerPoolStatus,
    ) {
        let mut pools = self.pools();
        let Some(entry) = pools.get_mut(id) else { return };
        entry.wanted = Some(Arc::new(status(entry.wanted.as_ref().unwrap_or(&entry.standing))));
        if entry.is_awaited() {
            entry.settled_at = None;
        } else if entry.is_due_ever() && entry.settled_at.is_none() {
            entry.settled_at = Some(Instant::now() + SETTLE);
        }
        self.shared.filled.notify_one();
    }

    /// The pool is gone.
    pub(super) fn forget(&self, id: &PoolId) {
        self.pools().remove(id);
    }

    /// We hold the lease no more: others write.
    pub(super) fn withdraw(&self) {
        self.pools().values_mut().for_each(|entry| entry.wanted = None);
    }

    fn pools(&self) -> MutexGuard<'_, BTreeMap<PoolId, Entry>> {
        // Nothing panics half way through a change of an entry.
        self.shared.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes for ever what is left here.
    pub(super) async fn run(self, client: Client) {
        loop {
            let now = Instant::now();
            let (due, next) = self.due(now);
            if !due.is_empty() {
                let write = |(id, uid, status)| self.write_one(&client, id, uid, status);
                futures::stream::iter(due).map(write).buffer_unordered(AT_A_TIME).collect::<()>().await;
                continue;
            }
            let later = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.shared.filled.notified() => {}
                () = later => {}
            }
        }
    }

    /// The statuses that may be written now, and when the next one may.
    fn due(&self, now: Instant) -> (Vec<Due>, Option<Instant>) {
        let pools = self.pools();
        let waiting = || pools.iter().filter(|(_, entry)| entry.is_due_ever());
        let is_now = |entry: &Entry| entry.due_at().is_none_or(|at| at <= now);
        let due = waiting().filter(|(_, entry)| is_now(entry));
        let due = due.filter_map(|(id, entry)| Some((id.clone(), entry.uid.clone(), entry.wanted.clone()?)));
        (due.collect(), waiting().filter_map(|(_, entry)| entry.due_at()).min())
    }

    async fn write_one(
        &self,
        client: &Client,
        id: PoolId,
        uid: Arc<str>,
        status: Arc<LoadBalancerPoolStatus>,
    ) {
        let answer = timeout(ANSWER, patch(client, &id, &uid, &status)).await;
        let mut pools = self.pools();
        let Some(entry) = pools.get_mut(&id).filter(|entry| entry.uid == uid) else { return };
        let now = Instant::now();
        (entry.not_before, entry.settled_at) = (Some(now + BETWEEN_WRITES), None);
        match answer {
            Ok(Ok(())) => {
                (entry.standing, entry.failures) = (status, 0);
            }
            // Gone, or another pool of that name by now: the watch will tell.
            Ok(Err(kube::Error::Api(refusal))) if matches!(refusal.code, 404 | 409) => entry.wanted = None,
            Ok(Err(kube::Error::Api(refusal))) if is_too_large(refusal.code, &refusal.message) => {
                if entry.failures == 0 {
                    tracing::error!(namespace = %id.namespace, pool = %id.name, refusal = %refusal.message, "the status is too large to be written, so it does not say what is served, and a replica that starts may serve something else; make the pool smaller: list fewer endpoints, or name a Service in their place");
                }
                entry.put_off(now);
            }
            Ok(Err(error)) => entry.failed(&id, &error, now),
            Err(late) => entry.failed(&id, &late, now),
        }
    }
}

type Due = (PoolId, Arc<str>, Arc<LoadBalancerPoolStatus>);

impl Entry {
    /// There is something to write that does not stand there yet.
    fn is_due_ever(&self) -> bool {
        self.wanted.as_ref().is_some_and(|wanted| *wanted != self.standing)
    }

    /// Another replica waits for the seats, and whoever edited the pool for the answer.
    fn is_awaited(&self) -> bool {
        self.wanted.as_ref().is_some_and(|wanted| {
            wanted.observed_generation != self.standing.observed_generation
                || wanted.seats != self.standing.seats
                || wanted.packed_seats != self.standing.packed_seats
        })
    }

    fn due_at(&self) -> Option<Instant> {
        self.not_before.max(self.settled_at)
    }

    fn failed(&mut self, id: &PoolId, error: &(dyn std::error::Error + 'static), now: Instant) {
        if self.failures == 0 {
            tracing::warn!(namespace = %id.namespace, pool = %id.name, error = %Words(error), "cannot write the status, trying again");
        }
        self.put_off(now);
    }

    fn put_off(&mut self, now: Instant) {
        let wait = BETWEEN_WRITES.saturating_mul(1 << self.failures.min(10)).min(LONGEST_RETRY);
        self.failures = self.failures.saturating_add(1);
        self.not_before = Some(now + wait);
    }
}

/// Whether the API server, or etcd behind it, refuses the object for its size, for which each has a word of its own.
fn is_too_large(code: u16, message: &str) -> bool {
    code == 413 || message.contains("request is too large") || message.contains("message larger than max")
}

async fn patch(
    client: &Client,
    id: &PoolId,
    uid: &str,
    status: &LoadBalancerPoolStatus,
) -> Result<(), kube::Error> {
    let kind = ApiResource::erase::<LoadBalancerPool>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &id.namespace, &kind);
    let body = json!({
        "apiVersion": LoadBalancerPool::api_version(&()),
        "kind": LoadBalancerPool::kind(&()),
        "metadata": { "name": &*id.name, "uid": uid },
        "status": status,
    });
    api.patch_status(&id.name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(body))
        .await
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crd::status::{EndpointCounts, Seat};

    fn speaks_of(generation: i64) -> LoadBalancerPoolStatus {
        LoadBalancerPoolStatus { observed_generation: Some(generation), ..LoadBalancerPoolStatus::default() }
    }

    #[test]
    fn what_only_reports_is_collected_and_what_is_awaited_is_not() {
        let (queue, id) = (StatusQueue::default(), PoolId::new("shop", "web"));
        let counts = |ready| LoadBalancerPoolStatus {
            endpoints: Some(EndpointCounts::new(9, ready, 0)),
            ..speaks_of(1)
        };
        queue.observed(&id, &"uid".into(), &Arc::new(counts(9)));
        let begun = Instant::now();
        queue.write(&id, |_| counts(8));
        let (due, next) = queue.due(begun);
        assert!(due.is_empty() && next.is_some_and(|at| at >= begun + SETTLE));
        queue.write(&id, |_| counts(7));
        assert_eq!(queue.due(begun).1, next, "news does not put off what waits already");
        assert_eq!(queue.due(begun + 2 * SETTLE).0[0].2.endpoints, counts(7).endpoints);
        let seat =
            Seat { seat: 0, backend: "all".into(), occupant: None, uid: None, weight: 1, vacated: None };
        queue.write(&id, |_| LoadBalancerPoolStatus { seats: vec![seat], ..counts(6) });
        assert_eq!(queue.due(begun).0.len(), 1, "another replica waits for a seat");
    }

    #[test]
    fn a_refusal_for_size_is_known_by_its_code_or_its_words() {
        let grpc = "rpc error: code = ResourceExhausted desc = trying to send message larger than max (2098000 vs. 2097152)";
        assert!(is_too_large(413, "Request entity too large: limit is 3145728"));
        assert!(is_too_large(500, "etcdserver: request is too large") && is_too_large(500, grpc));
        assert!(!is_too_large(500, "etcdserver: request timed out") && !is_too_large(422, "Too many: 70000"));
    }

    #[test]
    fn a_status_never_lands_on_a_later_pool_of_the_name() {
        let (queue, id) = (StatusQueue::default(), PoolId::new("shop", "web"));
        queue.observed(&id, &"first".into(), &Arc::default());
        queue.write(&id, |_| speaks_of(7));
        assert_eq!(queue.due(Instant::now()).0.len(), 1);
        queue.observed(&id, &"second".into(), &Arc::default());
        assert_eq!(queue.due(Instant::now()).0, []);
        queue.write(&id, |before| {
            assert_eq!(*before, LoadBalancerPoolStatus::default(), "what was said of the first is forgotten");
            speaks_of(1)
        });
        assert_eq!(queue.due(Instant::now()).0, [(id, "second".into(), Arc::new(speaks_of(1)))]);
    }
}
