//! What is said in one call of a plugin: its environment and its standard input. Pure.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::conf::{Network, declares};

/// An operation of the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Attach a container.
    Add,
    /// See whether an attachment is as it was made.
    Check,
    /// Detach.
    Del,
    /// Free what belongs to no valid attachment.
    Gc,
    /// Say whether containers could be attached.
    Status,
    /// Say which versions are spoken.
    Version,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verb::Add => "ADD",
            Verb::Check => "CHECK",
            Verb::Del => "DEL",
            Verb::Gc => "GC",
            Verb::Status => "STATUS",
            Verb::Version => "VERSION",
        })
    }
}

/// One link of one container in a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// Names the container in every later call.
    pub container_id: String,
    /// A path to its network namespace; `None` once that is gone.
    pub netns: Option<PathBuf>,
    /// What the link is to be called inside.
    pub ifname: String,
    /// `CNI_ARGS`, in order.
    pub args: Vec<(String, String)>,
    /// Capability arguments by name; each goes to the plugins that declare it.
    pub capabilities: Map<String, Value>,
}

/// The variables beside `CNI_COMMAND` that tell a plugin what it is called for.
pub(crate) fn environment(attachment: Option<&Attachment>) -> Vec<(&'static str, OsString)> {
    let Some(attachment) = attachment else { return Vec::new() };
    let args: Vec<_> =
        attachment.args.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let mut variables: Vec<(&str, OsString)> = vec![
        ("CNI_CONTAINERID", attachment.container_id.clone().into()),
        ("CNI_IFNAME", attachment.ifname.clone().into()),
        ("CNI_ARGS", args.join(";").into()),
    ];
    // Set and empty: some plugins ask whether it is set.
    let netns = attachment.netns.clone().unwrap_or_default();
    variables.push(("CNI_NETNS", netns.into()));
    variables
}

/// The configuration one plugin of a network gets in a call about an attachment.
pub(crate) fn input(
    network: &Network,
    plugin: &Map<String, Value>,
    attachment: &Attachment,
    previous: Option<&Value>,
) -> Value {
    let mut conf = base(network, plugin);
    let runtime: Map<String, Value> = attachment
        .capabilities
        .iter()
        .filter(|(name, _)| declares(plugin, name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    if !runtime.is_empty() {
        conf.insert("runtimeConfig".to_owned(), Value::Object(runtime));
    }
    if let Some(previous) = previous {
        conf.insert("prevResult".to_owned(), previous.clone());
    }
    Value::Object(conf)
}

/// The configuration one plugin gets in a call about the network as a whole.
pub(crate) fn network_input(
    network: &Network,
    plugin: &Map<String, Value>,
    valid: Option<&[(String, String)]>,
) -> Value {
    let mut conf = base(network, plugin);
    if let Some(valid) = valid {
        let valid = valid.iter().map(|(id, ifname)| json!({ "containerID": id, "ifname": ifname }));
        conf.insert("cni.dev/valid-attachments".to_owned(), valid.collect());
    }
    Value::Object(conf)
}

fn base(network: &Network, plugin: &Map<String, Value>) -> Map<String, Value> {
    let mut conf = plugin.clone();
    // What the runtime consumes is not for the plugin.
    conf.remove("capabilities");
    conf.insert("name".to_owned(), network.name.clone().into());
    conf.insert("cniVersion".to_owned(), network.version.clone().into());
    conf
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::conf::Form;

    fn attachment() -> Attachment {
        Attachment {
            container_id: "c1".into(),
            netns: Some("/run/netns/x".into()),
            ifname: "eth0".into(),
            args: vec![("IgnoreUnknown".into(), "1".into()), ("K8S_POD_NAME".into(), "web".into())],
            capabilities: [("portMappings".to_owned(), json!([{ "hostPort": 80 }]))]
                .into_iter()
                .collect(),
        }
    }

    #[test]
    fn a_capability_goes_only_to_plugins_that_declare_it() {
        let text = r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"},
                       {"type":"portmap","capabilities":{"portMappings":true}}]}"#;
        let network = Network::parse(Path::new("f"), Form::List, text.as_bytes()).unwrap();
        let inputs: Vec<_> = network
            .plugins
            .iter()
            .map(|plugin| input(&network, plugin, &attachment(), Some(&json!({ "ips": [] }))))
            .collect();
        assert_eq!(inputs[0].get("runtimeConfig"), None);
        assert_eq!(inputs[1]["runtimeConfig"]["portMappings"][0]["hostPort"], 80);
        assert_eq!(inputs[1].get("capabilities"), None);
        assert_eq!(
            (&inputs[0]["name"], &inputs[0]["cniVersion"]),
            (&json!("net"), &json!("1.0.0"))
        );
        assert_eq!(inputs[1]["prevResult"], json!({ "ips": [] }));
    }

    #[test]
    fn the_environment_names_container_namespace_link_and_pod() {
        let variables = environment(Some(&attachment()));
        let find = |name| variables.iter().find(|(key, _)| *key == name).unwrap().1.clone();
        assert_eq!(find("CNI_ARGS"), "IgnoreUnknown=1;K8S_POD_NAME=web");
        assert_eq!(find("CNI_NETNS"), "/run/netns/x");
        let gone = Attachment { netns: None, ..attachment() };
        let variables = environment(Some(&gone));
        assert!(variables.iter().any(|(key, value)| *key == "CNI_NETNS" && value.is_empty()));
        assert!(environment(None).is_empty());
    }
}
