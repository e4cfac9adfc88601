//! Owns the Lease that says which replica assigns seats and writes status. Time is told by our own monotonic clock
//! alone: a lease counts as abandoned when we have not seen it change for its duration, whatever the clocks of
//! others say. It is no fence, and need not be: two holders for a moment write the same kind of status.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::touch::Pulse;
use super::words::Words;

/// Name of the Lease.
pub(super) const NAME: &str = "guideway";

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// A lease that does not change for this long is abandoned: the longest time without a holder after a crash.
    pub(super) duration: Duration,
    /// A holder that could not renew for this long gives up, well before others may take over.
    pub(super) give_up: Duration,
    /// Time between looks at the lease; also the longest wait after a holder let go in good order.
    pub(super) look: Duration,
    /// The same while nothing is answered. Together with the wait for an answer, which is `look`, it is how long we may
    /// not know that the API server is back: well below the 5 s in which recovery is promised.
    pub(super) look_again: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(8),
            give_up: Duration::from_secs(6),
            look: Duration::from_secs(2),
            look_again: Duration::from_secs(1),
        }
    }
}

/// One candidate for the lease.
#[derive(Debug)]
pub(super) struct Candidate {
    api: Api<Lease>,
    identity: String,
    pace: Pace,
    /// These calls never cease, so they tell whether the API server is in reach.
    pulse: Pulse,
    /// The lease as last seen, and since when it looks so.
    seen: Option<(Lease, Instant)>,
    renewed: Option<Instant>,
}

impl Candidate {
    pub(super) fn new(client: Client, namespace: &str, identity: &str, pace: Pace, pulse: Pulse) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            identity: identity.into(),
            pace,
            pulse,
            seen: None,
            renewed: None,
        }
    }

    /// Tries to hold the lease until `stop`, then lets go of it. Tells `holds` whether it does.
    pub(super) async fn run(mut self, holds: watch::Sender<bool>, stop: CancellationToken) {
        let mut told_failure = false;
        loop {
            let patience = self.not_beyond_the_lease(self.pace.look);
            let attempt = tokio::select! {
                attempt = timeout(patience, self.attempt()) => attempt,
                () = stop.cancelled() => break,
            };
            let is_answered = matches!(attempt, Ok(Ok(()) | Err(kube::Error::Api(_))));
            self.pulse.beat(is_answered);
            let failure = match attempt {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(Words(&error).to_string()),
                Err(_) => Some(format!("no answer within {patience:?}")),
            };
            let told_before = std::mem::replace(&mut told_failure, failure.is_some());
            if let Some(error) = failure.filter(|_| !told_before) {
                tracing::warn!(error, lease = NAME, "cannot read or renew the lease, trying again");
            }
            self.tell(&holds);
            let pause = if is_answered { self.pace.look } else { self.pace.look_again };
            tokio::select! {
                () = sleep(self.not_beyond_the_lease(pause)) => self.tell(&holds),
                () = stop.cancelled() => break,
            }
        }
        if self.holds() {
            self.let_go().await;
        }
        holds.send_replace(false);
    }

    /// No wait of a holder may outlast its lease: it must give up in time also when it gets no answers.
    fn not_beyond_the_lease(&self, wait: Duration) -> Duration {
        let left = self.renewed.map(|at| self.pace.give_up.saturating_sub(at.elapsed()));
        left.filter(|left| !left.is_zero()).map_or(wait, |left| wait.min(left))
    }

    fn holds(&self) -> bool {
        self.renewed.is_some_and(|at| at.elapsed() < self.pace.give_up)
    }

    fn tell(&self, holds: &watch::Sender<bool>) {
        let now = self.holds();
        if holds.send_if_modified(|before| std::mem::replace(before, now) != now) {
            let identity = self.identity.as_str();
            match now {
                true => {
                    tracing::info!(lease = NAME, identity, "holding the lease: this replica assigns seats")
                }
                false => tracing::info!(lease = NAME, identity, "not holding the lease any more"),
            }
        }
    }

    /// Looks at the lease and renews or takes it where that is ours to do.
    async fn attempt(&mut self) -> Result<(), kube::Error> {
        let Some(lease) = self.api.get_opt(NAME).await? else {
            return self
                .put(Lease {
                    metadata: ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() },
                    spec: None,
                })
                .await;
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let since = match &self.seen {
            Some((known, since)) if known.metadata.resource_version == lease.metadata.resource_version => {
                *since
            }
            _ => Instant::now(),
        };
        self.seen = Some((lease.clone(), since));
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder.is_empty() || holder == self.identity || since.elapsed() >= self.patience(&spec) {
            return self.put(lease).await;
        }
        self.renewed = None;
        Ok(())
    }

    /// The holder's own word on how long its lease lasts.
    fn patience(&self, spec: &LeaseSpec) -> Duration {
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        seconds.map_or(self.pace.duration, Duration::from_secs)
    }

    /// Writes ourselves into the lease. Another one who wrote in between wins: the resource version tells.
    async fn put(&mut self, lease: Lease) -> Result<(), kube::Error> {
        let before = lease.spec.clone().unwrap_or_default();
        let ours = before.holder_identity.as_deref() == Some(self.identity.as_str());
        let now = MicroTime(Timestamp::now());
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.pace.duration.as_secs().max(1)).ok(),
            acquire_time: if ours { before.acquire_time } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: Some(before.lease_transitions.unwrap_or(0) + i32::from(!ours)),
            ..LeaseSpec::default()
        };
        let began = Instant::now();
        match self.write(Lease { spec: Some(spec), ..lease }).await {
            Ok(written) => {
                self.seen = Some((written, began));
                self.renewed = Some(began);
                Ok(())
            }
            Err(kube::Error::Api(refusal)) if refusal.code == 409 => {
                self.renewed = self.renewed.filter(|_| ours);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn write(&self, lease: Lease) -> Result<Lease, kube::Error> {
        match lease.metadata.resource_version {
            None => self.api.create(&PostParams::default(), &lease).await,
            Some(_) => self.api.replace(NAME, &PostParams::default(), &lease).await,
        }
    }

    /// Leaves the lease empty, so that another replica takes over at its next look.
    async fn let_go(&mut self) {
        let Some((lease, _)) = self.seen.take() else { return };
        let mut spec = lease.spec.unwrap_or_default();
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(Timestamp::now()));
        let empty = Lease { spec: Some(spec), metadata: lease.metadata };
        match timeout(self.pace.look, self.write(empty)).await {
            Ok(Ok(_)) => tracing::info!(lease = NAME, "let go of the lease"),
            Ok(Err(error)) => {
                tracing::warn!(lease = NAME, error = %Words(&error), "could not let go of the lease; it runs out by itself")
            }
            Err(_) => tracing::warn!(lease = NAME, "no answer in time; the lease runs out by itself"),
        }
    }
}
