//! What plugins answer to an ADD, in the versions of the specification, and what it means. Pure.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::error::Failure;
use crate::version::{self, Version};

/// How much of an answer that cannot be understood is repeated.
const SAID_MAX: usize = 200;

/// The answer of the last plugin of a chain, in the version of the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Answer(pub(crate) Value);

impl Answer {
    /// The addresses inside the container, in the order the plugins gave them.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        let is_inside = |ip: &&Value| match ip.get("interface").and_then(Value::as_u64) {
            None => true,
            // Addresses of links on the host, such as the bridge's, are not the container's.
            Some(index) => usize::try_from(index)
                .ok()
                .and_then(|index| self.0.get("interfaces")?.get(index)?.get("sandbox")?.as_str())
                .is_some_and(|sandbox| !sandbox.is_empty()),
        };
        let ips = self.0.get("ips").and_then(Value::as_array).into_iter().flatten();
        ips.filter(is_inside)
            .filter_map(|ip| ip.get("address")?.as_str())
            .filter_map(|address| address.split('/').next()?.parse().ok())
            .collect()
    }

    /// The answer as JSON.
    #[must_use]
    pub fn json(&self) -> &Value {
        &self.0
    }
}

/// Reads the answer of a plugin and brings it into the version the next one is talked to in.
pub(crate) fn read(text: &[u8], asked: &str) -> Result<Value, Failure> {
    let rubbish = |problem: String| Failure::Rubbish { problem, said: begin_of(text) };
    let mut answer: Value =
        serde_json::from_slice(text).map_err(|error| rubbish(error.to_string()))?;
    let Some(fields) = answer.as_object_mut() else {
        return Err(rubbish("it is no JSON object".to_owned()));
    };
    // Some plugins leave it out; then it is the one they were asked in.
    let theirs = fields.get("cniVersion").and_then(Value::as_str).filter(|it| !it.is_empty());
    let theirs = theirs.unwrap_or(asked).to_owned();
    if !version::SPOKEN.contains(&theirs.as_str()) {
        return Err(Failure::Version { theirs, asked: asked.to_owned() });
    }
    for (key, shape) in [("ips", "list"), ("interfaces", "list"), ("routes", "list")] {
        match fields.get(key) {
            Some(Value::Null) => drop(fields.remove(key)),
            Some(value) if !value.is_array() => {
                return Err(rubbish(format!("{key} is no {shape}")));
            }
            _ => {}
        }
    }
    translate(&mut answer, Version::of(asked));
    answer["cniVersion"] = asked.into();
    Ok(answer)
}

/// What changed between versions: addresses named their family before 1.0.0, links have more to say
/// since 1.1.0.
fn translate(answer: &mut Value, to: Version) {
    let list = |answer: &mut Value, key: &str| match answer.get_mut(key) {
        Some(Value::Array(items)) => std::mem::take(items),
        _ => Vec::new(),
    };
    let mut ips = list(answer, "ips");
    for ip in ips.iter_mut().filter_map(Value::as_object_mut) {
        let is_ipv6 = ip.get("address").and_then(Value::as_str).is_some_and(|it| it.contains(':'));
        match to < version::NO_FAMILY {
            true => ip.insert("version".to_owned(), json!(if is_ipv6 { "6" } else { "4" })),
            false => ip.remove("version"),
        };
    }
    if !ips.is_empty() {
        answer["ips"] = ips.into();
    }
    if to < version::GC_AND_STATUS {
        for (key, newer) in [
            ("interfaces", &["mtu", "socketPath", "pciID"][..]),
            ("routes", &["mtu", "advmss", "priority", "table", "scope"][..]),
        ] {
            let mut items = list(answer, key);
            for item in items.iter_mut().filter_map(Value::as_object_mut) {
                newer.iter().for_each(|field| drop(item.remove(*field)));
            }
            if !items.is_empty() {
                answer[key] = items.into();
            }
        }
    }
}

/// The begin of a text of any length, readable.
pub(crate) fn begin_of(text: &[u8]) -> String {
    let begin = &text[..text.len().min(SAID_MAX)];
    let shown = String::from_utf8_lossy(begin).trim().escape_debug().to_string();
    match (shown.is_empty(), text.len() > SAID_MAX) {
        (true, _) => "nothing".to_owned(),
        (false, true) => format!("{shown}…"),
        (false, false) => shown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_links_on_the_host_are_not_the_containers() {
        let answer = Answer(json!({
            "interfaces": [{ "name": "cni0" }, { "name": "eth0", "sandbox": "/x" }],
            "ips": [
                { "interface": 0, "address": "10.0.0.1/24" },
                { "interface": 1, "address": "10.0.0.2/24" },
                { "address": "fd00::2/64" },
                { "interface": 7, "address": "10.0.0.9/24" },
            ],
        }));
        let expected: Vec<IpAddr> = vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        assert_eq!(answer.addresses(), expected);
        assert!(Answer(json!({})).addresses().is_empty());
    }

    #[test]
    fn an_answer_of_another_version_is_translated() {
        let old = r#"{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.0.2/24"}]}"#;
        let new = read(old.as_bytes(), "1.0.0").unwrap();
        assert_eq!(new["cniVersion"], "1.0.0");
        assert_eq!(new["ips"][0], json!({ "address": "10.0.0.2/24" }));
        let new = r#"{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","mtu":1400}],
                      "ips":[{"address":"fd00::2/64"}],"routes":[{"dst":"::/0","mtu":9}]}"#;
        let old = read(new.as_bytes(), "0.3.1").unwrap();
        assert_eq!(old["interfaces"], json!([{ "name": "eth0" }]));
        assert_eq!(old["ips"][0]["version"], "6");
        assert_eq!(old["routes"], json!([{ "dst": "::/0" }]));
        let silent = read(br#"{"ips":null}"#, "1.0.0").unwrap();
        assert_eq!(silent, json!({ "cniVersion": "1.0.0" }));
    }

    #[test]
    fn rubbish_is_repeated_up_to_a_bound() {
        for (text, expected) in [
            ("", "nothing"),
            ("hello\n", "hello"),
            ("[1]", "no JSON object"),
            (r#"{"ips":3}"#, "ips is no list"),
            (r#"{"cniVersion":"9.0.0"}"#, "version 9.0.0"),
        ] {
            let error = read(text.as_bytes(), "1.0.0").unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
        let long = read(&vec![b'x'; 10_000], "1.0.0").unwrap_err().to_string();
        assert!(long.len() < 500, "{long}");
    }
}
