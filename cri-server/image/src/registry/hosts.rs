//! Which servers answer for a registry name: containerd's `certs.d/<host>/hosts.toml` trees, with
//! docker's bare certificate directories as the fallback. Read anew for every pull.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

use super::registries::{Location, Registries};
use crate::error::Error;
use crate::reference::Reference;

/// One server to ask.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    /// Up to and including the API's root, no slash at the end: `https://registry-1.docker.io/v2`.
    pub(crate) base: Url,
    /// May serve blobs and manifests by digest.
    pub(crate) pull: bool,
    /// May say what a tag stands for.
    pub(crate) resolve: bool,
    pub(crate) tls: Tls,
    pub(crate) headers: HeaderMap,
    pub(crate) dial_timeout: Duration,
    /// The registry this mirror stands in for; it is told so with every request.
    pub(crate) mirror_of: Option<String>,
    /// The repository there.
    pub(crate) repository: String,
    /// The file that named it; none: nothing did.
    pub(crate) named_in: Option<PathBuf>,
}

/// How to trust a server and be trusted by it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Tls {
    pub(crate) ca: Vec<PathBuf>,
    /// Certificate and key; one file may hold both.
    pub(crate) client: Vec<(PathBuf, Option<PathBuf>)>,
    pub(crate) skip_verify: bool,
}

/// containerd's default for `dial_timeout`.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// A tree with more hosts for one registry is a mistake.
const HOSTS_MAX: usize = 64;
/// Larger configuration files are not configuration.
const FILE_MAX: u64 = 1 << 20;

/// The servers for `reference`, in the order to try them: `registries.conf` says where its content
/// lives, the trees say how each of these places is reached.
pub(crate) fn endpoints(
    roots: &[PathBuf],
    registries: &Registries,
    reference: &Reference,
) -> Result<Vec<Endpoint>, Error> {
    let locations = registries.locations(reference).map_err(|refusal| Error::Refused {
        reference: reference.to_string(),
        by: registries.file.clone().unwrap_or_default(),
        reason: refusal.to_string(),
    })?;
    let mut all = Vec::new();
    for place in locations {
        let moved = place.host != reference.domain() || place.path != reference.path();
        for mut endpoint in at(roots, &place)? {
            endpoint.repository.clone_from(&place.path);
            if place.mirror {
                endpoint.mirror_of = Some(reference.domain().to_owned());
            }
            if endpoint.named_in.is_none() && (moved || place.mirror || place.insecure) {
                endpoint.named_in.clone_from(&registries.file);
            }
            all.push(endpoint);
        }
    }
    Ok(all)
}

/// One place and what the trees say about it.
fn at(roots: &[PathBuf], place: &Location) -> Result<Vec<Endpoint>, Error> {
    let domain = place.host.as_str();
    let Some(directory) = directory(roots, domain) else {
        let tls = Tls { skip_verify: place.insecure, ..Tls::default() };
        let first = upstream(domain, tls);
        let mut other = first.clone();
        // An insecure registry may speak either; an address of this machine begins with plain.
        let scheme = if first.base.scheme() == "http" { "https" } else { "http" };
        let both = place.insecure && other.base.set_scheme(scheme).is_ok();
        return Ok(std::iter::once(first).chain(both.then_some(other)).collect());
    };
    let file = directory.join("hosts.toml");
    let mut endpoints = match read(&file)? {
        Some(text) => parse(&text, domain, &directory)
            .map_err(|reason| Error::HostsFile { path: file.clone(), reason })?,
        None => vec![upstream(domain, docker_certificates(&directory)?)],
    };
    for endpoint in &mut endpoints {
        endpoint.tls.skip_verify |= place.insecure;
        endpoint.named_in = Some(file.clone()).filter(|file| file.is_file());
    }
    Ok(endpoints)
}

/// A host of its own in any tree goes before `_default` in any tree.
fn directory(roots: &[PathBuf], domain: &str) -> Option<PathBuf> {
    let mut names = vec![domain.to_owned()];
    if let Some((host, port)) = domain.rsplit_once(':')
        && !port.contains(']')
    {
        names.insert(0, format!("{host}_{port}_"));
    }
    names.push("_default".into());
    names
        .iter()
        .flat_map(|name| roots.iter().map(move |root| root.join(name)))
        .find(|path| path.is_dir())
}

pub(super) fn read(path: &Path) -> Result<Option<String>, Error> {
    use std::io::Read as _;
    let file = match std::fs::File::open(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|e| Error::io("open", path, e))?,
    };
    let mut text = String::new();
    file.take(FILE_MAX).read_to_string(&mut text).map_err(|e| Error::io("read", path, e))?;
    Ok(Some(text))
}

/// The registry itself.
fn upstream(domain: &str, tls: Tls) -> Endpoint {
    let host = if domain == "docker.io" { "registry-1.docker.io" } else { domain };
    let scheme = if is_plain(host) { "http" } else { "https" };
    let base = Url::parse(&format!("{scheme}://{host}/v2"));
    Endpoint {
        // A reference's host was checked when it was parsed, so the address always parses.
        base: base.unwrap_or_else(|_| unreachable_base()),
        pull: true,
        resolve: true,
        tls,
        headers: HeaderMap::new(),
        dial_timeout: DIAL_TIMEOUT,
        mirror_of: None,
        repository: String::new(),
        named_in: None,
    }
}

impl Endpoint {
    /// A server that nobody has configured.
    pub(crate) fn stranger(url: &Url) -> Endpoint {
        Endpoint { base: url.clone(), ..upstream("registry.invalid", Tls::default()) }
    }
}

/// An address that nothing answers, RFC 6761.
#[expect(clippy::unwrap_used, reason = "a constant that parses")]
fn unreachable_base() -> Url {
    Url::parse("https://registry.invalid/v2").unwrap()
}

/// Registries on this machine speak plain HTTP unless their port says otherwise.
fn is_plain(host: &str) -> bool {
    let Ok(url) = Url::parse(&format!("http://{host}")) else { return false };
    is_loopback(&url) && url.port() != Some(443)
}

pub(crate) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    host == "localhost"
        || host.ends_with(".localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn parse(text: &str, domain: &str, directory: &Path) -> Result<Vec<Endpoint>, String> {
    let file: toml::Table = text.parse().map_err(|e: toml::de::Error| e.to_string())?;
    let mut endpoints = Vec::new();
    if let Some(hosts) = file.get("host") {
        let hosts = hosts.as_table().ok_or("`host` must be a table")?;
        if hosts.len() > HOSTS_MAX {
            return Err(format!("it names more than {HOSTS_MAX} hosts"));
        }
        for (name, entry) in hosts {
            let entry = entry.as_table().ok_or_else(|| format!("[host.{name:?}] is no table"))?;
            let endpoint = endpoint(name, entry, directory)
                .map_err(|reason| format!("[host.{name:?}]: {reason}"))?;
            endpoints.push(Endpoint { mirror_of: Some(domain.to_owned()), ..endpoint });
        }
    }
    let own = upstream(domain, Tls::default());
    let server = match file.get("server") {
        Some(server) => server.as_str().ok_or("`server` must be a text")?.to_owned(),
        None => own.base.as_str().trim_end_matches("/v2").to_owned(),
    };
    if !server.is_empty() {
        let mut last = endpoint(&server, &file, directory)
            .map_err(|reason| format!("server {server:?}: {reason}"))?;
        if last.base.host_str() != own.base.host_str() {
            // A server that stands in for the registry is told for which.
            last.mirror_of = None;
        }
        endpoints.push(last);
    }
    // The registry's own host is not a mirror of itself.
    for endpoint in &mut endpoints {
        if endpoint.base.host_str() == own.base.host_str()
            && endpoint.base.port_or_known_default() == own.base.port_or_known_default()
        {
            endpoint.mirror_of = None;
        }
    }
    Ok(endpoints)
}

fn endpoint(name: &str, entry: &toml::Table, directory: &Path) -> Result<Endpoint, String> {
    let address = if name.contains("://") {
        name.to_owned()
    } else {
        let host = name.split('/').next().unwrap_or(name);
        format!("{}://{name}", if is_plain(host) { "http" } else { "https" })
    };
    let mut base = Url::parse(&address).map_err(|e| format!("not an address: {e}"))?;
    if !matches!(base.scheme(), "http" | "https") || base.host_str().is_none() {
        return Err("the address must begin with http:// or https:// and name a host".into());
    }
    base.set_query(None);
    base.set_fragment(None);
    let path = base.path().trim_end_matches('/').to_owned();
    let override_path = boolean(entry, "override_path")?.unwrap_or(false);
    if override_path || path.ends_with("/v2") {
        base.set_path(&path);
    } else {
        base.set_path(&format!("{path}/v2"));
    }
    let (pull, resolve) = match entry.get("capabilities") {
        None => (true, true),
        Some(list) => {
            let list = texts(list).ok_or("`capabilities` must be a list of texts")?;
            if let Some(bad) =
                list.iter().find(|c| !matches!(c.as_str(), "pull" | "resolve" | "push"))
            {
                return Err(format!("`capabilities` holds the unknown {bad:?}"));
            }
            let has = |what: &str| list.iter().any(|c| c == what);
            (has("pull"), has("resolve"))
        }
    };
    let tls = Tls {
        ca: match entry.get("ca") {
            None => Vec::new(),
            Some(ca) => paths(directory, &texts(ca).ok_or("`ca` must be a path or a list")?),
        },
        client: client(entry, directory)?,
        skip_verify: boolean(entry, "skip_verify")?.unwrap_or(false),
    };
    Ok(Endpoint {
        base,
        pull,
        resolve,
        tls,
        headers: headers(entry)?,
        dial_timeout: match entry.get("dial_timeout") {
            None => DIAL_TIMEOUT,
            Some(time) => time
                .as_str()
                .and_then(duration)
                .ok_or("`dial_timeout` must be a duration such as \"5s\" or \"500ms\"")?,
        },
        mirror_of: None,
        repository: String::new(),
        named_in: None,
    })
}

/// `"both.pem"`, `["a.pem", "b.pem"]` or `[["a.cert", "a.key"], …]`.
fn client(
    entry: &toml::Table,
    directory: &Path,
) -> Result<Vec<(PathBuf, Option<PathBuf>)>, String> {
    const FORM: &str = "`client` must be a path, a list of paths or a list of [cert, key] pairs";
    let Some(value) = entry.get("client") else { return Ok(Vec::new()) };
    if let Some(list) = texts(value) {
        return Ok(paths(directory, &list).into_iter().map(|path| (path, None)).collect());
    }
    let pairs = value.as_array().ok_or(FORM)?;
    pairs
        .iter()
        .map(|pair| match texts(pair).as_deref() {
            Some([both]) => Ok((directory.join(both), None)),
            Some([cert, key]) if key.is_empty() => Ok((directory.join(cert), None)),
            Some([cert, key]) => Ok((directory.join(cert), Some(directory.join(key)))),
            Some(_) | None => Err(FORM.to_owned()),
        })
        .collect()
}

fn headers(entry: &toml::Table) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    let Some(table) = entry.get("header") else { return Ok(headers) };
    for (name, value) in table.as_table().ok_or("`header` must be a table")? {
        let values = texts(value).ok_or_else(|| format!("header {name} must be text"))?;
        let key = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| format!("{name:?} is not a header's name"))?;
        for value in values {
            // The value may be a secret: an error must not repeat it.
            let mut value = HeaderValue::from_str(&value)
                .map_err(|_| format!("the value of header {name} is malformed"))?;
            value.set_sensitive(true);
            headers.append(key.clone(), value);
        }
    }
    Ok(headers)
}

/// docker's layout: `*.crt` are authorities, `X.cert` with `X.key` are client certificates.
fn docker_certificates(directory: &Path) -> Result<Tls, Error> {
    let mut tls = Tls::default();
    let fault = |e| Error::io("list", directory, e);
    for entry in std::fs::read_dir(directory).map_err(fault)? {
        let path = entry.map_err(fault)?.path();
        match path.extension().and_then(|e| e.to_str()) {
            Some("crt") => tls.ca.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                tls.client.push((path, Some(key)));
            }
            _ => {}
        }
    }
    tls.ca.sort();
    tls.client.sort();
    Ok(tls)
}

fn paths(directory: &Path, names: &[String]) -> Vec<PathBuf> {
    names.iter().map(|name| directory.join(name)).collect()
}

fn boolean(entry: &toml::Table, key: &str) -> Result<Option<bool>, String> {
    entry
        .get(key)
        .map(|value| value.as_bool().ok_or_else(|| format!("`{key}` must be true or false")))
        .transpose()
}

/// A text or a list of texts.
fn texts(value: &toml::Value) -> Option<Vec<String>> {
    match value {
        toml::Value::String(text) => Some(vec![text.clone()]),
        toml::Value::Array(list) => {
            list.iter().map(|item| item.as_str().map(str::to_owned)).collect()
        }
        _ => None,
    }
}

/// Go's notation with one unit, which is what these files use: `30s`, `1.5m`, `500ms`.
fn duration(text: &str) -> Option<Duration> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let number: f64 = text[..split].parse().ok()?;
    let unit = match &text[split..] {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number * unit).ok().filter(|d| !d.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        root
    }

    fn found(root: &Path, domain: &str) -> Result<Vec<Endpoint>, Error> {
        let reference = Reference::parse(&format!("{domain}/app")).unwrap();
        endpoints(&[root.to_owned()], &Registries::default(), &reference)
    }

    #[track_caller]
    fn check(files: &[(&str, &str)], domain: &str, expect: &[&str]) {
        let root = tree(files);
        let found = found(root.path(), domain).unwrap();
        let found: Vec<String> = found
            .iter()
            .map(|e| {
                let flags = [(e.pull, " pull"), (e.resolve, " resolve")];
                let flags: String = flags.iter().filter(|f| f.0).map(|f| f.1).collect();
                let of = e.mirror_of.as_ref().map_or(String::new(), |m| format!(" for {m}"));
                format!("{}{flags}{of}", e.base)
            })
            .collect();
        assert_eq!(found, expect);
    }

    #[test]
    fn without_a_tree_the_registry_itself_is_asked() {
        check(&[], "docker.io", &["https://registry-1.docker.io/v2 pull resolve"]);
        check(&[], "registry.k8s.io", &["https://registry.k8s.io/v2 pull resolve"]);
        check(&[], "localhost:5000", &["http://localhost:5000/v2 pull resolve"]);
        check(&[], "127.0.0.1:5000", &["http://127.0.0.1:5000/v2 pull resolve"]);
        check(&[], "[::1]:5000", &["http://[::1]:5000/v2 pull resolve"]);
        check(
            &[],
            "localhost:443",
            &["https://localhost/v2 pull resolve"].map(|_| "https://localhost/v2 pull resolve"),
        );
    }

    #[test]
    fn mirrors_come_in_the_order_of_the_file_and_the_server_last() {
        check(
            &[(
                "docker.io/hosts.toml",
                "server = 'https://up.example'\n\
                 [host.'https://z.example']\ncapabilities = ['pull']\n\
                 [host.'http://a.example:8080/sub']\n\
                 [host.'https://m.example/x/y']\noverride_path = true\n\
                 [host.'127.0.0.1:5000']\n",
            )],
            "docker.io",
            &[
                "https://z.example/v2 pull for docker.io",
                "http://a.example:8080/sub/v2 pull resolve for docker.io",
                "https://m.example/x/y pull resolve for docker.io",
                "http://127.0.0.1:5000/v2 pull resolve for docker.io",
                "https://up.example/v2 pull resolve",
            ],
        );
    }

    #[test]
    fn names_with_a_port_and_the_default_directory_are_found() {
        let file = "server = 'http://x.example'";
        let expect = ["http://x.example/v2 pull resolve"];
        check(&[("r.example_5000_/hosts.toml", file)], "r.example:5000", &expect);
        check(&[("r.example:5000/hosts.toml", file)], "r.example:5000", &expect);
        check(&[("_default/hosts.toml", file)], "r.example:5000", &expect);
        check(
            &[("_default/hosts.toml", "[host.'http://mirror.example']")],
            "r.example",
            &[
                "http://mirror.example/v2 pull resolve for r.example",
                "https://r.example/v2 pull resolve",
            ],
        );
    }

    #[test]
    fn a_directory_without_hosts_file_gives_docker_certificates() {
        let root =
            tree(&[("r.example/ca.crt", ""), ("r.example/me.cert", ""), ("r.example/me.key", "")]);
        let found = found(root.path(), "r.example").unwrap();
        let at = |name: &str| root.path().join("r.example").join(name);
        assert_eq!(found[0].tls.ca, [at("ca.crt")]);
        assert_eq!(found[0].tls.client, [(at("me.cert"), Some(at("me.key")))]);
    }

    #[test]
    fn a_bad_file_is_an_error_that_names_it() {
        for bad in [
            "server = 1",
            "[host.'ftp://x']",
            "[host.'https://x']\ncapabilities = ['fly']",
            "[host.'https://x']\ndial_timeout = '5 parsecs'",
            "[host.'https://x']\nskip_verify = 'yes'",
            "[host.'https://x']\n[host.'https://x'.header]\nx = 1",
            "not toml",
        ] {
            let root = tree(&[("r.example/hosts.toml", bad)]);
            let error = found(root.path(), "r.example").unwrap_err();
            assert!(error.to_string().contains("hosts.toml"), "{bad}: {error}");
        }
    }
}
