//! Owns a client that speaks HTTP/2 as those of gRPC do: many calls over one connection to each target, and who
//! answered them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use guideway::demo::load::KEY_HEADER;
use h2::client::SendRequest;
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::answers::{BACKEND, SCHEME, SUM};

/// Nothing takes this long unless it is broken.
const PATIENCE: Duration = Duration::from_secs(20);
/// Keys, each of which is called with twice: enough that no pod of a few is left out by chance.
const KEYS: usize = 60;
/// Messages of the call that streams.
const MESSAGES: usize = 10;

/// What one target answered.
#[derive(Default, Serialize)]
struct Heard {
    /// Who answered, by key.
    keys: BTreeMap<String, String>,
    /// For which schemes the backends were asked.
    schemes: BTreeSet<String>,
}

/// Who answered, by target. An error where a call failed or a key changed its backend.
pub(crate) async fn answers(targets: &[SocketAddr]) -> anyhow::Result<Value> {
    let mut heard = BTreeMap::new();
    for target in targets {
        let calls = timeout(PATIENCE, of_one(*target)).await;
        let calls = calls.with_context(|| format!("no end of the calls to {target}"))?;
        heard.insert(target.to_string(), calls.with_context(|| format!("a call to {target} failed"))?);
    }
    Ok(json!(heard))
}

async fn of_one(target: SocketAddr) -> anyhow::Result<Heard> {
    let stream = TcpStream::connect(target).await?;
    stream.set_nodelay(true)?;
    let (mut sender, connection) = h2::client::handshake(stream).await?;
    tokio::spawn(connection);
    let mut heard = Heard::default();
    for round in 0..2 * KEYS {
        let key = format!("key-{}", round % KEYS);
        let (backend, scheme) = call(&mut sender, &key).await.with_context(|| key.clone())?;
        heard.schemes.insert(scheme);
        let known = heard.keys.entry(key.clone()).or_insert_with(|| backend.clone());
        ensure!(*known == backend, "{key} went to {known} and then to {backend}");
    }
    stream_messages(&mut sender).await.context("the call that streams")?;
    Ok(heard)
}

fn request(key: &str) -> anyhow::Result<Request<()>> {
    let request = Request::post("http://calls.test/e2e.Echo/Call").header(KEY_HEADER, key);
    Ok(request.header("content-type", "application/grpc").header("te", "trailers").body(())?)
}

/// A message as gRPC frames it: not compressed, and so long.
fn message(text: &str) -> Bytes {
    let length = u32::try_from(text.len()).unwrap_or_default().to_be_bytes();
    [&[0][..], &length, text.as_bytes()].concat().into()
}

/// One message each way; who answered, and for which scheme it was asked.
async fn call(sender: &mut SendRequest<Bytes>, key: &str) -> anyhow::Result<(String, String)> {
    *sender = sender.clone().ready().await?;
    let (response, mut sending) = sender.send_request(request(key)?, false)?;
    let sent = message(&key.repeat(500));
    sending.send_data(sent.clone(), true)?;
    let (parts, mut body) = response.await?.into_parts();
    ensure!(parts.status == 200, "answered {}: {:?}", parts.status, parts.headers);
    let mut received = Vec::new();
    while let Some(bytes) = body.data().await {
        let bytes = bytes?;
        body.flow_control().release_capacity(bytes.len())?;
        received.extend_from_slice(&bytes);
    }
    ensure!(received == sent, "another message came back: {} of {} bytes", received.len(), sent.len());
    let trailers = body.trailers().await?.unwrap_or_default();
    ensure!(trailers.get("grpc-status") == Some(&HeaderValue::from_static("0")), "status {trailers:?}");
    Ok((text(&parts.headers, &BACKEND)?, text(&parts.headers, &SCHEME)?))
}

fn text(fields: &HeaderMap, name: &HeaderName) -> anyhow::Result<String> {
    let value = fields.get(name).with_context(|| format!("no {name} in {fields:?}"))?;
    Ok(value.to_str()?.to_owned())
}

/// Each message comes back before the next one is sent, and a field behind the last.
async fn stream_messages(sender: &mut SendRequest<Bytes>) -> anyhow::Result<()> {
    *sender = sender.clone().ready().await?;
    let (response, mut sending) = sender.send_request(request("stream")?, false)?;
    sending.send_data(message("0"), false)?;
    let mut body = response.await?.into_body();
    for number in 0..MESSAGES {
        let received = body.data().await.context("the stream ended")??;
        body.flow_control().release_capacity(received.len())?;
        ensure!(received == message(&number.to_string()), "another message {number} came back");
        if number + 1 < MESSAGES {
            sending.send_data(message(&(number + 1).to_string()), false)?;
        }
    }
    sending.send_trailers(HeaderMap::from_iter([(SUM, HeaderValue::from_static("42"))]))?;
    ensure!(body.data().await.is_none(), "more than what was sent came back");
    let trailers = body.trailers().await?.unwrap_or_default();
    ensure!(trailers.get(SUM).is_some_and(|sum| sum == "42"), "what was sent behind is lost: {trailers:?}");
    Ok(())
}
