//! Owns the admission of a resource where no API server does it: names, schema, defaults and CEL rules are
//! those of the definition that a cluster installs, so a file and a cluster accept the same pools.

use kube::core::cel::{CompiledSchema, ValidationError, Validator, compile_schema};
use serde_json::Value;

use super::reach::Target;
use super::translate::FieldError;
use super::{metadata, schema};
use crate::crd::manifest::{self, ManifestError};
use crate::crd::pool::LoadBalancerPool;
use crate::crd::rules::IN_A_CLUSTER;

/// The rules of a `LoadBalancerPool`.
#[derive(Debug)]
pub struct Admission {
    schema: Value,
    rules: CompiledSchema,
    validator: Validator,
}

impl Admission {
    /// The rules of the installed definition.
    pub fn new() -> Result<Self, ManifestError> {
        let schema = manifest::schema()?;
        let rules = compile_schema(&schema);
        Ok(Self { schema, rules, validator: Validator::new() })
    }

    /// The resource with its defaults, or everything the API server would refuse it for, but for what only a cluster
    /// has no use for where `target` is none. As there, the CEL rules are asked only about an object that fits the schema.
    pub fn admit(&self, mut object: Value, target: Target) -> Result<LoadBalancerPool, Vec<FieldError>> {
        schema::normalize(&mut object);
        let mut errors = Vec::new();
        metadata::check(&object, &mut errors);
        // Applying a resource leaves its status alone, whatever stands there; but there must be such fields.
        let status = object.as_object_mut().and_then(|it| it.remove("status")).unwrap_or_default();
        schema::find_unknown(&self.schema["properties"]["status"], &status, "status", &mut errors);
        schema::check(&self.envelope(), &object, "", &mut errors);
        if errors.is_empty() {
            let broken = self.validator.validate_compiled(&self.rules, &object, None);
            let concerns = |it: &ValidationError| {
                target == Target::Cluster || it.reason.as_deref() != Some(IN_A_CLUSTER)
            };
            let broken = broken.err().into_iter().flatten().filter(concerns);
            errors.extend(broken.map(|it| rule_error(it, &object)));
        }
        if errors.is_empty() { typed(object) } else { Err(errors) }
    }

    /// The schema with the fields that every resource has.
    fn envelope(&self) -> Value {
        let mut schema = self.schema.clone();
        for field in ["apiVersion", "kind", "metadata"] {
            schema["properties"][field] = Value::Object(serde_json::Map::new());
        }
        schema
    }
}

fn typed(object: Value) -> Result<LoadBalancerPool, Vec<FieldError>> {
    serde_path_to_error::deserialize(object).map_err(|error| {
        let path = error.path().to_string();
        vec![FieldError::new(path, error.into_inner().to_string())]
    })
}

fn rule_error(error: ValidationError, object: &Value) -> FieldError {
    // The rule of the whole object is about its name.
    if error.field_path.is_empty() {
        return FieldError::new("metadata.name", error.message);
    }
    // A rule's own path may come with one dot too many.
    let path = error.field_path.replace("..", ".");
    let written = object.pointer(&format!("/{}", path.replace(['.', '['], "/").replace(']', "")));
    // As the API server does, it shows a text that is wrong, and none that is in the wrong place.
    match written.and_then(Value::as_str).filter(|_| error.reason.as_deref() != Some(IN_A_CLUSTER)) {
        Some(text) => FieldError::new(path, format!("`{text}`: {}", error.message)),
        None => FieldError::new(path, error.message),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::source::translate;

    fn good() -> Value {
        json!({
            "apiVersion": "guideway.dev/v1alpha1",
            "kind": "LoadBalancerPool",
            "metadata": {"name": "web", "labels": {"any": "thing"}},
            "spec": {
                "listeners": [{"name": "web", "port": 8080}, {"name": "alt", "port": 8081}],
                "backends": [
                    {"name": "stable", "service": {"name": "web", "port": "http"}},
                    {"name": "outside", "endpoints": [{"address": "2001:db8::1", "port": 80}]},
                ],
                "algorithm": {"hashOn": [{"type": "Header", "name": "x-user"}, {"type": "ClientIP"}]},
            },
            "status": {"seats": "is not looked at"},
        })
    }

    /// The good pool with `value` in the place of the field at `pointer`.
    fn check(pointer: &str, value: Value, expected: &[&str]) {
        let mut object = good();
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[field] = value;
        let errors = Admission::new().unwrap().admit(object, Target::Cluster).err().unwrap_or_default();
        let found: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{pointer}");
    }

    #[test]
    fn every_rule_of_the_definition_can_be_evaluated() {
        assert!(!Admission::new().unwrap().rules.has_errors());
    }

    #[test]
    fn an_admitted_pool_has_its_defaults_and_can_be_translated() {
        let mut object = good();
        object["spec"]["timeouts"] = json!({"connect": "2s", "request": null});
        object["spec"]["listeners"][0]["port"] = json!(8080.0);
        let resource = Admission::new().unwrap().admit(object, Target::Cluster).unwrap();
        assert_eq!(resource.spec.timeouts.request.0, "30s");
        assert_eq!(resource.spec.backends[0].weight, 1);
        translate::pool(&resource).unwrap();
    }

    #[test]
    fn names_follow_the_rules_of_kubernetes() {
        check(
            "/metadata/name",
            json!("Web"),
            &["metadata.name: `Web` is no name; use a-z, 0-9 and, not at its ends, - and ."],
        );
        check("/metadata/name", Value::Null, &["metadata.name: is missing; give the pool a name"]);
        check(
            "/metadata/namespace",
            json!("a/b"),
            &[
                "metadata.namespace: `a/b` is no namespace; use at most 63 of a-z, 0-9 and, not at its ends, -",
            ],
        );
        check(
            "/metadata/name",
            json!("a".repeat(64)),
            &["metadata.name: the name is longer than 63 characters: shorten it, metrics and files carry it"],
        );
    }

    #[test]
    fn a_status_is_ignored_but_for_fields_that_there_are_not() {
        check("/status", json!("anything"), &[]);
        check("/status", json!({"conditions": [{"type": 3}], "endpoints": {"ready": "x"}}), &[]);
        let object = json!({"endpoints": {"raedy": 1}, "foo": 1, "conditions": [{"kind": "x"}]});
        let mut at = good();
        at["status"] = object;
        let errors = Admission::new().unwrap().admit(at, Target::Cluster).unwrap_err();
        let paths: Vec<&str> = errors.iter().map(|it| it.path.as_str()).collect();
        assert_eq!(paths, ["status.conditions[0].kind", "status.endpoints.raedy", "status.foo"]);
    }

    #[test]
    fn the_rules_of_the_definition_hold_here_too() {
        check(
            "/spec/listeners",
            json!([{"name": "a", "port": 80}, {"name": "b", "port": 80}]),
            &[
                "spec.listeners: every listener needs a port of its own: give each of them another port, or name \
              the hosts and paths of both in one",
            ],
        );
        check(
            "/spec/algorithm/hashOn",
            json!([{"type": "Cookie"}, {"type": "Path", "name": "x"}, {"type": "Header", "name": "a/b"}]),
            &[
                "spec.algorithm.hashOn[0]: Header, Cookie and Query need a name; ClientIP, Path and Host take none",
                "spec.algorithm.hashOn[1]: Header, Cookie and Query need a name; ClientIP, Path and Host take none",
                "spec.algorithm.hashOn[2].name: `a/b`: the name of a header or cookie consists of letters, digits and \
                 -!#$%&*+.^_`|~",
            ],
        );
        check(
            "/spec/backends",
            json!([{"name": "a", "weight": 0, "endpoints": [{"address": "db.example.net", "port": 80}]}]),
            &[
                "spec.backends: no backend has a weight above 0, so no request could be served: give at least one a weight",
                "spec.backends[0].endpoints[0].address: `db.example.net`: address is no IP address of a host: write one such as 192.0.2.10 or \
                 2001:db8::10, not a host name",
            ],
        );
        check(
            "/spec/algorithm",
            json!({"tableSize": 65535}),
            &[
                "spec.algorithm.tableSize: tableSize is not a prime: use one such as 1021, 65537, 131071, 262147, 524309 or 1048583, or leave it out",
            ],
        );
        check(
            "/spec/health",
            json!({"drainTimeout": "25h"}),
            &["spec.health.drainTimeout: `25h`: drainTimeout is at most 24h"],
        );
        check(
            "/spec/timeouts",
            json!({"connect": "0s"}),
            &["spec.timeouts.connect: `0s`: connect is 1ms to 5m"],
        );
        check(
            "/spec/backends",
            json!([{"name": "a"}]),
            &["spec.backends[0]: set exactly one of service and endpoints"],
        );
    }

    #[test]
    fn what_a_listener_says_fits_its_protocol() {
        check(
            "/spec/listeners",
            json!([
                {"name": "a", "port": 53, "protocol": "UDP"},
                {"name": "b", "port": 53, "protocol": "TCP", "paths": []},
                {"name": "c", "port": 80},
            ]),
            &[],
        );
        check(
            "/spec/listeners",
            json!([
                {"name": "a", "port": 53, "protocol": "UDP", "proxyProtocol": "Accept"},
                {"name": "b", "port": 53, "protocol": "UDP", "hostnames": ["a.test"]},
                {"name": "c", "port": 54, "protocol": "TCP", "paths": ["/a"]},
                {"name": "d", "port": 80},
            ]),
            &[
                "spec.listeners: every listener needs a port of its own: give each of them another port, or name the hosts \
                 and paths of both in one",
                "spec.listeners[0].proxyProtocol: `Accept`: the PROXY protocol is for connections, which UDP has none of: \
                 leave proxyProtocol out",
                "spec.listeners[1]: hostnames and paths are parts of HTTP requests: leave them out, or use protocol HTTP or HTTPS",
                "spec.listeners[2]: hostnames and paths are parts of HTTP requests: leave them out, or use protocol HTTP or HTTPS",
            ],
        );
    }

    #[test]
    fn what_no_listener_has_a_use_for_is_refused() {
        let ca = json!({"serverName": "web.test", "ca": {"name": "a"}});
        let pool = |protocol: &str| {
            let mut object = good();
            object["spec"] = json!({
                "listeners": [{"name": "a", "port": 53, "protocol": protocol}],
                "backends": [{"name": "a", "service": {"name": "web", "port": 80}}],
            });
            object
        };
        let told = |object: Value| {
            let errors = Admission::new().unwrap().admit(object, Target::Cluster).err().unwrap_or_default();
            errors.iter().map(|it| it.path.clone()).collect::<Vec<_>>()
        };
        for (at, field, value, refused) in [
            ("/spec", "timeouts", json!({"request": "5s"}), ("spec.timeouts.request", true, true)),
            ("/spec", "timeouts", json!({"request": "30s"}), ("", false, false)),
            ("/spec", "timeouts", json!({"connect": "5s"}), ("spec.timeouts.connect", false, true)),
            (
                "/spec",
                "algorithm",
                json!({"hashOn": [{"type": "Path"}]}),
                ("spec.algorithm.hashOn", true, true),
            ),
            ("/spec", "algorithm", json!({"hashOn": [{"type": "ClientIP"}]}), ("", false, false)),
            ("/spec/backends/0", "protocol", json!("H2C"), ("spec.backends", true, true)),
            ("/spec/backends/0", "tls", ca, ("spec.backends", false, true)),
            ("/spec/backends/0", "proxyProtocol", json!("V2"), ("spec.backends", false, true)),
            ("/spec/backends/0", "proxyProtocol", json!("Off"), ("", false, false)),
        ] {
            let (path, of_connections, of_datagrams) = refused;
            for (protocol, is_refused) in [("HTTP", false), ("TCP", of_connections), ("UDP", of_datagrams)] {
                let mut object = pool(protocol);
                object.pointer_mut(at).unwrap()[field] = value.clone();
                let expected = if is_refused { vec![path] } else { vec![] };
                assert_eq!(told(object.clone()), expected, "{field} of {protocol}");
                // Where there are requests as well, what is said of them is of use.
                let also = json!({"name": "also", "port": 80, "protocol": "HTTP"});
                object["spec"]["listeners"].as_array_mut().unwrap().push(also);
                let in_the_clear = protocol == "UDP" && ["tls", "proxyProtocol"].contains(&field);
                let expected = if is_refused && in_the_clear { vec![path] } else { vec![] };
                if protocol != "HTTP" {
                    assert_eq!(told(object), expected, "{field} of {protocol} and HTTP");
                }
            }
        }
    }

    #[test]
    fn the_rules_of_tls_hold_here_too() {
        let check_listener = |more: Value, expected: &[&str]| {
            let mut listener = json!({"name": "a", "port": 80});
            listener.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            check("/spec/listeners", json!([listener]), expected);
        };
        let refs = json!([{"name": "shop-tls"}]);
        check_listener(json!({"protocol": "HTTPS", "tls": {"secretRefs": refs}}), &[]);
        check_listener(
            json!({"protocol": "HTTPS"}),
            &[
                "spec.listeners[0]: HTTPS and TLS need tls: name a Secret with the certificate in tls.secretRefs",
            ],
        );
        check_listener(
            json!({"tls": {"secretRefs": refs}}),
            &["spec.listeners[0]: tls is for HTTPS and TLS: set protocol to one of them, or leave tls out"],
        );
        check_listener(
            json!({"protocol": "HTTPS", "tls": {"secretRefs": [], "clientCA": {"name": "a"}, "clientCAFile": "b"}}),
            &[
                "spec.listeners[0].tls: there is no certificate to show: name a Secret of type kubernetes.io/tls in \
                 secretRefs",
                "spec.listeners[0].tls: set at most one of clientCA and clientCAFile: put both bundles into one",
                "spec.listeners[0].tls.clientCAFile: clientCAFile is for use without Kubernetes: name a Secret in clientCA \
                 in its place",
            ],
        );
        check_listener(
            json!({"protocol": "HTTPS", "tls": {"secretRefs": refs, "minVersion": "TLS11"}}),
            &["spec.listeners[0].tls.minVersion: `TLS11` is not supported; use TLS12, TLS13"],
        );
        check_listener(
            json!({"protocol": "HTTPS", "tls": {"secretRefs": [{"name": "Shop"}]}}),
            &[
                "spec.listeners[0].tls.secretRefs[0].name: `Shop`: this is no name of a Secret: use only a-z, 0-9 and, not \
                 at its ends, - and .",
            ],
        );
    }

    #[test]
    fn the_rules_of_tls_to_backends_hold_here_too() {
        let check_tls = |tls: Value, expected: &[&str]| {
            let service = json!({"name": "web", "port": "https"});
            check("/spec/backends", json!([{"name": "a", "service": service, "tls": tls}]), expected);
        };
        let one = "spec.backends[0].tls: set exactly one of ca and caFile: without authorities nobody could tell who \
                   an endpoint is";
        let by_name = |name: &str| json!({"serverName": name, "ca": {"name": "backend-ca"}});
        for name in ["web.shop.svc", "a", "xn--a.b-c.test", "1.2.3.a", &format!("{}.test", "a".repeat(63))] {
            check_tls(by_name(name), &[]);
        }
        for name in ["192.0.2.1", "2001:db8::1", "*.test", "Web.test", "a..b", "a.", &"a".repeat(64)] {
            let told = format!(
                "spec.backends[0].tls.serverName: `{name}`: this is no DNS name: write one in lower case, such as \
                 web.shop.svc, and no address"
            );
            check_tls(by_name(name), &[&told]);
        }
        check_tls(json!({"ca": {"name": "a"}}), &["spec.backends[0].tls.serverName: is missing"]);
        check_tls(json!({"serverName": "a.test"}), &[one]);
        let files = json!({"certificate": "a", "key": "b"});
        check_tls(
            json!({
                "serverName": "a.test", "ca": {"name": "a"}, "caFile": "a",
                "clientCertificate": {"name": "b"}, "clientCertificateFile": files,
            }),
            &[
                one,
                "spec.backends[0].tls: set at most one of clientCertificate and clientCertificateFile",
                "spec.backends[0].tls.caFile: caFile is for use without Kubernetes: name a Secret in ca in its place",
                "spec.backends[0].tls.clientCertificateFile: clientCertificateFile is for use without Kubernetes: name a \
                 Secret in clientCertificate in its place",
            ],
        );
    }

    /// Where the good pool with `value` at `pointer` is refused, and that it is so in words.
    fn refused(pointer: &str, value: Value, target: Target) -> Vec<String> {
        let mut object = good();
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        object.pointer_mut(parent).unwrap()[field] = value;
        let errors = Admission::new().unwrap().admit(object, target).err().unwrap_or_default();
        for error in &errors {
            assert!(!error.reason.contains("evaluation") && !error.reason.contains("[a-z0-9]"), "{error}");
        }
        errors.into_iter().map(|it| it.path).collect()
    }

    #[test]
    fn a_text_is_what_its_field_takes() {
        let check = |pointer: &str, good: &[Value], bad: &[Value]| {
            let path = pointer[1..].replace('/', ".").replace(".0", "[0]");
            for value in good {
                assert!(refused(pointer, value.clone(), Target::Cluster).is_empty(), "{pointer} = {value}");
            }
            for value in bad {
                let found = refused(pointer, value.clone(), Target::Cluster);
                assert!(found.len() == 1 && found[0].starts_with(&path), "{pointer} = {value}: {found:?}");
            }
        };
        let texts = |all: &[&str]| all.iter().map(|it| json!(it)).collect::<Vec<_>>();
        let lists = |all: &[&str]| all.iter().map(|it| json!([it])).collect::<Vec<_>>();
        for pointer in ["/spec/listeners/0/name", "/spec/backends/0/name", "/spec/backends/0/service/name"] {
            check(
                pointer,
                &texts(&["a", "0", "a-b", "80"]),
                &texts(&["A", "a.b", "-a", "a-", "a_b", "\u{e4}"]),
            );
        }
        check(
            "/spec/listeners/0/hostnames",
            &lists(&["a", "shop.example.com", "*.example.com", "1.a"]),
            &lists(&["Shop.example.com", "*", "a:80", "*.*.a", "a..b", "-a.b", "a.*.b", "a/", "a "]),
        );
        check(
            "/spec/listeners/0/paths",
            &lists(&["/", "/api/", "/a.b/.c/..d/...", "//%20", "/a'b", "/%2e%2ea", "/a/%2e%2e%2e"]),
            &lists(&[
                "api",
                "/a?b",
                "/a#b",
                "/a b",
                "/./a",
                "/a/..",
                "/a/%2e%2E/b",
                "/.%2e/",
                "/a/%2e",
                "/\u{e4}",
            ]),
        );
        let mut ports = texts(&["http", "8a", "a-8", "a80", "123456"]);
        ports.extend([json!(1), json!(80), json!(65535), json!("a".repeat(63))]);
        let mut bad = texts(&["80", "0", "65535", "00080", "Http", "a_", "-a", "a-", "-", "a.b", "\u{e4}"]);
        bad.push(json!(format!("{}_", "a".repeat(62))));
        check("/spec/backends/0/service/port", &ports, &bad);
        check(
            "/spec/timeouts",
            &[json!({"connect": "1500ms"}), json!({"request": "1h1m1s1ms"}), json!({"request": "0s"})],
            &[
                json!({"connect": "1.5s"}),
                json!({"connect": "soon"}),
                json!({"request": "-1s"}),
                json!({"request": "5"}),
            ],
        );
        check("/spec/health", &[json!({"drainTimeout": "0s"})], &[json!({"drainTimeout": "1d"})]);
        let named = |kind: &str, name: &str| json!({"hashOn": [{"type": kind, "name": name}]});
        check(
            "/spec/algorithm",
            &[named("Query", "a[]"), named("Query", "a/b\"'"), named("Cookie", "a|b")],
            &[named("Query", "a b"), named("Query", "a&b"), named("Query", "\u{e4}"), named("Header", "a[]")],
        );
    }

    /// An API server asks the rules about an empty text too, although the schema refuses it already.
    #[test]
    fn the_rules_can_be_asked_about_empty_texts() {
        let admission = Admission::new().unwrap();
        let mut object = good();
        object["spec"]["listeners"][0]["hostnames"] = json!([""]);
        object["spec"]["listeners"][0]["paths"] = json!([""]);
        object["spec"]["backends"][0]["tls"] = json!({"serverName": "", "ca": {"name": ""}});
        object["spec"]["timeouts"] = json!({"connect": "", "request": ""});
        object["spec"]["health"] = json!({"drainTimeout": ""});
        for pointer in [
            "/listeners/0/name",
            "/backends/0/name",
            "/backends/0/service/name",
            "/backends/0/service/port",
            "/backends/1/endpoints/0/address",
            "/algorithm/hashOn/0/name",
        ] {
            *object["spec"].pointer_mut(pointer).unwrap() = json!("");
        }
        let broken = admission.validator.validate_compiled(&admission.rules, &object, None).unwrap_err();
        assert!(broken.len() >= 13, "{broken:?}");
        for error in broken {
            assert_eq!(format!("{:?}", error.kind), "ValidationFailure", "{error:?}");
        }
    }

    #[test]
    fn a_pool_lists_a_bounded_number_of_endpoints() {
        let backend = |name: usize, count: usize| {
            let endpoint =
                |at| json!({"address": format!("10.{name}.{}.{}", at / 250, at % 250 + 1), "port": 80});
            json!({"name": format!("b{name}"), "endpoints": (0..count).map(endpoint).collect::<Vec<_>>()})
        };
        let mut backends: Vec<Value> = (0..4).map(|name| backend(name, 1024)).collect();
        backends.push(json!({"name": "stable", "service": {"name": "web", "port": 80}}));
        check("/spec/backends", json!(backends), &[]);
        backends.push(backend(4, 1));
        check(
            "/spec/backends",
            json!(backends),
            &[
                "spec.backends: the backends list more than 4096 endpoints together: name a Service in place of a list \
               (one without a selector and with EndpointSlices of your own where there are no pods), or make several \
               pools",
            ],
        );
    }

    #[test]
    fn a_number_in_quotes_is_refused_with_the_way_out() {
        check(
            "/spec/backends/0/service/port",
            json!("80"),
            &[
                "spec.backends[0].service.port: `80`: a number in quotes is taken for a name: write the number without them, \
                 such as port: 80",
            ],
        );
    }

    #[test]
    fn what_a_cluster_has_no_use_for_is_refused_there_alone() {
        let only_in_a_cluster = |pointer: &str, value: Value, paths: &[&str]| {
            assert_eq!(refused(pointer, value.clone(), Target::Cluster), paths, "{pointer} = {value}");
            assert!(refused(pointer, value.clone(), Target::Standalone).is_empty(), "{pointer} = {value}");
        };
        for address in ["127.0.0.1", "127.9.9.9", "::1", "169.254.169.254", "fe80::1"] {
            only_in_a_cluster(
                "/spec/backends/1/endpoints",
                json!([{"address": "192.0.2.1", "port": 80}, {"address": address, "port": 80}]),
                &["spec.backends[1].endpoints[1].address"],
            );
        }
        let files = json!({"certificate": "a", "key": "b"});
        only_in_a_cluster(
            "/spec/listeners",
            json!([{
                "name": "a", "port": 80, "protocol": "HTTPS",
                "tls": {"certificateFiles": [files], "clientCAFile": "c"},
            }]),
            &["spec.listeners[0].tls.certificateFiles", "spec.listeners[0].tls.clientCAFile"],
        );
        only_in_a_cluster(
            "/spec/backends/0/tls",
            json!({"serverName": "web.test", "caFile": "a", "clientCertificateFile": files}),
            &["spec.backends[0].tls.caFile", "spec.backends[0].tls.clientCertificateFile"],
        );
    }

    #[test]
    fn what_stands_in_the_place_of_a_files_path_is_not_repeated() {
        let tls = json!({"serverName": "web.test", "caFile": "-----BEGIN PRIVATE KEY-----"});
        check(
            "/spec/backends/0/tls",
            tls,
            &[
                "spec.backends[0].tls.caFile: caFile is for use without Kubernetes: name a Secret in ca in its place",
            ],
        );
    }

    #[test]
    fn an_object_that_does_not_fit_the_schema_is_not_asked_for_more() {
        check(
            "/spec/boundedLoad",
            json!(1.25),
            &[
                "spec.boundedLoad: unknown field; the fields here are accessLog, algorithm, backends, health, listeners, maxRequestBodyBytes, timeouts",
            ],
        );
        check(
            "/spec/listeners",
            json!([{"name": "a", "port": 70000}]),
            &["spec.listeners[0].port: 70000 is not a port; use 1 to 65535"],
        );
        check("/spec", Value::Null, &["spec: is missing"]);
    }
}
