//! The class of cache and memory bandwidth that a container asks for, decided.

use crate::error::Error;
use crate::spec;

/// A directory of resctrl and what is written there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rdt {
    /// Empty for the root's class, which all others share.
    pub class: String,
    /// The class is this container's alone: made with it, and gone with it.
    pub own: bool,
    /// Lines for its `schemata`; none for a class that is taken as it is.
    pub schemata: Vec<String>,
    /// The monitoring group in the class, named by the container.
    pub monitor: Option<String>,
}

/// # Errors
/// A name that is none, or a schema that is more than one line of its kind.
pub(super) fn rdt(r: &spec::IntelRdt, id: &str) -> Result<Rdt, Error> {
    let own = r.clos_id.as_deref().unwrap_or_default().is_empty();
    let class = match r.clos_id.as_deref().filter(|name| !name.is_empty()) {
        None => id,
        Some("/") => "",
        Some(name) => name,
    };
    if class.contains(['/', '\n', '\0'])
        || [".", "..", "info", "mon_groups", "mon_data"].contains(&class)
    {
        return Err(Error::new(
            "linux.intelRdt.closID",
            format!("{class:?} is no name of a class"),
        ));
    }
    let l3: Vec<&str> = r.l3_cache_schema.iter().flat_map(|text| text.lines()).collect();
    let bandwidth = r.mem_bw_schema.as_deref().filter(|text| !text.is_empty());
    if let Some(text) = bandwidth.filter(|text| text.contains('\n') || !text.starts_with("MB:")) {
        let why = format!("{text:?} is no line that starts with \"MB:\"");
        return Err(Error::new("linux.intelRdt.memBwSchema", why));
    }
    // Where both speak of bandwidth, the field that is made for it is meant.
    let l3 = l3.into_iter().filter(|line| bandwidth.is_none() || !line.starts_with("MB:"));
    let mut schemata: Vec<String> = l3.chain(bandwidth).map(str::to_owned).collect();
    for line in r.schemata.iter().flatten() {
        if line.contains('\n') || !line.contains(':') {
            let why = format!("{line:?} is no line of the form NAME:ID=VALUE");
            return Err(Error::new("linux.intelRdt.schemata", why));
        }
        schemata.push(line.clone());
    }
    schemata.retain(|line| !line.is_empty());
    let asked = [r.enable_monitoring, r.enable_cmt, r.enable_mbm].contains(&Some(true));
    let monitor = asked.then(|| id.to_owned());
    Ok(Rdt { class: class.to_owned(), own, schemata, monitor })
}
