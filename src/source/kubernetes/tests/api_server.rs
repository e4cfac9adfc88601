//! Owns an API server of a few paths on loopback, whose faults a test can choose. It keeps objects and a log of
//! events by resource version, as the genuine one does; nothing of it knows what Guideway makes of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{Method, StatusCode};
use axum::response::Response;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// What goes wrong with the requests for one kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Lists and watches are refused with this code.
    Refuse(u16),
    /// Lists are answered with nothing in them.
    EmptyList,
    /// Watches are refused with this code; lists are answered.
    RefuseWatch(u16),
    /// Watches begin with the event `410 Gone`.
    GoneEvent,
    /// Watches end at once.
    CloseAtOnce,
    /// Watches begin and then say nothing, as over a half-open connection.
    Silence,
    /// Watches are never answered.
    NoAnswer,
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    objects: BTreeMap<(String, String), Value>,
    log: Vec<(u64, String, Value)>,
    faults: HashMap<String, Fault>,
    requests: Vec<String>,
    statuses: Vec<(String, Value)>,
    lease: Option<Value>,
    used: BTreeSet<Right>,
}

/// API group, resource and verb, as a role names them.
pub(super) type Right = (String, String, String);

/// The server. It forgets nothing while it is down.
pub(super) struct ApiServer {
    state: Arc<Mutex<State>>,
    grown: Arc<watch::Sender<u64>>,
    address: SocketAddr,
    serving: Option<JoinHandle<()>>,
}

impl ApiServer {
    pub(super) async fn start() -> Self {
        let mut server = Self {
            state: Arc::default(),
            grown: Arc::new(watch::channel(0).0),
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            serving: None,
        };
        server.up().await;
        server
    }

    pub(super) fn client(&self) -> kube::Client {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let url = format!("http://{}", self.address).parse().unwrap();
        super::super::connect(kube::Config::new(url)).unwrap()
    }

    /// Listens, on the same port as before.
    pub(super) async fn up(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let (state, grown) = (self.state.clone(), self.grown.clone());
        let app = axum::Router::new().fallback(move |request| answer(state.clone(), grown.clone(), request));
        self.serving = Some(tokio::spawn(serve(listener, app)));
    }

    /// Breaks every connection and listens no more.
    pub(super) async fn down(&mut self) {
        let serving = self.serving.take().unwrap();
        serving.abort();
        assert!(serving.await.unwrap_err().is_cancelled());
    }

    pub(super) fn put(&self, plural: &str, object: &Value) {
        let name = object["metadata"]["name"].as_str().unwrap().to_string();
        let mut state = self.state();
        state.version += 1;
        let mut object = object.clone();
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        let known = state.objects.insert((plural.into(), name), object.clone()).is_some();
        let word = if known { "MODIFIED" } else { "ADDED" };
        state.tell(plural, word, object);
        self.grown.send_replace(state.version);
    }

    pub(super) fn delete(&self, plural: &str, name: &str) {
        let mut state = self.state();
        let mut object = state.objects.remove(&(plural.into(), name.into())).unwrap();
        state.version += 1;
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        state.tell(plural, "DELETED", object);
        self.grown.send_replace(state.version);
    }

    /// Sets or clears the fault of one kind. Open watches end and meet it.
    pub(super) fn fault(&self, plural: &str, fault: Option<Fault>) {
        let mut state = self.state();
        match fault {
            Some(fault) => state.faults.insert(plural.into(), fault),
            None => state.faults.remove(plural),
        };
        self.grown.send_replace(state.version);
    }

    /// How often a kind was asked for, by list or by watch.
    pub(super) fn asked(&self, call: &str, plural: &str) -> usize {
        let wanted = format!("{call} {plural}");
        self.state().requests.iter().filter(|request| **request == wanted).count()
    }

    /// Every status written, with the pool's name, in order.
    pub(super) fn statuses(&self) -> Vec<(String, Value)> {
        self.state().statuses.clone()
    }

    pub(super) fn lease_holder(&self) -> Option<String> {
        let holder = self.state().lease.as_ref()?["spec"]["holderIdentity"].as_str()?.to_string();
        Some(holder).filter(|holder| !holder.is_empty())
    }

    pub(super) fn lease(&self) -> Option<Value> {
        self.state().lease.clone()
    }

    pub(super) fn put_lease(&self, mut lease: Value) {
        let mut state = self.state();
        state.version += 1;
        lease["metadata"]["resourceVersion"] = json!(state.version.to_string());
        state.lease = Some(lease);
    }

    /// The rights that all requests so far needed.
    pub(super) fn rights_used(&self) -> BTreeSet<Right> {
        self.state().used.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    fn tell(&mut self, plural: &str, word: &str, object: Value) {
        self.log.push((self.version, plural.into(), json!({ "type": word, "object": object })));
    }
}

async fn serve(listener: TcpListener, app: axum::Router) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = TowerToHyperService::new(app.clone());
        connections.spawn(async move {
            let served =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            // A client that hangs up in the middle of a watch is what these tests are about.
            drop(served.await);
        });
    }
}

type Shared = Arc<Mutex<State>>;

async fn answer(state: Shared, grown: Arc<watch::Sender<u64>>, request: Request) -> Response {
    let path: Vec<String> = request.uri().path().split('/').map(str::to_string).collect();
    let query = request.uri().query().unwrap_or_default().to_string();
    let method = request.method().clone();
    state.lock().unwrap().used.insert(right(&method, &path, query.contains("watch=true")));
    if path.iter().any(|part| part == "leases") {
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        return lease(&state, &method, &body);
    }
    if method == Method::PATCH {
        let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
        return status(&state, &grown, &path, &body);
    }
    let plural = path.last().unwrap().clone();
    let watched = query.contains("watch=true");
    let fault = {
        let mut state = state.lock().unwrap();
        state.requests.push(format!("{} {plural}", if watched { "watch" } else { "list" }));
        state.faults.get(&plural).copied()
    };
    match (fault, watched) {
        (Some(Fault::Refuse(code)), _) | (Some(Fault::RefuseWatch(code)), true) => refusal(code),
        (Some(Fault::NoAnswer), true) => std::future::pending().await,
        (fault, false) => list(&state, &plural, fault == Some(Fault::EmptyList)),
        (fault, true) => {
            let from = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion=")).unwrap();
            stream(state, &grown, plural, from.parse().unwrap(), fault)
        }
    }
}

/// `/api/v1/RESOURCE` or `/apis/GROUP/VERSION/RESOURCE`, with `namespaces/NAME` before and `NAME[/SUBRESOURCE]` behind it.
fn right(method: &Method, path: &[String], watched: bool) -> Right {
    let (group, rest) = if path[1] == "api" { ("", &path[3..]) } else { (path[2].as_str(), &path[4..]) };
    let rest = if rest[0] == "namespaces" { &rest[2..] } else { rest };
    let resource = match rest.get(2) {
        Some(sub) => format!("{}/{sub}", rest[0]),
        None => rest[0].clone(),
    };
    let verb = match (method.as_str(), rest.len()) {
        ("GET", 1) if watched => "watch",
        ("GET", 1) => "list",
        ("GET", _) => "get",
        ("POST", _) => "create",
        ("PUT", _) => "update",
        ("PATCH", _) => "patch",
        (other, _) => other,
    };
    (group.to_string(), resource, verb.to_string())
}

fn json_response(code: u16, body: &Value) -> Response {
    let body = Body::from(serde_json::to_vec(body).unwrap());
    let builder = Response::builder().status(StatusCode::from_u16(code).unwrap());
    builder.header("content-type", "application/json").body(body).unwrap()
}

fn refusal(code: u16) -> Response {
    let reason = match code {
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        429 => "TooManyRequests",
        504 => "Timeout",
        _ => "InternalError",
    };
    let mut body = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "refused", "reason": reason, "code": code
    });
    if code == 429 {
        body["details"] = json!({ "retryAfterSeconds": 0 });
    }
    json_response(code, &body)
}

fn list(state: &Shared, plural: &str, empty: bool) -> Response {
    let state = state.lock().unwrap();
    let all = state.objects.iter().filter(|((kind, _), _)| kind == plural && !empty);
    let items: Vec<&Value> = all.map(|(_, object)| object).collect();
    let version = state.version.to_string();
    json_response(
        200,
        &json!({ "kind": "List", "apiVersion": "v1", "metadata": { "resourceVersion": version }, "items": items }),
    )
}

/// Events after `from`, then those to come. A fault that is set later ends the stream, so the next one meets it.
fn stream(
    state: Shared,
    grown: &watch::Sender<u64>,
    plural: String,
    from: u64,
    fault: Option<Fault>,
) -> Response {
    let first = match fault {
        Some(Fault::CloseAtOnce) => return Response::new(Body::empty()),
        Some(Fault::GoneEvent) => {
            let gone = json!({ "type": "ERROR", "object": { "kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old" } });
            return Response::new(Body::from(format!("{gone}\n")));
        }
        first => first,
    };
    let grown = grown.subscribe();
    let events = futures::stream::unfold((from, grown, state), move |(from, mut grown, state)| {
        let plural = plural.clone();
        async move {
            loop {
                grown.borrow_and_update();
                let next = {
                    let state = state.lock().unwrap();
                    if state.faults.get(&plural).copied() != first && first != Some(Fault::Silence) {
                        return None;
                    }
                    let mut later = state.log.iter().filter(|(at, kind, _)| *at > from && *kind == plural);
                    later.next().map(|(at, _, event)| (*at, format!("{event}\n"))).filter(|_| first.is_none())
                };
                if let Some((at, line)) = next {
                    return Some((Ok::<_, Infallible>(Bytes::from(line)), (at, grown, state)));
                }
                grown.changed().await.ok()?;
            }
        }
    });
    Response::new(Body::from_stream(events))
}

fn status(state: &Shared, grown: &watch::Sender<u64>, path: &[String], body: &[u8]) -> Response {
    let name = path[path.len() - 2].clone();
    let body: Value = serde_json::from_slice(body).unwrap();
    let mut state = state.lock().unwrap();
    let key = ("loadbalancerpools".to_string(), name.clone());
    let Some(mut object) = state.objects.get(&key).cloned() else { return refusal(404) };
    state.statuses.push((name, body["status"].clone()));
    if object["status"] != body["status"] {
        state.version += 1;
        object["status"] = body["status"].clone();
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        state.objects.insert(key, object.clone());
        state.tell("loadbalancerpools", "MODIFIED", object.clone());
        grown.send_replace(state.version);
    }
    json_response(200, &object)
}

fn lease(state: &Shared, method: &Method, body: &[u8]) -> Response {
    let mut state = state.lock().unwrap();
    if *method == Method::GET {
        return state.lease.as_ref().map_or_else(|| refusal(404), |lease| json_response(200, lease));
    }
    let mut lease: Value = serde_json::from_slice(body).unwrap();
    let known = state.lease.as_ref().map(|lease| lease["metadata"]["resourceVersion"].clone());
    let based_on = lease["metadata"].get("resourceVersion").cloned();
    if known != based_on {
        return refusal(409);
    }
    state.version += 1;
    lease["metadata"]["resourceVersion"] = json!(state.version.to_string());
    state.lease = Some(lease.clone());
    json_response(200, &lease)
}
