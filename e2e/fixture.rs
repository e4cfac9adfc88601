//! Owns what every scenario begins and ends with: a namespace, a port for its pool, notes for the
//! summary, and after a failure a folder with all that could explain it.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use guideway::crd::pool::LoadBalancerPool;
use k8s_openapi::api::core::v1::{Event, Namespace, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, LogParams};
use serde_json::{Value, json};

use crate::cluster::{Cluster, LABEL, Seen, until};
use crate::subject;

/// Ports of the scenarios' pools begin here; each scenario has ten.
const FIRST_PORT: u16 = 21_000;

/// A scenario that runs.
pub(crate) struct Test {
    pub cluster: Cluster,
    pub name: &'static str,
    pub namespace: String,
    /// The first of ten ports that no other scenario's pool uses.
    pub port: u16,
    notes: RefCell<Vec<String>>,
}

impl Test {
    /// Makes the namespace.
    pub(crate) async fn begin(cluster: Cluster, name: &'static str, number: usize) -> Result<Self> {
        let run = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() % 100_000;
        let namespace = format!("e2e-{}-{run}", name.replace('_', "-"));
        cluster
            .apply(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": {LABEL: "true"}}}))
            .await
            .with_context(|| format!("cannot make namespace {namespace}"))?;
        let port = FIRST_PORT + 10 * u16::try_from(number).context("too many scenarios")?;
        Ok(Self { cluster, name, namespace, port, notes: RefCell::default() })
    }

    /// Applies a manifest in the scenario's namespace.
    pub(crate) async fn apply(&self, mut manifest: Value) -> Result<()> {
        manifest["metadata"]["namespace"] = json!(self.namespace);
        let name = format!("{} {}", manifest["kind"], manifest["metadata"]["name"]);
        self.cluster.apply(manifest).await.with_context(|| format!("cannot apply {name}"))?;
        Ok(())
    }

    /// Typed access to what lies in the scenario's namespace.
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        self.cluster.api(&self.namespace)
    }

    /// Applies a pool and waits until it serves with `ready` backends on every replica.
    pub(crate) async fn serve_pool(&self, pool: Value, ready: usize) -> Result<()> {
        let name = pool["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        self.apply(pool).await?;
        self.until_ready(&name, ready).await
    }

    /// Waits until a pool's status says `ready` backends and all its conditions hold.
    pub(crate) async fn until_ready(&self, pool: &str, ready: usize) -> Result<()> {
        let pools: Api<LoadBalancerPool> = self.api();
        until(
            &format!("pool {pool} to be ready with {ready} backends"),
            Duration::from_secs(60),
            async || {
                let found = pools.get(pool).await?;
                let current = found.metadata.generation;
                let status = found.status.unwrap_or_default();
                let counted = status.endpoints.as_ref().is_some_and(|it| it.ready as usize == ready);
                let holds =
                    status.conditions.len() == 4 && status.conditions.iter().all(|it| it.status == "True");
                Ok(Seen::when(counted && holds && status.observed_generation == current, || {
                    format!("{:?}, conditions: {}", status.endpoints, shown(&status.conditions))
                }))
            },
        )
        .await?;
        subject::agreed_digest(self, pool, Duration::from_secs(5)).await.map(drop)
    }

    /// Waits until a condition of a pool has this status, and returns it.
    pub(crate) async fn until_condition(&self, pool: &str, kind: &str, status: &str) -> Result<Condition> {
        let pools: Api<LoadBalancerPool> = self.api();
        until(&format!("{kind}={status} of pool {pool}"), Duration::from_secs(30), async || {
            let conditions = pools.get(pool).await?.status.unwrap_or_default().conditions;
            Ok(match conditions.iter().find(|it| it.type_ == kind && it.status == status) {
                Some(found) => Seen::Done(found.clone()),
                None => Seen::NotYet(shown(&conditions)),
            })
        })
        .await
    }

    /// Waits until the cluster has taken down what earlier scenarios left: times are measured beside nothing.
    pub(crate) async fn until_earlier_scenarios_are_gone(&self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.cluster.client.clone());
        until("earlier scenarios to be taken down", Duration::from_secs(120), async || {
            let all = namespaces.list(&ListParams::default().labels(LABEL)).await?;
            let leaving: Vec<String> = all
                .iter()
                .filter(|it| it.metadata.deletion_timestamp.is_some())
                .map(ResourceExt::name_any)
                .collect();
            Ok(Seen::when(leaving.is_empty(), || format!("{leaving:?}")))
        })
        .await
    }

    /// Says something at once and again in the summary.
    pub(crate) fn note(&self, text: impl Into<String>) {
        let text = text.into();
        println!("{}: {text}", self.name);
        self.notes.borrow_mut().push(text);
    }

    /// Leaves a file in `target/e2e/SCENARIO/`.
    pub(crate) fn write(&self, file: &str, text: &str) -> Result<()> {
        std::fs::write(self.folder()?.join(file), text).with_context(|| format!("cannot write {file}"))
    }

    fn folder(&self) -> Result<PathBuf> {
        // Cargo runs tests where the package is.
        let folder = std::path::absolute("target/e2e")?.join(self.name);
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(folder)
    }

    /// Collects what explains a failure, cleans up, and hands the notes over.
    pub(crate) async fn end(self, failed: bool) -> Vec<String> {
        let keep = failed && std::env::var("GUIDEWAY_E2E_KEEP").is_ok_and(|it| it == "1");
        if failed {
            match self.collect().await {
                Ok(folder) => self.note(format!("what could explain it lies in {}", folder.display())),
                Err(error) => self.note(format!("could not collect what explains it: {error:#}")),
            }
        }
        if keep {
            self.note(format!("namespace {} is kept", self.namespace));
        } else if let Err(error) = self.clean_up().await {
            self.note(format!("could not clean up: {error:#}"));
        }
        self.notes.into_inner()
    }

    async fn clean_up(&self) -> Result<()> {
        let namespaces: Api<Namespace> = Api::all(self.cluster.client.clone());
        namespaces.delete(&self.namespace, &DeleteParams::background()).await?;
        let services: Api<Service> = self.cluster.api(subject::NAMESPACE);
        let ours = ListParams::default().labels(&format!("{LABEL}={}", self.namespace));
        for service in services.list(&ours).await? {
            services.delete(&service.name_any(), &DeleteParams::default()).await?;
        }
        Ok(())
    }

    /// Writes pools, pods, events and logs into `target/e2e/SCENARIO/`.
    async fn collect(&self) -> Result<PathBuf> {
        let folder = self.folder()?;
        let everything = ListParams::default();
        let pools = self.api::<LoadBalancerPool>().list(&everything).await?;
        std::fs::write(folder.join("pools.yaml"), serde_yaml::to_string(&pools.items)?)?;
        let mut events = String::new();
        for event in self.api::<Event>().list(&everything).await? {
            let (reason, message) = (event.reason.unwrap_or_default(), event.message.unwrap_or_default());
            writeln!(events, "{} {reason} {message}", event.involved_object.name.unwrap_or_default())?;
        }
        std::fs::write(folder.join("events.txt"), events)?;
        for namespace in [self.namespace.as_str(), subject::NAMESPACE] {
            let pods: Api<Pod> = self.cluster.api(namespace);
            for pod in pods.list(&everything).await? {
                let name = pod.name_any();
                std::fs::write(folder.join(format!("{name}.yaml")), serde_yaml::to_string(&pod)?)?;
                let log = match pods.logs(&name, &LogParams::default()).await {
                    Ok(log) => log,
                    Err(error) => format!("no log: {error}\n"),
                };
                std::fs::write(folder.join(format!("{name}.log")), log)?;
            }
        }
        Ok(folder)
    }
}

fn shown(conditions: &[Condition]) -> String {
    let one = |it: &Condition| format!("{}={} ({}: {})", it.type_, it.status, it.reason, it.message);
    conditions.iter().map(one).collect::<Vec<_>>().join("; ")
}
