//! The same network as a plugin for any container runtime that speaks CNI: one operation for each
//! call, told by the environment and standard input (CNI specification 1.1.0, §2).

mod answer;
mod config;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::process::ExitCode;

use serde_json::{Value, json};

use crate::error::Error;
use crate::network::{AttachRequest, LinkOptions, Network};
use answer::{Failure, code};
use config::{NetConf, VERSION_DEFAULT, VERSIONS};

/// A configuration is a few KiB, with the result of a long chain some more.
const INPUT_MAX: u64 = 16 * 1024 * 1024;

/// Carries out the operation that the environment names and answers on `output`.
pub fn run(
    environment: &HashMap<String, String>,
    input: impl Read,
    mut output: impl Write,
) -> ExitCode {
    let mut version = VERSION_DEFAULT.to_owned();
    let answer = match operate(environment, input, &mut version) {
        Ok(None) => return ExitCode::SUCCESS,
        Ok(Some(answer)) => writeln!(output, "{answer}").map(|()| ExitCode::SUCCESS),
        Err(failure) => {
            writeln!(output, "{}", failure.to_json(&version)).map(|()| ExitCode::FAILURE)
        }
    };
    // Without a reader of the answer only the exit code is left to tell.
    answer.unwrap_or(ExitCode::FAILURE)
}

fn operate(
    environment: &HashMap<String, String>,
    input: impl Read,
    version: &mut String,
) -> Result<Option<Value>, Failure> {
    let call = Call { environment };
    let text = read(input)?;
    let command = call.required("CNI_COMMAND")?;
    if command == "VERSION" {
        let asked = config::version_of(&text)?;
        return Ok(Some(json!({ "cniVersion": asked, "supportedVersions": VERSIONS })));
    }
    *version = config::version_of(&text)?;
    let conf = NetConf::parse(&text)?;
    match command {
        "ADD" => add(&call, &conf).map(Some),
        "DEL" => delete(&call, &conf).map(|()| None),
        "CHECK" => check(&call, &conf).map(|()| None),
        "STATUS" => status(&conf).map(|()| None),
        "GC" => collect_garbage(&conf).map(|()| None),
        other => Err(Failure::new(code::ENVIRONMENT, format!("CNI_COMMAND {other} is not known"))),
    }
}

fn add(call: &Call<'_>, conf: &NetConf) -> Result<Value, Failure> {
    let netns_path = call.required("CNI_NETNS")?;
    let request = AttachRequest {
        sandbox_id: call.attachment()?,
        owner: call.owner()?,
        port_mappings: conf.port_mappings()?,
        netns: Some(open_netns(netns_path)?),
    };
    let options = LinkOptions {
        interface: Some(call.required("CNI_IFNAME")?.to_owned()),
        bandwidth: conf.bandwidth(),
    };
    let network = Network::open_shared(conf.network_config()?)?;
    let attachment = network.attach_with(&request, &options)?;
    Ok(answer::added(conf, &network, &attachment, netns_path))
}

fn delete(call: &Call<'_>, conf: &NetConf) -> Result<(), Failure> {
    let network = Network::open_shared(conf.network_config()?)?;
    network.detach_now(&call.attachment()?).map_err(|errors| {
        let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
        Failure::new(code::KERNEL, texts.join("; "))
    })
}

fn check(call: &Call<'_>, conf: &NetConf) -> Result<(), Failure> {
    use std::os::fd::AsFd;
    let Some(previous) = &conf.prev_result else {
        return Err(Failure::new(code::CONFIGURATION, "CHECK needs prevResult"));
    };
    let network = Network::open_shared(conf.network_config()?)?;
    let id = call.attachment()?;
    let netns = open_netns(call.required("CNI_NETNS")?)?;
    network.verify(&id, netns.as_fd(), call.required("CNI_IFNAME")?)?;
    // What the runtime was told must be what the lease says.
    let leased = network.addresses(&id);
    let told = previous["ips"].as_array().into_iter().flatten();
    let told: Vec<_> = told.filter_map(|ip| ip["address"].as_str()).collect();
    match leased.iter().map(ToString::to_string).find(|own| !told.contains(&own.as_str())) {
        Some(own) => Err(Failure::new(
            code::CHECK,
            format!("prevResult lacks address {own}, which attachment {id} holds"),
        )),
        None => Ok(()),
    }
}

fn status(conf: &NetConf) -> Result<(), Failure> {
    let network = Network::open_shared(conf.network_config()?)?;
    network.ready().map_err(|reason| Failure::new(code::NOT_AVAILABLE, reason))
}

fn collect_garbage(conf: &NetConf) -> Result<(), Failure> {
    let live: Vec<String> = conf
        .valid_attachments
        .iter()
        .map(|valid| attachment(&valid.container_id, &valid.ifname))
        .collect();
    Network::open_shared(conf.network_config()?)?.gc(&live)?;
    Ok(())
}

/// One call of the plugin, as its environment describes it.
struct Call<'a> {
    environment: &'a HashMap<String, String>,
}

impl Call<'_> {
    fn required(&self, name: &str) -> Result<&str, Failure> {
        match self.environment.get(name).map(String::as_str) {
            None | Some("") => Err(Failure::new(code::ENVIRONMENT, format!("{name} is not set"))),
            Some(value) => Ok(value),
        }
    }

    fn attachment(&self) -> Result<String, Failure> {
        Ok(attachment(self.required("CNI_CONTAINERID")?, self.required("CNI_IFNAME")?))
    }

    /// The pod, where Kubernetes names it; else the container.
    fn owner(&self) -> Result<String, Failure> {
        let args = self.environment.get("CNI_ARGS").map_or("", String::as_str);
        let find = |wanted: &str| {
            args.split(';').filter_map(|pair| pair.split_once('=')).find(|(k, _)| *k == wanted)
        };
        match (find("K8S_POD_NAMESPACE"), find("K8S_POD_NAME")) {
            (Some((_, namespace)), Some((_, name))) => Ok(format!("{namespace}/{name}")),
            _ => Ok(self.required("CNI_CONTAINERID")?.to_owned()),
        }
    }
}

/// What CNI tells attachments apart by.
fn attachment(container_id: &str, ifname: &str) -> String {
    format!("{container_id}-{ifname}")
}

fn read(input: impl Read) -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    match input.take(INPUT_MAX).read_to_end(&mut text) {
        Ok(_) => Ok(text),
        Err(error) => Err(Failure::new(code::INPUT, format!("read standard input: {error}"))),
    }
}

fn open_netns(path: &str) -> Result<OwnedFd, Failure> {
    File::open(path).map(OwnedFd::from).map_err(|error: io::Error| {
        Failure::new(code::ENVIRONMENT, format!("open network namespace {path}: {error}"))
    })
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let code = match &error {
            Error::Config(_) | Error::NoRange => code::CONFIGURATION,
            Error::Id(_) => code::ENVIRONMENT,
            Error::Port { .. } => code::UNSUPPORTED,
            Error::Busy { .. } => code::TRY_AGAIN,
            Error::Missing { .. } => code::CHECK,
            Error::Exhausted { .. } => code::EXHAUSTED,
            Error::PortTaken { .. } => code::PORT_TAKEN,
            Error::File { .. } => code::INPUT,
            _ => code::KERNEL,
        };
        Failure::new(code, error.to_string())
    }
}
