//! Owns the connection to the cluster: apply anything, ask a pod over HTTP through the API server's
//! proxy, and wait for something to become true. Nothing here needs a route to the pods.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::{Namespace, Service};
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use kube::{Client, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Field manager of everything the tests apply.
const MANAGER: &str = "guideway-e2e";
/// Label of everything that lies in a namespace of the tests' own, or is made for one.
pub(crate) const LABEL: &str = "guideway.dev/e2e";
/// Pause between two looks at something that is awaited.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A connection to the cluster, cheap to clone.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub client: Client,
}

/// A pod's answer.
pub(crate) struct Answer {
    pub status: StatusCode,
    pub headers: http::HeaderMap,
    pub body: String,
}

impl Cluster {
    /// Connects as `KUBECONFIG` says.
    pub(crate) async fn connect() -> Result<Self> {
        let client = Client::try_default().await.context("KUBECONFIG does not lead to a cluster")?;
        let version = client.apiserver_version().await.context("the API server does not answer")?;
        println!("Kubernetes {}", version.git_version);
        Ok(Self { client })
    }

    /// Applies a manifest, as `kubectl apply --server-side` does.
    pub(crate) async fn apply(&self, manifest: Value) -> kube::Result<DynamicObject> {
        let object: DynamicObject = serde_json::from_value(manifest).map_err(kube::Error::SerdeError)?;
        let api = self.dynamic(&object);
        api.patch(&object.name_any(), &PatchParams::apply(MANAGER).force(), &Patch::Apply(&object)).await
    }

    fn dynamic(&self, object: &DynamicObject) -> Api<DynamicObject> {
        let types = object.types.clone().unwrap_or_default();
        let (group, version) = types.api_version.split_once('/').unwrap_or(("", types.api_version.as_str()));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &types.kind));
        match object.namespace() {
            Some(namespace) => Api::namespaced_with(self.client.clone(), &namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    /// Typed access to what lies in `namespace`.
    pub(crate) fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Removes what a run that was killed has left, and waits until its pools hold no port any more. Two
    /// runs in one cluster at a time are not meant to be: some scenarios stop what both would need.
    pub(crate) async fn remove_leftovers(&self) -> Result<()> {
        let services: Api<Service> = Api::all(self.client.clone());
        for service in services.list(&ListParams::default().labels(LABEL)).await? {
            let theirs = self.api::<Service>(&service.namespace().unwrap_or_default());
            theirs.delete(&service.name_any(), &DeleteParams::default()).await?;
        }
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        for namespace in namespaces.list(&ListParams::default().labels(LABEL)).await? {
            println!("removing {}, left by an earlier run", namespace.name_any());
            namespaces.delete(&namespace.name_any(), &DeleteParams::background()).await?;
        }
        until("namespaces of an earlier run to be gone", Duration::from_secs(90), async || {
            let left = namespaces.list(&ListParams::default().labels(LABEL)).await?.items.len();
            Ok(Seen::when(left == 0, || format!("{left} are left")))
        })
        .await
    }

    /// Sends a request to a pod and returns its answer, whatever its status.
    pub(crate) async fn ask(&self, pod: PodPort<'_>, request: Request<String>) -> Result<Answer> {
        let PodPort { namespace, pod, port } = pod;
        let (mut head, body) = request.into_parts();
        let path = format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy{}", head.uri);
        head.uri = path.parse().with_context(|| path.clone())?;
        let request = Request::from_parts(head, body.into_bytes().into());
        let response = self.client.send(request).await.with_context(|| path.clone())?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.with_context(|| path.clone())?.to_bytes();
        let body = String::from_utf8_lossy(&body).into_owned();
        Ok(Answer { status: head.status, headers: head.headers, body })
    }

    /// Sends a request without a body to a pod; only a 2xx answer is good.
    pub(crate) async fn call(&self, pod: PodPort<'_>, method: Method, path: &str) -> Result<String> {
        let request = Request::builder().method(&method).uri(path).body(String::new())?;
        let answer = self.ask(pod, request).await?;
        if !answer.status.is_success() {
            bail!("{method} {path} of pod {}: {} {}", pod.pod, answer.status, answer.body.trim());
        }
        Ok(answer.body)
    }

    /// The same for an answer in JSON.
    pub(crate) async fn call_json<T: DeserializeOwned>(
        &self,
        pod: PodPort<'_>,
        method: Method,
        path: &str,
    ) -> Result<T> {
        let body = self.call(pod, method, path).await?;
        serde_json::from_str(&body).with_context(|| format!("{path} of pod {}: {body}", pod.pod))
    }
}

/// A port of a pod.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PodPort<'a> {
    pub namespace: &'a str,
    pub pod: &'a str,
    pub port: u16,
}

/// Looks again and again until `look` finds something, and returns it. Once `limit` is over, the error
/// says what was awaited and what the last look saw.
pub(crate) async fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl AsyncFnMut() -> Result<Seen<T>>,
) -> Result<T> {
    let deadline = tokio::time::Instant::now() + limit;
    loop {
        let last = match look().await {
            Ok(Seen::Done(found)) => return Ok(found),
            Ok(Seen::NotYet(reason)) => reason,
            Err(error) => format!("{error:#}"),
        };
        if tokio::time::Instant::now() >= deadline {
            return Err(anyhow!("waited {limit:?} for {what}; at last: {last}"));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What a look found.
pub(crate) enum Seen<T> {
    Done(T),
    NotYet(String),
}

impl Seen<()> {
    /// Done when `holds`; else what was seen in its place.
    pub(crate) fn when(holds: bool, otherwise: impl FnOnce() -> String) -> Self {
        if holds { Self::Done(()) } else { Self::NotYet(otherwise()) }
    }
}
