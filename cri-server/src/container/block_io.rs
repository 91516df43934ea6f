//! The node's classes of block I/O: a YAML file of the form that containerd and CRI-O read
//! (goresctrl's), turned into OCI's `blockIO` with the numbers of the devices that are there.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::Error;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(rename = "Classes", alias = "classes")]
    classes: BTreeMap<String, Vec<Part>>,
}

/// Settings for some devices, or for all.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Part {
    /// Paths; a `*` in the last part stands for any text.
    #[serde(default, alias = "devices")]
    devices: Vec<String>,
    #[serde(alias = "weight")]
    weight: Option<Number>,
    #[serde(alias = "throttleReadBps")]
    throttle_read_bps: Option<Number>,
    #[serde(alias = "throttleWriteBps")]
    throttle_write_bps: Option<Number>,
    #[serde(rename = "ThrottleReadIOPS", alias = "throttleReadIOPS")]
    throttle_read_iops: Option<Number>,
    #[serde(rename = "ThrottleWriteIOPS", alias = "throttleWriteIOPS")]
    throttle_write_iops: Option<Number>,
}

/// `50`, `"60M"`, `1Gi`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Number {
    Plain(u64),
    Text(String),
}

/// OCI's `blockIO` of a class; `annotation` is what asked for it. The file is read for each
/// container that asks, so that a change needs no restart.
pub(crate) fn of_class(file: Option<&Path>, annotation: &str, class: &str) -> Result<Value, Error> {
    let Some(file) = file else {
        return Err(Error::Unsupported {
            field: annotation.to_owned(),
            hint: format!("class {class:?} was asked for, but runtime.blockio_config is not set"),
        });
    };
    let text = fs::read_to_string(file).map_err(|source| Error::io("read", file, source))?;
    let parsed: File = serde_saphyr::from_str(&text)
        .map_err(|error| Error::io("parse", file, std::io::Error::other(error.to_string())))?;
    let Some(parts) = parsed.classes.get(class) else {
        let problem = format!("there is no class {class:?} in {}", file.display());
        return Err(Error::invalid(annotation, problem));
    };
    oci(parts, &devices).map_err(|problem| {
        Error::invalid(annotation, format!("class {class:?} of {}: {problem}", file.display()))
    })
}

/// Major and minor number.
type Numbers = (u32, u32);

/// Pure, but for the look at the devices of a pattern.
fn oci(
    parts: &[Part],
    devices: &dyn Fn(&str) -> Result<Vec<Numbers>, String>,
) -> Result<Value, String> {
    let mut block_io = json!({});
    for part in parts {
        let throttles = [
            ("throttleReadBpsDevice", &part.throttle_read_bps),
            ("throttleWriteBpsDevice", &part.throttle_write_bps),
            ("throttleReadIOPSDevice", &part.throttle_read_iops),
            ("throttleWriteIOPSDevice", &part.throttle_write_iops),
        ];
        let weight = part.weight.as_ref().map(number).transpose()?;
        if let Some(weight) = weight.filter(|weight| !(10..=1000).contains(weight)) {
            return Err(format!("weight {weight} is not between 10 and 1000"));
        }
        if part.devices.is_empty() {
            if throttles.iter().any(|(_, rate)| rate.is_some()) {
                return Err("a throttle needs devices".to_owned());
            }
            if let Some(weight) = weight {
                block_io["weight"] = json!(weight);
            }
        }
        for pattern in &part.devices {
            for (major, minor) in devices(pattern)? {
                let mut add = |key: &str, name: &str, value: u64| {
                    let entry = json!({ "major": major, "minor": minor, name: value });
                    match block_io[key].as_array_mut() {
                        Some(list) => list.push(entry),
                        None => block_io[key] = json!([entry]),
                    }
                };
                if let Some(weight) = weight {
                    add("weightDevice", "weight", weight);
                }
                for (key, rate) in throttles {
                    if let Some(rate) = rate {
                        add(key, "rate", number(rate)?);
                    }
                }
            }
        }
    }
    Ok(block_io)
}

fn number(number: &Number) -> Result<u64, String> {
    let text = match number {
        Number::Plain(value) => return Ok(*value),
        Number::Text(text) => text.trim(),
    };
    let units = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("k", 1000),
        ("K", 1000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000_u64),
    ];
    let (digits, unit) = units
        .iter()
        .find_map(|(unit, size)| text.strip_suffix(unit).map(|digits| (digits, *size)))
        .unwrap_or((text, 1));
    let value = digits.parse::<u64>().ok().and_then(|value| value.checked_mul(unit));
    value.ok_or_else(|| format!("{text:?} is no number"))
}

/// The block devices of a path, followed through links; a class without its device is a mistake.
fn devices(pattern: &str) -> Result<Vec<Numbers>, String> {
    let path = Path::new(pattern);
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let paths: Vec<PathBuf> = match (name.split_once('*'), path.parent()) {
        (Some((before, after)), Some(dir)) => fs::read_dir(dir)
            .map_err(|error| format!("{}: {error}", dir.display()))?
            .flatten()
            .filter(|entry| {
                entry.file_name().to_str().is_some_and(|name| {
                    name.len() >= before.len() + after.len()
                        && name.starts_with(before)
                        && name.ends_with(after)
                })
            })
            .map(|entry| entry.path())
            .collect(),
        _ => vec![path.to_owned()],
    };
    let mut numbers = Vec::new();
    for path in paths {
        let found = fs::metadata(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        if found.file_type().is_block_device() {
            numbers.push((major(found.rdev()), minor(found.rdev())));
        }
    }
    numbers.sort_unstable();
    numbers.dedup();
    match numbers.is_empty() {
        true => Err(format!("{pattern:?} is no block device")),
        false => Ok(numbers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(text: &str) -> Result<Value, String> {
        let file: File = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        oci(&file.classes["slow"], &|pattern| match pattern {
            "/dev/sd*" => Ok(vec![(8, 0), (8, 16)]),
            other => Err(format!("{other:?} is no block device")),
        })
    }

    #[test]
    fn a_class_becomes_weights_and_throttles_of_its_devices() {
        let made = class(
            "Classes:\n  slow:\n  - Weight: 80\n  - Devices: [/dev/sd*]\n    Weight: 50\n    \
             ThrottleReadBps: 60M\n    ThrottleWriteIOPS: 100\n",
        );
        let expect = json!({
            "weight": 80,
            "weightDevice": [
                { "major": 8, "minor": 0, "weight": 50 },
                { "major": 8, "minor": 16, "weight": 50 },
            ],
            "throttleReadBpsDevice": [
                { "major": 8, "minor": 0, "rate": 60_000_000 },
                { "major": 8, "minor": 16, "rate": 60_000_000 },
            ],
            "throttleWriteIOPSDevice": [
                { "major": 8, "minor": 0, "rate": 100 },
                { "major": 8, "minor": 16, "rate": 100 },
            ],
        });
        assert_eq!(made.unwrap(), expect);
    }

    #[test]
    fn mistakes_of_a_class_are_named() {
        for (parts, expect) in [
            ("[{Weight: 5}]", "not between"),
            ("[{ThrottleReadBps: 1M}]", "needs devices"),
            ("[{Devices: [/dev/nope], Weight: 50}]", "no block device"),
            ("[{Devices: [/dev/sd*], ThrottleReadBps: fast}]", "no number"),
            ("[{Speed: 5}]", "Speed"),
        ] {
            let error = class(&format!("Classes: {{slow: {parts}}}")).unwrap_err();
            assert!(error.contains(expect), "{error:?} does not say {expect:?}");
        }
    }
}
