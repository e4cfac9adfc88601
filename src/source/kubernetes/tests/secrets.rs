//! Owns the law of Secrets: a good one is in use soon, a bad one never, and nothing that becomes of a Secret takes
//! away the certificate that was good.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::super::join::Problem;
use super::super::keyring::{Look, Miss};
use super::super::secrets::Named;
use super::super::watch::Event;
use super::api_server::{ApiServer, Fault};
use super::fixtures::*;
use super::replica::*;
use crate::balance::pool::PoolId;
use crate::balance::tls::{BackendTls, TlsTerms};
use crate::source::credentials::ocsp::tests::response_on;
use crate::source::credentials::tests::{Pair, authority, pair};

/// The promise: so soon a new certificate is in use.
const ROTATION: Duration = Duration::from_secs(2);
/// So soon after the API server's return the news are in use.
const RECOVERY: Duration = Duration::from_secs(5);

/// The shop with a pool that names these Secrets.
async fn secure_shop(secrets: &[&str]) -> ApiServer {
    let server = shop().await;
    server.put("loadbalancerpools", &tls_pool(secrets));
    server
}

/// Makes the Secret `shop-tls` hold a certificate of this name.
fn certify(server: &ApiServer, name: &str) {
    server.put("secrets", &tls_secret("shop-tls", &pair(&[name])));
}

/// A shop with a certificate of the name `one.test`, and a replica that shows it.
async fn shown() -> (ApiServer, Replica) {
    let server = secure_shop(&["shop-tls"]).await;
    certify(&server, "one.test");
    let replica = Replica::start(&server, "a");
    replica.shows(&["one.test"]).await;
    (server, replica)
}

impl Replica {
    fn ports(&self) -> Vec<u16> {
        self.reader.load().ports().map(|(port, _)| port.number()).collect()
    }

    fn terms_of(&self, pool: &PoolId) -> Option<Arc<TlsTerms>> {
        let snapshot = self.reader.load();
        let listeners = &snapshot.pool(pool)?.pool.listeners;
        listeners.iter().find_map(|it| it.tls.clone())
    }

    fn terms(&self) -> Option<Arc<TlsTerms>> {
        self.terms_of(&web())
    }

    /// The names of the certificates of `shop/web`.
    fn names(&self) -> Vec<String> {
        let terms = self.terms();
        let certificates = terms.iter().flat_map(|it| &it.certificates);
        certificates.flat_map(|it| &it.names).map(ToString::to_string).collect()
    }

    /// Waits until certificates of exactly these names are in use, and returns how long that took.
    async fn shows(&self, names: &[&str]) -> Duration {
        let began = Instant::now();
        until(&format!("{names:?} are shown"), || self.names() == names).await;
        began.elapsed()
    }
}

/// What of `shop/web` concerns TLS with its backends.
impl Replica {
    fn backend_tls(&self) -> Option<Arc<BackendTls>> {
        self.reader.load().pool(&web())?.pool.groups[0].tls.clone()
    }

    /// The names of the certificate that pods are shown; `None` as long as they get no requests.
    fn identity(&self) -> Option<String> {
        let names = self.backend_tls()?.identity.as_ref()?.names.clone();
        Some(names.join(" "))
    }

    /// Groups that take requests.
    fn serving(&self) -> BTreeSet<String> {
        let snapshot = self.reader.load();
        let places = snapshot.pool(&web()).into_iter().flat_map(|pool| pool.places.iter().flatten());
        places.map(|backend| backend.group.to_string()).collect()
    }
}

fn condition(server: &ApiServer, pool: &str, kind: &str) -> Value {
    let statuses = server.statuses();
    let last = statuses.iter().rfind(|(name, _)| name == pool);
    let conditions = last.map(|(_, status)| status["conditions"].clone()).unwrap_or_default();
    conditions.as_array().into_iter().flatten().find(|it| it["type"] == kind).cloned().unwrap_or_default()
}

/// Waits until a condition of `shop/web` is so and has these words in its message.
async fn says(server: &ApiServer, kind: &str, status: &str, reason: &str, words: &str) {
    let says = || {
        let it = condition(server, "web", kind);
        it["status"] == status
            && it["reason"] == reason
            && it["message"].as_str().is_some_and(|message| message.contains(words))
    };
    until(&format!("{kind}={status} {reason}: {words}"), says).await;
}

async fn resolved(server: &ApiServer) {
    says(server, "ResolvedRefs", "True", "ResolvedRefs", "").await;
}

async fn unresolved(server: &ApiServer, reason: &str, words: &str) {
    says(server, "ResolvedRefs", "False", reason, words).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_certificate_is_in_use_within_two_seconds_and_the_same_is_no_news() {
    let server = secure_shop(&["shop-tls"]).await;
    let first = tls_secret("shop-tls", &pair(&["one.test"]));
    server.put("secrets", &first);
    let replica = Replica::start(&server, "a");
    replica.shows(&["one.test"]).await;
    resolved(&server).await;
    let (terms, looks) = (replica.terms().unwrap(), server.asked("look", "secrets"));
    sleep(10 * ROTATION).await;
    assert!(Arc::ptr_eq(&terms, &replica.terms().unwrap()), "nothing changed");
    assert_eq!(server.asked("get", "secrets"), 1, "a key crosses the wire once");
    let looks = server.asked("look", "secrets") - looks;
    assert!((20..=27).contains(&looks), "{looks} looks in 20 s");
    server.put("secrets", &first);
    sleep(ROTATION).await;
    assert_eq!(server.asked("get", "secrets"), 2, "another version of it");
    assert!(Arc::ptr_eq(&terms, &replica.terms().unwrap()), "with the same in it");
    for name in ["two.test", "three.test"] {
        certify(&server, name);
        let took = replica.shows(&[name]).await;
        assert!(took <= ROTATION, "{took:?}");
    }
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn fifty_secrets_are_followed_within_two_seconds_at_a_bearable_rate() {
    let names: Vec<String> = (0..50).map(|number| format!("tls-{number:02}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let server = secure_shop(&names).await;
    let good = pair(&["old.test"]);
    names.iter().for_each(|name| server.put("secrets", &tls_secret(name, &good)));
    let replica = Replica::start(&server, "a");
    replica.shows(&["old.test"; 50]).await;
    let (looks, began) = (server.asked("look", "secrets"), Instant::now());
    let new = pair(&["new.test"]);
    names.iter().for_each(|name| server.put("secrets", &tls_secret(name, &new)));
    let took = replica.shows(&["new.test"; 50]).await;
    assert!(took <= ROTATION, "{took:?}");
    sleep(ROTATION).await;
    let rate = (server.asked("look", "secrets") - looks) as f64 / began.elapsed().as_secs_f64();
    assert!(rate <= 67.0, "{rate} looks a second");
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_bad_edit_keeps_the_good_certificate_and_says_why() {
    let server = secure_shop(&["shop-tls"]).await;
    let (good, other) = (pair(&["one.test"]), pair(&["two.test"]));
    server.put("secrets", &tls_secret("shop-tls", &good));
    let replica = Replica::start(&server, "a");
    replica.shows(&["one.test"]).await;
    let terms = replica.terms().unwrap();
    let mixed = Pair { chain: other.chain.clone(), key: good.key.clone() };
    server.put("secrets", &tls_secret("shop-tls", &mixed));
    let words = "listener secure: Secret shop-tls cannot be used: tls.key: does not belong to the certificate; \
                 replace both together (the last good state of it is in use)";
    unresolved(&server, "InvalidSecret", words).await;
    assert_ne!(condition(&server, "web", "Programmed")["status"], "False");
    server.put("secrets", &secret("shop-tls", &[("tls.crt", "x"), ("password", "hunter2")]));
    unresolved(&server, "InvalidSecret", "tls.key: is missing").await;
    assert!(Arc::ptr_eq(&terms, &replica.terms().unwrap()));
    assert_eq!(replica.metric("guideway_config_errors"), Some(1.0));
    let told = format!("{:?}", server.statuses());
    assert!(!told.contains("hunter2") && !told.contains(good.key.lines().nth(1).unwrap()));
    server.put("secrets", &tls_secret("shop-tls", &other));
    assert!(replica.shows(&["two.test"]).await <= ROTATION);
    resolved(&server).await;
    assert_eq!(replica.metric("guideway_config_errors"), Some(0.0));
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_staple_of_another_certificate_is_left_out_and_told() {
    let (server, replica) = shown().await;
    let (two, three) = (pair(&["two.test"]), pair(&["three.test"]));
    let response = response_on(&two.chain);
    let stapled = |pair: &Pair| {
        let mut secret = tls_secret("shop-tls", pair);
        secret["data"]["tls.ocsp-staple"] = serde_json::to_value(ByteString(response.clone())).unwrap();
        secret
    };
    let staple = || replica.terms().unwrap().certificates[0].ocsp.clone();
    server.put("secrets", &stapled(&two));
    replica.shows(&["two.test"]).await;
    assert_eq!(staple(), Some(response.clone()));
    resolved(&server).await;
    // The next certificate, beside the response on the one before.
    server.put("secrets", &stapled(&three));
    assert!(replica.shows(&["three.test"]).await <= ROTATION);
    assert_eq!(staple(), None);
    let words = "listener secure: the certificate of Secret shop-tls is shown without its OCSP response: \
                 tls.ocsp-staple: is an OCSP response on another certificate";
    unresolved(&server, "InvalidSecret", words).await;
    assert_ne!(condition(&server, "web", "Programmed")["status"], "False");
    server.put("secrets", &tls_secret("shop-tls", &three));
    resolved(&server).await;
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_is_not_there_closes_its_listener_alone_until_it_is() {
    let server = secure_shop(&["shop-tls"]).await;
    let replica = Replica::start(&server, "a");
    until("the other listener is served", || replica.ports() == [8080]).await;
    until("ready", || replica.readiness.is_ready()).await;
    unresolved(&server, "SecretNotFound", "listener secure: there is no Secret shop-tls in this namespace")
        .await;
    says(&server, "Programmed", "False", "SecretNotFound", "Listener secure is not open").await;
    certify(&server, "one.test");
    assert!(replica.shows(&["one.test"]).await <= ROTATION);
    assert_eq!(replica.ports(), [8080, 8443]);
    resolved(&server).await;
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_deleted_or_forbidden_secret_keeps_its_certificate() {
    let (server, replica) = shown().await;
    let terms = replica.terms().unwrap();
    server.delete("secrets", "shop-tls");
    unresolved(&server, "SecretNotFound", "(the last good state of it is in use)").await;
    server.fault("secrets", Some(Fault::Refuse(403)));
    unresolved(&server, "SecretForbidden", "let its ServiceAccount get secrets").await;
    assert!(Arc::ptr_eq(&terms, &replica.terms().unwrap()));
    assert_eq!(replica.ports(), [8080, 8443]);
    server.fault("secrets", None);
    certify(&server, "two.test");
    replica.shows(&["two.test"]).await;
    resolved(&server).await;
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_edit_that_names_a_missing_secret_waits_for_it() {
    let (server, replica) = shown().await;
    let mut edited = tls_pool(&["other-tls"]);
    edited["metadata"]["generation"] = json!(2);
    server.put("loadbalancerpools", &edited);
    unresolved(&server, "SecretNotFound", "The last good spec stays in force").await;
    certify(&server, "still.test");
    assert!(replica.shows(&["still.test"]).await <= ROTATION, "the Secret in use is followed meanwhile");
    server.put("secrets", &tls_secret("other-tls", &pair(&["two.test"])));
    assert!(replica.shows(&["two.test"]).await <= ROTATION);
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_secret_of_two_pools_is_read_once_and_followed_by_both() {
    let server = secure_shop(&["shop-tls"]).await;
    let mut second = tls_pool(&["shop-tls"]);
    second["metadata"]["name"] = json!("second");
    second["spec"]["listeners"] = json!([second["spec"]["listeners"][1]]);
    second["spec"]["listeners"][0]["port"] = json!(8444);
    server.put("loadbalancerpools", &second);
    certify(&server, "one.test");
    let replica = Replica::start(&server, "a");
    let shown = |replica: &Replica| {
        [web(), PoolId::new("shop", "second")].map(|id| {
            let certificates = replica.terms_of(&id).map(|it| it.certificates.clone()).unwrap_or_default();
            certificates.first().cloned()
        })
    };
    until("both are served", || shown(&replica).iter().all(Option::is_some)).await;
    assert_eq!(server.asked("get", "secrets"), 1);
    certify(&server, "two.test");
    let is_new = |replica: &Replica| {
        shown(replica).iter().flatten().filter(|it| it.names == ["two.test".into()]).count() == 2
    };
    until("both show the new one", || is_new(&replica)).await;
    let [first, second] = shown(&replica).map(Option::unwrap);
    assert!(Arc::ptr_eq(&first, &second), "kept once");
    assert_eq!(server.asked("get", "secrets"), 2);
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn losing_the_api_server_costs_no_certificate_and_its_return_brings_the_news() {
    let (server, replica) = shown().await;
    let terms = replica.terms().unwrap();
    server.down();
    certify(&server, "two.test");
    sleep(Duration::from_secs(60)).await;
    assert!(Arc::ptr_eq(&terms, &replica.terms().unwrap()));
    server.up();
    let took = replica.shows(&["two.test"]).await;
    assert!(took <= RECOVERY, "{took:?}");
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_cannot_show_secrets_is_asked_with_patience_and_holds_nothing_up_for_ever() {
    for fault in [Fault::Refuse(500), Fault::Refuse(429), Fault::NoAnswer] {
        let server = secure_shop(&["shop-tls"]).await;
        certify(&server, "one.test");
        server.fault("secrets", Some(fault));
        let replica = Replica::start(&server, "a");
        sleep(RECOVERY).await;
        assert!(!replica.readiness.is_ready(), "its port would be missing");
        let asked = server.asked("get", "secrets");
        assert!((1..=20).contains(&asked), "{asked} calls in {RECOVERY:?} of {fault:?}");
        until("the other listener is served", || replica.ports() == [8080]).await;
        until("ready", || replica.readiness.is_ready()).await;
        unresolved(&server, "SecretUnreadable", "Guideway goes on trying").await;
        server.fault("secrets", None);
        let took = replica.shows(&["one.test"]).await;
        assert!(took <= RECOVERY + RECOVERY, "{took:?} after {fault:?}");
        replica.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_secret_that_no_pool_names_is_not_read() {
    let (server, replica) = shown().await;
    let mut plain = pool();
    plain["metadata"]["generation"] = json!(2);
    server.put("loadbalancerpools", &plain);
    until("its port is closed", || replica.ports() == [8080]).await;
    sleep(ROTATION).await;
    let looks = server.asked("look", "secrets");
    sleep(5 * ROTATION).await;
    assert_eq!(server.asked("look", "secrets"), looks);
    assert_eq!(server.asked("get", "secrets"), 1);
    let mut again = tls_pool(&["shop-tls"]);
    again["metadata"]["generation"] = json!(3);
    server.put("loadbalancerpools", &again);
    replica.shows(&["one.test"]).await;
    assert_eq!(server.asked("get", "secrets"), 2, "it was forgotten");
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_listener_that_asks_clients_for_certificates_is_not_open_without_an_authority() {
    let server = shop().await;
    let mut mutual = tls_pool(&["shop-tls"]);
    mutual["spec"]["listeners"][1]["tls"]["clientCA"] = json!({ "name": "clients" });
    server.put("loadbalancerpools", &mutual);
    certify(&server, "one.test");
    server.put("secrets", &secret("clients", &[("ca.crt", "none")]));
    let replica = Replica::start(&server, "a");
    unresolved(&server, "InvalidSecret", "Secret clients cannot be used: ca.crt: holds no certificate").await;
    until("the other listener is served", || replica.ports() == [8080]).await;
    server.put("secrets", &secret("clients", &[("ca.crt", &(authority("a") + &authority("b")))]));
    replica.shows(&["one.test"]).await;
    assert_eq!(replica.terms().unwrap().client_ca.as_ref().unwrap().roots.len(), 2);
    server.put("secrets", &secret("clients", &[]));
    unresolved(&server, "InvalidSecret", "ca.crt: is missing").await;
    assert!(replica.terms().unwrap().client_ca.is_some(), "strangers are not let in by an edit");
    replica.stop().await;
}

/// What the pool is to trust of its pods, and to show them.
fn put_backend_secrets(server: &ApiServer, identity: &str) {
    server.put("secrets", &secret("backend-ca", &[("ca.crt", &authority("backends"))]));
    server.put("secrets", &tls_secret("client", &pair(&[identity])));
}

#[tokio::test(start_paused = true)]
async fn a_backend_without_its_secrets_takes_no_requests_until_they_are_there() {
    let server = shop().await;
    server.put("loadbalancerpools", &tls_backend_pool());
    let replica = Replica::start(&server, "a");
    unresolved(&server, "SecretNotFound", "backend stable: there is no Secret client in this namespace")
        .await;
    let words = "Backend stable takes no requests: it has no good ca, or no good clientCertificate.";
    says(&server, "Programmed", "False", "SecretNotFound", words).await;
    until("ready", || replica.readiness.is_ready()).await;
    assert_eq!(replica.serving(), ["plain".into()].into(), "never in the clear");
    server.put("secrets", &tls_secret("client", &pair(&["one.test"])));
    unresolved(&server, "SecretNotFound", "backend stable: there is no Secret backend-ca").await;
    sleep(ROTATION).await;
    assert_eq!(replica.serving(), ["plain".into()].into(), "half is not enough");
    put_backend_secrets(&server, "one.test");
    until("it takes requests", || replica.serving().len() == 2).await;
    assert_eq!(replica.identity().as_deref(), Some("one.test"));
    resolved(&server).await;
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn new_credentials_for_backends_are_in_use_within_two_seconds_and_bad_ones_never() {
    let server = shop().await;
    put_backend_secrets(&server, "one.test");
    server.put("loadbalancerpools", &tls_backend_pool());
    let replica = Replica::start(&server, "a");
    until("one is shown", || replica.identity().as_deref() == Some("one.test")).await;
    let began = Instant::now();
    server.put("secrets", &tls_secret("client", &pair(&["two.test"])));
    until("two is shown", || replica.identity().as_deref() == Some("two.test")).await;
    assert!(began.elapsed() <= ROTATION, "{:?}", began.elapsed());
    resolved(&server).await;
    let good = replica.backend_tls().unwrap();
    server.put("secrets", &secret("backend-ca", &[("ca.crt", "none")]));
    let words = "backend stable: Secret backend-ca cannot be used: ca.crt: holds no certificate in PEM; it begins \
                 with -----BEGIN CERTIFICATE----- (the last good state of it is in use)";
    unresolved(&server, "InvalidSecret", words).await;
    server.delete("secrets", "client");
    unresolved(&server, "SecretNotFound", "there is no Secret client").await;
    assert!(Arc::ptr_eq(&good, &replica.backend_tls().unwrap()), "connections stay in use");
    assert_ne!(condition(&server, "web", "Programmed")["status"], "False");
    assert_eq!(replica.serving().len(), 2);
    let both = authority("old") + &authority("new");
    server.put("secrets", &secret("backend-ca", &[("ca.crt", &both)]));
    until("both are trusted", || replica.backend_tls().unwrap().ca.roots.len() == 2).await;
    replica.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_is_to_speak_tls_stays_as_it_was_until_its_secrets_are_there() {
    let server = shop().await;
    server.put("loadbalancerpools", &pool());
    let replica = Replica::start(&server, "a");
    until("it is served", || replica.serving() == ["stable".into()].into()).await;
    let mut edited = tls_backend_pool();
    edited["metadata"]["generation"] = json!(2);
    server.put("loadbalancerpools", &edited);
    unresolved(&server, "SecretNotFound", "The last good spec stays in force").await;
    assert_eq!(replica.serving(), ["stable".into()].into());
    put_backend_secrets(&server, "one.test");
    until("it speaks TLS", || replica.identity().as_deref() == Some("one.test")).await;
    let mut renamed = edited.clone();
    renamed["metadata"]["generation"] = json!(3);
    renamed["spec"]["backends"][0]["tls"]["serverName"] = json!("other.test");
    server.put("loadbalancerpools", &renamed);
    let other = ServerName::try_from("other.test").unwrap();
    until("it is another name", || replica.backend_tls().unwrap().server_name == other).await;
    replica.stop().await;
}

#[test]
fn a_secret_named_anew_is_looked_at_anew_although_nobody_saw_it_go() {
    let mut bench = Bench::new();
    bench.pool(&tls_pool(&["shop-tls"]));
    let first = bench.index.newly_named_secrets().unwrap();
    assert_eq!(bench.index.newly_named_secrets(), None);
    bench.pool(&pool());
    assert_eq!(bench.index.newly_named_secrets(), Some(Named::new()));
    bench.pool(&tls_pool(&["shop-tls"]));
    let second = bench.index.newly_named_secrets().unwrap();
    assert!(first.keys().eq(second.keys()));
    assert_ne!(first, second);
}

#[test]
fn a_look_that_comes_too_late_is_nobodys() {
    let mut bench = Bench::new();
    bench.pool(&pool());
    let look = Look { key: key("shop-tls"), found: Err(Miss::NotFound) };
    assert!(bench.tell(Event::Secret(look)).is_empty());
    bench.pool(&tls_pool(&["shop-tls"]));
    let entry = bench.index.pool(&web()).unwrap();
    assert!(entry.problems.iter().all(Problem::is_pending), "{:?}", entry.problems);
}
