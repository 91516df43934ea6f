//! The manager's methods that a scope needs, each one call on the system bus.

use std::io::ErrorKind::TimedOut;
use std::sync::Arc;
use std::time::Duration;

use cgroup::unit::Unit;
use futures::StreamExt;
use tokio::sync::Mutex;
use zbus::message::Type;
use zbus::{Connection, MessageStream, ObjectPath, OwnedObjectPath, Variant};

use crate::properties::{Property, Setting};

const SERVICE: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const INTERFACE: &str = "org.freedesktop.systemd1.Manager";

const ENDS_OF_JOBS: &str = "type='signal',sender='org.freedesktop.systemd1',\
    interface='org.freedesktop.systemd1.Manager',member='JobRemoved'";

/// systemd answers in milliseconds; a manager that is reloading a large node needs seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// A scope that was not made, changed or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "connect to systemd by the system bus: {0}; is this node run by systemd? (cgroupfs paths need none)"
    )]
    Connect(zbus::Error),
    #[error("systemd: {attempt} {unit}: {source}")]
    Call { attempt: &'static str, unit: String, source: zbus::Error },
    #[error("systemd: {attempt} {unit}: the job ended with {result:?}")]
    Job { attempt: &'static str, unit: String, result: String },
    #[error("systemd: {attempt} {unit}: no answer within {} s", PATIENCE.as_secs())]
    Late { attempt: &'static str, unit: String },
}

/// The way to systemd: connected at the first call, by `DBUS_SYSTEM_BUS_ADDRESS` or the well-known socket, and again
/// when the bus was started anew.
#[derive(Debug, Default)]
pub struct Bus {
    connection: Mutex<Option<Connection>>,
}

impl Bus {
    async fn connection(&self) -> Result<Connection, Error> {
        let mut connection = self.connection.lock().await;
        if let Some(open) = connection.as_ref().filter(|open| !open.is_closed()) {
            return Ok(open.clone());
        }
        let late = |_| Error::Connect(zbus::Error::InputOutput(Arc::new(TimedOut.into())));
        let opened = tokio::time::timeout(PATIENCE, Connection::system()).await.map_err(late)?;
        let opened = opened.map_err(Error::Connect)?;
        // systemd tells the end of a job to all, but the bus hands it on only to those who have said so.
        let (bus, path) = ("org.freedesktop.DBus", "/org/freedesktop/DBus");
        let matched = opened.call_method(Some(bus), path, Some(bus), "AddMatch", &ENDS_OF_JOBS);
        matched.await.map_err(Error::Connect)?;
        Ok(connection.insert(opened).clone())
    }

    /// Makes the scope around a process, which must live until another is in its group, and returns when it is there.
    ///
    /// # Errors
    /// systemd's refusal, in its words.
    pub async fn start_scope(
        &self,
        unit: &Unit,
        holder: u32,
        limits: &[Property],
    ) -> Result<(), Error> {
        const ATTEMPT: &str = "make the scope";
        let text = |text: &str| Setting::Text(text.to_owned());
        let mut properties: Vec<Property> = vec![
            ("Description", Setting::Text(format!("container {}", unit.scope))),
            ("Slice", text(&unit.slice)),
            ("PIDs", Setting::Pids(vec![holder])),
            // Its inside is ours, and it goes as soon as it is empty, however its processes ended.
            ("Delegate", Setting::Flag(true)),
            ("CollectMode", text("inactive-or-failed")),
            ("DefaultDependencies", Setting::Flag(false)),
            ("MemoryAccounting", Setting::Flag(true)),
            ("CPUAccounting", Setting::Flag(true)),
            ("TasksAccounting", Setting::Flag(true)),
        ];
        properties.extend_from_slice(limits);
        let aux: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
        let body = (unit.scope.as_str(), "replace", values(&properties), aux);
        match self.job(ATTEMPT, &unit.scope, "StartTransientUnit", &body).await {
            // One of that name has failed and is only remembered.
            Err(Error::Call { source, .. }) if is(&source, "UnitExists") => {
                self.forget(&unit.scope).await;
                self.job(ATTEMPT, &unit.scope, "StartTransientUnit", &body).await
            }
            other => other,
        }
    }

    /// Tells systemd of new limits; the files are written by who asked for them.
    ///
    /// # Errors
    /// systemd's refusal, in its words.
    pub async fn limit(&self, scope: &str, limits: &[Property]) -> Result<(), Error> {
        if limits.is_empty() {
            return Ok(());
        }
        const ATTEMPT: &str = "set properties of";
        let runtime = true;
        let body = (scope, runtime, values(limits));
        call(&self.connection().await?, ATTEMPT, scope, "SetUnitProperties", &body).await.map(drop)
    }

    /// Ends the scope, which should be empty. One that is gone is fine.
    ///
    /// # Errors
    /// systemd's refusal, in its words.
    pub async fn stop(&self, scope: &str) -> Result<(), Error> {
        let stopped = self.job("stop", scope, "StopUnit", &(scope, "replace")).await;
        match stopped {
            Err(Error::Call { source, .. }) if is(&source, "NoSuchUnit") => return Ok(()),
            other => other?,
        }
        self.forget(scope).await;
        Ok(())
    }

    /// A unit that did not fail has nothing to be forgotten: the answer does not matter.
    async fn forget(&self, scope: &str) {
        if let Ok(bus) = self.connection().await {
            let _ = call(&bus, "forget", scope, "ResetFailedUnit", &(scope,)).await;
        }
    }

    /// A call that answers with a job; returns when systemd has done it.
    async fn job<B>(
        &self,
        attempt: &'static str,
        unit: &str,
        method: &'static str,
        body: &B,
    ) -> Result<(), Error>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        let bus = self.connection().await?;
        // Before the call: its end may be told before its answer is read.
        let mut messages = MessageStream::from(&bus);
        let reply = call(&bus, attempt, unit, method, body).await?;
        let wrong = |source| Error::Call { attempt, unit: unit.to_owned(), source };
        let job: OwnedObjectPath = reply.body().deserialize().map_err(wrong)?;
        let ended = async {
            while let Some(message) = messages.next().await {
                let Ok(message) = message else { continue };
                if let Some(result) = removed(&message, &job) {
                    return result;
                }
            }
            "lost connection".to_owned()
        };
        let late = |_| Error::Late { attempt, unit: unit.to_owned() };
        match tokio::time::timeout(PATIENCE, ended).await.map_err(late)? {
            done if done == "done" => Ok(()),
            result => Err(Error::Job { attempt, unit: unit.to_owned(), result }),
        }
    }
}

async fn call<B>(
    bus: &Connection,
    attempt: &'static str,
    unit: &str,
    method: &'static str,
    body: &B,
) -> Result<zbus::Message, Error>
where
    B: serde::Serialize + zbus::DynamicType,
{
    let call = bus.call_method(Some(SERVICE), PATH, Some(INTERFACE), method, body);
    let late = |_| Error::Late { attempt, unit: unit.to_owned() };
    let answer = tokio::time::timeout(PATIENCE, call).await.map_err(late)?;
    answer.map_err(|source| Error::Call { attempt, unit: unit.to_owned(), source })
}

/// The result in a `JobRemoved` signal of this job.
fn removed(message: &zbus::Message, job: &OwnedObjectPath) -> Option<String> {
    let header = message.header();
    let is_signal = message.message_type() == Type::Signal
        && header.member().is_some_and(|m| m.as_str() == "JobRemoved");
    if !is_signal {
        return None;
    }
    let body = message.body();
    let (_, path, _, result): (u32, ObjectPath<'_>, String, String) = body.deserialize().ok()?;
    (path == job.as_ref()).then_some(result)
}

fn is(error: &zbus::Error, name: &str) -> bool {
    matches!(error, zbus::Error::MethodError(full, ..)
        if full.as_str().strip_prefix("org.freedesktop.systemd1.") == Some(name))
}

fn values(properties: &[Property]) -> Vec<(&'static str, Variant<'_>)> {
    let value = |setting: &Setting| match setting {
        Setting::Number(n) => Variant::from(*n),
        Setting::Flag(flag) => Variant::from(*flag),
        Setting::Text(text) => Variant::from(text.clone()),
        Setting::Mask(mask) => Variant::from(mask.clone()),
        Setting::Pids(pids) => Variant::from(pids.clone()),
    };
    properties.iter().map(|(name, setting)| (*name, value(setting))).collect()
}
