//! Owns the settings of `guideway run`: flags first, then the environment, all checked before anything
//! starts. Every mistake is reported in one go, because whoever corrects one wants to know the others.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use tracing_subscriber::filter::{LevelFilter, Targets};

use crate::crd::duration::DurationText;
use crate::proxy::{AccessLogOptions, Ceilings, LineForm, LogTarget, MEMORY_MIN, Network};

/// Stands for the value of a flag that has none. No argument and no variable can hold it.
pub const MISSING: &str = "\0";

/// The flags as written. Text, so that one bad value does not hide the next.
#[derive(Args, Clone, Debug, Default)]
pub struct Flags {
    /// Read pools from this file or folder instead of a cluster, and follow its changes
    #[arg(long, env = "GUIDEWAY_FILE", value_name = "PATH")]
    pub file: Option<String>,

    /// Keep seats in this folder, so that keys stay with their backends over a restart (with --file)
    #[arg(long, env = "GUIDEWAY_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<String>,

    /// Connect to the cluster of this kubeconfig; without it KUBECONFIG decides, then the pod's service account
    #[arg(long, env = "GUIDEWAY_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<String>,

    /// Namespace of the Lease that decides which replica writes status; without it that of the service account
    #[arg(long, env = "GUIDEWAY_NAMESPACE", value_name = "NAME")]
    pub namespace: Option<String>,

    /// Name of this replica in the Lease, unique among the replicas; without it the host's name
    #[arg(long, env = "GUIDEWAY_IDENTITY", value_name = "NAME")]
    pub identity: Option<String>,

    /// Watch only this namespace; can be given several times, or with commas. Without it all namespaces
    #[arg(long, env = "GUIDEWAY_WATCH_NAMESPACE", value_name = "NAME", value_delimiter = ',')]
    pub watch_namespace: Vec<String>,

    /// Open listeners on this address only, such as 127.0.0.1; without it on all
    #[arg(long, env = "GUIDEWAY_LISTEN_ADDRESS", value_name = "IP")]
    pub listen_address: Option<String>,

    /// Believe X-Forwarded-For, -Proto and -Host of clients in these ranges, such as 10.0.0.0/8; several times, or with
    /// commas. Without it nobody is believed
    #[arg(long, env = "GUIDEWAY_TRUSTED_PROXIES", value_name = "CIDR", value_delimiter = ',')]
    pub trusted_proxies: Vec<String>,

    /// Threads that carry traffic [default: one per core]
    #[arg(long, env = "GUIDEWAY_WORKERS", value_name = "N")]
    pub workers: Option<String>,

    /// Client connections at a time [default: 45 % of the files that the process may open]
    #[arg(long, env = "GUIDEWAY_MAX_CONNECTIONS", value_name = "N")]
    pub max_connections: Option<String>,

    /// Client connections of one address at a time [default: half of all]
    #[arg(long, env = "GUIDEWAY_MAX_CONNECTIONS_PER_CLIENT", value_name = "N")]
    pub max_connections_per_client: Option<String>,

    /// Memory that the process may hold, such as 512Mi; near it, idle clients are sent away sooner, then all are asked
    /// to leave, then requests are refused [default: the limit of its control groups, if they have one]
    #[arg(long, env = "GUIDEWAY_MEMORY_LIMIT", value_name = "SIZE")]
    pub memory_limit: Option<String>,

    /// Where /metrics, /healthz and /readyz are served [default: 0.0.0.0:9901]
    #[arg(long, env = "GUIDEWAY_METRICS_ADDRESS", value_name = "IP:PORT")]
    pub metrics_address: Option<String>,

    /// On SIGTERM, time to go on accepting while clients and Services learn that this replica leaves
    /// [default: 5s, with --file 0s]
    #[arg(long, env = "GUIDEWAY_DRAIN_DELAY", value_name = "DURATION")]
    pub drain_delay: Option<String>,

    /// After that, the longest wait for requests in flight [default: 20s]
    #[arg(long, env = "GUIDEWAY_DRAIN_TIMEOUT", value_name = "DURATION")]
    pub drain_timeout: Option<String>,

    /// Where the access log of the pools that have one goes: a file, opened anew on SIGHUP, or - for standard output
    /// [default: -]
    #[arg(long, env = "GUIDEWAY_ACCESS_LOG", value_name = "PATH")]
    pub access_log: Option<String>,

    /// Form of its lines: text or json [default: text]
    #[arg(long, env = "GUIDEWAY_ACCESS_LOG_FORMAT", value_name = "FORMAT")]
    pub access_log_format: Option<String>,

    /// Form of the log on standard error: text or json [default: text]
    #[arg(long, env = "GUIDEWAY_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<String>,

    /// error, warn, info, debug or trace, also by module: info,guideway::proxy=debug [default: info]
    #[arg(long, env = "GUIDEWAY_LOG_LEVEL", value_name = "LEVEL")]
    pub log_level: Option<String>,
}

/// Checked settings.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Where pools come from.
    pub source: Source,
    /// Threads that carry traffic.
    pub workers: NonZeroUsize,
    /// Address the listeners bind; all addresses when absent.
    pub listen_address: Option<IpAddr>,
    /// Clients that are believed to say for whom a request is.
    pub trusted_proxies: Vec<Network>,
    /// Where metrics and health are served.
    pub metrics_address: SocketAddr,
    /// On SIGTERM, time to go on accepting.
    pub drain_delay: Duration,
    /// After that, the longest wait for requests in flight.
    pub drain_timeout: Duration,
    /// Ceilings in the place of those that the process finds for itself.
    pub ceilings: Ceilings,
    /// Where the access log goes.
    pub access_log: AccessLogOptions,
    /// What is logged, and how.
    pub log: Log,
}

/// Where pools come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file or folder.
    File {
        /// The file or folder.
        path: PathBuf,
        /// Where seats are kept.
        state_dir: Option<PathBuf>,
    },
    /// A cluster.
    Cluster {
        /// How to reach it; the usual ways when absent.
        kubeconfig: Option<PathBuf>,
        /// Namespace of the Lease; that of the service account or context when absent.
        namespace: Option<String>,
        /// Name of this replica; the host's name when absent.
        identity: Option<String>,
        /// Namespaces to watch, each once; all when empty.
        watch: Vec<String>,
    },
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// Text or JSON.
    pub format: LogFormat,
    /// Levels by module.
    pub levels: Targets,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// A line of text for each event.
    #[default]
    Text,
    /// A JSON object for each event.
    Json,
}

/// A value that cannot be used, and what could.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    flag: &'static str,
    reason: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let variable = self.flag.to_ascii_uppercase().replace('-', "_");
        write!(f, "--{} (GUIDEWAY_{variable}): {}", self.flag, self.reason)
    }
}

impl Settings {
    /// The settings that `flags` make, or every mistake in them.
    pub fn check(flags: Flags) -> Result<Self, Vec<Mistake>> {
        let mut mistakes = Mistakes::default();
        let flags = flags.given(&mut mistakes);
        let standalone = flags.file.is_some();
        let settings = Self {
            workers: workers(flags.workers.as_deref(), &mut mistakes),
            listen_address: listen_address(flags.listen_address.as_deref(), &mut mistakes),
            trusted_proxies: trusted_proxies(&flags.trusted_proxies, &mut mistakes),
            metrics_address: metrics_address(flags.metrics_address.as_deref(), &mut mistakes),
            drain_delay: duration(
                "drain-delay",
                flags.drain_delay.as_deref(),
                if standalone { Duration::ZERO } else { Duration::from_secs(5) },
                &mut mistakes,
            ),
            drain_timeout: duration(
                "drain-timeout",
                flags.drain_timeout.as_deref(),
                Duration::from_secs(20),
                &mut mistakes,
            ),
            ceilings: ceilings(&flags, &mut mistakes),
            access_log: access_log(&flags, &mut mistakes),
            log: Log {
                format: log_format(flags.log_format.as_deref(), &mut mistakes),
                levels: log_levels(flags.log_level.as_deref(), &mut mistakes),
            },
            source: source(flags, &mut mistakes),
        };
        if mistakes.list.is_empty() { Ok(settings) } else { Err(mistakes.list) }
    }
}

impl Flags {
    /// Those that have a value. An empty variable counts as unset: templates leave them behind.
    fn given(self, mistakes: &mut Mistakes) -> Self {
        let mut is_given = |flag, value: &String| {
            if value == MISSING {
                mistakes.add(flag, "its value is missing; write it behind the flag, or leave the flag out");
            }
            value != MISSING && !value.is_empty()
        };
        let (mut watch_namespace, mut trusted_proxies) = (self.watch_namespace, self.trusted_proxies);
        watch_namespace.retain(|it| is_given("watch-namespace", it));
        trusted_proxies.retain(|it| is_given("trusted-proxies", it));
        let mut set = |flag, value: Option<String>| value.filter(|it| is_given(flag, it));
        Self {
            file: set("file", self.file),
            state_dir: set("state-dir", self.state_dir),
            kubeconfig: set("kubeconfig", self.kubeconfig),
            namespace: set("namespace", self.namespace),
            identity: set("identity", self.identity),
            listen_address: set("listen-address", self.listen_address),
            workers: set("workers", self.workers),
            metrics_address: set("metrics-address", self.metrics_address),
            drain_delay: set("drain-delay", self.drain_delay),
            drain_timeout: set("drain-timeout", self.drain_timeout),
            max_connections: set("max-connections", self.max_connections),
            max_connections_per_client: set("max-connections-per-client", self.max_connections_per_client),
            memory_limit: set("memory-limit", self.memory_limit),
            access_log: set("access-log", self.access_log),
            access_log_format: set("access-log-format", self.access_log_format),
            log_format: set("log-format", self.log_format),
            log_level: set("log-level", self.log_level),
            watch_namespace,
            trusted_proxies,
        }
    }
}

#[derive(Default)]
struct Mistakes {
    list: Vec<Mistake>,
}

impl Mistakes {
    fn add(&mut self, flag: &'static str, reason: impl Into<String>) {
        self.list.push(Mistake { flag, reason: reason.into() });
    }

    fn are_of(&self, flag: &str) -> bool {
        self.list.iter().any(|it| it.flag == flag)
    }
}

/// More threads than this only wait for each other on any machine we know of.
const WORKERS_MAX: usize = 1024;

fn workers(text: Option<&str>, mistakes: &mut Mistakes) -> NonZeroUsize {
    let cores = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let Some(text) = text else { return cores() };
    match text.parse::<NonZeroUsize>() {
        Ok(workers) if workers.get() <= WORKERS_MAX => workers,
        _ => {
            mistakes.add("workers", format!("`{text}` is no number of threads; use 1 to {WORKERS_MAX}"));
            cores()
        }
    }
}

fn listen_address(text: Option<&str>, mistakes: &mut Mistakes) -> Option<IpAddr> {
    let text = text?;
    let address = text.parse().ok();
    if address.is_none() {
        let reason = format!("`{text}` is no address; write one without port, such as 127.0.0.1 or ::1");
        mistakes.add("listen-address", reason);
    }
    address
}

fn trusted_proxies(texts: &[String], mistakes: &mut Mistakes) -> Vec<Network> {
    let mut parse = |text: &String| {
        let parsed = text.trim().parse::<Network>();
        parsed.map_err(|wrong| mistakes.add("trusted-proxies", wrong.to_string())).ok()
    };
    texts.iter().filter_map(&mut parse).collect()
}

/// Where the metrics are served unless another place is given.
pub const METRICS_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 9901);

fn metrics_address(text: Option<&str>, mistakes: &mut Mistakes) -> SocketAddr {
    let Some(text) = text else { return METRICS_ADDRESS };
    text.parse().unwrap_or_else(|_| {
        let reason = format!("`{text}` is no address; write IP:PORT, such as 127.0.0.1:9901 or [::]:9901");
        mistakes.add("metrics-address", reason);
        METRICS_ADDRESS
    })
}

fn duration(flag: &'static str, text: Option<&str>, default: Duration, mistakes: &mut Mistakes) -> Duration {
    let Some(text) = text else { return default };
    DurationText::from(text).parse().unwrap_or_else(|| {
        let reason =
            format!("`{text}` is no duration; write whole numbers with h, m, s or ms, such as 1m30s");
        mistakes.add(flag, reason);
        default
    })
}

fn ceilings(flags: &Flags, mistakes: &mut Mistakes) -> Ceilings {
    let mut connections = |flag, text: Option<&str>| {
        let text = text?;
        let number = text.parse().ok();
        if number.is_none() {
            mistakes.add(flag, format!("`{text}` is no number of connections; use 1 or more"));
        }
        number
    };
    Ceilings {
        connections: connections("max-connections", flags.max_connections.as_deref()),
        connections_per_client: connections(
            "max-connections-per-client",
            flags.max_connections_per_client.as_deref(),
        ),
        memory: flags.memory_limit.as_deref().and_then(|text| memory(text, mistakes)),
    }
}

fn memory(text: &str, mistakes: &mut Mistakes) -> Option<NonZeroU64> {
    let least = MEMORY_MIN >> 20;
    let reason = match bytes(text) {
        Some(bytes) if bytes >= MEMORY_MIN => return NonZeroU64::new(bytes),
        Some(_) => {
            format!(
                "`{text}` is less than it takes to serve; give it {least}Mi or more, or leave the flag out"
            )
        }
        None => format!(
            "`{text}` is no size; write a whole number of bytes or of Mi, Gi, M or G, from {least}Mi on"
        ),
    };
    mistakes.add("memory-limit", reason);
    None
}

/// A whole number with one of the units that Kubernetes writes memory in.
fn bytes(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at(text.bytes().take_while(u8::is_ascii_digit).count());
    let unit = match unit {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

fn access_log(flags: &Flags, mistakes: &mut Mistakes) -> AccessLogOptions {
    let target = match flags.access_log.as_deref() {
        None | Some("-") => LogTarget::Stdout,
        Some(path) => {
            if Path::new(path).is_dir() {
                mistakes.add("access-log", format!("{path} is a folder; name a file in it"));
            }
            LogTarget::File(path.into())
        }
    };
    let form = match flags.access_log_format.as_deref() {
        None | Some("text") => LineForm::Text,
        Some("json") => LineForm::Json,
        Some(other) => {
            mistakes.add("access-log-format", format!("`{other}` is no format; use text or json"));
            LineForm::default()
        }
    };
    AccessLogOptions { target, form }
}

fn log_format(text: Option<&str>, mistakes: &mut Mistakes) -> LogFormat {
    match text {
        None | Some("text") => LogFormat::Text,
        Some("json") => LogFormat::Json,
        Some(other) => {
            mistakes.add("log-format", format!("`{other}` is no format; use text or json"));
            LogFormat::default()
        }
    }
}

/// Where the client of the API server warns of connections that ended, without saying which. Our watches say it as well,
/// in words and with what they watch.
const WATCH_NOISE: &str = "kube_client::client";
/// Modules in there that speak of other things.
const BESIDE_NOISE: [&str; 2] = ["kube_client::client::builder", "kube_client::client::tls"];

fn log_levels(text: Option<&str>, mistakes: &mut Mistakes) -> Targets {
    let mut levels = Targets::new();
    for part in text.unwrap_or("info").split(',').map(str::trim) {
        let (module, level) =
            part.split_once('=').map_or((None, part), |(module, level)| (Some(module), level));
        match (module, level.parse::<LevelFilter>()) {
            (None, Ok(level)) => levels = levels.with_default(level),
            (Some(module), Ok(level)) => levels = levels.with_target(module, level),
            (_, Err(_)) => {
                let reason = format!(
                    "`{part}` is no level; use error, warn, info, debug, trace or off, and after a comma module=level"
                );
                mistakes.add("log-level", reason);
            }
        }
    }
    let is_named = levels.iter().any(|(module, _)| module.starts_with("kube_client"));
    match levels.default_level() {
        Some(level @ (LevelFilter::WARN | LevelFilter::INFO)) if !is_named => levels
            .with_target(WATCH_NOISE, LevelFilter::ERROR)
            .with_targets(BESIDE_NOISE.map(|module| (module, level))),
        _ => levels,
    }
}

fn source(flags: Flags, mistakes: &mut Mistakes) -> Source {
    let Some(path) = flags.file else {
        if flags.state_dir.is_some() && !mistakes.are_of("file") {
            let reason = "seats of a cluster's pools are kept in their status; use it with --file only";
            mistakes.add("state-dir", reason);
        }
        let kubeconfig = flags.kubeconfig.map(PathBuf::from);
        if let Some(path) = kubeconfig.as_deref().filter(|path| !path.is_file()) {
            mistakes.add("kubeconfig", format!("there is no file {}", path.display()));
        }
        let watch = namespaces(flags.watch_namespace, mistakes);
        return Source::Cluster { kubeconfig, namespace: flags.namespace, identity: flags.identity, watch };
    };
    let in_cluster =
        [("kubeconfig", &flags.kubeconfig), ("namespace", &flags.namespace), ("identity", &flags.identity)];
    let given = in_cluster.into_iter().filter(|(_, value)| value.is_some()).map(|(flag, _)| flag);
    let watched = (!flags.watch_namespace.is_empty()).then_some("watch-namespace");
    for flag in given.chain(watched) {
        mistakes.add(flag, "belongs to a cluster and --file to none; leave one of them out");
    }
    if !Path::new(&path).exists() {
        mistakes.add("file", format!("there is no file or folder {path}"));
    }
    Source::File { path: path.into(), state_dir: flags.state_dir.map(PathBuf::from) }
}

/// Namespaces are DNS labels (RFC 1123).
fn namespaces(mut names: Vec<String>, mistakes: &mut Mistakes) -> Vec<String> {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_label = |name: &str| {
        name.len() <= 63 && name.bytes().all(is_inner) && !name.starts_with('-') && !name.ends_with('-')
    };
    for name in names.iter().filter(|name| !is_label(name)) {
        let reason = format!("`{name}` is no namespace; use lower-case letters, digits and inner hyphens");
        mistakes.add("watch-namespace", reason);
    }
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        flags: Flags,
    }

    fn settings(arguments: &[&str]) -> Result<Settings, String> {
        let flags = Command::parse_from([&["guideway"], arguments].concat()).flags;
        Settings::check(flags)
            .map_err(|mistakes| mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }

    fn check(arguments: &[&str], expected: &str) {
        assert_eq!(settings(arguments).err().as_deref(), Some(expected), "{arguments:?}");
    }

    #[test]
    fn without_flags_it_serves_a_cluster() {
        let settings = settings(&[]).unwrap();
        let cluster = Source::Cluster { kubeconfig: None, namespace: None, identity: None, watch: vec![] };
        assert_eq!(settings.source, cluster);
        assert_eq!(settings.metrics_address.to_string(), "0.0.0.0:9901");
        assert_eq!(
            (settings.drain_delay, settings.drain_timeout),
            (Duration::from_secs(5), Duration::from_secs(20))
        );
        assert_eq!(settings.log.format, LogFormat::Text);
        assert!(settings.log.levels.would_enable("guideway", &tracing::Level::INFO));
        assert!(!settings.log.levels.would_enable("guideway", &tracing::Level::DEBUG));
    }

    #[test]
    fn with_a_file_it_serves_that_file_and_leaves_without_delay() {
        let settings =
            settings(&["--file", "/", "--state-dir", "/var/lib/guideway", "--workers", "3"]).unwrap();
        let state_dir = Some("/var/lib/guideway".into());
        assert_eq!(settings.source, Source::File { path: "/".into(), state_dir });
        assert_eq!((settings.drain_delay, settings.workers.get()), (Duration::ZERO, 3));
    }

    #[test]
    fn listeners_may_keep_to_one_address() {
        assert_eq!(settings(&[]).unwrap().listen_address, None);
        assert_eq!(settings(&["--listen-address=::1"]).unwrap().listen_address, Some("::1".parse().unwrap()));
        check(
            &["--listen-address=localhost"],
            "--listen-address (GUIDEWAY_LISTEN_ADDRESS): `localhost` is no address; write one without port, such as \
             127.0.0.1 or ::1",
        );
    }

    #[test]
    fn ceilings_are_numbers_and_sizes() {
        assert_eq!(settings(&[]).unwrap().ceilings, Ceilings::default());
        let given = ["--max-connections=100", "--max-connections-per-client=7", "--memory-limit=512Mi"];
        let expected = Ceilings {
            connections: NonZeroUsize::new(100),
            connections_per_client: NonZeroUsize::new(7),
            memory: NonZeroU64::new(512 << 20),
        };
        assert_eq!(settings(&given).unwrap().ceilings, expected);
        assert_eq!(
            ["16777216", "2G", "3Ki", "1Ti", "1.5G", "Mi", ""].map(bytes),
            [Some(16 << 20), Some(2_000_000_000), Some(3072), None, None, None, None,]
        );
        assert_eq!(settings(&["--memory-limit=64Mi"]).unwrap().ceilings.memory, NonZeroU64::new(MEMORY_MIN));
        check(
            &["--memory-limit=67108863"],
            "--memory-limit (GUIDEWAY_MEMORY_LIMIT): `67108863` is less than it takes to serve; give it 64Mi or more, \
             or leave the flag out",
        );
        let size = "is no size; write a whole number of bytes or of Mi, Gi, M or G, from 64Mi on";
        check(
            &["--max-connections=0", "--max-connections-per-client=many", "--memory-limit=1.5G"],
            &format!(
                "--max-connections (GUIDEWAY_MAX_CONNECTIONS): `0` is no number of connections; use 1 or more\n\
                 --max-connections-per-client (GUIDEWAY_MAX_CONNECTIONS_PER_CLIENT): `many` is no number of \
                 connections; use 1 or more\n\
                 --memory-limit (GUIDEWAY_MEMORY_LIMIT): `1.5G` {size}"
            ),
        );
    }

    #[test]
    fn the_access_log_goes_to_standard_output_or_a_file() {
        assert_eq!(settings(&[]).unwrap().access_log, AccessLogOptions::default());
        assert_eq!(settings(&["--access-log", "-"]), settings(&[]));
        let target = LogTarget::File("/var/log/guideway.log".into());
        assert_eq!(
            settings(&["--access-log=/var/log/guideway.log", "--access-log-format=json"]).unwrap().access_log,
            AccessLogOptions { target, form: LineForm::Json }
        );
        check(
            &["--access-log=/", "--access-log-format=xml"],
            "--access-log (GUIDEWAY_ACCESS_LOG): / is a folder; name a file in it\n\
             --access-log-format (GUIDEWAY_ACCESS_LOG_FORMAT): `xml` is no format; use text or json",
        );
    }

    #[test]
    fn trusted_proxies_are_ranges_and_add_up() {
        let given = ["--trusted-proxies=10.0.0.0/8, 192.0.2.7", "--trusted-proxies", "2001:db8::/32"];
        let ranges: Vec<_> =
            settings(&given).unwrap().trusted_proxies.iter().map(ToString::to_string).collect();
        assert_eq!(ranges, ["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"]);
        assert_eq!(settings(&[]).unwrap().trusted_proxies, []);
        check(
            &["--trusted-proxies=10.1.0.0/8,all"],
            "--trusted-proxies (GUIDEWAY_TRUSTED_PROXIES): `10.1.0.0/8` is no range of addresses; it begins at \
             10.0.0.0, so write 10.0.0.0/8\n\
             --trusted-proxies (GUIDEWAY_TRUSTED_PROXIES): `all` is no range of addresses; write one such as \
             10.0.0.0/8, 2001:db8::/32 or 192.0.2.7",
        );
    }

    #[test]
    fn levels_go_by_module() {
        let settings = settings(&["--log-level", "warn,guideway::proxy=debug", "--log-format=json"]).unwrap();
        assert_eq!(settings.log.format, LogFormat::Json);
        assert!(settings.log.levels.would_enable("guideway::proxy::http", &tracing::Level::DEBUG));
        assert!(!settings.log.levels.would_enable("guideway::source", &tracing::Level::INFO));
    }

    #[test]
    fn what_our_watches_say_better_is_heard_at_debug_or_on_demand() {
        let warns = |levels: &str, module: &str| {
            let settings = settings(&["--log-level", levels]).unwrap();
            settings.log.levels.would_enable(module, &tracing::Level::WARN)
        };
        for (levels, heard) in [
            ("info", false),
            ("warn,guideway=debug", false),
            ("debug", true),
            ("trace", true),
            ("info,kube_client=warn", true),
            ("error", false),
        ] {
            assert_eq!(warns(levels, "kube_client::client"), heard, "{levels}");
        }
        assert!(warns("info", "kube_client::client::tls") && warns("info", "kube_client::config"));
    }

    #[test]
    fn namespaces_to_watch_add_up_and_count_once() {
        let given = ["--watch-namespace=shop,api", "--watch-namespace", "shop"];
        let Source::Cluster { watch, .. } = settings(&given).unwrap().source else { panic!("no cluster") };
        assert_eq!(watch, ["api", "shop"]);
        check(
            &["--watch-namespace=Shop"],
            "--watch-namespace (GUIDEWAY_WATCH_NAMESPACE): `Shop` is no namespace; use lower-case letters, digits \
             and inner hyphens",
        );
    }

    #[test]
    fn an_empty_value_counts_as_unset() {
        assert_eq!(settings(&["--metrics-address", "", "--file", ""]), settings(&[]));
    }

    #[test]
    fn a_flag_without_its_value_is_a_mistake_beside_the_others() {
        let missing = "its value is missing; write it behind the flag, or leave the flag out";
        let flag = |name: &str| format!("--{name}={MISSING}");
        check(
            &[&flag("file"), &flag("watch-namespace"), "--state-dir=/var/lib/guideway", "--workers=0"],
            &format!(
                "--watch-namespace (GUIDEWAY_WATCH_NAMESPACE): {missing}\n\
                 --file (GUIDEWAY_FILE): {missing}\n\
                 --workers (GUIDEWAY_WORKERS): `0` is no number of threads; use 1 to 1024"
            ),
        );
    }

    #[test]
    fn every_mistake_is_reported_with_its_flag() {
        check(
            &[
                "--workers=0",
                "--metrics-address=9901",
                "--drain-delay=5",
                "--drain-timeout=-1s",
                "--log-format=xml",
                "--log-level=loud",
                "--file=/nowhere/pools.yaml",
                "--identity=a",
            ],
            "--workers (GUIDEWAY_WORKERS): `0` is no number of threads; use 1 to 1024\n\
             --metrics-address (GUIDEWAY_METRICS_ADDRESS): `9901` is no address; write IP:PORT, such as \
             127.0.0.1:9901 or [::]:9901\n\
             --drain-delay (GUIDEWAY_DRAIN_DELAY): `5` is no duration; write whole numbers with h, m, s or ms, \
             such as 1m30s\n\
             --drain-timeout (GUIDEWAY_DRAIN_TIMEOUT): `-1s` is no duration; write whole numbers with h, m, s \
             or ms, such as 1m30s\n\
             --log-format (GUIDEWAY_LOG_FORMAT): `xml` is no format; use text or json\n\
             --log-level (GUIDEWAY_LOG_LEVEL): `loud` is no level; use error, warn, info, debug, trace or off, \
             and after a comma module=level\n\
             --identity (GUIDEWAY_IDENTITY): belongs to a cluster and --file to none; leave one of them out\n\
             --file (GUIDEWAY_FILE): there is no file or folder /nowhere/pools.yaml",
        );
        check(
            &["--state-dir=/var/lib/guideway", "--kubeconfig=/nowhere/config"],
            "--state-dir (GUIDEWAY_STATE_DIR): seats of a cluster's pools are kept in their status; use it with \
             --file only\n\
             --kubeconfig (GUIDEWAY_KUBECONFIG): there is no file /nowhere/config",
        );
    }
}
