//! Owns which pool of a port a request is for: its host decides, the most specific pattern first, then its path,
//! the longest prefix first. A host whose patterns have no prefix for the path leaves it to less specific ones.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::path;

/// Longest name of DNS, in bytes as text (RFC 1035 section 2.3.4). No longer host is anybody's.
const MAX_NAME: usize = 253;

/// The hosts that a route is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HostPattern {
    /// All, and requests that name none.
    Any,
    /// All names below this one, however many labels below: `*.` in front of it.
    Below(Arc<str>),
    /// This one.
    Name(Arc<str>),
}

impl HostPattern {
    /// The pattern that `text` stands for, as the field `hostnames` has it: a name, or `*.` and a name.
    pub fn new(text: &str) -> Self {
        let text = text.to_ascii_lowercase();
        match text.strip_prefix("*.") {
            Some(name) => Self::Below(name.into()),
            None => Self::Name(text.into()),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Below(name) => write!(f, "*.{name}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// The paths that a route is for: a path itself and all below it, segment by segment. `/api` is for `/api` and
/// `/api/x`, not for `/apis`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathPrefix(Arc<str>);

impl PathPrefix {
    /// The prefix that `text` stands for, however that is spelled; a slash at its end means nothing.
    pub fn new(text: &str) -> Self {
        Self(path::resolved(text).trim_end_matches('/').into())
    }

    /// The prefix of all paths.
    pub fn all() -> Self {
        Self::new("/")
    }

    /// Whether `path`, which is resolved, is the path itself or below it.
    #[inline]
    pub fn is_of(&self, path: &str) -> bool {
        path.strip_prefix(&*self.0).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            || self.0.is_empty()
    }
}

impl fmt::Display for PathPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "/" } else { &self.0 })
    }
}

/// What makes a request that of a route.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Match {
    /// Its host.
    pub host: HostPattern,
    /// Its path.
    pub path: PathPrefix,
}

impl Match {
    /// Every request.
    pub fn all() -> Self {
        Self { host: HostPattern::Any, path: PathPrefix::all() }
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "host {} path {}", self.host, self.path)
    }
}

/// The routes of one port, each to a `T`.
#[derive(Clone, Debug)]
pub struct Routes<T> {
    names: HashMap<Arc<str>, Paths<T>>,
    below: HashMap<Arc<str>, Paths<T>>,
    any: Paths<T>,
}

/// The routes of one pattern of hosts, longest prefix first.
#[derive(Clone, Debug)]
struct Paths<T>(Vec<(PathPrefix, T)>);

impl<T> Paths<T> {
    #[inline]
    fn find(&self, path: &str) -> Option<&T> {
        self.0.iter().find(|(prefix, _)| prefix.is_of(path)).map(|(_, target)| target)
    }

    fn add(&mut self, prefix: PathPrefix, target: T) {
        if self.0.iter().all(|(known, _)| *known != prefix) {
            let at = self.0.partition_point(|(known, _)| known.0.len() >= prefix.0.len());
            self.0.insert(at, (prefix, target));
        }
    }
}

impl<T> Default for Paths<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T> Default for Routes<T> {
    fn default() -> Self {
        Self { names: HashMap::new(), below: HashMap::new(), any: Paths::default() }
    }
}

impl<T> FromIterator<(Match, T)> for Routes<T> {
    /// Of two equal matches the first one counts.
    fn from_iter<I: IntoIterator<Item = (Match, T)>>(routes: I) -> Self {
        let mut all = Self::default();
        for (Match { host, path }, target) in routes {
            let paths = match host {
                HostPattern::Any => &mut all.any,
                HostPattern::Below(name) => all.below.entry(name).or_default(),
                HostPattern::Name(name) => all.names.entry(name).or_default(),
            };
            paths.add(path, target);
        }
        all
    }
}

impl<T> Routes<T> {
    /// The route of a request; `host` without its port, as the client wrote it, and `path` resolved if any route heeds
    /// it. `None` where no route is for it.
    #[inline]
    pub fn find(&self, host: Option<&str>, path: &str) -> Option<&T> {
        if self.names.is_empty() && self.below.is_empty() {
            return self.any.find(path);
        }
        host.and_then(|host| self.find_by_host(host, path)).or_else(|| self.any.find(path))
    }

    fn find_by_host(&self, host: &str, path: &str) -> Option<&T> {
        let mut space = [0; MAX_NAME];
        // A dot at the end says that the name is whole, which it is anyhow.
        let host = lowered(host.strip_suffix('.').unwrap_or(host), &mut space)?;
        if let Some(found) = self.names.get(host).and_then(|paths| paths.find(path)) {
            return Some(found);
        }
        let parents = host.match_indices('.').map(|(dot, _)| &host[dot + 1..]);
        parents.filter_map(|parent| self.below.get(parent)).find_map(|paths| paths.find(path))
    }

    /// The same routes to something else.
    pub fn map<U>(&self, mut to: impl FnMut(&T) -> U) -> Routes<U> {
        let mut paths =
            |paths: &Paths<T>| Paths(paths.0.iter().map(|(it, target)| (it.clone(), to(target))).collect());
        let mut hosts = |hosts: &HashMap<Arc<str>, Paths<T>>| {
            hosts.iter().map(|(name, it)| (name.clone(), paths(it))).collect()
        };
        let (names, below) = (hosts(&self.names), hosts(&self.below));
        Routes { names, below, any: paths(&self.any) }
    }

    /// Whether any route is for a part of the paths alone.
    pub fn heed_paths(&self) -> bool {
        let all = PathPrefix::all();
        self.iter().any(|(prefix, _)| *prefix != all)
    }

    /// All targets, once for each route, in no order.
    pub fn targets(&self) -> impl Iterator<Item = &T> {
        self.iter().map(|(_, target)| target)
    }

    fn iter(&self) -> impl Iterator<Item = &(PathPrefix, T)> {
        self.names.values().chain(self.below.values()).chain([&self.any]).flat_map(|paths| &paths.0)
    }
}

fn lowered<'a>(host: &str, space: &'a mut [u8; MAX_NAME]) -> Option<&'a str> {
    let space = space.get_mut(..host.len())?;
    space.copy_from_slice(host.as_bytes());
    space.make_ascii_lowercase();
    std::str::from_utf8(space).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn routes(list: &[(&str, &str, u8)]) -> Routes<u8> {
        list.iter().map(|(host, path, target)| (matched(host, path), *target)).collect()
    }

    fn matched(host: &str, path: &str) -> Match {
        let host = if host == "*" { HostPattern::Any } else { HostPattern::new(host) };
        Match { host, path: PathPrefix::new(path) }
    }

    #[test]
    fn the_most_specific_host_wins_and_then_the_longest_prefix() {
        let routes = routes(&[
            ("*", "/", 0),
            ("*.example.com", "/", 1),
            ("*.shop.example.com", "/", 2),
            ("eu.shop.example.com", "/", 3),
            ("eu.shop.example.com", "/api", 4),
            ("eu.shop.example.com", "/api/v2/", 5),
        ]);
        let cases = [
            (None, "/", 0),
            (Some("example.com"), "/", 0),
            (Some("a.example.com"), "/x", 1),
            (Some("a.b.example.com"), "/x", 1),
            (Some("us.shop.example.com"), "/api", 2),
            (Some("EU.Shop.Example.com."), "/", 3),
            (Some("eu.shop.example.com"), "/apis", 3),
            (Some("eu.shop.example.com"), "/api", 4),
            (Some("eu.shop.example.com"), "/api/v2x", 4),
            (Some("eu.shop.example.com"), "/api/v2", 5),
            (Some("eu.shop.example.com"), "/api/v2/x", 5),
            (Some("eu.shop.example.com"), "*", 3),
            (Some("[2001:db8::1]"), "/", 0),
        ];
        for (host, path, target) in cases {
            assert_eq!(routes.find(host, path), Some(&target), "{host:?} {path}");
        }
    }

    #[test]
    fn a_host_without_a_prefix_for_the_path_leaves_it_to_less_specific_ones() {
        let routes =
            routes(&[("shop.example.com", "/api", 1), ("*.example.com", "/static", 2), ("*", "/", 3)]);
        assert_eq!(routes.find(Some("shop.example.com"), "/static/a"), Some(&2));
        assert_eq!(routes.find(Some("shop.example.com"), "/"), Some(&3));
    }

    #[test]
    fn nobody_answers_for_a_host_or_path_that_no_route_is_for() {
        let routes = routes(&[("shop.example.com", "/api", 1)]);
        for (host, path) in [(Some("shop.example.com"), "/"), (Some("example.com"), "/api"), (None, "/api")] {
            assert_eq!(routes.find(host, path), None, "{host:?} {path}");
        }
        assert_eq!(routes.find(Some(&"a".repeat(300)), "/api"), None);
    }

    #[test]
    fn of_two_equal_matches_the_first_counts_whatever_their_spelling() {
        let routes = routes(&[
            ("Shop.example.com", "/api/", 1),
            ("shop.example.com", "/api", 2),
            ("shop.example.com", "/%61pi", 3),
        ]);
        assert_eq!(routes.find(Some("shop.example.com"), "/api"), Some(&1));
        assert_eq!(routes.targets().count(), 1);
    }

    proptest! {
        /// The law itself, without any index: of all routes that match, the most specific.
        #[test]
        fn the_index_finds_what_a_search_through_all_finds(
            list in prop::collection::vec(("(\\*|(\\*\\.)?([ab]\\.){0,2}[ab])", "(/[xy]){0,3}/?", any::<u8>()), 0..12),
            host in prop::option::of("([abAB]\\.){0,3}[ab]"),
            path in "(/[xy]{1,2}){0,4}",
        ) {
            let list: Vec<(Match, u8)> = list.iter().map(|(host, path, target)| (matched(host, path), *target)).collect();
            let name = host.as_deref().map(str::to_ascii_lowercase);
            let fits = |pattern: &HostPattern| match (pattern, &name) {
                (HostPattern::Any, _) => true,
                (HostPattern::Name(known), Some(name)) => **known == **name,
                (HostPattern::Below(parent), Some(name)) => name.ends_with(&format!(".{parent}")),
                _ => false,
            };
            let rank = |pattern: &HostPattern| match pattern {
                HostPattern::Any => (0, 0),
                HostPattern::Below(name) => (1, name.len()),
                HostPattern::Name(_) => (2, 0),
            };
            let best = list.iter().filter(|(it, _)| fits(&it.host) && it.path.is_of(&path));
            // The first of equals: `max_by_key` takes the last.
            let best = best.rev().max_by_key(|(it, _)| (rank(&it.host), it.path.0.len())).map(|(_, target)| *target);
            let routes: Routes<u8> = list.iter().cloned().collect();
            prop_assert_eq!(routes.find(host.as_deref(), &path).copied(), best);
        }
    }
}
