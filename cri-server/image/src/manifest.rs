//! Manifests, indexes and configurations as registries and archives write them: parsed, checked,
//! and reduced to what this node needs. Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use crate::digest::Digest;

/// A pointer to content.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) platform: Option<Platform>,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) annotations: BTreeMap<String, String>,
    /// Where else it may be had: layers that must not be pushed to a registry.
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) urls: Vec<String>,
}

/// What a node is, or what an image was built for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
    #[serde(default, deserialize_with = "or_default")]
    pub variant: String,
}

/// A manifest or an index, whatever the registry had.
#[derive(Debug)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Vec<Descriptor>),
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) layers: Vec<Descriptor>,
}

/// What an image says about how to run it. Everything in it comes from a stranger; labels stay
/// here and are never read by runtime code.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    pub platform: Platform,
    /// RFC 3339, as the builder wrote it.
    pub created: String,
    /// `user`, `uid`, `user:group`, `uid:gid` or a mixture.
    pub user: String,
    /// `NAME=value`.
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub working_dir: String,
    /// A signal's name or number; empty for the default.
    pub stop_signal: String,
    /// Paths.
    pub volumes: Vec<String>,
    /// `port/protocol`.
    pub exposed_ports: Vec<String>,
    pub labels: BTreeMap<String, String>,
    /// Digests of the uncompressed layers, lowest first.
    pub diff_ids: Vec<Digest>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("it is not valid JSON of the expected form: {0}")]
    Json(String),
    #[error("it is a page of HTML, so the address is not a registry or a proxy answered instead")]
    Html,
    #[error(
        "it has the obsolete schema 1, which no current registry writes; \
         push the image again with a current client"
    )]
    Schema1,
    #[error("it has the unknown media type {0:?}")]
    MediaType(String),
    #[error("the index offers no image for {wanted}; it has {offered}")]
    NoPlatform { wanted: String, offered: String },
    #[error("it has {layers} layers but its configuration tells of {diff_ids}")]
    LayerCount { layers: usize, diff_ids: usize },
    #[error("it has {0} layers, more than overlayfs can stack")]
    TooManyLayers(usize),
    #[error("layer {digest} has the media type {media_type:?}, which is no readable tar archive")]
    LayerType { digest: Digest, media_type: String },
}

/// What a registry is asked for, in this order of preference.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";
/// overlayfs refuses more lower directories.
const LAYERS_MAX: usize = 500;

impl Platform {
    /// The platform this binary runs on.
    pub fn here() -> Platform {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "aarch64" => ("arm64", "v8"),
            "arm" => ("arm", "v7"),
            other => (other, ""),
        };
        Platform { os: "linux".into(), architecture: architecture.into(), variant: variant.into() }
    }

    /// How well an image for `offer` runs here: higher is better, `None` not at all.
    fn rank(&self, offer: &Platform) -> Option<u32> {
        if offer.os != self.os || offer.architecture != self.architecture {
            return None;
        }
        let level = |variant: &str| variant.strip_prefix('v').and_then(|v| v.parse::<u32>().ok());
        match (level(&self.variant), level(&offer.variant)) {
            _ if offer.variant == self.variant => Some(u32::MAX),
            (_, None) if offer.variant.is_empty() => Some(u32::MAX - 1),
            // An older variant runs, the newest of them best; a newer one does not.
            (Some(ours), Some(theirs)) if theirs <= ours => Some(theirs),
            _ => None,
        }
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

impl Document {
    /// `media_type`: what the registry's header said; the document's own word goes first.
    pub(crate) fn parse(media_type: &str, bytes: &[u8]) -> Result<Document, ManifestError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Head {
            #[serde(default)]
            schema_version: Option<serde_json::Value>,
            #[serde(default)]
            media_type: Option<String>,
            #[serde(default)]
            config: Option<serde_json::Value>,
            #[serde(default)]
            manifests: Option<serde_json::Value>,
        }
        if bytes.trim_ascii_start().starts_with(b"<") {
            return Err(ManifestError::Html);
        }
        let head: Head = json(bytes)?;
        let told = head
            .media_type
            .filter(|t| !t.is_empty())
            .unwrap_or_else(|| media_type.split(';').next().unwrap_or_default().trim().to_owned());
        let schema_1 = head.schema_version == Some(1.into()) || told.contains(".manifest.v1+");
        if schema_1 && !told.starts_with("application/vnd.oci.") {
            return Err(ManifestError::Schema1);
        }
        match told.as_str() {
            "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json" => index(bytes),
            "application/vnd.oci.image.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v2+json" => manifest(bytes),
            // Some registries label everything as plain JSON; then the form decides.
            _ if head.manifests.is_some() && head.config.is_none() => index(bytes),
            _ if head.config.is_some() && head.manifests.is_none() => manifest(bytes),
            other => Err(ManifestError::MediaType(other.to_owned())),
        }
    }
}

/// What a manifest or index says it is; those that leave it out are OCI's.
pub(crate) fn media_type_of(bytes: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Head {
        #[serde(default)]
        media_type: String,
        #[serde(default)]
        manifests: Option<serde::de::IgnoredAny>,
    }
    let head: Head = json(bytes).ok()?;
    Some(match (head.media_type.as_str(), head.manifests) {
        ("", Some(_)) => "application/vnd.oci.image.index.v1+json".into(),
        ("", None) => "application/vnd.oci.image.manifest.v1+json".into(),
        (told, _) => told.to_owned(),
    })
}

fn index(bytes: &[u8]) -> Result<Document, ManifestError> {
    #[derive(Deserialize)]
    struct Index {
        #[serde(default, deserialize_with = "or_default")]
        manifests: Vec<Descriptor>,
    }
    Ok(Document::Index(json::<Index>(bytes)?.manifests))
}

fn manifest(bytes: &[u8]) -> Result<Document, ManifestError> {
    let manifest: Manifest = json(bytes)?;
    if manifest.layers.len() > LAYERS_MAX {
        return Err(ManifestError::TooManyLayers(manifest.layers.len()));
    }
    Ok(Document::Manifest(manifest))
}

/// The member of an index that runs here best. A member without a platform is taken only when
/// nothing else is offered.
pub(crate) fn choose<'a>(
    wanted: &Platform,
    offers: &'a [Descriptor],
) -> Result<&'a Descriptor, ManifestError> {
    let mut best: Option<(u32, &Descriptor)> = None;
    for offer in offers {
        let rank = match &offer.platform {
            Some(platform) => wanted.rank(platform),
            None => Some(0),
        };
        // Of equals the first wins, as the index's author meant it.
        if let Some(rank) = rank
            && best.is_none_or(|(so_far, _)| rank > so_far)
        {
            best = Some((rank, offer));
        }
    }
    best.map(|(_, offer)| offer).ok_or_else(|| ManifestError::NoPlatform {
        wanted: wanted.to_string(),
        offered: offered(offers),
    })
}

fn offered(offers: &[Descriptor]) -> String {
    /// Enough to see what is there; an index may hold hundreds.
    const SHOWN_MAX: usize = 12;
    let mut names: Vec<String> =
        offers.iter().filter_map(|o| o.platform.as_ref()).map(Platform::to_string).collect();
    names.dedup();
    names.truncate(SHOWN_MAX);
    if names.is_empty() { "nothing".into() } else { names.join(", ") }
}

impl Manifest {
    /// Something else than an image for containers: its blobs are files by their titles.
    pub(crate) fn is_artifact(&self) -> bool {
        /// Registries that leave the type out have images.
        const IMAGES: [&str; 3] = [
            "",
            "application/vnd.oci.image.config.v1+json",
            "application/vnd.docker.container.image.v1+json",
        ];
        !IMAGES.contains(&self.config.media_type.as_str())
    }

    /// Checks that every layer is an archive and that the configuration tells of as many.
    pub(crate) fn check(&self, config: &ImageConfig) -> Result<(), ManifestError> {
        for layer in &self.layers {
            let kind = layer.media_type.as_str();
            let archive = kind.is_empty() || (kind.contains("tar") && !kind.ends_with("encrypted"));
            if !archive {
                let (digest, media_type) = (layer.digest.clone(), kind.to_owned());
                return Err(ManifestError::LayerType { digest, media_type });
            }
        }
        let (layers, diff_ids) = (self.layers.len(), config.diff_ids.len());
        if layers == diff_ids {
            Ok(())
        } else {
            Err(ManifestError::LayerCount { layers, diff_ids })
        }
    }
}

impl ImageConfig {
    /// An artifact says nothing about how to run it.
    pub(crate) fn of_artifact() -> ImageConfig {
        ImageConfig { platform: Platform::here(), ..ImageConfig::default() }
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<ImageConfig, ManifestError> {
        let raw: RawImage = json(bytes)?;
        let config = raw.config;
        Ok(ImageConfig {
            platform: Platform { os: raw.os, architecture: raw.architecture, variant: raw.variant },
            created: raw.created,
            user: config.user,
            env: config.env,
            entrypoint: config.entrypoint,
            cmd: config.cmd,
            working_dir: config.working_dir,
            stop_signal: config.stop_signal,
            volumes: config.volumes.into_keys().collect(),
            exposed_ports: config.exposed_ports.into_keys().collect(),
            labels: config.labels,
            diff_ids: raw.rootfs.diff_ids,
        })
    }
}

/// The file as builders write it; `null` stands for "nothing" anywhere.
#[derive(Default, Deserialize)]
struct RawImage {
    #[serde(default, deserialize_with = "or_default")]
    created: String,
    #[serde(default, deserialize_with = "or_default")]
    os: String,
    #[serde(default, deserialize_with = "or_default")]
    architecture: String,
    #[serde(default, deserialize_with = "or_default")]
    variant: String,
    #[serde(default, deserialize_with = "or_default")]
    config: RawConfig,
    #[serde(default, deserialize_with = "or_default")]
    rootfs: RawRootFs,
}

#[derive(Default, Deserialize)]
struct RawRootFs {
    #[serde(default, deserialize_with = "or_default")]
    diff_ids: Vec<Digest>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RawConfig {
    #[serde(default, deserialize_with = "or_default")]
    user: String,
    #[serde(default, deserialize_with = "or_default")]
    env: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    entrypoint: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    cmd: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    working_dir: String,
    #[serde(default, deserialize_with = "or_default")]
    stop_signal: String,
    #[serde(default, deserialize_with = "or_default")]
    volumes: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(default, deserialize_with = "or_default")]
    exposed_ports: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(default, deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
}

impl Descriptor {
    /// What a blob of an artifact is called.
    pub(crate) fn title(&self) -> String {
        let title = self.annotations.get("org.opencontainers.image.title");
        title.cloned().unwrap_or_else(|| self.digest.hex().to_owned())
    }
}

fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// JSON that fails says where, never what stood there: it may be somebody's secret page.
pub(crate) fn json<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, ManifestError> {
    serde_json::from_slice(bytes).map_err(|e| ManifestError::Json(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(os: &str, architecture: &str, variant: &str) -> Descriptor {
        Descriptor {
            media_type: String::new(),
            digest: Digest::of(format!("{os}{architecture}{variant}").as_bytes()),
            size: 1,
            platform: Some(Platform {
                os: os.into(),
                architecture: architecture.into(),
                variant: variant.into(),
            }),
            annotations: BTreeMap::new(),
            urls: Vec::new(),
        }
    }

    #[track_caller]
    fn check(here: (&str, &str), offers: &[(&str, &str)], expect: Option<usize>) {
        let here =
            Platform { os: "linux".into(), architecture: here.0.into(), variant: here.1.into() };
        let offers: Vec<_> = offers.iter().map(|(arch, v)| offer("linux", arch, v)).collect();
        let chosen = choose(&here, &offers).ok().map(|c| offers.iter().position(|o| o == c));
        assert_eq!(chosen.flatten(), expect);
    }

    #[test]
    fn the_best_variant_that_runs_here_is_chosen() {
        check(("amd64", ""), &[("arm64", "v8"), ("amd64", "")], Some(1));
        check(("amd64", ""), &[("amd64", "v3"), ("amd64", "")], Some(1));
        check(("arm64", "v8"), &[("arm64", ""), ("arm64", "v8")], Some(1));
        check(("arm64", "v8"), &[("arm64", "")], Some(0));
        check(("arm", "v7"), &[("arm", "v5"), ("arm", "v6"), ("arm", "v8")], Some(1));
        check(("amd64", ""), &[("arm64", ""), ("s390x", "")], None);
        check(("amd64", ""), &[], None);
    }

    #[test]
    fn an_index_without_our_platform_says_what_it_has() {
        let error = choose(&Platform::default(), &[offer("linux", "s390x", "")]).unwrap_err();
        assert!(error.to_string().contains("linux/s390x"), "{error}");
    }

    #[test]
    fn nulls_and_missing_fields_in_a_configuration_are_nothing() {
        let config = ImageConfig::parse(
            br#"{"os":"linux","config":{"Env":null,"Volumes":{"/data":{}},"Cmd":["a"]},"rootfs":null}"#,
        )
        .unwrap();
        assert_eq!(config.volumes, ["/data"]);
        assert_eq!(config.cmd, ["a"]);
        assert!(config.env.is_empty() && config.diff_ids.is_empty());
    }

    #[test]
    fn schema_1_and_pages_are_refused_by_name() {
        let parse = |media: &str, text: &str| Document::parse(media, text.as_bytes()).unwrap_err();
        assert_eq!(parse("", r#"{"schemaVersion":1,"fsLayers":[]}"#), ManifestError::Schema1);
        let signed = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        assert_eq!(parse(signed, "{}"), ManifestError::Schema1);
        assert_eq!(parse("text/html", "\n<html>"), ManifestError::Html);
        assert!(matches!(parse("a/b", "{}"), ManifestError::MediaType(_)));
        assert!(matches!(parse("a/b", "nope"), ManifestError::Json(_)));
    }
}
