//! A listener shows the certificate of a Secret: a new one soon, and when the Secret is bad or gone the last good one.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use guideway::demo::handshakes::{self, Sightings};
use http::Method;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::ResourceExt;
use kube::api::DeleteParams;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};

use crate::cluster::{PodPort, Seen, until};
use crate::fixture::Test;
use crate::runner::Verdict;
use crate::{pods, subject};

pub(super) const NAME: &str = "shop.test";
const SECRET: &str = "shop-tls";
const WATCH: &str = "watch";
const CONTROL_PORT: u16 = 9000;
/// The promise: from the change of a Secret to the first newcomer that sees it, on every replica.
const WITHIN: Duration = Duration::from_secs(2);

pub(super) async fn a_new_certificate_is_shown_within_two_seconds(test: &Test) -> Result<Verdict> {
    let authority = Authority::new()?;
    pods::start(test, "web", 2).await?;
    let (first, second, third) = (authority.sign()?, authority.sign()?, authority.sign()?);
    test.apply(first.secret()).await?;
    test.serve_pool(pool(test), 2).await?;
    watch(test, &authority).await?;
    until_shown(test, &first).await?;

    let renewed = now_ms();
    test.apply(second.secret()).await?;
    let took = until_shown(test, &second).await?.saturating_sub(renewed);
    test.note(format!("a new certificate was shown by every replica {took} ms after its Secret was written"));
    ensure!(u128::from(took) <= WITHIN.as_millis(), "a new certificate was shown after {took} ms");

    let mut broken = third.secret();
    broken["stringData"]["tls.key"] = json!("no key at all");
    test.apply(broken).await?;
    let told = test.until_condition("web", "ResolvedRefs", "False").await?;
    test.note(format!("{}: {}", told.reason, told.message));
    ensure!(told.message.contains(SECRET), "the condition does not name the Secret: {}", told.message);
    still_shown(test, &second).await?;

    test.apply(third.secret()).await?;
    test.until_condition("web", "ResolvedRefs", "True").await?;
    until_shown(test, &third).await?;

    test.api::<Secret>().delete(SECRET, &DeleteParams::default()).await?;
    let told = test.until_condition("web", "ResolvedRefs", "False").await?;
    test.note(format!("{}: {}", told.reason, told.message));
    still_shown(test, &third).await?;

    let seen = sightings(test).await?;
    test.note(format!(
        "{} requests, each with a handshake of its own, {} failed",
        seen.answered, seen.failed
    ));
    ensure!(seen.failed == 0, "requests failed: {:?}", seen.failures);
    Ok(Verdict::Passed)
}

/// Somebody who signs certificates.
pub(super) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate for `NAME`, as PEM.
pub(super) struct Leaf {
    pub(super) certificate: String,
    pub(super) key: String,
    fingerprint: String,
}

impl Authority {
    pub(super) fn new() -> Result<Self> {
        let mut params = CertificateParams::new([])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Ok(Self(CertifiedIssuer::self_signed(params, KeyPair::generate()?)?))
    }

    pub(super) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(super) fn sign(&self) -> Result<Leaf> {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new([NAME.to_owned()])?.signed_by(&key, &self.0)?;
        let fingerprint = handshakes::fingerprint(certificate.der());
        Ok(Leaf { certificate: certificate.pem(), key: key.serialize_pem(), fingerprint })
    }
}

impl Leaf {
    fn secret(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": {"name": SECRET},
            "stringData": {"tls.crt": self.certificate, "tls.key": self.key},
        })
    }
}

fn pool(test: &Test) -> Value {
    let mut pool = pods::pool(test, "web");
    let listener = &mut pool["spec"]["listeners"][0];
    listener["protocol"] = json!("HTTPS");
    listener["tls"] = json!({"secretRefs": [{"name": SECRET}]});
    pool
}

/// Starts the watch on what every replica shows.
async fn watch(test: &Test, authority: &Authority) -> Result<()> {
    let mut args = vec!["handshakes".to_owned(), format!("--name={NAME}")];
    args.push(format!("--control=0.0.0.0:{CONTROL_PORT}"));
    for replica in subject::replicas(&test.cluster).await?.values() {
        args.push(format!("--target={}:{}", pods::address(replica)?, test.port));
    }
    let container = json!({
        "name": WATCH, "image": pods::IMAGE, "imagePullPolicy": "Never", "args": args,
        "env": [{"name": "ROOTS", "value": authority.pem()}],
        "resources": {"requests": {"cpu": "50m", "memory": "16Mi"}},
    });
    test.apply(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": WATCH},
        "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 2, "containers": [container]},
    }))
    .await?;
    until("the watch to run", Duration::from_secs(60), async || {
        let pod = test.api::<Pod>().get(WATCH).await?;
        Ok(Seen::when(pods::is_ready(&pod), || format!("pod {} is not ready", pod.name_any())))
    })
    .await
}

async fn sightings(test: &Test) -> Result<Sightings> {
    let port = PodPort { namespace: &test.namespace, pod: WATCH, port: CONTROL_PORT };
    test.cluster.call_json(port, Method::GET, "/sightings").await
}

/// Waits until every replica shows `leaf`; when the last of them began to, milliseconds since the UNIX epoch.
async fn until_shown(test: &Test, leaf: &Leaf) -> Result<u64> {
    until("a certificate to be shown by every replica", Duration::from_secs(30), async || {
        let seen = sightings(test).await?;
        let first = |shown: &Vec<handshakes::Sighting>| {
            Some(shown.iter().find(|it| it.fingerprint == leaf.fingerprint)?.first_unix_ms)
        };
        let firsts: Option<Vec<u64>> = seen.shown.values().map(first).collect();
        Ok(match firsts.filter(|firsts| firsts.len() >= subject::REPLICAS) {
            Some(firsts) => Seen::Done(firsts.into_iter().max().context("there are replicas")?),
            None => Seen::NotYet(format!("{seen:?}")),
        })
    })
    .await
}

/// Looks on for a while: whatever happened, every replica shows `leaf` and nothing else any more.
async fn still_shown(test: &Test, leaf: &Leaf) -> Result<()> {
    let since = now_ms();
    tokio::time::sleep(WITHIN).await;
    for (address, shown) in &sightings(test).await?.shown {
        let later: Vec<&str> =
            shown.iter().filter(|it| it.last_unix_ms > since).map(|it| it.fingerprint.as_str()).collect();
        ensure!(later == [leaf.fingerprint.as_str()], "{address} shows {later:?}, not {}", leaf.fingerprint);
    }
    Ok(())
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
