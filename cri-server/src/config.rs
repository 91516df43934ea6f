//! The configuration: file, drop-ins and flags in, one resolved `Config` out. All mistakes are
//! reported together.

mod runtime;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnetwork::IpNetwork;
use serde::Deserialize;

use crate::network::mode::Mode;
use runtime::RawRuntime;
pub(crate) use runtime::{BUILT_IN, CgroupDriver, Handler, MissingSource, Rlimit, Runtime};

/// Read when no `--config` is given and the file exists.
pub(crate) const DEFAULT_FILE: &str = "/etc/lapstrake/config.toml";

/// What is used where the file says nothing; printed by `lapstrake config default`.
pub(crate) const DEFAULT: &str = include_str!("../../deploy/config.toml");

#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) root: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) listen: PathBuf,
    pub(crate) metrics_listen: SocketAddr,
    pub(crate) metrics: Metrics,
    pub(crate) log: Log,
    pub(crate) images: Images,
    pub(crate) network: Network,
    pub(crate) runtime: Runtime,
    pub(crate) streaming: crate::streaming::Settings,
}

/// Who may read metrics; `None` is no protection of that kind.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) tls: Option<Tls>,
}

#[derive(Debug, Clone)]
pub(crate) struct Tls {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

#[derive(Debug, Clone)]
pub(crate) struct Log {
    /// A filter that has been checked.
    pub(crate) level: String,
    pub(crate) format: crate::log::Format,
    /// From when on an operation is logged as slow; `None` means never.
    pub(crate) slow: Option<std::time::Duration>,
}

#[derive(Debug, Clone)]
pub(crate) struct Images {
    pub(crate) certs_d: Vec<PathBuf>,
    pub(crate) registries_conf: Vec<PathBuf>,
    pub(crate) auth_files: Vec<PathBuf>,
    pub(crate) policy: Vec<PathBuf>,
    pub(crate) allowed_digests: Option<PathBuf>,
    pub(crate) keep_blobs: bool,
    pub(crate) pinned: Vec<String>,
    pub(crate) max_concurrent_downloads: usize,
    pub(crate) progress_timeout_s: u64,
    pub(crate) share: Option<Share>,
}

/// Images for the neighbours.
#[derive(Debug, Clone)]
pub(crate) struct Share {
    pub(crate) listen: SocketAddr,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) client_ca: PathBuf,
}

#[derive(Debug, Clone)]
pub(crate) struct Network {
    pub(crate) bridge: String,
    pub(crate) ranges: Vec<IpNetwork>,
    pub(crate) exclude: Vec<IpNetwork>,
    pub(crate) mtu: Option<u32>,
    pub(crate) masquerade: bool,
    pub(crate) no_masquerade: Vec<IpNetwork>,
    pub(crate) mode: Mode,
    /// Whether forwarding chains of others that drop are opened for pods.
    pub(crate) admit_forwarding: bool,
    pub(crate) cni: Cni,
}

/// The cluster's own network plugins.
#[derive(Debug, Clone)]
pub(crate) struct Cni {
    pub(crate) conf_dir: PathBuf,
    pub(crate) bin_dirs: Vec<PathBuf>,
    pub(crate) cache_dir: PathBuf,
    pub(crate) netns_dir: PathBuf,
    pub(crate) conf_template: Option<PathBuf>,
    /// How many networks a pod is attached to, in the order of their files.
    pub(crate) networks_max: usize,
    /// For one operation of a whole chain of plugins.
    pub(crate) limit: Duration,
    /// How long a pod waits for a configuration.
    pub(crate) wait: Duration,
    /// Configuration directories of handlers that have one of their own.
    pub(crate) handler_dirs: BTreeMap<String, PathBuf>,
}

/// What the command line says, over the file.
#[derive(Debug, Default, Clone, clap::Args)]
pub(crate) struct Flags {
    /// Configuration file (TOML).
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where images, layers and leases live.
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// Where the state of running pods lives; a tmpfs.
    #[arg(long, value_name = "DIR")]
    pub(crate) state: Option<PathBuf>,
    /// The CRI socket, as `unix:///path`.
    #[arg(long, value_name = "URL")]
    pub(crate) listen: Option<String>,
    /// Where /metrics is served.
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) metrics_listen: Option<SocketAddr>,
    /// The shim's binary, when it is not beside the daemon's.
    #[arg(long, value_name = "FILE")]
    pub(crate) shim: Option<PathBuf>,
}

/// The file as written: every key may be absent, none may be unknown.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    root: PathBuf,
    state: PathBuf,
    listen: String,
    images: RawImages,
    network: RawNetwork,
    runtime: RawRuntime,
    metrics: RawMetrics,
    log: RawLog,
    streaming: crate::streaming::Raw,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawImages {
    certs_d: Vec<PathBuf>,
    registries_conf: Vec<PathBuf>,
    auth_files: Vec<PathBuf>,
    policy: Vec<PathBuf>,
    allowed_digests: PathBuf,
    keep_blobs: bool,
    pinned: Vec<String>,
    max_concurrent_downloads: usize,
    progress_timeout_seconds: u64,
    share: RawShare,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawShare {
    listen: String,
    certificate: PathBuf,
    key: PathBuf,
    client_ca: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNetwork {
    mode: String,
    bridge: String,
    ranges: Vec<String>,
    exclude: Vec<String>,
    mtu: u32,
    masquerade: bool,
    no_masquerade: Vec<String>,
    admit_forwarding: bool,
    cni_conf_dir: PathBuf,
    cni_bin_dirs: Vec<PathBuf>,
    cni_cache_dir: PathBuf,
    cni_netns_dir: PathBuf,
    cni_conf_template: PathBuf,
    cni_networks_max: usize,
    cni_timeout_seconds: u64,
    cni_wait_seconds: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMetrics {
    listen: String,
    token_file: PathBuf,
    tls_certificate: PathBuf,
    tls_key: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLog {
    level: String,
    format: String,
    slow_operation_seconds: f64,
}

/// Every mistake that was found, one a line.
#[derive(Debug, thiserror::Error)]
#[error("{}", mistakes.join("\n"))]
pub(crate) struct ConfigError {
    mistakes: Vec<String>,
}

impl Config {
    /// The defaults, the file over them, its drop-ins (`conf.d/*.toml` beside it) over that, and
    /// the flags over all.
    pub(crate) fn load(flags: &Flags) -> Result<Self, ConfigError> {
        let mut mistakes = Vec::new();
        let mut merged = parse_table("the built-in defaults", DEFAULT, &mut mistakes);
        for path in files(flags, &mut mistakes) {
            match std::fs::read_to_string(&path) {
                Ok(text) => {
                    let name = path.display().to_string();
                    let table = parse_table(&name, &text, &mut mistakes);
                    unknown_keys((&name, &text), "", &table, &merged, &mut mistakes);
                    merge(&mut merged, table);
                }
                Err(error) => mistakes.push(format!("{}: {error}", path.display())),
            }
        }
        if !mistakes.is_empty() {
            return Err(ConfigError { mistakes });
        }
        let raw: Raw = merged
            .try_into()
            .map_err(|error| ConfigError { mistakes: vec![format!("configuration: {error}")] })?;
        let config = resolve(raw, flags)?;
        let mistakes = crate::network::mistakes(&config);
        if mistakes.is_empty() { Ok(config) } else { Err(ConfigError { mistakes }) }
    }

    /// The shim's binary: the one that is configured, else the one beside our own.
    pub(crate) fn shim_binary(&self) -> PathBuf {
        let beside = || {
            let own = std::env::current_exe().unwrap_or_default();
            own.with_file_name("lapstrake-shim")
        };
        self.runtime.shim.clone().unwrap_or_else(beside)
    }
}

fn files(flags: &Flags, mistakes: &mut Vec<String>) -> Vec<PathBuf> {
    let default = Path::new(DEFAULT_FILE);
    let file = match &flags.config {
        Some(file) => file.clone(),
        None if default.exists() => default.to_owned(),
        None => return Vec::new(),
    };
    let mut files = vec![file.clone()];
    let dir = file.with_file_name("conf.d");
    match std::fs::read_dir(&dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => mistakes.push(format!("{}: {error}", dir.display())),
        Ok(entries) => {
            let paths = entries.flatten().map(|entry| entry.path());
            let mut drop_ins: Vec<_> =
                paths.filter(|path| path.extension().is_some_and(|end| end == "toml")).collect();
            drop_ins.sort();
            files.extend(drop_ins);
        }
    }
    files
}

fn parse_table(name: &str, text: &str, mistakes: &mut Vec<String>) -> toml::Table {
    text.parse().unwrap_or_else(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        mistakes.push(format!("{name}:{line}: {}", error.message()));
        toml::Table::new()
    })
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}

/// Tables whose keys are not ours.
const OWN_NAMES: [&str; 3] = ["runtime.handlers.", "runtime.rlimits.", "runtime.sysctls."];

/// Names each key that the defaults do not have, with the nearest one that they do have.
fn unknown_keys(
    (name, text): (&str, &str),
    prefix: &str,
    given: &toml::Table,
    known: &toml::Table,
    mistakes: &mut Vec<String>,
) {
    for (key, value) in given {
        let path = format!("{prefix}{key}");
        // These names are the user's own.
        if OWN_NAMES.contains(&prefix) {
            continue;
        }
        match (value, known.get(key)) {
            (_, None) => {
                let needle =
                    |line: &&str| line.trim_start().trim_start_matches('[').starts_with(key);
                let line = text.lines().position(|line| needle(&line)).map_or(1, |line| line + 1);
                let hint = nearest(key, known.keys());
                let hint = hint.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default();
                mistakes.push(format!("{name}:{line}: unknown key {path:?}{hint}"));
            }
            (toml::Value::Table(given), Some(toml::Value::Table(known))) => {
                unknown_keys((name, text), &format!("{path}."), given, known, mistakes);
            }
            _ => {}
        }
    }
}

/// The known key with the fewest edits, if that is at most a third of it.
fn nearest<'a>(key: &str, known: impl Iterator<Item = &'a String>) -> Option<&'a String> {
    known
        .map(|candidate| (distance(key, candidate), candidate))
        .filter(|(edits, candidate)| *edits * 3 <= candidate.len().max(3))
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replace = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

fn merge(base: &mut toml::Table, over: toml::Table) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(toml::Value::Table(base)), toml::Value::Table(over)) => merge(base, over),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}

/// `None`: nothing is shared.
fn share(images: &RawImages) -> Result<Option<Share>, String> {
    let RawShare { listen, certificate, key, client_ca } = &images.share;
    if listen.is_empty() {
        return Ok(None);
    }
    let listen = listen.parse().map_err(|_| format!("{listen:?} is no ADDRESS:PORT"))?;
    if !images.keep_blobs {
        return Err("compressed layers must be kept to be shared: set keep_blobs = true".into());
    }
    for (name, path) in [("certificate", certificate), ("key", key), ("client_ca", client_ca)] {
        if path.as_os_str().is_empty() {
            return Err(format!("{name} is not set; images are shared over mutual TLS only"));
        }
    }
    let (certificate, key, client_ca) = (certificate.clone(), key.clone(), client_ca.clone());
    Ok(Some(Share { listen, certificate, key, client_ca }))
}

#[expect(clippy::too_many_lines, reason = "one key after the other, each in a line or two")]
fn resolve(raw: Raw, flags: &Flags) -> Result<Config, ConfigError> {
    let mut mistakes = Vec::new();
    let mut check = |key: &str, result: Result<(), String>| {
        if let Err(problem) = result {
            mistakes.push(format!("{key}: {problem}"));
        }
    };
    let state = flags.state.clone().unwrap_or(raw.state);
    // A state directory of one's own brings a socket of its own, unless said otherwise.
    let listen = match (&flags.listen, raw.listen.as_str()) {
        (Some(listen), _) => listen.clone(),
        (None, "") => format!("unix://{}/lapstrake.sock", state.display()),
        (None, listen) => listen.to_owned(),
    };
    let socket = listen.strip_prefix("unix://").map(PathBuf::from);
    check(
        "listen",
        match &socket {
            Some(path) if path.is_absolute() => Ok(()),
            _ => Err(format!("{listen:?} is not of the form unix:///absolute/path")),
        },
    );
    let root = flags.root.clone().unwrap_or(raw.root);
    for (key, path) in [("root", &root), ("state", &state)] {
        let absolute = path.is_absolute().then_some(());
        check(key, absolute.ok_or_else(|| format!("{} is not an absolute path", path.display())));
    }
    let share = share(&raw.images);
    check("images.share", share.as_ref().map(|_| ()).map_err(Clone::clone));
    let metrics = raw.metrics.listen.parse::<SocketAddr>();
    check("metrics.listen", metrics.as_ref().map(|_| ()).map_err(ToString::to_string));
    let given = |path: &PathBuf| !path.as_os_str().is_empty();
    let (certificate, key) = (&raw.metrics.tls_certificate, &raw.metrics.tls_key);
    let both = given(certificate) == given(key);
    check(
        "metrics.tls_key",
        both.then_some(()).ok_or("needs metrics.tls_certificate beside it, and that this".into()),
    );
    check("log.level", crate::log::parse(&raw.log.level).map(drop).map_err(|it| it.to_string()));
    let format = match raw.log.format.as_str() {
        "auto" => Ok(crate::log::Format::Auto),
        "text" => Ok(crate::log::Format::Text),
        "json" => Ok(crate::log::Format::Json),
        other => Err(format!("{other:?} is none of auto, text, json")),
    };
    check("log.format", format.as_ref().map(drop).map_err(Clone::clone));
    let slow = std::time::Duration::try_from_secs_f64(raw.log.slow_operation_seconds);
    check("log.slow_operation_seconds", slow.as_ref().map(drop).map_err(ToString::to_string));
    let mode = raw.network.mode.parse::<Mode>();
    check("network.mode", mode.as_ref().map(|_| ()).map_err(Clone::clone));
    let mut cni = cni(&raw.network, &mut check);
    let streaming = raw.streaming.resolve();
    if let Err(problems) = &streaming {
        mistakes.extend(problems.iter().map(|problem| format!("streaming.{problem}")));
    }
    let ranges = parse_all::<IpNetwork>("network.ranges", &raw.network.ranges, &mut mistakes);
    let exclude = parse_all::<IpNetwork>("network.exclude", &raw.network.exclude, &mut mistakes);
    let no_masquerade =
        parse_all::<IpNetwork>("network.no_masquerade", &raw.network.no_masquerade, &mut mistakes);
    cni.handler_dirs = raw.runtime.cni_conf_dirs();
    let runtime = raw.runtime.resolve(flags.shim.clone(), &mut mistakes);
    if !mistakes.is_empty() {
        return Err(ConfigError { mistakes });
    }
    let (Some(listen), Ok(metrics), Ok(mode), Ok(format), Ok(slow), Ok(streaming)) =
        (socket, metrics, mode, format, slow, streaming)
    else {
        return Err(ConfigError { mistakes });
    };
    Ok(Config {
        root,
        state,
        listen,
        metrics_listen: flags.metrics_listen.unwrap_or(metrics),
        metrics: Metrics {
            token_file: Some(raw.metrics.token_file).filter(given),
            tls: given(&raw.metrics.tls_key).then_some(Tls {
                certificate: raw.metrics.tls_certificate,
                key: raw.metrics.tls_key,
            }),
        },
        log: Log { level: raw.log.level, format, slow: (!slow.is_zero()).then_some(slow) },
        streaming,
        images: Images {
            certs_d: raw.images.certs_d,
            registries_conf: raw.images.registries_conf,
            auth_files: raw.images.auth_files,
            policy: raw.images.policy,
            allowed_digests: Some(raw.images.allowed_digests)
                .filter(|path| !path.as_os_str().is_empty()),
            keep_blobs: raw.images.keep_blobs,
            pinned: raw.images.pinned,
            max_concurrent_downloads: raw.images.max_concurrent_downloads.max(1),
            progress_timeout_s: raw.images.progress_timeout_seconds.max(1),
            share: share.unwrap_or_default(),
        },
        network: Network {
            bridge: raw.network.bridge,
            ranges,
            exclude,
            mtu: (raw.network.mtu != 0).then_some(raw.network.mtu),
            masquerade: raw.network.masquerade,
            no_masquerade,
            mode,
            admit_forwarding: raw.network.admit_forwarding,
            cni,
        },
        runtime,
    })
}

/// Directories must be absolute: plugins run elsewhere.
fn cni(raw: &RawNetwork, check: &mut impl FnMut(&str, Result<(), String>)) -> Cni {
    let dirs = [
        ("network.cni_conf_dir", &raw.cni_conf_dir),
        ("network.cni_cache_dir", &raw.cni_cache_dir),
        ("network.cni_netns_dir", &raw.cni_netns_dir),
    ];
    let bin_dirs = raw.cni_bin_dirs.iter().map(|dir| ("network.cni_bin_dirs", dir));
    for (key, dir) in dirs.into_iter().chain(bin_dirs) {
        let absolute = dir.is_absolute().then_some(());
        check(key, absolute.ok_or_else(|| format!("{} is not an absolute path", dir.display())));
    }
    let template = Some(raw.cni_conf_template.clone());
    Cni {
        conf_dir: raw.cni_conf_dir.clone(),
        bin_dirs: raw.cni_bin_dirs.clone(),
        cache_dir: raw.cni_cache_dir.clone(),
        netns_dir: raw.cni_netns_dir.clone(),
        conf_template: template.filter(|path| !path.as_os_str().is_empty()),
        networks_max: raw.cni_networks_max.max(1),
        limit: Duration::from_secs(raw.cni_timeout_seconds.max(1)),
        wait: Duration::from_secs(raw.cni_wait_seconds),
        handler_dirs: BTreeMap::new(),
    }
}

fn parse_all<T>(key: &str, texts: &[String], mistakes: &mut Vec<String>) -> Vec<T>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    let mut parsed = Vec::new();
    for text in texts {
        match text.parse() {
            Ok(value) => parsed.push(value),
            Err(error) => mistakes.push(format!("{key}: {text:?}: {error}")),
        }
    }
    parsed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Config, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        std::fs::write(&file, text).unwrap();
        let flags = Flags { config: Some(file.clone()), ..Flags::default() };
        Config::load(&flags)
            .map_err(|error| error.to_string().replace(&file.display().to_string(), "FILE"))
    }

    #[test]
    fn an_empty_file_gives_the_defaults() {
        let config = load("").unwrap();
        assert_eq!(config.listen, Path::new("/run/lapstrake/lapstrake.sock"));
        assert_eq!(config.metrics_listen.to_string(), "127.0.0.1:9323");
        assert_eq!(config.network.bridge, "lapstrake0");
        assert_eq!(config.runtime.handler("").unwrap(), Handler::default());
        assert_eq!(config.runtime.rlimits[0].soft, 1024);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_nearest_known_one() {
        let error = load("[network]\nbridg = \"x\"\n").unwrap_err();
        assert_eq!(error, "FILE:2: unknown key \"network.bridg\"; did you mean \"bridge\"?");
    }

    #[test]
    fn all_mistakes_are_reported_together() {
        let error = load(
            "listen = \"tcp://1\"\n[network]\nranges = [\"10.0.0.0/99\", \"x\"]\nmode = \"fast\"\n",
        )
        .unwrap_err();
        assert_eq!(error.lines().count(), 4, "{error}");
    }

    #[test]
    fn a_network_that_cannot_work_is_refused_before_it_is_made() {
        let error = load(
            "[network]\nranges = [\"10.0.0.0/16\", \"10.0.1.0/24\"]\nmtu = 10\n\
             bridge = \"much-too-long-a-name\"\nexclude = [\"10.9.0.0/24\"]\n",
        )
        .unwrap_err();
        for part in ["overlaps with", "mtu 10", "much-too-long-a-name", "is in no range"] {
            assert!(error.contains(part), "{part} is not in {error}");
        }
    }

    #[test]
    fn a_handler_may_have_a_network_of_its_own() {
        let config = load(
            "[runtime]\ndefault_handler = \"runc\"\n[runtime.handlers.runc]\n\
             path = \"/usr/sbin/runc\"\ncni_conf_dir = \"/etc/cni/other.d\"\n",
        )
        .unwrap();
        let dirs = &config.network.cni.handler_dirs;
        assert_eq!(dirs.get("runc"), Some(&"/etc/cni/other.d".into()));
        assert_eq!(dirs.get(""), Some(&"/etc/cni/other.d".into()), "of pods that name no handler");
    }

    #[test]
    fn a_syntax_error_names_its_line() {
        assert!(load("\n\n[network\n").unwrap_err().starts_with("FILE:3: "));
    }

    #[test]
    fn the_drop_in_for_a_kubelet_has_plugins_only() {
        let config = load(include_str!("../../deploy/conf.d/10-kubelet.toml")).unwrap();
        assert_eq!(config.network.mode, Mode::Cni);
    }

    #[test]
    fn a_drop_in_wins_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.toml");
        std::fs::create_dir(dir.path().join("conf.d")).unwrap();
        std::fs::write(&file, "[network]\nbridge = \"one\"\nmtu = 1400\n").unwrap();
        std::fs::write(dir.path().join("conf.d/10-x.toml"), "network.bridge = \"two\"\n").unwrap();
        let config = Config::load(&Flags { config: Some(file), ..Flags::default() }).unwrap();
        assert_eq!((config.network.bridge.as_str(), config.network.mtu), ("two", Some(1400)));
    }

    #[test]
    fn an_unknown_handler_is_refused_with_the_known_ones() {
        let config = load("[runtime.handlers.runc]\npath = \"/usr/sbin/runc\"\n").unwrap();
        assert_eq!(config.runtime.handler("runc").unwrap().path, Some("/usr/sbin/runc".into()));
        let error = config.runtime.handler("kata").unwrap_err().to_string();
        assert!(error.contains("\"kata\"") && error.contains("lapstrake, runc"), "{error}");
    }
}
