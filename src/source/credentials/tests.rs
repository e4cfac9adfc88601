//! What is served and what is refused, with certificates made on the spot.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, PKCS_ED25519, date_time_ymd,
};

use super::ocsp::tests::response_on;
use super::*;

/// A certificate and its key in PEM.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pair {
    pub(crate) chain: String,
    pub(crate) key: String,
}

/// A certificate for these names that signs itself, and its key.
pub(crate) fn pair(names: &[&str]) -> Pair {
    pair_with(names, |_| {})
}

pub(crate) fn pair_with(names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Pair {
    let names: Vec<String> = names.iter().map(ToString::to_string).collect();
    let mut params = CertificateParams::new(names).unwrap();
    change(&mut params);
    let key = KeyPair::generate().unwrap();
    Pair { chain: params.self_signed(&key).unwrap().pem(), key: key.serialize_pem() }
}

/// One that expired long ago.
pub(crate) fn expired(names: &[&str]) -> Pair {
    pair_with(names, |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    })
}

/// An authority of this name.
pub(crate) fn authority(name: &str) -> String {
    issuer(name).pem()
}

pub(super) fn issuer(name: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn read(pair: &Pair) -> Result<Arc<Certificate>, Vec<Fault>> {
    certificate(pair.chain.as_bytes(), pair.key.as_bytes(), None).map(|it| it.certificate)
}

fn faults<T>(result: Result<T, Vec<Fault>>) -> Vec<String> {
    result.err().unwrap_or_default().iter().map(ToString::to_string).collect()
}

#[test]
fn a_certificate_is_known_by_its_dns_names_in_lower_case() {
    let checked = read(&pair(&["Shop.Example.com", "*.example.com", "192.0.2.1"])).unwrap();
    let names: Vec<&str> = checked.names.iter().map(|it| &**it).collect();
    assert_eq!(names, ["shop.example.com", "*.example.com"]);
    assert_eq!(checked.ocsp, None);
}

#[test]
fn a_chain_is_kept_in_its_order() {
    let issuer = issuer("root");
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["a.test".into()]).unwrap().signed_by(&key, &issuer).unwrap();
    let good = Pair { chain: leaf.pem() + &issuer.pem(), key: key.serialize_pem() };
    assert_eq!(read(&good).unwrap().chain[0], *leaf.der());
    assert_eq!(read(&good).unwrap().chain.len(), 2);
    let turned = Pair { chain: issuer.pem() + &leaf.pem(), ..good };
    assert_eq!(
        faults(read(&turned)),
        ["tls.crt: begins with another certificate than the key's, which is number 2; put that one first"]
    );
}

/// Version 1 of X.509, as some authorities that are still in use have it.
const VERSION_1: &str = "\
-----BEGIN CERTIFICATE-----
MIIBIjCByQIUDa+6Ad9q0xGyW8XGZk67GBcrvjEwCgYIKoZIzj0EAwIwEzERMA8G
A1UEAwwIb2xkIHJvb3QwIBcNMjYxMTIxMjE0MjM5WhgPMjEyNjEwMjgyMTQyMzla
MBMxETAPBgNVBAMMCG9sZCByb290MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE
3lxYE2oymLJj264cRTk6+atMrsfB7L4CGfzV+pjrVf4uNqb+O+SP+2nvBhQGgVLs
VHz2fZlYl9EqrLBt7p+tpTAKBggqhkjOPQQDAgNIADBFAiEAmQCpAARgxX367bfR
lr7egrXB2EubVgGtNnimWeRlT1UCIEYIgr2+lBEsi+6sPEpSr0Pxu9BZodU0eHYM
kCuei38S
-----END CERTIFICATE-----
";

#[test]
fn a_chain_may_end_in_a_certificate_of_old() {
    let good = pair(&["a.test"]);
    let old = Pair { chain: good.chain.clone() + VERSION_1, ..good.clone() };
    assert_eq!(read(&old).unwrap().chain.len(), 2);
    let junk = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n";
    let damaged = Pair { chain: good.chain + junk, ..old };
    assert!(faults(read(&damaged))[0].starts_with("tls.crt: certificate 2 of it cannot be used: "));
}

#[test]
fn a_key_must_belong_to_its_certificate() {
    let (one, other) = (pair(&["a.test"]), pair(&["a.test"]));
    let mixed = Pair { chain: one.chain, key: other.key };
    assert_eq!(faults(read(&mixed)), ["tls.key: does not belong to the certificate; replace both together"]);
}

#[test]
fn keys_of_other_kinds_serve_too() {
    let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let chain = CertificateParams::new(vec!["a.test".into()]).unwrap().self_signed(&key).unwrap().pem();
    // What openssl puts before some keys.
    let key = format!(
        "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n{}",
        key.serialize_pem()
    );
    assert_eq!(faults(read(&Pair { chain, key })), [""; 0]);
}

#[test]
fn every_fault_of_the_parts_is_told_at_once_and_none_repeats_them() {
    let good = pair(&["a.test"]);
    let cut = |pem: &str| pem.replace("-----END", "-----ENDE");
    for (chain, key, expected) in [
        ("", "", ["tls.crt: is empty; put its content in", "tls.key: is empty; put its content in"]),
        (
            "MIIB",
            &good.chain,
            [
                "tls.crt: holds no certificate in PEM; it begins with -----BEGIN CERTIFICATE-----",
                "tls.key: holds no private key in PEM; it begins with -----BEGIN PRIVATE KEY-----",
            ],
        ),
        (
            &cut(&good.chain),
            &cut(&good.key),
            [
                "tls.crt: is damaged PEM; copy it anew, with every BEGIN and END line",
                "tls.key: is damaged PEM; copy it anew, with every BEGIN and END line",
            ],
        ),
        (
            "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n",
            &good.key.replace("PRIVATE", "ENCRYPTED PRIVATE"),
            [
                "tls.crt: certificate 1 of it cannot be used: TrailingData(SignedData); have it issued anew",
                "tls.key: is encrypted, and nobody is there to be asked for the passphrase; decrypt it (openssl pkey)",
            ],
        ),
        (
            &good.chain.repeat(CHAIN_MAX + 1),
            "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMIIB\n-----END RSA PRIVATE KEY-----\n",
            [
                "tls.crt: holds 17 certificates; write at most 16",
                "tls.key: is encrypted, and nobody is there to be asked for the passphrase; decrypt it (openssl pkey)",
            ],
        ),
    ] {
        assert_eq!(faults(certificate(chain.as_bytes(), key.as_bytes(), None)), expected);
    }
}

#[test]
fn a_key_that_cannot_sign_is_told() {
    let chain = pair(&["a.test"]).chain;
    let key = "-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n".into();
    assert_eq!(
        faults(read(&Pair { chain, key })),
        ["tls.key: cannot be used; make an ECDSA P-256 or P-384, Ed25519 or RSA key of 2048 to 8192 bits"]
    );
}

#[test]
fn an_ocsp_response_goes_along_and_a_bad_one_is_left_out() {
    let (good, other) = (pair(&["a.test"]), pair(&["a.test"]));
    let with = |ocsp: &[u8]| certificate(good.chain.as_bytes(), good.key.as_bytes(), Some(ocsp)).unwrap();
    let response = response_on(&good.chain);
    let stapled = with(&response);
    assert_eq!((stapled.certificate.ocsp.as_deref(), stapled.unstapled), (Some(&response[..]), None));
    for (ocsp, fault) in [
        (&b"garbage"[..], "is no OCSP response in DER; fetch it anew, or leave it out"),
        (b"", "is empty; put its content in"),
        (
            &[0x30, 3, 0x0a, 1, 3],
            "is an OCSP response of status 3, which is a refusal; fetch it anew, or leave it out",
        ),
        (
            &response_on(&other.chain),
            "is an OCSP response on another certificate, or by another issuer; fetch it anew, or leave it out",
        ),
    ] {
        let Checked { certificate, unstapled } = with(ocsp);
        assert_eq!(unstapled.unwrap().to_string(), format!("tls.ocsp-staple: {fault}"));
        assert_eq!((&*certificate.names[0], &certificate.ocsp), ("a.test", &None));
    }
}

#[test]
fn an_expired_certificate_is_served_with_a_remark() {
    let validity = read(&expired(&["a.test"])).unwrap().validity;
    let (first, last) = (1_577_836_800, 1_609_459_200);
    assert_eq!(validity, Validity { not_before: first, not_after: last });
    assert_eq!(
        validity.remark(first - 1).unwrap(),
        "is not valid before 2020-01-01T00:00:00Z; check the clocks"
    );
    assert_eq!(validity.remark(first), None);
    assert_eq!(validity.remark(last), None);
    assert_eq!(validity.remark(last + 1).unwrap(), "expired at 2021-01-01T00:00:00Z; renew it");
}

#[test]
fn authorities_come_as_a_bundle() {
    let bundle = authority("one") + &authority("two");
    assert_eq!(authorities(bundle.as_bytes()).unwrap().roots.len(), 2);
    assert_eq!(
        faults(authorities(pair(&["a.test"]).key.as_bytes())),
        ["ca.crt: holds no certificate in PEM; it begins with -----BEGIN CERTIFICATE-----"]
    );
    let many = authority("one").repeat(AUTHORITIES_MAX + 1);
    assert_eq!(faults(authorities(many.as_bytes())), ["ca.crt: holds 513 certificates; write at most 512"]);
}

#[test]
fn a_secret_is_read_for_each_of_its_uses() {
    let good = pair(&["a.test"]);
    let data = |entries: &[(&str, &str)]| -> BTreeMap<String, ByteString> {
        entries.iter().map(|(key, text)| (key.to_string(), ByteString(text.as_bytes().into()))).collect()
    };
    let both = SecretCredentials::read(&data(&[("tls.crt", &good.chain), ("tls.key", &good.key)]));
    assert_eq!(both.certificate.map(|it| it.certificate), read(&good));
    assert_eq!(faults(both.authorities), ["ca.crt: is missing; add it"]);
    let bundle = SecretCredentials::read(&data(&[("ca.crt", &authority("one"))]));
    assert_eq!(faults(bundle.certificate), ["tls.crt: is missing; add it", "tls.key: is missing; add it"]);
    assert_eq!(bundle.authorities.unwrap().roots.len(), 1);
}

#[test]
fn no_key_is_ever_shown() {
    let good = pair(&["a.test"]);
    let secret_part = &good.key.lines().nth(1).unwrap()[..16];
    let data = [("tls.crt", &good.chain), ("tls.key", &good.key)];
    let data = data.map(|(key, text)| (key.to_string(), ByteString(text.as_bytes().into())));
    let shown = format!("{:?} {:?}", SecretCredentials::read(&data.into()), read(&good));
    let bytes = read(&good).unwrap().key.secret_der()[..8].to_vec();
    assert!(!shown.contains(secret_part) && !shown.contains(&format!("{bytes:?}")[1..20]), "{shown}");
}
