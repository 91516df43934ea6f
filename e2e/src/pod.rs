//! Running pods and containers, and what can be asked of them.
//!
//! Methods named by the RPC panic with its error; those named `try_…` hand the error out.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use k8s_cri::v1 as cri;
use k8s_cri::v1::ContainerState;
use tonic::Status;

use crate::client::Cri;
use crate::spdy::{Asked, Command};
use crate::spec::{ContainerSpec, PodSpec};
use crate::wait;

/// For what a busy two-core machine should do in well under a second.
pub const SOON: Duration = Duration::from_secs(15);

/// A sandbox that was ready.
#[derive(Debug, Clone)]
pub struct Pod {
    pub id: String,
    pub spec: PodSpec,
    cri: Cri,
}

/// A container that was created.
#[derive(Debug, Clone)]
pub struct Container {
    pub id: String,
    /// Where its log is, empty when the sandbox keeps none.
    pub log: PathBuf,
    cri: Cri,
}

/// One line of a log in CRI's form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    pub time: String,
    pub stream: String,
    /// `F`, or `P` when the line goes on.
    pub tag: String,
    pub text: String,
}

impl Pod {
    /// RunPodSandbox; the log directory must exist.
    pub async fn run(cri: &Cri, spec: PodSpec) -> Result<Self, Status> {
        let request = cri::RunPodSandboxRequest {
            config: Some(spec.config.clone()),
            runtime_handler: spec.handler.clone(),
        };
        let answer = cri.runtime.clone().run_pod_sandbox(request).await?;
        Ok(Self { id: answer.into_inner().pod_sandbox_id, spec, cri: cri.clone() })
    }

    pub async fn try_create(&self, spec: &ContainerSpec) -> Result<Container, Status> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(spec.config.clone()),
            sandbox_config: Some(self.spec.config.clone()),
        };
        let answer = self.cri.runtime.clone().create_container(request).await?;
        Ok(Container {
            id: answer.into_inner().container_id,
            log: PathBuf::from(&self.spec.config.log_directory).join(&spec.config.log_path),
            cri: self.cri.clone(),
        })
    }

    pub async fn create(&self, spec: &ContainerSpec) -> Container {
        self.try_create(spec).await.expect("CreateContainer")
    }

    /// CreateContainer and StartContainer.
    pub async fn start(&self, spec: &ContainerSpec) -> Container {
        let container = self.create(spec).await;
        container.start().await;
        container
    }

    pub async fn try_status(&self) -> Result<cri::PodSandboxStatusResponse, Status> {
        let request =
            cri::PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose: false };
        Ok(self.cri.runtime.clone().pod_sandbox_status(request).await?.into_inner())
    }

    pub async fn status(&self) -> cri::PodSandboxStatus {
        self.try_status().await.expect("PodSandboxStatus").status.expect("a status")
    }

    /// The pod's main address.
    pub async fn address(&self) -> String {
        self.status().await.network.unwrap_or_default().ip
    }

    pub async fn stop(&self) {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.cri.runtime.clone().stop_pod_sandbox(request).await.expect("StopPodSandbox");
    }

    pub async fn try_forward_url(&self, ports: &[i32]) -> Result<String, Status> {
        let id = self.id.clone();
        let request = cri::PortForwardRequest { pod_sandbox_id: id, port: ports.to_vec() };
        Ok(self.cri.runtime.clone().port_forward(request).await?.into_inner().url)
    }

    pub async fn remove(&self) {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.cri.runtime.clone().remove_pod_sandbox(request).await.expect("RemovePodSandbox");
    }
}

impl Container {
    /// One that was created by other means.
    pub fn known(cri: &Cri, id: &str) -> Self {
        Self { id: id.to_owned(), log: PathBuf::new(), cri: cri.clone() }
    }

    pub async fn try_start(&self) -> Result<(), Status> {
        let request = cri::StartContainerRequest { container_id: self.id.clone() };
        self.cri.runtime.clone().start_container(request).await.map(drop)
    }

    pub async fn start(&self) {
        self.try_start().await.expect("StartContainer");
    }

    /// `grace` in seconds.
    pub async fn stop(&self, grace: i64) {
        let request = cri::StopContainerRequest { container_id: self.id.clone(), timeout: grace };
        self.cri.runtime.clone().stop_container(request).await.expect("StopContainer");
    }

    pub async fn remove(&self) {
        let request = cri::RemoveContainerRequest { container_id: self.id.clone() };
        self.cri.runtime.clone().remove_container(request).await.expect("RemoveContainer");
    }

    pub async fn try_response(
        &self,
        verbose: bool,
    ) -> Result<cri::ContainerStatusResponse, Status> {
        let request = cri::ContainerStatusRequest { container_id: self.id.clone(), verbose };
        Ok(self.cri.runtime.clone().container_status(request).await?.into_inner())
    }

    pub async fn try_status(&self) -> Result<cri::ContainerStatus, Status> {
        Ok(self.try_response(false).await?.status.expect("a status"))
    }

    pub async fn status(&self) -> cri::ContainerStatus {
        self.try_status().await.expect("ContainerStatus")
    }

    pub async fn state(&self) -> ContainerState {
        self.status().await.state()
    }

    /// Waits for the end and returns the last status.
    pub async fn exited(&self) -> cri::ContainerStatus {
        wait::until_async(&format!("container {} exits", self.id), SOON, || async {
            let status = self.status().await;
            (status.state() == ContainerState::ContainerExited).then_some(status)
        })
        .await
    }

    /// `timeout` in seconds, 0 for none.
    pub async fn try_exec(
        &self,
        command: &[&str],
        timeout: i64,
    ) -> Result<cri::ExecSyncResponse, Status> {
        let request = cri::ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(|it| (*it).to_owned()).collect(),
            timeout,
        };
        Ok(self.cri.runtime.clone().exec_sync(request).await?.into_inner())
    }

    /// The URL of a command for a streaming client.
    pub async fn try_exec_url(&self, command: &[&str], asked: Asked) -> Result<String, Status> {
        let Asked { stdin, stdout, stderr, tty } = asked;
        let cmd = command.iter().map(|it| (*it).to_owned()).collect();
        let id = self.id.clone();
        let request = cri::ExecRequest { container_id: id, cmd, tty, stdin, stdout, stderr };
        Ok(self.cri.runtime.clone().exec(request).await?.into_inner().url)
    }

    /// Runs `sh -c SCRIPT` for a streaming client.
    pub async fn stream(&self, script: &str, asked: Asked) -> Command {
        let url = self.try_exec_url(&["sh", "-c", script], asked).await.expect("Exec");
        Command::dial(&url, asked).await
    }

    pub async fn try_attach_url(&self, asked: Asked) -> Result<String, Status> {
        let Asked { stdin, stdout, stderr, tty } = asked;
        let id = self.id.clone();
        let request = cri::AttachRequest { container_id: id, stdin, tty, stdout, stderr };
        Ok(self.cri.runtime.clone().attach(request).await?.into_inner().url)
    }

    pub async fn attach(&self, asked: Asked) -> Command {
        Command::dial(&self.try_attach_url(asked).await.expect("Attach"), asked).await
    }

    /// Standard output of `sh -c SCRIPT` without its last newline; anything but success panics.
    pub async fn shell(&self, script: &str) -> String {
        let done = self.try_exec(&["sh", "-c", script], 30).await.expect("ExecSync");
        let error = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.exit_code, 0, "`{script}` in {}: {error}", self.id);
        String::from_utf8(done.stdout).unwrap().trim_end_matches('\n').to_owned()
    }

    pub async fn reopen_log(&self) -> Result<(), Status> {
        let request = cri::ReopenContainerLogRequest { container_id: self.id.clone() };
        self.cri.runtime.clone().reopen_container_log(request).await.map(drop)
    }

    /// The log so far.
    pub fn log_lines(&self) -> Vec<LogLine> {
        parse_log(&fs::read(&self.log).unwrap_or_default())
    }

    /// Waits until a line of the log contains `text`.
    pub fn wait_for_log(&self, text: &str) -> LogLine {
        wait::until(&format!("`{text}` in {}", self.log.display()), SOON, || {
            self.log_lines().into_iter().find(|line| line.text.contains(text))
        })
    }
}

/// Panics on a line that is not in the form; a line still being written is left out.
pub fn parse_log(bytes: &[u8]) -> Vec<LogLine> {
    let complete = bytes.iter().rposition(|it| *it == b'\n').map_or(0, |it| it + 1);
    let text = String::from_utf8_lossy(&bytes[..complete]);
    text.split_terminator('\n')
        .map(|line| {
            let mut parts = line.splitn(4, ' ').map(str::to_owned);
            let mut part =
                || parts.next().unwrap_or_else(|| panic!("not a CRI log line: {line:?}"));
            let line = LogLine { time: part(), stream: part(), tag: part(), text: part() };
            assert!(matches!(&*line.stream, "stdout" | "stderr"), "{line:?}");
            assert!(matches!(&*line.tag, "P" | "F"), "{line:?}");
            line
        })
        .collect()
}
