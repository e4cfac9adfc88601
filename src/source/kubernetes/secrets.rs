//! Owns the looks at Secrets: each by its name about once a second, because a watch would need the right to list all
//! Secrets there are. Only news are told, and a private key is asked for only when its Secret changed.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, GetParams};
use kube::{Client, Resource};
use tokio::sync::{mpsc, watch as channel};
use tokio::time::{Instant, sleep_until, timeout};

use super::facts::Key;
use super::keyring::{Look, Miss};
use super::watch::{Event, Told};
use super::words::Words;
use crate::source::credentials::SecretCredentials;

/// How often each Secret is looked at. A new certificate is then in use within two seconds.
const EVERY: Duration = Duration::from_secs(1);
/// Shortest time between two looks, so 50 a second at most: what one replica may cost the API server. More Secrets
/// than 50 are looked at less often each; a thousand of them every 20 s.
const BETWEEN: Duration = Duration::from_millis(20);
/// The same where a Secret was never seen, for which a pool waits: a thousand are read within 5 s of the start.
const BETWEEN_FIRST: Duration = Duration::from_millis(5);
/// Looks under way at a time. Eight make the rate above where an answer takes 40 ms.
const AT_A_TIME: usize = 8;
/// Longest wait for an answer.
const ANSWER: Duration = Duration::from_secs(5);
/// For so long a pool waits for Secrets that the API server cannot show, before it is served without them. Readiness
/// waits as long.
const PATIENCE: Duration = Duration::from_secs(10);
/// Wait after a first failure; doubles with every further one,
const FIRST_RETRY: Duration = Duration::from_millis(50);
/// up to this, so that a new certificate is still in use within 5 s of the API server's return.
const LONGEST_RETRY: Duration = Duration::from_secs(2);

/// The Secrets to look at. A number that changes asks for a first look: what was known is forgotten.
pub(super) type Named = BTreeMap<Key, u64>;

/// Looks at Secrets.
pub(super) struct SecretReader {
    client: Client,
    named: channel::Receiver<Named>,
    told: mpsc::Sender<Told>,
    secrets: HashMap<Key, Watched>,
    /// Never looked at, in the order named.
    fresh: VecDeque<Key>,
    /// All others but those that are being looked at, the one next that waited longest.
    round: VecDeque<Key>,
    /// In a row, whatever the Secret.
    failures: u32,
    jitter: RandomState,
    looks: u64,
}

#[derive(Debug)]
struct Watched {
    number: u64,
    last: Last,
}

/// What was told last.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Last {
    Nothing { since: Instant },
    Version(Arc<str>),
    Missed(Miss),
}

/// What the API server said.
enum Answer {
    Unchanged,
    Read { version: Arc<str>, credentials: SecretCredentials },
}

#[derive(Debug, thiserror::Error)]
enum Why {
    #[error("no answer within {ANSWER:?}")]
    Unanswered,
    // The library's words would repeat what it could not read.
    #[error("the answer is no Secret")]
    Garbled,
    #[error("the call failed")]
    Failed(#[from] kube::Error),
}

impl SecretReader {
    pub(super) fn new(client: Client, named: channel::Receiver<Named>, told: mpsc::Sender<Told>) -> Self {
        Self {
            client,
            named,
            told,
            secrets: HashMap::new(),
            fresh: VecDeque::new(),
            round: VecDeque::new(),
            failures: 0,
            jitter: RandomState::new(),
            looks: 0,
        }
    }

    /// Looks until nobody names or listens any more.
    pub(super) async fn run(mut self) {
        let mut under_way = FuturesUnordered::new();
        let mut next = Instant::now();
        loop {
            let may_look = under_way.len() < AT_A_TIME && !(self.fresh.is_empty() && self.round.is_empty());
            tokio::select! {
                changed = self.named.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.rename();
                    next = next.min(Instant::now() + self.pause());
                }
                Some((key, number, answer)) = under_way.next() => {
                    if !self.take(key, number, answer).await {
                        return;
                    }
                }
                () = sleep_until(next), if may_look => {
                    under_way.extend(self.next().map(|(key, number, known)| look(self.client.clone(), key, number, known)));
                    next = Instant::now() + self.pause();
                }
            }
        }
    }

    /// Takes over what pools name now.
    fn rename(&mut self) {
        let named = self.named.borrow_and_update().clone();
        self.secrets.retain(|key, watched| named.get(key) == Some(&watched.number));
        let is_known = |key: &Key| self.secrets.contains_key(key);
        self.fresh.retain(is_known);
        self.round.retain(is_known);
        let since = Instant::now();
        for (key, number) in named {
            if !self.secrets.contains_key(&key) {
                self.fresh.push_back(key.clone());
                self.secrets.insert(key, Watched { number, last: Last::Nothing { since } });
            }
        }
    }

    /// The Secret to look at next, its number, and its version if it was read before.
    fn next(&mut self) -> Option<(Key, u64, Option<Arc<str>>)> {
        let key = self.fresh.pop_front().or_else(|| self.round.pop_front())?;
        let watched = self.secrets.get(&key)?;
        let version = match &watched.last {
            Last::Version(version) => Some(version.clone()),
            Last::Nothing { .. } | Last::Missed(_) => None,
        };
        Some((key, watched.number, version))
    }

    /// Until the next look. Between three quarters and all of its time, so that replicas do not look in step.
    fn pause(&mut self) -> Duration {
        self.looks += 1;
        let whole = if self.failures > 0 {
            let doubled = FIRST_RETRY.saturating_mul(1 << (self.failures - 1).min(16));
            doubled.min(LONGEST_RETRY)
        } else if !self.fresh.is_empty() {
            BETWEEN_FIRST
        } else {
            let secrets = u32::try_from(self.secrets.len().max(1)).unwrap_or(u32::MAX);
            (EVERY / secrets).max(BETWEEN)
        };
        let share = u32::try_from(self.jitter.hash_one(self.looks) % 256).unwrap_or_default();
        whole * 3 / 4 + whole / 4 * share / 256
    }

    /// Tells what is new. `false` when nobody listens.
    async fn take(&mut self, key: Key, number: u64, answer: Result<Answer, Why>) -> bool {
        let Some(watched) = self.secrets.get_mut(&key).filter(|it| it.number == number) else { return true };
        self.round.push_back(key.clone());
        let found = match answer.map_err(|why| (why.miss(), why)) {
            Ok(Answer::Unchanged) => {
                self.failures = 0;
                return true;
            }
            Ok(Answer::Read { version, credentials }) => {
                self.failures = 0;
                watched.last = Last::Version(version);
                tell_read(&key, &credentials);
                Ok(credentials)
            }
            Err((Some(miss), _)) => {
                self.failures = 0;
                Err(miss)
            }
            Err((None, why)) => {
                if self.failures == 0 {
                    tracing::warn!(namespace = %key.namespace, secret = %key.name, error = %Words(&why), "a Secret cannot be read, trying again; its last good state stays");
                }
                self.failures = self.failures.saturating_add(1);
                match watched.last {
                    Last::Nothing { since } if since.elapsed() >= PATIENCE => {
                        Err(Miss::Unreadable(Words(&why).to_string().into()))
                    }
                    _ => return true,
                }
            }
        };
        if let Err(miss) = &found {
            let missed = Last::Missed(miss.clone());
            if watched.last == missed {
                return true;
            }
            watched.last = missed;
        }
        let told = Told { event: Event::Secret(Look { key, found }), at: Instant::now() };
        self.told.send(told).await.is_ok()
    }
}

impl Why {
    /// What it says of the Secret; nothing where it is the API server that failed.
    fn miss(&self) -> Option<Miss> {
        match self {
            Self::Failed(kube::Error::Api(status)) if status.code == 404 => Some(Miss::NotFound),
            Self::Failed(kube::Error::Api(status)) if status.code == 403 => {
                Some(Miss::Forbidden(status.message.as_str().into()))
            }
            _ => None,
        }
    }
}

fn tell_read(key: &Key, credentials: &SecretCredentials) {
    let (namespace, secret) = (&key.namespace, &key.name);
    tracing::info!(%namespace, %secret, "Secret read");
    let now = u64::try_from(Timestamp::now().as_second()).unwrap_or_default();
    let remark = credentials.certificate.as_ref().ok().and_then(|it| it.certificate.validity.remark(now));
    if let Some(remark) = remark {
        tracing::warn!(%namespace, %secret, "the certificate {remark}; it is shown all the same");
    }
}

/// One look at the Secret `key`, of which the version `known` was read before.
async fn look(
    client: Client,
    key: Key,
    number: u64,
    known: Option<Arc<str>>,
) -> (Key, u64, Result<Answer, Why>) {
    let answer = timeout(ANSWER, ask(client, &key, known)).await;
    let answer = answer.unwrap_or(Err(Why::Unanswered));
    (key, number, answer)
}

async fn ask(client: Client, key: &Key, known: Option<Arc<str>>) -> Result<Answer, Why> {
    if let Some(known) = known {
        let api: Api<Secret> = Api::namespaced(client.clone(), &key.namespace);
        let metadata = api.get_metadata(&key.name).await?.metadata;
        if metadata.resource_version.as_deref() == Some(&*known) {
            return Ok(Answer::Unchanged);
        }
    }
    // Read here and not by the client, which would log what it cannot read.
    let request = kube::core::Request::new(Secret::url_path(&(), Some(&*key.namespace)));
    let request = request.get(&key.name, &GetParams::default()).map_err(kube::Error::BuildRequest)?;
    let text = client.request_text(request).await?;
    let secret: Secret = serde_json::from_str(&text).map_err(|_| Why::Garbled)?;
    let version = secret.metadata.resource_version.unwrap_or_default().into();
    let credentials = SecretCredentials::read(&secret.data.unwrap_or_default());
    Ok(Answer::Read { version, credentials })
}
