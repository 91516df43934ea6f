//! A network configuration: a chain of plugins with what each is told. Pure.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::Error;
use crate::version;

/// One network, as its file describes it. Kept with every attachment: a container leaves the network
/// by the configuration it came with, whatever the file says by then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub(crate) name: String,
    /// The version all plugins of the chain are talked to in.
    pub(crate) version: String,
    #[serde(default)]
    pub(crate) disable_check: bool,
    #[serde(default)]
    pub(crate) disable_gc: bool,
    /// What each plugin is told, in order.
    pub(crate) plugins: Vec<Map<String, Value>>,
    /// The whole list as it was written, for the cache.
    pub(crate) source: Value,
}

/// What a file is: a chain, or one plugin by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    List,
    Single,
}

impl Network {
    /// The network's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The version its plugins are talked to in.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The types of its plugins, in order.
    pub fn types(&self) -> impl Iterator<Item = &str> {
        self.plugins.iter().map(type_of)
    }

    /// Whether some plugin of the chain takes this capability argument.
    #[must_use]
    pub fn takes(&self, capability: &str) -> bool {
        self.plugins.iter().any(|plugin| declares(plugin, capability))
    }

    pub(crate) fn parse(file: &Path, form: Form, text: &[u8]) -> Result<Network, Error> {
        let wrong = |problem: String| Error::Configuration { file: file.to_owned(), problem };
        let mut source: Value =
            serde_json::from_slice(text).map_err(|error| wrong(error.to_string()))?;
        if form == Form::Single {
            source = list_of_one(source);
        }
        let fields = source.as_object().ok_or_else(|| wrong("is no JSON object".into()))?;
        let name = fields.get("name").and_then(Value::as_str).unwrap_or_default();
        if !is_name(name) {
            return Err(wrong(format!(
                "name {name:?}: expected letters, digits, '.', '_' or '-', beginning with a letter \
                 or digit"
            )));
        }
        let plugins: Vec<_> = match fields.get("plugins").and_then(Value::as_array) {
            Some(plugins) => plugins.iter().filter_map(Value::as_object).cloned().collect(),
            None => Vec::new(),
        };
        Ok(Network {
            name: name.to_owned(),
            version: version_of(fields).map_err(wrong)?,
            disable_check: flag(fields, "disableCheck").map_err(wrong)?,
            disable_gc: flag(fields, "disableGC").map_err(wrong)?,
            plugins,
            source,
        })
    }

    /// Whether plugins in files of their own, in a directory of the network's name, belong to the
    /// chain too (specification 1.1.0).
    pub(crate) fn may_have_plugin_files(&self) -> bool {
        self.source.get("loadOnlyInlinedPlugins").and_then(Value::as_bool) != Some(true)
    }

    /// Puts such a plugin at the end of the chain.
    pub(crate) fn append(&mut self, file: &Path, text: &[u8]) -> Result<(), Error> {
        let wrong = |problem: String| Error::Configuration { file: file.to_owned(), problem };
        let plugin: Map<String, Value> =
            serde_json::from_slice(text).map_err(|error| wrong(error.to_string()))?;
        if let Some(list) = self.source.get_mut("plugins").and_then(Value::as_array_mut) {
            list.push(Value::Object(plugin.clone()));
        }
        self.plugins.push(plugin);
        Ok(())
    }

    /// To be asked once all plugins are there.
    pub(crate) fn check(self, file: &Path) -> Result<Network, Error> {
        let problem = if self.plugins.is_empty() {
            "has no plugins".to_owned()
        } else {
            match self.types().find(|kind| !is_program(kind)) {
                Some("") => "a plugin has no type".to_owned(),
                Some(kind) => format!("type {kind:?} is not the name of a program"),
                None => String::new(),
            }
        };
        if problem.is_empty() {
            return Ok(self);
        }
        Err(Error::Configuration { file: file.to_owned(), problem })
    }
}

/// The type of a plugin: the name of its program.
pub(crate) fn type_of(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// Whether a plugin takes a capability argument.
pub(crate) fn declares(plugin: &Map<String, Value>, capability: &str) -> bool {
    plugin.get("capabilities").and_then(|all| all.get(capability)) == Some(&Value::Bool(true))
}

/// A single plugin carries the fields of its network itself.
fn list_of_one(plugin: Value) -> Value {
    let mut list = Map::new();
    for key in ["name", "cniVersion"] {
        if let Some(value) = plugin.get(key) {
            list.insert(key.to_owned(), value.clone());
        }
    }
    list.insert("plugins".to_owned(), Value::Array(vec![plugin]));
    Value::Object(list)
}

fn version_of(fields: &Map<String, Value>) -> Result<String, String> {
    let texts = |key: &str| match fields.get(key) {
        Some(Value::String(text)) => vec![text.clone()],
        Some(Value::Array(texts)) => {
            texts.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        }
        _ => Vec::new(),
    };
    let offered: Vec<String> = [texts("cniVersion"), texts("cniVersions")].concat();
    let newest = version::newest(offered.iter().map(String::as_str));
    newest.map(str::to_owned).ok_or_else(|| {
        format!(
            "cniVersion {:?} is none of {}",
            offered.first().map_or("", String::as_str),
            version::SPOKEN.join(", ")
        )
    })
}

/// Old files write flags as text.
fn flag(fields: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match fields.get(key) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(value) => Err(format!("{key} {value} is neither true nor false")),
    }
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// A type is looked for in the directories of plugins, and must not lead out of them.
fn is_program(kind: &str) -> bool {
    !kind.is_empty() && !matches!(kind, "." | "..") && !kind.contains(['/', '\0'])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(form: Form, text: &str) -> Result<Network, String> {
        let file = Path::new("f");
        let network = Network::parse(file, form, text.as_bytes());
        network.and_then(|it| it.check(file)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_list_is_a_chain_and_a_single_plugin_a_chain_of_one() {
        let list = parse(
            Form::List,
            r#"{"cniVersion":"1.0.0","name":"net","disableCheck":"true","plugins":
               [{"type":"bridge","capabilities":{"ipRanges":true}},{"type":"portmap"}]}"#,
        )
        .unwrap();
        assert_eq!(list.types().collect::<Vec<_>>(), ["bridge", "portmap"]);
        assert!(list.disable_check && list.takes("ipRanges") && !list.takes("portMappings"));
        let single =
            parse(Form::Single, r#"{"cniVersion":"0.3.1","name":"net","type":"ptp"}"#).unwrap();
        assert_eq!((single.name(), single.version()), ("net", "0.3.1"));
        assert_eq!(single.types().collect::<Vec<_>>(), ["ptp"]);
    }

    #[test]
    fn the_newest_offered_version_is_spoken() {
        let text = r#"{"cniVersion":"0.4.0","cniVersions":["0.4.0","1.1.0","9.0.0"],"name":"n",
                       "plugins":[{"type":"x"}]}"#;
        assert_eq!(parse(Form::List, text).unwrap().version(), "1.1.0");
    }

    #[test]
    fn what_cannot_work_is_said() {
        for (text, expected) in [
            ("{", "EOF"),
            ("[]", "is no JSON object"),
            (r#"{"name":"n","plugins":[{"type":"x"}]}"#, "cniVersion \"\" is none of"),
            (r#"{"cniVersion":"2.0.0","name":"n","plugins":[{"type":"x"}]}"#, "2.0.0"),
            (r#"{"cniVersion":"1.0.0","name":"","plugins":[{"type":"x"}]}"#, "name \"\""),
            (r#"{"cniVersion":"1.0.0","name":"../x","plugins":[{"type":"x"}]}"#, "name"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#, "has no plugins"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{}]}"#, "has no type"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"../sh"}]}"#, "type \"../sh\""),
            (
                r#"{"cniVersion":"1.0.0","name":"n","disableGC":3,"plugins":[{"type":"x"}]}"#,
                "disableGC 3",
            ),
        ] {
            let error = parse(Form::List, text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
