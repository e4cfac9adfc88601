//! Owns what the pools of files show and trust: Secrets that stand in the same files, and files of PEM beside them. A
//! pool that names a bad one is wrong as a whole, as with any other mistake: it stays as it last was.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::folder::Credentials;
use super::reading::{Found, Place, Problem, Reading};
use super::secrets::SecretDocument;
use crate::balance::pool::{Pool, PoolId};
use crate::balance::tls::{CaBundle, Certificate};
use crate::crd::tls::CertificateFiles;
use crate::source::credentials::{self, Fault, Part, Reason, SecretCredentials};
use crate::source::reach::Target;
use crate::source::tls::{self, Asked, Lacking, Secured, Source};
use crate::source::translate::{FieldError, Translated};

/// The files with certificates, keys and authorities that the pools of these readings name.
pub(super) fn named_files<'a>(readings: impl IntoIterator<Item = &'a Reading>) -> BTreeSet<PathBuf> {
    let mut named = BTreeSet::new();
    for found in readings.into_iter().flat_map(|reading| &reading.pools) {
        for secured in found.outcome.iter().flat_map(|it| &it.secured) {
            let certificates = secured.certificates.iter().filter_map(Asked::files);
            let parts = certificates.flat_map(|it| [Some(&it.certificate), Some(&it.key), it.ocsp.as_ref()]);
            named.extend(parts.flatten().map(|path| resolve(found, path)));
            let authorities = secured.authorities.iter().filter_map(Asked::files);
            named.extend(authorities.map(|path| resolve(found, path)));
        }
    }
    named
}

/// A path that a pool names begins at the folder of its file.
fn resolve(found: &Found, path: &str) -> PathBuf {
    found.place.file.parent().unwrap_or(Path::new("")).join(path)
}

/// What pools are equipped with, beside the Secrets in their files.
pub(super) struct Means<'a> {
    /// The files that the pools name.
    pub(super) files: &'a Credentials,
    pub(super) target: Target,
    /// Tells which certificates expired; in seconds since the UNIX epoch.
    pub(super) now: u64,
    /// The pools in force, whose terms are used again where they are equal.
    pub(super) in_force: &'a BTreeMap<PoolId, Arc<Pool>>,
}

impl Means<'_> {
    /// A cluster has the Secrets that are missing in the files.
    fn lacking(&self) -> Lacking {
        match self.target {
            Target::Cluster => Lacking::LookedAt,
            Target::Standalone => Lacking::Unserved,
        }
    }
}

/// Gives the pools of these readings the terms of TLS that they ask for, or their mistakes.
pub(super) fn equip(readings: &mut [&mut Reading], means: &Means<'_>) {
    let secrets: Vec<SecretDocument> =
        readings.iter_mut().flat_map(|reading| std::mem::take(&mut reading.secrets)).collect();
    let mut used = BTreeSet::new();
    for reading in readings.iter_mut() {
        for found in &mut reading.pools {
            let Ok(translated) = &found.outcome else { continue };
            let (problems, remarks) = (Vec::new(), Vec::new());
            let mut fitter = Fitter { found, secrets: &secrets, means, problems, remarks, used: &mut used };
            let before = means.in_force.get(&found.id);
            let pool = translated.equipped(before, means.lacking(), |secured| fitter.find(secured));
            let Fitter { mut problems, remarks, .. } = fitter;
            reading.remarks.extend(remarks);
            if problems.is_empty() {
                found.outcome = Ok(Translated { pool, ..translated.clone() });
            } else {
                problems.sort();
                found.outcome = Err(problems);
            }
        }
    }
    for reading in readings {
        reading.others.retain(|(place, _)| !used.contains(place));
    }
}

/// Looks for what one pool asks for.
struct Fitter<'a> {
    found: &'a Found,
    secrets: &'a [SecretDocument],
    means: &'a Means<'a>,
    problems: Vec<Problem>,
    remarks: Vec<Problem>,
    /// Places of the Secrets that pools name.
    used: &'a mut BTreeSet<Place>,
}

impl<'a> Fitter<'a> {
    fn find(&mut self, secured: &Secured) -> tls::Found {
        let mut found = tls::Found::default();
        for Asked { field, source } in &secured.certificates {
            found.certificates.extend(match source {
                Source::Secret(name) => {
                    let field = format!("{field}.name");
                    let checked = self.of_secret(&field, name, |it| &it.certificate);
                    checked.map(|(it, secret)| {
                        self.remarks.extend(it.unstapled.iter().map(|fault| unstapled(secret.fault(fault))));
                        self.shown(&field, &it.certificate)
                    })
                }
                Source::Files(files) => {
                    let checked = self.of_files(field, files);
                    checked.map(|it| self.shown(&format!("{field}.certificate"), &it))
                }
            });
        }
        found.authorities = secured.authorities.as_ref().and_then(|Asked { field, source }| match source {
            Source::Secret(name) => {
                let bundle = self.of_secret(&format!("{field}.name"), name, |it| &it.authorities);
                bundle.map(|(it, _)| it.clone())
            }
            Source::Files(file) => self.of_file(field, file),
        });
        found
    }

    /// What the Secret holds for this use, and where.
    fn of_secret<T>(
        &mut self,
        field: &str,
        name: &Arc<str>,
        of_use: impl Fn(&'a SecretCredentials) -> &'a Result<T, Vec<Fault>>,
    ) -> Option<(&'a T, &'a SecretDocument)> {
        let namespace = &self.found.id.namespace;
        let is_meant = |it: &&SecretDocument| it.is(namespace, name);
        let places: Vec<&SecretDocument> = self.secrets.iter().filter(is_meant).collect();
        self.used.extend(places.iter().map(|it| it.place().clone()));
        let secret = match places[..] {
            [secret] => secret,
            [first, second, ..] => {
                let reason = format!(
                    "Secret {namespace}/{name} stands at {} and at {}; remove or rename one of the two",
                    first.place(),
                    second.place()
                );
                self.tell(field, reason);
                return None;
            }
            [] => {
                if self.means.target == Target::Standalone {
                    let reason = format!(
                        "there is no Secret {name} in namespace {namespace} of these files; add it, or name files in \
                         its place"
                    );
                    self.tell(field, reason);
                }
                return None;
            }
        };
        let content = match secret.content() {
            Ok(content) => content,
            Err(errors) => {
                let problem = |it: &FieldError| secret.problem(it.path.clone(), it.reason.clone());
                self.problems.extend(errors.iter().map(problem));
                return None;
            }
        };
        let faults = |faults: &Vec<Fault>| self.problems.extend(faults.iter().map(|it| secret.fault(it)));
        of_use(content).as_ref().map_err(faults).ok().map(|it| (it, secret))
    }

    fn of_files(&mut self, field: &str, files: &CertificateFiles) -> Option<Arc<Certificate>> {
        let chain = self.read(Part::Chain, &files.certificate);
        let key = self.read(Part::Key, &files.key);
        let ocsp = files.ocsp.as_ref().map(|path| self.read(Part::Ocsp, path)).transpose();
        let checked = match (chain, key, ocsp) {
            (Ok(chain), Ok(key), Ok(ocsp)) => credentials::certificate(chain, key, ocsp),
            (chain, key, ocsp) => Err([chain.err(), key.err(), ocsp.err()].into_iter().flatten().collect()),
        };
        let tell = |faults: Vec<Fault>| {
            for fault in faults {
                let problem = self.of_part(field, files, &fault);
                self.problems.push(problem);
            }
        };
        let checked = checked.map_err(tell).ok()?;
        let remark = checked.unstapled.map(|fault| unstapled(self.of_part(field, files, &fault)));
        self.remarks.extend(remark);
        Some(checked.certificate)
    }

    fn of_part(&self, field: &str, files: &CertificateFiles, fault: &Fault) -> Problem {
        let (part, path) = match fault.part {
            Part::Key => ("key", &*files.key),
            Part::Ocsp => ("ocsp", files.ocsp.as_deref().unwrap_or_default()),
            Part::Chain | Part::Authorities => ("certificate", &*files.certificate),
        };
        self.file_problem(&format!("{field}.{part}"), path, &fault.reason)
    }

    fn of_file(&mut self, field: &str, path: &str) -> Option<Arc<CaBundle>> {
        let client_ca = self.read(Part::Authorities, path).map_err(|fault| vec![fault]);
        let client_ca = client_ca.and_then(credentials::authorities);
        let tell = |faults: Vec<Fault>| {
            for fault in faults {
                let problem = self.file_problem(field, path, &fault.reason);
                self.problems.push(problem);
            }
        };
        client_ca.map(Arc::new).map_err(tell).ok()
    }

    fn read(&self, part: Part, path: &str) -> Result<&'a [u8], Fault> {
        let fault = |reason: &Arc<str>| Fault { part, reason: Reason::Unreadable(reason.clone()) };
        match self.means.files.get(&resolve(self.found, path)) {
            Some(Ok(bytes)) => Ok(bytes),
            Some(Err(reason)) => Err(fault(reason)),
            None => Err(fault(&"it was not looked for".into())),
        }
    }

    /// The certificate of a pool, with a remark if clients will not take it.
    fn shown(&mut self, field: &str, certificate: &Arc<Certificate>) -> Arc<Certificate> {
        if let Some(remark) = certificate.validity.remark(self.means.now) {
            let (place, field) = (self.found.place_of(field), field.into());
            self.remarks.push(Problem { place, field, reason: format!("the certificate {remark}") });
        }
        certificate.clone()
    }

    fn file_problem(&self, field: &str, path: &str, reason: &Reason) -> Problem {
        let reason = format!("{} {reason}", resolve(self.found, path).display());
        Problem { place: self.found.place_of(field), field: field.into(), reason }
    }

    fn tell(&mut self, field: &str, reason: String) {
        self.problems.push(Problem { place: self.found.place_of(field), field: field.into(), reason });
    }
}

/// What is said of an OCSP response that is left out.
fn unstapled(problem: Problem) -> Problem {
    Problem { reason: format!("{}; the certificate is shown without it", problem.reason), ..problem }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::ByteString;

    use super::super::reading;
    use super::super::reading::tests::{tls_backend_pool, tls_pool};
    use super::*;
    use crate::source::admission::Admission;
    use crate::source::credentials::tests::{Pair, authority, expired, pair};

    const BY_SECRET: &str = "      secretRefs:\n      - name: shop-tls\n";

    /// A Secret whose fields are written as they are.
    fn secret(name: &str, entries: &[(&str, &str)]) -> String {
        let indented = |text: &str| text.lines().map(|line| format!("    {line}\n")).collect::<String>();
        let entry = |(key, text): &(&str, &str)| format!("  {key}: |\n{}", indented(text));
        let entries: String = entries.iter().map(entry).collect();
        format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\nstringData:\n{entries}")
    }

    fn tls_secret(pair: &Pair) -> String {
        secret("shop-tls", &[("tls.crt", &pair.chain), ("tls.key", &pair.key)])
    }

    fn readings(files: &[(&str, &str)], beside: &[(&str, &str)], target: Target) -> Vec<Reading> {
        let admission = Admission::new().unwrap();
        let read =
            |(file, text): &(&str, &str)| reading::read(text, &Path::new(file).into(), &admission, target);
        let mut readings: Vec<Reading> = files.iter().map(read).collect();
        let beside: BTreeMap<&str, &str> = beside.iter().copied().collect();
        let content = |path: &PathBuf| {
            let text = beside.get(path.to_str().unwrap());
            text.map(|it| Arc::from(it.as_bytes())).ok_or_else(|| "No such file".into())
        };
        let named = named_files(&readings).into_iter().map(|path| (path.clone(), content(&path))).collect();
        let means = Means { files: &named, target, now: 1_800_000_000, in_force: &BTreeMap::new() };
        equip(&mut readings.iter_mut().collect::<Vec<_>>(), &means);
        readings
    }

    fn problems(readings: &[Reading]) -> Vec<String> {
        let of_pools = readings.iter().flat_map(|it| &it.pools).filter_map(|it| it.outcome.as_ref().err());
        of_pools.flatten().map(ToString::to_string).collect()
    }

    /// The names of the certificates that the pools show.
    fn shown(readings: &[Reading]) -> Vec<String> {
        let pools = readings.iter().flat_map(|it| &it.pools).filter_map(|it| it.outcome.as_ref().ok());
        let terms = pools.flat_map(|it| &it.pool.listeners).filter_map(|it| it.tls.as_ref());
        let certificates = terms.flat_map(|it| &it.certificates);
        certificates.flat_map(|it| &it.names).map(ToString::to_string).collect()
    }

    fn check(files: &[(&str, &str)], beside: &[(&str, &str)], target: Target, expected: &[&str]) {
        assert_eq!(problems(&readings(files, beside, target)), expected);
    }

    #[test]
    fn a_secret_may_stand_in_any_of_the_files_plain_or_encoded() {
        let good = pair(&["one.test"]);
        let both = format!("{}---\n{}", tls_pool(BY_SECRET), tls_secret(&good));
        let files = readings(&[("x.yaml", &both)], &[], Target::Standalone);
        assert_eq!((problems(&files), shown(&files)), (vec![], vec!["one.test".into()]));
        assert_eq!(files[0].others, [], "it is somebody's");
        let encoded = |text: &str| serde_json::to_string(&ByteString(text.as_bytes().into())).unwrap();
        let (chain, key) = (encoded(&good.chain), encoded(&good.key));
        let wrapped = key.trim_matches('"').replace('M', "M\n    ");
        let apart = format!(
            "apiVersion: v1\nkind: Secret\nmetadata: {{name: shop-tls}}\ndata:\n  tls.crt: {chain}\n  tls.key: |\n    {wrapped}\n"
        );
        let files = [("x.yaml", &*tls_pool(BY_SECRET)), ("y.yaml", &apart)];
        let files = readings(&files, &[], Target::Standalone);
        assert_eq!((problems(&files), shown(&files)), (vec![], vec!["one.test".into()]));
    }

    #[test]
    fn a_secret_that_is_missing_or_double_is_told_where_it_is_named() {
        let named = ("x.yaml", &*tls_pool(BY_SECRET));
        let missing = "x.yaml:11: spec.listeners[0].tls.secretRefs[0].name: there is no Secret shop-tls in namespace \
                       default of these files; add it, or name files in its place";
        check(&[named], &[], Target::Standalone, &[missing]);
        let one = tls_secret(&pair(&["one.test"]));
        let elsewhere = one.replace("{name: shop-tls}", "{name: shop-tls, namespace: other}");
        check(&[named, ("y.yaml", &elsewhere)], &[], Target::Standalone, &[missing]);
        check(
            &[named, ("y.yaml", &one), ("z.yaml", &one)],
            &[],
            Target::Standalone,
            &[
                "x.yaml:11: spec.listeners[0].tls.secretRefs[0].name: Secret default/shop-tls stands at y.yaml:1 and at \
               z.yaml:1; remove or rename one of the two",
            ],
        );
    }

    #[test]
    fn the_faults_of_a_secret_are_told_where_they_stand() {
        let (one, two) = (pair(&["one.test"]), pair(&["two.test"]));
        let named = ("x.yaml", &*tls_pool(BY_SECRET));
        let mixed = secret("shop-tls", &[("tls.key", &one.key), ("tls.crt", &two.chain)]);
        check(
            &[named, ("y.yaml", &mixed)],
            &[],
            Target::Standalone,
            &["y.yaml:5: stringData.tls.key: does not belong to the certificate; replace both together"],
        );
        let garbled = "apiVersion: v1\nkind: Secret\nmetadata: {name: shop-tls}\ndata:\n  tls.crt: a-b\nstringData:\n  tls.key: 5\n";
        check(
            &[named, ("y.yaml", garbled)],
            &[],
            Target::Standalone,
            &[
                "y.yaml:5: data.tls.crt: is no base64; encode it, or write it as it is under stringData",
                "y.yaml:7: stringData.tls.key: is no text; write it as one",
            ],
        );
        check(
            &[named, ("y.yaml", &secret("shop-tls", &[("tls.crt", &one.chain)]))],
            &[],
            Target::Standalone,
            &["y.yaml:4: stringData.tls.key: is missing; add it"],
        );
    }

    #[test]
    fn a_cluster_may_have_the_secrets_that_are_not_in_the_files() {
        let named = ("x.yaml", &*tls_pool(BY_SECRET));
        check(&[named], &[], Target::Cluster, &[]);
        check(
            &[named, ("y.yaml", &secret("shop-tls", &[]))],
            &[],
            Target::Cluster,
            &[
                "y.yaml:4: stringData.tls.crt: is missing; add it",
                "y.yaml:4: stringData.tls.key: is missing; add it",
            ],
        );
        let readings = readings(&[named], &[], Target::Cluster);
        let translated = readings[0].pools[0].outcome.as_ref().unwrap();
        assert!(translated.pool.listeners[0].tls.is_some(), "it is one that speaks TLS");
    }

    const BY_FILES: &str =
        "      certificateFiles:\n      - certificate: tls/a.crt\n        key: /etc/a.key\n";

    #[test]
    fn files_begin_at_the_folder_of_the_pools_file() {
        let good = pair(&["one.test"]);
        let beside = [("conf/tls/a.crt", &*good.chain), ("/etc/a.key", &good.key)];
        let files = readings(&[("conf/x.yaml", &tls_pool(BY_FILES))], &beside, Target::Standalone);
        assert_eq!((problems(&files), shown(&files)), (vec![], vec!["one.test".into()]));
    }

    #[test]
    fn the_faults_of_files_are_told_with_path_and_field() {
        let (one, two) = (pair(&["one.test"]), pair(&["two.test"]));
        let terms = format!("{BY_FILES}        ocsp: a.ocsp\n      clientCAFile: ca.crt\n");
        let named = ("conf/x.yaml", &*tls_pool(&terms));
        check(
            &[named],
            &[("/etc/a.key", &one.key), ("conf/a.ocsp", "old"), ("conf/ca.crt", &one.key)],
            Target::Standalone,
            &[
                "conf/x.yaml:11: spec.listeners[0].tls.certificateFiles[0].certificate: conf/tls/a.crt cannot be read: \
                 No such file",
                "conf/x.yaml:14: spec.listeners[0].tls.clientCAFile: conf/ca.crt holds no certificate in PEM; it begins \
                 with -----BEGIN CERTIFICATE-----",
            ],
        );
        check(
            &[named],
            &[
                ("conf/tls/a.crt", &one.chain),
                ("/etc/a.key", &one.key),
                ("conf/ca.crt", &authority("clients")),
            ],
            Target::Standalone,
            &[
                "conf/x.yaml:13: spec.listeners[0].tls.certificateFiles[0].ocsp: conf/a.ocsp cannot be read: No such \
                 file",
            ],
        );
        check(
            &[("x.yaml", &tls_pool(BY_FILES))],
            &[("tls/a.crt", &two.chain), ("/etc/a.key", &one.key)],
            Target::Standalone,
            &["x.yaml:12: spec.listeners[0].tls.certificateFiles[0].key: /etc/a.key does not belong to the \
                 certificate; replace both together"],
        );
    }

    #[test]
    fn backends_have_their_credentials_from_secrets_or_files() {
        let (client, ca) = (pair(&["client.test"]), authority("backends"));
        let by_secret = tls_backend_pool(
            "      serverName: web.test\n      ca: {name: backend-ca}\n      clientCertificate: {name: shop-tls}\n",
        );
        let ca_secret = secret("backend-ca", &[("ca.crt", &ca)]);
        let all = format!("{by_secret}---\n{ca_secret}---\n{}", tls_secret(&client));
        let by_file = tls_backend_pool(
            "      serverName: web.test\n      caFile: ca.crt\n      clientCertificateFile: {certificate: a.crt, key: a.key}\n",
        );
        let beside = [("conf/ca.crt", &*ca), ("conf/a.crt", &client.chain), ("conf/a.key", &client.key)];
        for readings in [
            readings(&[("x.yaml", &all)], &[], Target::Standalone),
            readings(&[("conf/x.yaml", &by_file)], &beside, Target::Standalone),
        ] {
            assert_eq!(problems(&readings), [""; 0]);
            let group = &readings[0].pools[0].outcome.as_ref().unwrap().pool.groups[0];
            let tls = group.tls.as_ref().unwrap();
            assert_eq!((tls.ca.roots.len(), group.weight), (1, 1));
            assert_eq!(*tls.identity.as_ref().unwrap().names, ["client.test".into()]);
            assert_eq!(readings[0].others, [], "the Secrets are the backend's");
        }
        let in_cluster = readings(&[("x.yaml", &by_secret)], &[], Target::Cluster);
        let group = &in_cluster[0].pools[0].outcome.as_ref().unwrap().pool.groups[0];
        assert_eq!((group.tls.is_some(), group.weight), (false, 1), "what a plan says of it stays true");
    }

    #[test]
    fn the_faults_of_a_backends_credentials_are_told_with_their_lines() {
        let client = pair(&["client.test"]);
        let by_secret = tls_backend_pool("      serverName: web.test\n      ca: {name: shop-tls}\n");
        check(
            &[("x.yaml", &by_secret), ("y.yaml", &tls_secret(&client))],
            &[],
            Target::Standalone,
            &["y.yaml:4: stringData.ca.crt: is missing; add it"],
        );
        check(
            &[("x.yaml", &by_secret)],
            &[],
            Target::Standalone,
            &[
                "x.yaml:13: spec.backends[0].tls.ca.name: there is no Secret shop-tls in namespace default of these \
                 files; add it, or name files in its place",
            ],
        );
        let by_file = tls_backend_pool(
            "      serverName: web.test\n      caFile: ca.crt\n      clientCertificateFile:\n        certificate: a.crt\n        key: a.key\n",
        );
        check(
            &[("x.yaml", &by_file)],
            &[("ca.crt", &client.key), ("a.crt", &client.chain)],
            Target::Standalone,
            &[
                "x.yaml:13: spec.backends[0].tls.caFile: ca.crt holds no certificate in PEM; it begins with \
                 -----BEGIN CERTIFICATE-----",
                "x.yaml:16: spec.backends[0].tls.clientCertificateFile.key: a.key cannot be read: No such file",
            ],
        );
        check(
            &[("x.yaml", &by_file)],
            &[],
            Target::Cluster,
            &[
                "x.yaml:13: spec.backends[0].tls.caFile: caFile is for use without Kubernetes: name a Secret in ca in its \
                 place",
                "x.yaml:14: spec.backends[0].tls.clientCertificateFile: clientCertificateFile is for use without \
                 Kubernetes: name a Secret in clientCertificate in its place",
            ],
        );
    }

    #[test]
    fn an_expired_certificate_is_in_force_with_a_remark() {
        let both = format!("{}---\n{}", tls_pool(BY_SECRET), tls_secret(&expired(&["old.test"])));
        let files = readings(&[("x.yaml", &both)], &[], Target::Standalone);
        assert_eq!((problems(&files), shown(&files)), (vec![], vec!["old.test".into()]));
        assert_eq!(
            files[0].remarks.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "x.yaml:11: spec.listeners[0].tls.secretRefs[0].name: the certificate expired at 2021-01-01T00:00:00Z; \
              renew it"
            ]
        );
    }

    #[test]
    fn a_certificate_is_in_force_without_an_ocsp_response_that_is_not_its_own() {
        let good = pair(&["one.test"]);
        let terms = format!("{BY_FILES}        ocsp: a.ocsp\n");
        let beside = [("conf/tls/a.crt", &*good.chain), ("/etc/a.key", &*good.key), ("conf/a.ocsp", "old")];
        let of_files = readings(&[("conf/x.yaml", &tls_pool(&terms))], &beside, Target::Standalone);
        let fields = [("tls.crt", &*good.chain), ("tls.key", &*good.key), ("tls.ocsp-staple", "old")];
        let both = format!("{}---\n{}", tls_pool(BY_SECRET), secret("shop-tls", &fields));
        let of_secret = readings(&[("x.yaml", &both)], &[], Target::Standalone);
        for (files, place) in [
            (&of_files, "conf/x.yaml:13: spec.listeners[0].tls.certificateFiles[0].ocsp: conf/a.ocsp "),
            (&of_secret, "stringData.tls.ocsp-staple: "),
        ] {
            assert_eq!((problems(files), shown(files)), (vec![], vec!["one.test".into()]));
            let remarks: Vec<String> = files[0].remarks.iter().map(ToString::to_string).collect();
            let expected = format!(
                "{place}is no OCSP response in DER; fetch it anew, or leave it out; the certificate is shown without it"
            );
            assert!(remarks.len() == 1 && remarks[0].ends_with(&expected), "{remarks:?}");
        }
    }

    #[test]
    fn what_a_secret_holds_is_never_shown() {
        let good = pair(&["one.test"]);
        let both = format!("{}---\n{}", tls_pool(BY_SECRET), tls_secret(&good));
        let admission = Admission::new().unwrap();
        let reading = reading::read(&both, &Path::new("x.yaml").into(), &admission, Target::Standalone);
        assert_eq!(reading.secrets.len(), 1);
        assert!(!format!("{reading:?}").contains(good.key.lines().nth(1).unwrap()));
    }
}
