//! Owns the rules of single texts and of what a cluster has no use for: CEL for the API server, and the words with which
//! it refuses. An OpenAPI pattern would be asked first and say no more than itself, so no spec has one.

use kube::core::{Reason, Rule};
use schemars::Schema;
use serde_json::json;

/// A name of a listener, backend or Service: a label of RFC 1123.
pub(super) fn label() -> Rule {
    Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("this is no name: use only a-z, 0-9 and, not at its ends, -")
}

/// A name of a Secret: a subdomain of RFC 1123.
pub(super) fn secret_name() -> Rule {
    Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')")
        .message("this is no name of a Secret: use only a-z, 0-9 and, not at its ends, - and .")
}

/// A name of DNS in lower case with labels of at most 63 characters. The last begins with a letter, so it is no address.
pub(super) fn server_name() -> Rule {
    Rule::new("self.matches('^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?[.])*[a-z]([-a-z0-9]{0,61}[a-z0-9])?$')")
        .message("this is no DNS name: write one in lower case, such as web.shop.svc, and no address")
}

/// The hosts of a list: names of DNS in lower case, with or without `*.` in front.
pub(super) fn hostnames(list: &mut Schema) {
    let host = Rule::new(
        "self.matches('^([*][.])?[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')",
    )
    .message(
        "this is no host: write a name in lower case and without a port, such as shop.example.com, or *.example.com \
         for all below it; leave hostnames out for all hosts",
    );
    each(list, &[host]);
}

/// The paths of a list: as requests have them, without query, and without segments `.` and `..`, which no request has
/// here, however it spells them.
pub(super) fn paths(list: &mut Schema) {
    let whole = Rule::new("self.startsWith('/')")
        .message("this path does not begin with /: write the whole path, such as /api");
    let characters = Rule::new("self.matches('^[-A-Za-z0-9._~!$&\\'()*+,;=:@%/]*$')").message(
        "this path has characters that no path has: leave the query out, and write others than letters, digits and \
         -._~!$&'()*+,;=:@/ as %XX",
    );
    let dots = Rule::new("!self.matches('/([.]|%2[eE]){1,2}(/|$)')").message(
        "this path has a segment . or .., spelled %2e or not, of which requests are rid: write the path without it",
    );
    each(list, &[whole, characters, dots]);
}

/// A port of a Service. API servers without kubernetes#132837 take a value that may be a number for a text of three
/// million characters, whatever its limit, and refuse a definition that could cost too much then. So each character is
/// looked at: that has a fixed price, which a regular expression has not. What is evaluated offline has no `type()`, so
/// a number is known by being equal to that in its text. An empty text comes here too, although it has too few
/// characters already.
pub(super) fn port_refs() -> [Rule; 2] {
    let text = "['%s'.format([self])].all(text";
    let eighth = "[0, 1, 2, 3, 4, 5, 6, 7]";
    let name = format!(
        "{text}, text.size() > 0 && text.charAt(0) != '-' && text.charAt(text.size() - 1) != '-' && \
         {eighth}.all(a, {eighth}.all(b, 8 * a + b >= text.size() || [text.charAt(8 * a + b)].all(it, it == '-' || \
         (it >= '0' && it <= '9') || (it >= 'a' && it <= 'z')))))"
    );
    let number = format!(
        "{text}, text.size() == 0 || text.size() > 5 || [0, 1, 2, 3, 4].exists(a, a < text.size() && \
         (text.charAt(a) < '0' || text.charAt(a) > '9')) || int(text) == self)"
    );
    [
        Rule::new(name).message(
            "this is no port of a Service: write its number, or its name in a-z, 0-9 and, not at its ends, -",
        ),
        Rule::new(number).message(
            "a number in quotes is taken for a name: write the number without them, such as port: 80",
        ),
    ]
}

/// What is refused in a cluster alone, at `field` of an object or at the value itself. A process of its own leaves rules
/// with this reason aside.
pub(super) fn in_a_cluster(rule: &str, field: Option<&str>, words: &str) -> Rule {
    let rule = Rule::new(rule).reason(Reason::FieldValueForbidden).message(words);
    Rule { field_path: field.map(Into::into), ..rule }
}

/// The reason of what is refused in a cluster alone.
pub const IN_A_CLUSTER: &str = "FieldValueForbidden";

fn each(list: &mut Schema, rules: &[Rule]) {
    if let Some(items) = list.get_mut("items").and_then(|it| it.as_object_mut()) {
        items.insert("x-kubernetes-validations".into(), json!(rules));
    }
}
