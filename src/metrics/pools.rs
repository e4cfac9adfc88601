//! Owns the families that are read off the snapshot and the ports when somebody scrapes: what the proxy
//! routes by is what they show, so they cannot disagree.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::collector::Collector as Collects;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;

use super::{Family, family};
use crate::balance::pool::{Pool, PoolId};
use crate::balance::snapshot::{PoolSnapshot, Snapshot};
use crate::handoff::{BindState, BindingsReader, Reader};

/// Shows the snapshot behind `reader` and what became of its ports.
#[derive(Debug)]
pub(super) struct Collector {
    reader: Reader,
    bindings: BindingsReader,
}

impl Collector {
    pub(super) fn new(reader: Reader, bindings: BindingsReader) -> Self {
        Self { reader, bindings }
    }
}

impl Collects for Collector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let snapshot = self.reader.load();
        let rows: Vec<Row<'_>> = snapshot.pools().flat_map(|pool| rows(pool)).collect();
        each(&mut encoder, &rows, family::BACKEND_READY, |row| u64::from(row.slots > 0))?;
        each(&mut encoder, &rows, family::BACKEND_WEIGHT, |row| row.weight)?;
        each(&mut encoder, &rows, family::TABLE_SLOTS, |row| row.slots)?;
        listeners(&mut encoder, &snapshot, &self.bindings)?;
        digests(&mut encoder, &snapshot)?;
        expiries(&mut encoder, &snapshot)
    }
}

/// One backend of a pool by the name that people know it by.
struct Row<'a> {
    pool: &'a PoolId,
    backend: &'a str,
    weight: u64,
    /// New requests go to whoever has slots and to nobody else, so they say who is ready too.
    slots: u64,
}

/// The backends of a pool. A pod in several groups is several members of one name, and one row: the same
/// labels twice would be no valid exposition.
fn rows(pool: &PoolSnapshot) -> impl Iterator<Item = Row<'_>> {
    let mut rows: BTreeMap<&str, Row<'_>> = BTreeMap::new();
    for member in &pool.members {
        let backend = &*member.backend.name;
        let empty = Row { pool: &pool.pool.id, backend, weight: 0, slots: 0 };
        let row = rows.entry(backend).or_insert(empty);
        if takes_traffic(&pool.pool, &member.backend.group) {
            row.weight += u64::from(member.weight);
        }
        row.slots += u64::from(member.slots);
    }
    rows.into_values()
}

fn takes_traffic(pool: &Pool, group: &str) -> bool {
    pool.groups.iter().any(|it| *it.name == *group && it.weight > 0)
}

fn each(
    encoder: &mut DescriptorEncoder<'_>,
    rows: &[Row<'_>],
    family: Family,
    value: impl Fn(&Row<'_>) -> u64,
) -> fmt::Result {
    let mut series = family.start(encoder)?;
    for row in rows {
        let labels =
            [("namespace", &*row.pool.namespace), ("pool", &*row.pool.name), ("backend", row.backend)];
        let gauge = ConstGauge::<u64>::new(value(row));
        gauge.encode(series.encode_family(&labels)?)?;
    }
    Ok(())
}

fn listeners(
    encoder: &mut DescriptorEncoder<'_>,
    snapshot: &Snapshot,
    bindings: &BindingsReader,
) -> fmt::Result {
    let mut series = family::LISTENER_BOUND.start(encoder)?;
    let ports = bindings.current();
    for pool in snapshot.pools() {
        for listener in &pool.pool.listeners {
            let labels = [
                ("namespace", &*pool.pool.id.namespace),
                ("pool", &*pool.pool.id.name),
                ("listener", &*listener.name),
            ];
            let is_bound = ports.get(&listener.port_id()) == Some(&BindState::Bound);
            ConstGauge::<u64>::new(is_bound.into()).encode(series.encode_family(&labels)?)?;
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

/// Of what clients are shown, by listener, and of what endpoints are shown, by backend.
fn expiries(encoder: &mut DescriptorEncoder<'_>, snapshot: &Snapshot) -> fmt::Result {
    let mut series = family::CERTIFICATE_NOT_AFTER.start(encoder)?;
    for pool in snapshot.pools().map(|it| &it.pool) {
        let listeners = pool.listeners.iter().filter_map(|it| {
            let certificates = &it.tls.as_ref()?.certificates;
            Some(("listener", &it.name, certificates.iter().map(|it| it.validity.not_after).min()?))
        });
        let backends = pool.groups.iter().filter_map(|it| {
            let identity = it.tls.as_ref()?.identity.as_ref()?;
            Some(("backend", &it.name, identity.validity.not_after))
        });
        for (side, name, not_after) in listeners.chain(backends) {
            let labels = [("namespace", &*pool.id.namespace), ("pool", &*pool.id.name), (side, &**name)];
            ConstGauge::<u64>::new(not_after).encode(series.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use rustls::pki_types::{PrivatePkcs8KeyDer, ServerName};

    use super::*;
    use crate::balance::assembly::Assembly;
    use crate::balance::backend::{Backend, HttpVersion, Lineage, Member, State, Weight};
    use crate::balance::key::KeySource;
    use crate::balance::pool::{Fill, Group, Listener, PortId, Protocol, ProxyProtocol, Readiness, Timeouts};
    use crate::balance::routes::Match;
    use crate::balance::seats::Authority;
    use crate::balance::tls::{BackendTls, CaBundle, Certificate, TlsTerms, TlsVersion, Validity};
    use crate::handoff::{bindings, handoff};
    use crate::metrics::Metrics;

    fn pool(groups: &[(&str, u16)], readiness: Readiness) -> Arc<Pool> {
        Arc::new(Pool {
            id: PoolId::new("shop", "web"),
            created_ms: 0,
            listeners: Vec::new(),
            groups: groups
                .iter()
                .map(|(name, weight)| Group {
                    name: (*name).into(),
                    weight: *weight,
                    tls: None,
                    introduction: None,
                })
                .collect(),
            table_size: Some(251),
            fill: Fill::Seats,
            hash_on: vec![KeySource::ClientIp],
            readiness,
            drain_timeout: Duration::ZERO,
            timeouts: Timeouts::default(),
            max_request_body: None,
            access_log: None,
        })
    }

    fn member(name: &str, group: &str, weight: u16, state: State) -> Member {
        let backend = Backend {
            id: format!("{name}~{group}").as_str().into(),
            group: group.into(),
            name: name.into(),
            address: "192.0.2.1:80".parse().unwrap(),
            http: HttpVersion::Http1,
        };
        let weight = Weight::new(weight).unwrap();
        Member { backend: Arc::new(backend), weight, state, lineage: Lineage::default() }
    }

    /// What is scraped of a backend: name, ready, weight and slots.
    type Seen = (&'static str, u64, u64, u64);

    fn scrape(pool: &Arc<Pool>, members: &[Member]) -> String {
        let ((publisher, reader), (_, bindings)) = (handoff(), bindings(None));
        let built = Assembly::default().assemble(pool, members, Authority::Holder, 0);
        let pools = BTreeMap::from([(pool.id.clone(), built.snapshot)]);
        publisher.publish(Snapshot::new(1, pools, &BTreeMap::new()));
        Metrics::new(reader, bindings).scrape().unwrap()
    }

    fn check(pool: &Arc<Pool>, members: &[Member], expected: &[Seen]) {
        let text = scrape(pool, members);
        let series = |family: Family, value: fn(&Seen) -> u64| {
            let start = format!("{}{{", family.name);
            let found: Vec<&str> = text.lines().filter(|line| line.starts_with(&start)).collect();
            let line = |seen: &Seen| {
                let name = seen.0;
                format!("{start}namespace=\"shop\",pool=\"web\",backend=\"{name}\"}} {}", value(seen))
            };
            assert_eq!(found, expected.iter().map(line).collect::<Vec<_>>());
        };
        series(family::BACKEND_READY, |seen| seen.1);
        series(family::BACKEND_WEIGHT, |seen| seen.2);
        series(family::TABLE_SLOTS, |seen| seen.3);
    }

    fn certificate(not_after: u64) -> Arc<Certificate> {
        Arc::new(Certificate {
            names: Vec::new(),
            chain: Vec::new(),
            validity: Validity { not_before: 0, not_after },
            key: PrivatePkcs8KeyDer::from(Vec::new()).into(),
            ocsp: None,
        })
    }

    #[test]
    fn of_several_certificates_the_one_that_expires_first_counts() {
        let mut pool = Pool::clone(&pool(&[("stable", 1), ("canary", 1), ("plain", 1)], Readiness::Require));
        let ca = Arc::new(CaBundle { roots: Vec::new() });
        let certificates = vec![certificate(300), certificate(100), certificate(200)];
        let terms = TlsTerms { certificates, min_version: TlsVersion::V12, client_ca: None };
        for (name, tls) in [("web", None), ("secure", Some(Arc::new(terms)))] {
            let (proxy_protocol, matches) = (ProxyProtocol::Off, vec![Match::all()]);
            pool.listeners.push(Listener {
                name: name.into(),
                port: 8443,
                protocol: Protocol::Http,
                proxy_protocol,
                tls,
                matches,
            });
        }
        for (group, identity) in pool.groups.iter_mut().zip([Some(certificate(50)), None]) {
            let server_name = ServerName::try_from("web.test").unwrap();
            group.tls = Some(Arc::new(BackendTls { server_name, ca: ca.clone(), identity }));
        }
        let text = scrape(&Arc::new(pool), &[]);
        let found: Vec<&str> =
            text.lines().filter(|line| line.starts_with(family::CERTIFICATE_NOT_AFTER.name)).collect();
        assert_eq!(
            found,
            [
                "guideway_certificate_not_after_seconds{namespace=\"shop\",pool=\"web\",listener=\"secure\"} 100",
                "guideway_certificate_not_after_seconds{namespace=\"shop\",pool=\"web\",backend=\"stable\"} 50",
            ]
        );
    }

    #[test]
    fn a_pod_in_two_groups_is_one_series() {
        let pool = pool(&[("stable", 1), ("canary", 1)], Readiness::Require);
        let members = [member("a", "stable", 2, State::Ready), member("a", "canary", 3, State::Ready)];
        check(&pool, &members, &[("a", 1, 5, 251)]);
    }

    #[test]
    fn who_takes_no_new_requests_is_not_ready() {
        let pool = pool(&[("stable", 1), ("canary", 0)], Readiness::Require);
        let members = [
            member("a", "stable", 2, State::Ready),
            member("b", "stable", 2, State::NotReady),
            member("c", "canary", 2, State::Ready),
        ];
        check(&pool, &members, &[("a", 1, 2, 251), ("b", 0, 2, 0), ("c", 0, 0, 0)]);
    }

    #[test]
    fn a_listener_is_bound_when_its_port_is() {
        let ((publisher, reader), (ports, bindings)) = (handoff(), bindings(None));
        let listener = |name: &str, port| Listener {
            name: name.into(),
            port,
            protocol: Protocol::Http,
            proxy_protocol: ProxyProtocol::Off,
            tls: None,
            matches: vec![Match::all()],
        };
        let listeners = vec![listener("a", 80), listener("b", 81), listener("c", 82)];
        let pool = Arc::new(Pool { listeners, ..Pool::clone(&pool(&[("stable", 1)], Readiness::Require)) });
        let built = Assembly::default().assemble(&pool, &[], Authority::Holder, 0);
        let pools = BTreeMap::from([(pool.id.clone(), built.snapshot)]);
        publisher.publish(Snapshot::new(1, pools, &BTreeMap::new()));
        let failed = BindState::Failed { reason: "it is taken".into() };
        ports.report([(PortId::Tcp(80), BindState::Bound), (PortId::Tcp(81), failed)].into());
        let text = Metrics::new(reader, bindings).scrape().unwrap();
        for (name, value) in [("a", 1), ("b", 0), ("c", 0)] {
            let line = format!(
                "guideway_listener_bound{{namespace=\"shop\",pool=\"web\",listener=\"{name}\"}} {value}\n"
            );
            assert!(text.contains(&line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn where_readiness_is_ignored_the_unready_take_requests_too() {
        let pool = pool(&[("stable", 1)], Readiness::Ignore);
        check(&pool, &[member("a", "stable", 1, State::NotReady)], &[("a", 1, 1, 251)]);
    }
}
