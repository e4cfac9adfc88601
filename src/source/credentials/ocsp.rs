//! Owns the look at an OCSP response (RFC 6960) before it is stapled: whether it is a successful one, and on the
//! certificate that it lies beside. Its signature and its age are for clients to check.

use aws_lc_rs::digest::{self, Algorithm, SHA1_FOR_LEGACY_USE_ONLY, SHA256, SHA384, SHA512};
use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;

use super::Reason;

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OBJECT_ID: u8 = 0x06;
const ENUMERATED: u8 = 0x0a;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
/// The constructed, context-specific tag of `responseBytes`, and of a `version`.
const FIRST: u8 = 0xa0;
const SUCCESSFUL: u8 = 0;

/// The only type of response that there is, id-pkix-ocsp-basic.
const BASIC: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 0x30, 1, 1];

/// The hashes that name an issuer. Nearly all responses have the first one, as RFC 5019 asks.
const HASHES: [(&[u8], &Algorithm); 4] = [
    (&[0x2b, 0x0e, 3, 2, 0x1a], &SHA1_FOR_LEGACY_USE_ONLY),
    (&[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1], &SHA256),
    (&[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2], &SHA384),
    (&[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3], &SHA512),
];

/// The response as it is to be stapled to the first certificate of `chain`.
pub(super) fn response(der: &[u8], chain: &[CertificateDer<'_>]) -> Result<Vec<u8>, Reason> {
    if der.is_empty() {
        return Err(Reason::Empty);
    }
    let (status, body) = status(der).ok_or(Reason::NoOcspResponse)?;
    if status != SUCCESSFUL {
        return Err(Reason::OcspRefusal { status });
    }
    let mut answers = answers(body).ok_or(Reason::NoOcspResponse)?;
    let subject = Subject::of(chain).ok_or(Reason::ForeignOcsp)?;
    while !answers.is_empty() {
        let (answer, rest) = value(answers, SEQUENCE).ok_or(Reason::NoOcspResponse)?;
        let (id, _) = value(answer, SEQUENCE).ok_or(Reason::NoOcspResponse)?;
        if subject.is_meant_by(id).ok_or(Reason::NoOcspResponse)? {
            return Ok(der.to_vec());
        }
        answers = rest;
    }
    Err(Reason::ForeignOcsp)
}

/// The status that the response begins with, and what is behind it. A successful one has more to say there, any other
/// has not.
fn status(der: &[u8]) -> Option<(u8, &[u8])> {
    let (response, rest) = value(der, SEQUENCE)?;
    let (status, body) = value(response, ENUMERATED)?;
    let &[status] = status else { return None };
    let is_whole = rest.is_empty()
        && match status {
            SUCCESSFUL => value(body, FIRST).is_some_and(|(_, rest)| rest.is_empty()),
            _ => true,
        };
    is_whole.then_some((status, body))
}

/// What a successful response says, one answer for each certificate (RFC 6960 section 4.2.1).
fn answers(body: &[u8]) -> Option<&[u8]> {
    let (bytes, _) = value(value(body, FIRST)?.0, SEQUENCE)?;
    let (kind, rest) = value(bytes, OBJECT_ID)?;
    let (basic, _) = value(rest, OCTET_STRING)?;
    let (data, _) = value(value(basic, SEQUENCE)?.0, SEQUENCE)?;
    let data = value(data, FIRST).map_or(data, |(_version, rest)| rest);
    let (_responder, rest) = value(data, *data.first()?)?;
    let (_produced, rest) = value(rest, GENERALIZED_TIME)?;
    let (answers, _) = value(rest, SEQUENCE)?;
    (kind == BASIC).then_some(answers)
}

/// Of whom a response should be.
struct Subject<'a> {
    leaf: EndEntityCert<'a>,
    /// The keys of those in the chain that have the issuer's name. None where the chain ends before.
    issuer_keys: Vec<Vec<u8>>,
}

impl<'a> Subject<'a> {
    fn of(chain: &'a [CertificateDer<'_>]) -> Option<Self> {
        let leaf = EndEntityCert::try_from(chain.first()?).ok()?;
        let all = chain.iter().filter_map(|it| EndEntityCert::try_from(it).ok());
        let issuers = all.filter(|it| it.subject() == leaf.issuer());
        let issuer_keys = issuers.filter_map(|it| public_key(&it.subject_public_key_info())).collect();
        Some(Self { leaf, issuer_keys })
    }

    /// Whether a `CertID` (RFC 6960 section 4.1.1) is that of the certificate.
    fn is_meant_by(&self, id: &[u8]) -> Option<bool> {
        let (algorithm, rest) = value(id, SEQUENCE)?;
        let (algorithm, _) = value(algorithm, OBJECT_ID)?;
        let (issuer_name, rest) = value(rest, OCTET_STRING)?;
        let (issuer_key, rest) = value(rest, OCTET_STRING)?;
        let (serial, _) = value(rest, INTEGER)?;
        let Some((_, hash)) = HASHES.iter().find(|(name, _)| *name == algorithm) else { return Some(false) };
        let is = |bytes: &[u8], hashed: &[u8]| digest::digest(hash, bytes).as_ref() == hashed;
        let is_issued = self.issuer_keys.is_empty() || self.issuer_keys.iter().any(|key| is(key, issuer_key));
        let name = element(SEQUENCE, self.leaf.issuer());
        Some(serial == self.leaf.serial() && is(&name, issuer_name) && is_issued)
    }
}

/// The bits of a public key, without the octet before them that says that they fill whole octets.
fn public_key(info: &[u8]) -> Option<Vec<u8>> {
    let (info, _) = value(info, SEQUENCE)?;
    let (_algorithm, rest) = value(info, SEQUENCE)?;
    let (bits, _) = value(rest, BIT_STRING)?;
    Some(bits.strip_prefix(&[0])?.to_vec())
}

/// The content of the element that `der` begins with, where it has this tag, and what follows it.
fn value(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = der.split_first_chunk()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        // Long forms with up to four bytes of length: four gigabytes are more than any file here holds.
        0x81..=0x84 => {
            let (length, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (length.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(length).filter(|_| found == tag)
}

/// An element of this content.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let length = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    let mut der = vec![tag];
    match length {
        [] => der.push(0),
        [short @ 0..=0x7f] => der.push(*short),
        long => {
            der.push(0x80 | long.len() as u8);
            der.extend(long);
        }
    }
    der.extend(content);
    der
}

#[cfg(test)]
pub(crate) mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::super::tests::issuer;
    use super::*;

    /// Whom a made-up response is on.
    struct On<'a> {
        hash: &'a [u8],
        issuer_name: Vec<u8>,
        issuer_key: Vec<u8>,
        serial: &'a [u8],
    }

    fn hashed(hash: &[u8], bytes: &[u8]) -> Vec<u8> {
        let (_, algorithm) = HASHES.iter().find(|(name, _)| *name == hash).unwrap();
        digest::digest(algorithm, bytes).as_ref().to_vec()
    }

    fn answer(on: &On<'_>) -> Vec<u8> {
        let algorithm = element(SEQUENCE, &[element(OBJECT_ID, on.hash), vec![5, 0]].concat());
        let names = [element(OCTET_STRING, &on.issuer_name), element(OCTET_STRING, &on.issuer_key)].concat();
        let id = element(SEQUENCE, &[algorithm, names, element(INTEGER, on.serial)].concat());
        let time = element(GENERALIZED_TIME, b"20260101000000Z");
        element(SEQUENCE, &[id, vec![0x80, 0], time].concat())
    }

    /// A successful response of these answers. Nobody signed it.
    fn signed(answers: &[Vec<u8>], kind: &[u8]) -> Vec<u8> {
        let time = element(GENERALIZED_TIME, b"20260101000000Z");
        let by_key = element(0xa2, &element(OCTET_STRING, &[7; 20]));
        let data = element(SEQUENCE, &[by_key, time, element(SEQUENCE, &answers.concat())].concat());
        let basic =
            element(SEQUENCE, &[data, element(SEQUENCE, &[]), element(BIT_STRING, &[0; 64])].concat());
        let bytes = [element(OBJECT_ID, kind), element(OCTET_STRING, &basic)].concat();
        let body = element(FIRST, &element(SEQUENCE, &bytes));
        element(SEQUENCE, &[element(ENUMERATED, &[SUCCESSFUL]), body].concat())
    }

    /// A response on the first certificate of a chain, with this hash, as its issuer would sign it.
    fn good(chain: &[CertificateDer<'_>], hash: &[u8]) -> Vec<u8> {
        signed(&[answer(&on(chain, hash))], BASIC)
    }

    fn on<'a>(chain: &'a [CertificateDer<'_>], hash: &'a [u8]) -> On<'a> {
        let subject = Subject::of(chain).unwrap();
        let issuer_name = hashed(hash, &element(SEQUENCE, subject.leaf.issuer()));
        let issuer_key = hashed(hash, subject.issuer_keys.first().map_or(b"unknown", |it| it));
        let serial = subject.leaf.serial().to_vec().leak();
        On { hash, issuer_name, issuer_key, serial }
    }

    /// A response on the certificate in `pem`.
    pub(crate) fn response_on(pem: &str) -> Vec<u8> {
        use rustls::pki_types::pem::PemObject;
        let chain: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes()).map(Result::unwrap).collect();
        good(&chain, HASHES[0].0)
    }

    fn chain() -> Vec<CertificateDer<'static>> {
        let (issuer, key) = (issuer("root"), KeyPair::generate().unwrap());
        let leaf = CertificateParams::new(vec!["a.test".into()]).unwrap().signed_by(&key, &issuer).unwrap();
        vec![leaf.der().clone(), issuer.der().clone()]
    }

    #[test]
    fn a_response_on_the_certificate_is_stapled_as_it_is() {
        let chain = chain();
        for (hash, _) in HASHES {
            let response = good(&chain, hash);
            assert_eq!(super::response(&response, &chain).unwrap(), response, "{hash:?}");
            assert!(
                super::response(&response, &chain[..1]).is_ok(),
                "where the chain ends before its issuer"
            );
        }
        let (other, of_all) = (self::chain(), HASHES[0].0);
        let both = signed(&[answer(&on(&other, of_all)), answer(&on(&chain, of_all))], BASIC);
        assert!(response(&both, &chain).is_ok(), "one of several answers is on it");
    }

    #[test]
    fn a_response_on_another_certificate_is_refused() {
        let (chain, other, hash) = (chain(), chain(), HASHES[0].0);
        let foreign = |der: &[u8]| assert_eq!(response(der, &chain), Err(Reason::ForeignOcsp));
        foreign(&good(&other, hash));
        foreign(&signed(&[], BASIC));
        foreign(&signed(&[answer(&On { serial: &[1], ..on(&chain, hash) })], BASIC));
        foreign(&signed(&[answer(&On { issuer_name: vec![0; 20], ..on(&chain, hash) })], BASIC));
        foreign(&signed(&[answer(&On { issuer_key: vec![0; 20], ..on(&chain, hash) })], BASIC));
        foreign(&signed(&[answer(&On { hash: &[0x2b, 1], ..on(&chain, hash) })], BASIC));
    }

    #[test]
    fn what_is_no_response_is_refused() {
        let chain = chain();
        assert_eq!(response(b"", &chain), Err(Reason::Empty));
        let good = good(&chain, HASHES[0].0);
        let longer = [&good[..], &[0]].concat();
        let without_body: &[u8] = &[SEQUENCE, 3, ENUMERATED, 1, SUCCESSFUL];
        let endless: &[u8] = &[SEQUENCE, 0x80, ENUMERATED, 1, SUCCESSFUL, 0, 0];
        let huge: &[u8] = &[SEQUENCE, 0x84, 0xff, 0xff, 0xff, 0xff, 0];
        let empty_body: &[u8] = &[SEQUENCE, 5, ENUMERATED, 1, SUCCESSFUL, FIRST, 0];
        let of_another_kind = signed(&[answer(&on(&chain, HASHES[0].0))], &[0x2b, 6, 1]);
        for der in [
            &longer[..],
            &of_another_kind,
            without_body,
            endless,
            huge,
            empty_body,
            b"-----BEGIN",
            &[SEQUENCE],
        ] {
            assert_eq!(response(der, &chain), Err(Reason::NoOcspResponse), "{der:?}");
        }
        let try_later = [SEQUENCE, 3, ENUMERATED, 1, 3];
        assert_eq!(response(&try_later, &chain), Err(Reason::OcspRefusal { status: 3 }));
    }

    #[test]
    fn no_cut_makes_it_stumble() {
        let chain = chain();
        let good = good(&chain, HASHES[0].0);
        for end in 0..good.len() {
            assert!(response(&good[..end], &chain).is_err(), "{end}");
        }
        for at in 0..good.len() {
            let mut changed = good.clone();
            changed[at] ^= 0xff;
            // Whatever it is taken for, it is looked at to its end.
            let _ = response(&changed, &chain);
        }
    }
}
