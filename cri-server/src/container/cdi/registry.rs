//! The specification files of the node: read, checked, and searched for devices.

use std::path::{Path, PathBuf};

use super::spec::{ContainerEdits, File};
use super::{CdiError, Edits, name};

/// Longest file that is read: a node with every GPU partition described stays far below.
const FILE_MAX: u64 = 4 << 20;

/// The edits for `devices`, those that a file asks for with any of its devices coming first.
/// Later directories win over earlier ones; two files of one directory that describe the same
/// device are a conflict.
pub(crate) fn edits_for(devices: &[String], dirs: &[PathBuf]) -> Result<Edits, CdiError> {
    let (files, broken) = read(dirs);
    let mut edits = Edits::default();
    let mut begun: Vec<&Path> = Vec::new();
    for device in devices {
        let unknown = || CdiError::Unknown {
            device: device.clone(),
            dirs: dirs.to_vec(),
            broken: broken.clone(),
        };
        let (kind, short) = name::parse(device).ok_or_else(unknown)?;
        let described = files.iter().filter(|known| known.file.kind == kind);
        let candidates: Vec<_> = described
            .filter_map(|known| {
                let found = known.file.devices.iter().find(|device| device.name == short)?;
                Some((known, &found.container_edits))
            })
            .collect();
        let (known, own) = match candidates.as_slice() {
            [] => return Err(unknown()),
            [.., one, two] if one.0.priority == two.0.priority => {
                let (one, two) = (one.0.path.clone(), two.0.path.clone());
                return Err(CdiError::Conflict { device: device.clone(), one, two });
            }
            [.., last] => *last,
        };
        let mut add = |part: &ContainerEdits| edits.add(device, &known.path, part);
        if !begun.contains(&known.path.as_path()) {
            add(&known.file.container_edits)?;
            begun.push(&known.path);
        }
        add(own)?;
    }
    Ok(edits)
}

struct Known {
    /// The index of its directory.
    priority: usize,
    path: PathBuf,
    file: File,
}

/// A broken file costs its own devices only; it is told of when a device is missed.
fn read(dirs: &[PathBuf]) -> (Vec<Known>, Vec<String>) {
    let (mut files, mut broken) = (Vec::new(), Vec::new());
    for (priority, dir) in dirs.iter().enumerate() {
        let Ok(entries) = std::fs::read_dir(dir) else { continue };
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let ending = path.extension().and_then(|ending| ending.to_str());
            let parsed = match ending {
                Some("json") => text(&path).and_then(|text| {
                    serde_json::from_str(&text).map_err(|error| error.to_string())
                }),
                Some("yaml" | "yml") => text(&path).and_then(|text| {
                    serde_saphyr::from_str(&text).map_err(|error| error.to_string())
                }),
                _ => continue,
            };
            match parsed.and_then(checked) {
                Ok(file) => files.push(Known { priority, path, file }),
                Err(problem) => broken.push(format!("{}: {problem}", path.display())),
            }
        }
    }
    (files, broken)
}

fn text(path: &Path) -> Result<String, String> {
    let length = std::fs::metadata(path).map_err(|error| error.to_string())?.len();
    if length > FILE_MAX {
        return Err(format!("has {length} bytes; at most {FILE_MAX} are read"));
    }
    std::fs::read_to_string(path).map_err(|error| error.to_string())
}

fn checked(file: File) -> Result<File, String> {
    let known = ["0.3.", "0.4.", "0.5.", "0.6.", "0.7.", "0.8.", "1."];
    if !known.iter().any(|version| file.version.trim_start_matches('v').starts_with(version)) {
        return Err(format!("cdiVersion {:?} is not known", file.version));
    }
    if !name::is_kind(&file.kind) {
        return Err(format!("kind {:?} is not of the form vendor/class", file.kind));
    }
    match file.devices.iter().find(|device| !name::is_device(&device.name)) {
        Some(device) => Err(format!("{:?} is no name of a device", device.name)),
        None => Ok(file),
    }
}
