//! Owns the families that are read off the snapshot when somebody scrapes: what the proxy routes by
//! is what they show, so they cannot disagree.

use std::fmt;

use prometheus_client::collector::Collector as Collects;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;

use super::{Family, family};
use crate::balance::backend::State;
use crate::balance::snapshot::{MemberView, Snapshot};
use crate::handoff::Reader;

/// Shows the snapshot behind `reader`.
#[derive(Debug)]
pub(super) struct Collector {
    reader: Reader,
}

impl Collector {
    pub(super) fn new(reader: Reader) -> Self {
        Self { reader }
    }
}

impl Collects for Collector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let snapshot = self.reader.load();
        each_member(&mut encoder, &snapshot, family::BACKEND_READY, |member| {
            u64::from(member.state == State::Ready)
        })?;
        each_member(&mut encoder, &snapshot, family::BACKEND_WEIGHT, |member| member.weight.into())?;
        each_member(&mut encoder, &snapshot, family::TABLE_SLOTS, |member| member.slots.into())?;
        digests(&mut encoder, &snapshot)
    }
}

fn each_member(
    encoder: &mut DescriptorEncoder<'_>,
    snapshot: &Snapshot,
    family: Family,
    value: impl Fn(&MemberView) -> u64,
) -> fmt::Result {
    let mut series = family.start(encoder)?;
    for pool in snapshot.pools() {
        for member in &pool.members {
            let labels = [
                ("namespace", &*pool.pool.id.namespace),
                ("pool", &*pool.pool.id.name),
                ("backend", &*member.backend.name),
            ];
            let gauge = ConstGauge::<u64>::new(value(member));
            gauge.encode(series.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn digests(encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot) -> fmt::Result {
    let mut series = family::TABLE_DIGEST.start(encoder)?;
    for pool in snapshot.pools() {
        let (digest, size) = (format!("{:016x}", pool.digest), pool.table.size().to_string());
        let labels = [
            ("namespace", &*pool.pool.id.namespace),
            ("pool", &*pool.pool.id.name),
            ("digest", digest.as_str()),
            ("size", size.as_str()),
        ];
        series.encode_info(&labels)?;
    }
    Ok(())
}
