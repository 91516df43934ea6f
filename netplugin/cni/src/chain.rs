//! The operations on a network: each plugin of the chain in turn.

use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{Access, access};
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::call::{self, Attachment, Verb};
use crate::conf::{Network, type_of};
use crate::error::{Error, Failure};
use crate::program::{self, Call, Ended};
use crate::result::{self, Answer, begin_of};
use crate::version::{self, Version};

/// A question about the state of things is answered at once, or things are bad.
const QUESTION_LIMIT: Duration = Duration::from_secs(10);

/// Where plugins are, and how long an operation may take.
#[derive(Debug, Clone)]
pub struct Plugins {
    /// Directories of programs, the first one that has it wins.
    pub dirs: Vec<PathBuf>,
    /// For a whole chain; what runs at its end is killed.
    pub limit: Duration,
}

/// An operation under way.
struct Operation<'a> {
    verb: Verb,
    network: &'a Network,
    limit: Duration,
    deadline: Instant,
}

impl Plugins {
    /// Attaches a container: every plugin in order, each told what the one before answered. After an
    /// error some of it may be there: [`Plugins::del`] takes it away.
    pub async fn add(&self, network: &Network, attachment: &Attachment) -> Result<Answer, Error> {
        let operation = self.operation(Verb::Add, network);
        let mut previous = None;
        for plugin in &network.plugins {
            let input = call::input(network, plugin, attachment, previous.as_ref());
            let answer = self.call(&operation, plugin, Some(attachment), &input).await?;
            let answer = result::read(&answer, &network.version)
                .map_err(|failure| operation.failed(plugin, failure))?;
            previous = Some(answer);
        }
        // A network has at least one plugin.
        Ok(Answer(previous.unwrap_or_default()))
    }

    /// Sees whether an attachment is as it was made. Networks that cannot tell are content.
    pub async fn check(
        &self,
        network: &Network,
        attachment: &Attachment,
        answer: &Answer,
    ) -> Result<(), Error> {
        if network.disable_check || Version::of(&network.version) < version::CHECK {
            return Ok(());
        }
        let operation = self.operation(Verb::Check, network);
        for plugin in &network.plugins {
            let input = call::input(network, plugin, attachment, Some(&answer.0));
            self.call(&operation, plugin, Some(attachment), &input).await?;
        }
        Ok(())
    }

    /// Detaches a container: every plugin in reverse order, up to the first that fails. To be
    /// repeated until it succeeds; plugins take what is gone already for success.
    pub async fn del(
        &self,
        network: &Network,
        attachment: &Attachment,
        answer: Option<&Answer>,
    ) -> Result<(), Error> {
        let operation = self.operation(Verb::Del, network);
        let told = Version::of(&network.version) >= version::DEL_WITH_RESULT;
        let previous = answer.filter(|_| told).map(|answer| &answer.0);
        for plugin in network.plugins.iter().rev() {
            let input = call::input(network, plugin, attachment, previous);
            self.call(&operation, plugin, Some(attachment), &input).await?;
        }
        Ok(())
    }

    /// Frees what belongs to none of the valid attachments (container, link). Networks that know no
    /// garbage are content.
    pub async fn gc(&self, network: &Network, valid: &[(String, String)]) -> Result<(), Error> {
        if network.disable_gc || Version::of(&network.version) < version::GC_AND_STATUS {
            return Ok(());
        }
        let operation = self.operation(Verb::Gc, network);
        let mut first = None;
        // All of them, whatever one says: garbage of one plugin is none of the others' concern.
        for plugin in &network.plugins {
            let input = call::network_input(network, plugin, Some(valid));
            first = first.or(self.call(&operation, plugin, None, &input).await.err());
        }
        first.map_or(Ok(()), Err)
    }

    /// Whether containers could be attached now, as far as that can be told: every plugin is there,
    /// speaks the version of the configuration, and is content where it has a status.
    pub async fn status(&self, network: &Network) -> Result<(), Error> {
        let operation = self.operation(Verb::Status, network);
        for plugin in &network.plugins {
            self.find(type_of(plugin)).map_err(|failure| operation.failed(plugin, failure))?;
        }
        if Version::of(&network.version) < version::GC_AND_STATUS {
            return Ok(());
        }
        for plugin in &network.plugins {
            let input = call::network_input(network, plugin, None);
            self.call(&operation, plugin, None, &input).await?;
        }
        Ok(())
    }

    /// Whether every plugin speaks the version of the configuration. One that does not say which it
    /// speaks is taken at its ADD.
    pub async fn speak(&self, network: &Network) -> Result<(), Error> {
        let operation = self.operation(Verb::Version, network);
        for plugin in &network.plugins {
            let input = call::network_input(network, &Map::new(), None);
            let answer = self.call(&operation, plugin, None, &input).await;
            let Ok(Ok(versions)) = answer.map(|it| serde_json::from_slice::<Versions>(&it)) else {
                continue;
            };
            if !versions.supported.contains(&network.version) {
                let theirs = versions.supported.join(", ");
                let failure = Failure::Version { theirs, asked: network.version.clone() };
                return Err(operation.failed(plugin, failure));
            }
        }
        Ok(())
    }

    fn operation<'a>(&self, verb: Verb, network: &'a Network) -> Operation<'a> {
        let limit = match verb {
            Verb::Status | Verb::Version => self.limit.min(QUESTION_LIMIT),
            Verb::Add | Verb::Check | Verb::Del | Verb::Gc => self.limit,
        };
        Operation { verb, network, limit, deadline: Instant::now() + limit }
    }

    async fn call(
        &self,
        operation: &Operation<'_>,
        plugin: &Map<String, Value>,
        attachment: Option<&Attachment>,
        input: &Value,
    ) -> Result<Vec<u8>, Error> {
        let run = async {
            let program = self.find(type_of(plugin))?;
            let mut environment = call::environment(attachment);
            environment.push(("CNI_COMMAND", operation.verb.to_string().into()));
            let dirs = std::env::join_paths(&self.dirs).unwrap_or_default();
            environment.push(("CNI_PATH", dirs));
            let ended = program::run(Call {
                program: &program,
                environment,
                input: input.to_string().into_bytes(),
                deadline: operation.deadline,
                seconds: operation.limit.as_secs(),
            });
            judge(ended.await?)
        };
        run.await.map_err(|failure| operation.failed(plugin, failure))
    }

    fn find(&self, kind: &str) -> Result<PathBuf, Failure> {
        let paths = self.dirs.iter().map(|dir| dir.join(kind));
        let is_program = |path: &PathBuf| path.is_file() && access(path, Access::EXEC_OK).is_ok();
        paths.into_iter().find(is_program).ok_or_else(|| {
            let dirs: Vec<_> = self.dirs.iter().map(|dir| dir.display().to_string()).collect();
            Failure::Missing { dirs: dirs.join(", ") }
        })
    }
}

impl Operation<'_> {
    fn failed(&self, plugin: &Map<String, Value>, failure: Failure) -> Error {
        Error::Plugin {
            verb: self.verb,
            plugin: type_of(plugin).to_owned(),
            network: self.network.name.clone(),
            failure,
        }
    }
}

/// An answer to VERSION.
#[derive(Deserialize)]
struct Versions {
    #[serde(rename = "supportedVersions")]
    supported: Vec<String>,
}

/// An error in the form of the specification.
#[derive(Deserialize)]
struct Refusal {
    code: u64,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

fn judge(ended: Ended) -> Result<Vec<u8>, Failure> {
    if ended.status.success() {
        return Ok(ended.answer);
    }
    match serde_json::from_slice::<Refusal>(&ended.answer) {
        Ok(refusal) => Err(Failure::Refused {
            code: refusal.code,
            message: refusal.msg,
            details: match refusal.details.as_str() {
                "" => String::new(),
                details => format!("; {details}"),
            },
        }),
        Err(_) => {
            let complained = !ended.complaint.iter().all(u8::is_ascii_whitespace);
            let said = if complained { &ended.complaint } else { &ended.answer };
            Err(Failure::Died { status: ended.status, said: begin_of(said) })
        }
    }
}
