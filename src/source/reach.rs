//! Owns what can be reached from where a pool is served: a cluster knows Services, and neither an address nor a file
//! of the pod itself is anybody's there; a process of its own knows addresses and files.

use std::net::IpAddr;

use super::tls::Secured;
use super::translate::{BackendSource, FieldError, Translated};
use crate::balance::pool::PortId;

/// Who is going to serve the pools.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A cluster, which knows Services.
    Cluster,
    /// A process of its own, which does not.
    Standalone,
}

/// The pool, unless `target` cannot reach what it names.
pub fn check(translated: Translated, target: Target) -> Result<Translated, Vec<FieldError>> {
    let backends = translated.backends.iter().enumerate();
    let mut errors: Vec<FieldError> = backends
        .flat_map(|(index, backend)| {
            let path = format!("spec.backends[{index}]");
            match target {
                Target::Cluster => addresses_of_the_pod(&path, backend),
                Target::Standalone => services(&path, backend),
            }
        })
        .collect();
    if target == Target::Cluster {
        errors.extend(translated.secured.iter().flat_map(files_of_the_pod));
    }
    if errors.is_empty() { Ok(translated) } else { Err(errors) }
}

/// What is wrong with a listener on Guideway's own port.
pub(super) fn is_our_own(port: PortId) -> String {
    format!("{port} is Guideway's own metrics port (--metrics-address); use another port")
}

fn services(path: &str, backend: &BackendSource) -> Vec<FieldError> {
    let BackendSource::Service { service, .. } = backend else { return Vec::new() };
    let reason = format!("Service {service} exists in a cluster only; list endpoints here");
    vec![FieldError::new(format!("{path}.service"), reason)]
}

/// Whoever may write pools in one namespace must not get at what listens for the pod or the node alone. EndpointSlices
/// refuse the same addresses.
fn addresses_of_the_pod(path: &str, backend: &BackendSource) -> Vec<FieldError> {
    let BackendSource::Endpoints { members, .. } = backend else { return Vec::new() };
    let address = |(index, ip): (usize, IpAddr)| {
        let reason = format!(
            "{ip} means Guideway's own pod or node; in a cluster write an address that is the same from everywhere"
        );
        is_local(ip).then(|| FieldError::new(format!("{path}.endpoints[{index}].address"), reason))
    };
    members.iter().map(|member| member.backend.address.ip()).enumerate().filter_map(address).collect()
}

/// Nor may they have what lies in the pod shown to the world, or trusted.
fn files_of_the_pod(secured: &Secured) -> Vec<FieldError> {
    let certificates = secured.certificates.iter().filter(|it| it.files().is_some()).map(|it| &it.field);
    let authorities = secured.authorities.iter().filter(|it| it.files().is_some()).map(|it| &it.field);
    let reason = "is for use without Kubernetes; name a Secret in its place";
    certificates.chain(authorities).map(|field| FieldError::new(field, reason)).collect()
}

fn is_local(ip: IpAddr) -> bool {
    match ip.to_canonical() {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_loopback() || v6.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::source::translate;

    fn found(backend: serde_json::Value, target: Target) -> Vec<String> {
        found_in(json!({"name": "web", "port": 8080}), backend, target)
    }

    fn found_in(listener: serde_json::Value, backend: serde_json::Value, target: Target) -> Vec<String> {
        let resource = serde_json::from_value(json!({
            "apiVersion": "guideway.dev/v1alpha1", "kind": "LoadBalancerPool",
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"listeners": [listener], "backends": [backend]},
        }));
        let translated = translate::pool(&resource.unwrap()).unwrap();
        let errors = check(translated, target).err().unwrap_or_default();
        errors.into_iter().map(|error| error.path).collect()
    }

    #[test]
    fn a_pool_in_a_cluster_does_not_reach_into_the_pod() {
        for address in ["127.0.0.1", "127.9.9.9", "::1", "169.254.169.254", "fe80::1"] {
            let endpoints = json!([{"address": "192.0.2.1", "port": 80}, {"address": address, "port": 80}]);
            let backend = json!({"name": "all", "endpoints": endpoints});
            let path = "spec.backends[0].endpoints[1].address";
            assert_eq!(found(backend.clone(), Target::Cluster), [path], "{address}");
            assert!(found(backend, Target::Standalone).is_empty(), "{address}");
        }
    }

    #[test]
    fn services_are_for_clusters() {
        let backend = json!({"name": "all", "service": {"name": "web", "port": "http"}});
        assert!(found(backend.clone(), Target::Cluster).is_empty());
        assert_eq!(found(backend, Target::Standalone), ["spec.backends[0].service"]);
    }

    #[test]
    fn files_are_for_processes_of_their_own() {
        let tls = json!({"certificateFiles": [{"certificate": "a", "key": "b"}], "clientCAFile": "c"});
        let listener = json!({"name": "web", "port": 8443, "protocol": "HTTPS", "tls": tls});
        let backend = json!({"name": "all", "endpoints": [{"address": "192.0.2.1", "port": 80}]});
        assert!(found_in(listener.clone(), backend.clone(), Target::Standalone).is_empty());
        assert_eq!(
            found_in(listener, backend, Target::Cluster),
            ["spec.listeners[0].tls.certificateFiles[0]", "spec.listeners[0].tls.clientCAFile"]
        );
        let tls = json!({
            "serverName": "web.test", "caFile": "a", "clientCertificateFile": {"certificate": "b", "key": "c"},
        });
        let endpoints = json!([{"address": "192.0.2.1", "port": 443}]);
        let backend = json!({"name": "all", "endpoints": endpoints, "tls": tls});
        assert!(found(backend.clone(), Target::Standalone).is_empty());
        assert_eq!(
            found(backend, Target::Cluster),
            ["spec.backends[0].tls.clientCertificateFile", "spec.backends[0].tls.caFile"]
        );
    }
}
