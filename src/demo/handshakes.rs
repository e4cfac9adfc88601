//! Owns a watch on the certificates that are shown at some addresses: a new connection of TLS and one request over
//! it, again and again. It notes which certificate was seen from when to when, and what failed.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use xxhash_rust::xxh3::xxh3_64;

/// Failures that are told apart; more are only counted.
const FAILURES_KEPT: usize = 20;

/// What to connect to.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Where.
    pub addresses: Vec<SocketAddr>,
    /// The name to ask for, which certificates must be for.
    pub name: ServerName<'static>,
    /// Certificates of the authorities that may have signed them, as PEM.
    pub roots: String,
    /// From the end of one request to the start of the next one at the same address.
    pub pause: Duration,
    /// A request that takes longer has failed, its connection and handshake included.
    pub timeout: Duration,
}

/// What was seen so far.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Sightings {
    /// Requests answered with 200.
    pub answered: u64,
    /// Requests that were not.
    pub failed: u64,
    /// Why, for the first of them.
    pub failures: Vec<String>,
    /// What each address showed, in the order it was first seen.
    pub shown: BTreeMap<String, Vec<Sighting>>,
}

/// A certificate as it was seen at one address.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Sighting {
    /// See `fingerprint`.
    pub fingerprint: String,
    /// When it was first seen, milliseconds since the UNIX epoch.
    pub first_unix_ms: u64,
    /// When it was last seen.
    pub last_unix_ms: u64,
}

/// What tells a certificate from others, in hexadecimal: a hash of its DER. No proof against forgery.
pub fn fingerprint(certificate: &[u8]) -> String {
    format!("{:016x}", xxh3_64(certificate))
}

/// A watch that runs. Clones are of the same one.
#[derive(Clone, Debug, Default)]
pub struct Handshakes(Arc<Mutex<Sightings>>);

impl Handshakes {
    /// Watches until `stop`. An error where `roots` are no certificates.
    pub fn start(watched: Watched, stop: &CancellationToken) -> io::Result<Self> {
        let connector = TlsConnector::from(Arc::new(config(&watched.roots).map_err(io::Error::other)?));
        let seen = Self::default();
        for address in watched.addresses.clone() {
            let (seen, watched, connector) = (seen.clone(), watched.clone(), connector.clone());
            let stop = stop.clone();
            // It ends with the process or when it is told to.
            tokio::spawn(async move {
                while !stop.is_cancelled() {
                    let request = request(address, &watched.name, &connector);
                    let timely = tokio::time::timeout(watched.timeout, request).await;
                    seen.note(address, timely.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())));
                    tokio::time::sleep(watched.pause).await;
                }
            });
        }
        Ok(seen)
    }

    /// What was seen so far.
    pub fn sightings(&self) -> Sightings {
        self.locked().clone()
    }

    fn note(&self, address: SocketAddr, outcome: io::Result<String>) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let mut seen = self.locked();
        match outcome {
            Ok(fingerprint) => {
                seen.answered += 1;
                let shown = seen.shown.entry(address.to_string()).or_default();
                match shown.iter_mut().find(|it| it.fingerprint == fingerprint) {
                    Some(known) => known.last_unix_ms = now,
                    None => shown.push(Sighting { fingerprint, first_unix_ms: now, last_unix_ms: now }),
                }
            }
            Err(error) => {
                seen.failed += 1;
                if seen.failures.len() < FAILURES_KEPT {
                    seen.failures.push(format!("{now} {address}: {error}"));
                }
            }
        }
    }

    fn locked(&self) -> MutexGuard<'_, Sightings> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn config(roots: &str) -> Result<ClientConfig, Box<dyn std::error::Error + Send + Sync>> {
    let mut store = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
        store.add(root?)?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let mut config =
        builder.with_safe_default_protocol_versions()?.with_root_certificates(store).with_no_client_auth();
    // A session that is resumed shows no certificate.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// One request on a connection of its own; the fingerprint of the certificate.
async fn request(
    address: SocketAddr,
    name: &ServerName<'static>,
    connector: &TlsConnector,
) -> io::Result<String> {
    let stream = TcpStream::connect(address).await?;
    let mut stream = connector.connect(name.clone(), stream).await?;
    let host = name.to_str();
    let head = format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    if !answer.starts_with(b"HTTP/1.1 200 ") {
        let line = answer.split(|byte| *byte == b'\r').next().unwrap_or_default();
        return Err(io::Error::other(String::from_utf8_lossy(line).into_owned()));
    }
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    shown.map(|it| fingerprint(it)).ok_or_else(|| io::Error::other("no certificate was shown"))
}
