//! Owns an API server of a few paths within the process, whose faults a test can choose. Without sockets the clock
//! can be paused, so every wait takes its exact time and no real one. It keeps objects and a log of events by
//! resource version, as the genuine one does; nothing of it knows what Guideway makes of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::{Body, Bytes};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::watch;

/// What goes wrong with the requests for one kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Lists, watches and looks are refused with this code.
    Refuse(u16),
    /// Lists are answered with nothing in them.
    EmptyList,
    /// Watches are refused with this code; lists are answered.
    RefuseWatch(u16),
    /// Watches and all pages of a list but the first come too late: `410 Gone`.
    Compacted,
    /// Watches begin with the event `410 Gone`.
    GoneEvent,
    /// Watches end at once.
    CloseAtOnce,
    /// Watches begin and then say nothing, as over a half-open connection.
    Silence,
    /// Watches, looks, and calls for the lease, are never answered.
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
    /// Mistakes for which statuses were refused.
    refused: Vec<String>,
    /// Every status is refused, whatever it says.
    refuses_statuses: bool,
    is_down: bool,
    /// How often it went down.
    lives: u64,
    is_cut_off: bool,
    /// How often it was cut off.
    cuts: u64,
}

/// API group, resource and verb, as a role names them.
pub(super) type Right = (String, String, String);

/// The server. It forgets nothing while it is down.
#[derive(Clone)]
pub(super) struct ApiServer {
    state: Shared,
    /// Changes with everything that an open stream might have to tell, or to end for.
    stirred: Arc<watch::Sender<()>>,
}

type Shared = Arc<Mutex<State>>;

impl ApiServer {
    pub(super) fn start() -> Self {
        Self { state: Arc::default(), stirred: Arc::new(watch::channel(()).0) }
    }

    pub(super) fn client(&self) -> kube::Client {
        let server = self.clone();
        let service = tower::service_fn(move |request| server.clone().answer_while_up(request));
        kube::Client::new(service, "default")
    }

    /// Breaks every connection and takes no more.
    pub(super) fn down(&self) {
        self.state().lives += 1;
        self.state().is_down = true;
        self.stirred.send_replace(());
    }

    pub(super) fn up(&self) {
        self.state().is_down = false;
    }

    /// Loses what is sent to it. What is open or asked for meanwhile lives on and is silent, also when it is over: TCP
    /// would try again at last, later than any promise.
    pub(super) fn cut_off(&self) {
        self.state().cuts += 1;
        self.state().is_cut_off = true;
    }

    pub(super) fn reconnect(&self) {
        self.state().is_cut_off = false;
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
        self.stirred.send_replace(());
    }

    /// Tells the watches of a change in words that nobody understands. Lists know nothing of it.
    pub(super) fn babble(&self, plural: &str) {
        let mut state = self.state();
        state.version += 1;
        state.tell(plural, "MODIFIED", json!({ "metadata": "of a kind nobody knows" }));
        self.stirred.send_replace(());
    }

    pub(super) fn delete(&self, plural: &str, name: &str) {
        let mut state = self.state();
        let mut object = state.objects.remove(&(plural.into(), name.into())).unwrap();
        state.version += 1;
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        state.tell(plural, "DELETED", object);
        self.stirred.send_replace(());
    }

    /// Sets or clears the fault of one kind. Open watches end and meet it.
    pub(super) fn fault(&self, plural: &str, fault: Option<Fault>) {
        let mut state = self.state();
        match fault {
            Some(fault) => state.faults.insert(plural.into(), fault),
            None => state.faults.remove(plural),
        };
        self.stirred.send_replace(());
    }

    /// How often a kind was asked for: by `list` or `watch`, one object of it by `get` or, without its content, by
    /// `look`.
    pub(super) fn asked(&self, call: &str, plural: &str) -> usize {
        let wanted = format!("{call} {plural}");
        self.state().requests.iter().filter(|request| **request == wanted).count()
    }

    /// Every status written, with the pool's name, in order.
    pub(super) fn statuses(&self) -> Vec<(String, Value)> {
        self.state().statuses.clone()
    }

    /// Refuses every status from now on, or no more.
    pub(super) fn refuse_statuses(&self, refuse: bool) {
        self.state().refuses_statuses = refuse;
    }

    pub(super) fn statuses_refused_for(&self) -> Vec<String> {
        self.state().refused.clone()
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

type Answer = Response<Body>;

impl ApiServer {
    async fn answer_while_up(self, request: Request<kube::client::Body>) -> Result<Answer, io::Error> {
        if self.state().is_down {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        if self.state().is_cut_off {
            std::future::pending::<()>().await;
        }
        let life = self.state().lives;
        let mut stirred = self.stirred.subscribe();
        let broken = async {
            while self.state().lives == life {
                stirred.changed().await.unwrap();
            }
        };
        tokio::select! {
            answer = self.answer(request) => Ok(answer),
            () = broken => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }

    async fn answer(&self, request: Request<kube::client::Body>) -> Answer {
        let (head, body) = request.into_parts();
        let path: Vec<String> = head.uri.path().split('/').map(str::to_string).collect();
        let query = head.uri.query().unwrap_or_default().to_string();
        let watched = query.contains("watch=true");
        self.state().used.insert(right(&head.method, &path, watched));
        let body = body.collect().await.unwrap().to_bytes();
        if path.iter().any(|part| part == "leases") {
            if self.state().faults.get("leases") == Some(&Fault::NoAnswer) {
                std::future::pending::<()>().await;
            }
            return lease(&mut self.state(), &head.method, &body);
        }
        if head.method == Method::PATCH {
            let answer = status(&mut self.state(), &path, &body);
            self.stirred.send_replace(());
            return answer;
        }
        if let [.., plural, name] = &path[..]
            && plural == "secrets"
        {
            let accepts = head.headers.get("accept").map(|it| it.to_str().unwrap()).unwrap_or_default();
            return self.get(plural, name, accepts.contains("as=PartialObjectMetadata")).await;
        }
        let plural = path.last().unwrap().clone();
        self.state().requests.push(format!("{} {plural}", if watched { "watch" } else { "list" }));
        let fault = self.state().faults.get(&plural).copied();
        match (fault, watched) {
            (Some(Fault::Refuse(code)), _) | (Some(Fault::RefuseWatch(code)), true) => refusal(code),
            (Some(Fault::NoAnswer), true) => std::future::pending().await,
            (Some(Fault::Compacted), true) => refusal(410),
            (Some(Fault::Compacted), false) if parameter(&query, "continue").is_some() => refusal(410),
            (fault, false) => list(&self.state(), &plural, &query, fault == Some(Fault::EmptyList)),
            (fault, true) => {
                let from = parameter(&query, "resourceVersion").unwrap().parse().unwrap();
                self.stream(plural, from, fault)
            }
        }
    }

    async fn get(&self, plural: &str, name: &str, only_metadata: bool) -> Answer {
        let call = if only_metadata { "look" } else { "get" };
        self.state().requests.push(format!("{call} {plural}"));
        let fault = self.state().faults.get(plural).copied();
        match fault {
            Some(Fault::Refuse(code)) => return refusal(code),
            Some(Fault::NoAnswer) => std::future::pending().await,
            _ => {}
        }
        let found = self.state().objects.get(&(plural.into(), name.into())).cloned();
        let Some(object) = found else { return refusal(404) };
        if only_metadata {
            let metadata = &object["metadata"];
            let body = json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": metadata });
            return json_response(200, &body);
        }
        json_response(200, &object)
    }

    /// Events after `from`, then those to come. A fault that is set later ends the stream, so the next one meets it.
    fn stream(&self, plural: String, from: u64, fault: Option<Fault>) -> Answer {
        match fault {
            Some(Fault::CloseAtOnce) => return Response::new(Body::empty()),
            Some(Fault::GoneEvent) => {
                let gone = json!({ "type": "ERROR", "object": { "kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "too old" } });
                return Response::new(Body::from(format!("{gone}\n")));
            }
            _ => {}
        }
        let life = self.state().lives;
        let cuts = self.state().cuts;
        let begin = (from, self.stirred.subscribe(), self.clone());
        let events = futures::stream::unfold(Some(begin), move |open| {
            let plural = plural.clone();
            async move {
                let (from, mut stirred, server) = open?;
                loop {
                    stirred.borrow_and_update();
                    let silent = server.state().cuts != cuts;
                    match server.state().next_event(&plural, from, fault, life) {
                        _ if silent => {}
                        Next::Event(at, line) => {
                            return Some((Ok(Bytes::from(line)), Some((at, stirred, server.clone()))));
                        }
                        Next::Broken => {
                            return Some((Err(io::Error::from(io::ErrorKind::ConnectionReset)), None));
                        }
                        Next::Ended => return None,
                        Next::Later => {}
                    }
                    stirred.changed().await.ok()?;
                }
            }
        });
        Response::new(Body::from_stream(events))
    }
}

enum Next {
    Event(u64, String),
    Later,
    Ended,
    Broken,
}

impl State {
    fn next_event(&self, plural: &str, from: u64, fault: Option<Fault>, life: u64) -> Next {
        if self.lives != life {
            return Next::Broken;
        }
        match fault {
            Some(Fault::Silence) => return Next::Later,
            before if self.faults.get(plural).copied() != before => return Next::Ended,
            _ => {}
        }
        let mut later = self.log.iter().filter(|(at, kind, _)| *at > from && *kind == plural);
        later.next().map_or(Next::Later, |(at, _, event)| Next::Event(*at, format!("{event}\n")))
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

fn json_response(code: u16, body: &Value) -> Answer {
    let body = Body::from(serde_json::to_vec(body).unwrap());
    let builder = Response::builder().status(StatusCode::from_u16(code).unwrap());
    builder.header("content-type", "application/json").body(body).unwrap()
}

fn refusal(code: u16) -> Answer {
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

fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

/// A page. The token to go on with is the number of objects that went before.
fn list(state: &State, plural: &str, query: &str, empty: bool) -> Answer {
    let number = |name| parameter(query, name).map(|text| text.parse::<usize>().unwrap());
    let (from, limit) = (number("continue").unwrap_or(0), number("limit").unwrap_or(usize::MAX));
    let all = state.objects.iter().filter(|((kind, _), _)| kind == plural && !empty);
    let mut left = all.map(|(_, object)| object).skip(from);
    let items: Vec<&Value> = left.by_ref().take(limit).collect();
    let mut metadata = json!({ "resourceVersion": state.version.to_string() });
    if left.next().is_some() {
        metadata["continue"] = json!((from + limit).to_string());
    }
    json_response(200, &json!({ "kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items }))
}

fn status(state: &mut State, path: &[String], body: &[u8]) -> Answer {
    let name = path[path.len() - 2].clone();
    let body: Value = serde_json::from_slice(body).unwrap();
    let key = ("loadbalancerpools".to_string(), name.clone());
    let Some(mut object) = state.objects.get(&key).cloned() else { return refusal(404) };
    if state.refuses_statuses {
        return refusal(422);
    }
    let schema = crate::crd::manifest::schema().unwrap();
    let mistakes = mistakes(&schema["properties"]["status"], &body["status"], "status");
    if !mistakes.is_empty() {
        state.refused.extend(mistakes);
        return refusal(422);
    }
    state.statuses.push((name, body["status"].clone()));
    if object["status"] != body["status"] {
        state.version += 1;
        object["status"] = body["status"].clone();
        object["metadata"]["resourceVersion"] = json!(state.version.to_string());
        state.objects.insert(key, object.clone());
        state.tell("loadbalancerpools", "MODIFIED", object.clone());
    }
    json_response(200, &object)
}

/// Fields that the schema demands and the value lacks, and those it does not know.
fn mistakes(schema: &Value, value: &Value, path: &str) -> Vec<String> {
    match value {
        Value::Object(_) if schema["x-kubernetes-preserve-unknown-fields"] == true => Vec::new(),
        Value::Object(fields) => {
            let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let missing = required
                .filter(|name| !fields.contains_key(*name))
                .map(|name| format!("{path}.{name} is missing"));
            let known = |name: &String| schema["properties"].get(name);
            let inner = fields.iter().flat_map(|(name, value)| match known(name) {
                Some(schema) => mistakes(schema, value, &format!("{path}.{name}")),
                None => vec![format!("{path}.{name} is unknown")],
            });
            missing.chain(inner).collect()
        }
        Value::Array(items) => items.iter().flat_map(|item| mistakes(&schema["items"], item, path)).collect(),
        Value::Null => vec![format!("{path} is null")],
        _ => Vec::new(),
    }
}

fn lease(state: &mut State, method: &Method, body: &[u8]) -> Answer {
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
