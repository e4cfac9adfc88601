//! Owns `tls` of listeners and of backends as users write it: what is shown to the other side and asked of it. Where
//! it comes from differs: Secrets are named in a cluster, and in files beside it; files where there is no cluster.

// The derive of `KubeSchema` repeats each type inside a function, where `pub` reaches nobody.
#![allow(unreachable_pub)]

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::rules;

/// What a port shows its clients and asks of them.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(
    "(has(self.secretRefs) && self.secretRefs.size() > 0) || \
     (has(self.certificateFiles) && self.certificateFiles.size() > 0)")
    .message("there is no certificate to show: name a Secret of type kubernetes.io/tls in secretRefs"))]
#[x_kube(validation = Rule::new("!has(self.clientCA) || !has(self.clientCAFile)")
    .message("set at most one of clientCA and clientCAFile: put both bundles into one"))]
#[x_kube(validation = rules::in_a_cluster(
    "!has(self.certificateFiles) || self.certificateFiles.size() == 0", Some(".certificateFiles"),
    "certificateFiles are for use without Kubernetes: name Secrets in secretRefs in their place"))]
#[x_kube(validation = rules::in_a_cluster("!has(self.clientCAFile)", Some(".clientCAFile"),
    "clientCAFile is for use without Kubernetes: name a Secret in clientCA in its place"))]
pub struct ListenerTls {
    /// SecretRefs name Secrets with a certificate, in the pool's namespace. A client gets the certificate that has
    /// the name it asks for, else one with a wildcard for it, else the first. Guideway looks at each Secret about
    /// once a second (less often where pools name more than 50) and uses a new certificate for new connections. A
    /// Secret that is bad or gone leaves the last good certificate in use and shows in the condition ResolvedRefs; a
    /// listener for which there never was one is not opened.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub secret_refs: Vec<SecretRef>,

    /// CertificateFiles name files with a certificate each, for use without Kubernetes; behind those of secretRefs.
    /// A new content is used for new connections at once, a bad one leaves the last good pool in use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub certificate_files: Vec<CertificateFiles>,

    /// MinVersion is the oldest version of TLS that is spoken: TLS12 or TLS13.
    #[serde(default)]
    pub min_version: MinVersion,

    /// ClientCA names a Secret in the pool's namespace whose key ca.crt holds the authorities, in PEM, of which one
    /// must have signed a client's certificate. Clients without such a certificate are refused. Where it is absent,
    /// clients need none.
    #[serde(rename = "clientCA", skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<SecretRef>,

    /// ClientCAFile is the same from a file in PEM, for use without Kubernetes.
    #[serde(rename = "clientCAFile", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub client_ca_file: Option<String>,
}

/// How connections to a backend's endpoints are encrypted, whom they trust and what they show.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.ca) != has(self.caFile)")
    .message("set exactly one of ca and caFile: without authorities nobody could tell who an endpoint is"))]
#[x_kube(validation = Rule::new("!has(self.clientCertificate) || !has(self.clientCertificateFile)")
    .message("set at most one of clientCertificate and clientCertificateFile"))]
#[x_kube(validation = rules::in_a_cluster("!has(self.caFile)", Some(".caFile"),
    "caFile is for use without Kubernetes: name a Secret in ca in its place"))]
#[x_kube(validation = rules::in_a_cluster("!has(self.clientCertificateFile)", Some(".clientCertificateFile"),
    "clientCertificateFile is for use without Kubernetes: name a Secret in clientCertificate in its place"))]
pub struct BackendTls {
    /// ServerName is the DNS name that endpoints are asked for and that their certificates must be for, in lower
    /// case, such as web.shop.svc. It is one name for all endpoints of the backend, and no address.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = rules::server_name())]
    pub server_name: String,

    /// CA names a Secret in the pool's namespace whose key ca.crt holds the authorities, in PEM, of which one must
    /// have signed an endpoint's certificate. Exactly one of ca and caFile is set: Guideway trusts no authority that
    /// it was not told of, and the check cannot be switched off. A certificate that signed itself may stand there for
    /// the endpoints that show it, unless it says that it is an authority. A Secret that is bad or gone leaves the
    /// last good authorities in use and shows in the condition ResolvedRefs. A backend for which there never were any
    /// takes no requests; they go to the pool's other backends, and never in the clear. An edit that adds tls to a
    /// backend in use waits for its Secrets, and the spec before it stays in force until then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<SecretRef>,

    /// CAFile is the same from a file in PEM, for use without Kubernetes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub ca_file: Option<String>,

    /// ClientCertificate names a Secret of type kubernetes.io/tls in the pool's namespace, with the certificate that
    /// is shown to endpoints that ask for one. Without it they are shown none. What holds for the Secret of ca holds
    /// for this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<SecretRef>,

    /// ClientCertificateFile is the same from files, for use without Kubernetes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_certificate_file: Option<ClientCertificateFile>,
}

/// A certificate in files that is shown to endpoints. Their paths are absolute or begin at the folder of the pool's
/// file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClientCertificateFile {
    /// Certificate is the path of the certificate and those that lead to its root, in PEM, the certificate first.
    #[schemars(length(min = 1, max = 4096))]
    pub certificate: String,

    /// Key is the path of the certificate's private key, in PEM, not encrypted.
    #[schemars(length(min = 1, max = 4096))]
    pub key: String,
}

/// A Secret in the pool's namespace.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretRef {
    /// Name of the Secret. For a certificate its keys are those of the type kubernetes.io/tls: tls.crt (the
    /// certificate, then those that lead to its root, in PEM), tls.key (the private key of the first, in PEM, not
    /// encrypted) and, if it is to be stapled, tls.ocsp-staple (an OCSP response in DER).
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = rules::secret_name())]
    pub name: String,
}

/// A certificate in files. Their paths are absolute or begin at the folder of the pool's file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CertificateFiles {
    /// Certificate is the path of the certificate and those that lead to its root, in PEM, the certificate first.
    #[schemars(length(min = 1, max = 4096))]
    pub certificate: String,

    /// Key is the path of the certificate's private key, in PEM, not encrypted.
    #[schemars(length(min = 1, max = 4096))]
    pub key: String,

    /// Ocsp is the path of the issuer's OCSP response on the certificate, in DER, to be stapled.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 4096))]
    pub ocsp: Option<String>,
}

/// The oldest version of TLS that is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MinVersion {
    /// TLS 1.2, with forward secrecy and authenticated encryption only.
    #[default]
    TLS12,
    /// TLS 1.3.
    TLS13,
}
