//! The connection to a running daemon: every verb of the command line is a client of its CRI socket.

use std::{
    future::Future,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use futures::Stream;
use hyper_util::rt::TokioIo;
use proto::{
    admin::v1::{
        self as admin, Event, ImportImagesRequest, ImportedImage, SetLogLevelRequest,
        WatchEventsRequest, admin_client::AdminClient,
    },
    cri::v1::{self as cri, image_service_client as image, runtime_service_client as runtime},
};
use tokio::net::UnixStream;
use tonic::{
    Code, Request, Response, Status, Streaming,
    transport::{Channel, Endpoint},
};

/// Where `lapstrake serve` listens unless told otherwise.
const DEFAULT_ENDPOINT: &str = "unix:///run/lapstrake/lapstrake.sock";

/// What the kubelet grants an ordinary call (`runtimeRequestTimeout`); a daemon that needs longer
/// is stuck, and the caller wants to know.
const CALL_DEADLINE: Duration = Duration::from_secs(120);

/// The kubelet doubles its patience for a sandbox: a network plugin may take its time.
const SANDBOX_DEADLINE: Duration = Duration::from_secs(240);

/// Two streams of exec output at CRI's cap of 16 MiB, and the framing around them.
const ANSWER_BYTES_MAX: usize = 40 << 20;

/// Which daemon to talk to.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Daemon {
    /// Socket of the running daemon
    #[arg(
        long,
        visible_alias = "listen",
        global = true,
        value_name = "unix://PATH",
        default_value = DEFAULT_ENDPOINT
    )]
    endpoint: String,
}

#[cfg(test)]
impl Daemon {
    pub(crate) fn at(endpoint: &str) -> Self {
        Self { endpoint: endpoint.to_owned() }
    }
}

/// A daemon that answered on its socket. Cheap to clone; reconnects by itself after a restart of
/// the daemon.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    runtime: runtime::RuntimeServiceClient<Channel>,
    images: image::ImageServiceClient<Channel>,
    admin: AdminClient<Channel>,
}

/// Why the daemon could not be asked, or what it refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("endpoint {endpoint:?}: {problem} (for example {DEFAULT_ENDPOINT})")]
    Endpoint { endpoint: String, problem: &'static str },
    #[error("connect to the daemon at {}: {source}{}", path.display(), connect_hint(source))]
    Connect { path: PathBuf, source: io::Error },
    #[error("{call} of {object}: {}{}", refusal(status), refusal_hint(call, status))]
    Call { call: &'static str, object: String, status: Box<Status> },
}

impl Error {
    /// The gRPC code of a refused call.
    pub(crate) fn code(&self) -> Option<Code> {
        match self {
            Self::Call { status, .. } => Some(status.code()),
            Self::Endpoint { .. } | Self::Connect { .. } => None,
        }
    }

    /// Whether what was asked was wrong, so that asking again cannot help.
    pub(crate) fn is_usage(&self) -> bool {
        match self {
            Self::Endpoint { .. } => true,
            Self::Connect { .. } => false,
            Self::Call { status, .. } => status.code() == Code::InvalidArgument,
        }
    }
}

impl Client {
    /// Connects once by hand, so that a missing socket is reported with its errno, then hands the
    /// path to a channel that reconnects when it has to.
    pub(crate) async fn connect(daemon: &Daemon) -> Result<Self, Error> {
        let path = socket_path(&daemon.endpoint)?;
        drop(dial(&path).await.map_err(|source| Error::Connect { path: path.clone(), source })?);
        // The authority is never resolved: the connector below ignores it.
        let channel = Endpoint::from_static("http://localhost").connect_with_connector_lazy(
            tower::service_fn(move |_| {
                let path = path.clone();
                async move { dial(&path).await.map(TokioIo::new) }
            }),
        );
        Ok(Self {
            runtime: runtime::RuntimeServiceClient::new(channel.clone())
                .max_decoding_message_size(ANSWER_BYTES_MAX),
            images: image::ImageServiceClient::new(channel.clone())
                .max_decoding_message_size(ANSWER_BYTES_MAX),
            admin: AdminClient::new(channel),
        })
    }

    /// Answers the id of the new sandbox.
    pub(crate) async fn run_pod_sandbox(
        &self,
        object: &str,
        config: cri::PodSandboxConfig,
        runtime_handler: &str,
    ) -> Result<String, Error> {
        let message = cri::RunPodSandboxRequest {
            config: Some(config),
            runtime_handler: runtime_handler.to_owned(),
        };
        let mut service = self.runtime.clone();
        let call = service.run_pod_sandbox(within(SANDBOX_DEADLINE, message));
        Ok(answer("RunPodSandbox", object, call).await?.pod_sandbox_id)
    }

    pub(crate) async fn stop_pod_sandbox(&self, object: &str, id: &str) -> Result<(), Error> {
        let message = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let mut service = self.runtime.clone();
        let call = service.stop_pod_sandbox(within(CALL_DEADLINE, message));
        answer("StopPodSandbox", object, call).await.map(drop)
    }

    pub(crate) async fn remove_pod_sandbox(&self, object: &str, id: &str) -> Result<(), Error> {
        let message = cri::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        let mut service = self.runtime.clone();
        let call = service.remove_pod_sandbox(within(CALL_DEADLINE, message));
        answer("RemovePodSandbox", object, call).await.map(drop)
    }

    pub(crate) async fn pod_sandbox_status(
        &self,
        object: &str,
        id: &str,
    ) -> Result<cri::PodSandboxStatus, Error> {
        let message =
            cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let mut service = self.runtime.clone();
        let call = service.pod_sandbox_status(within(CALL_DEADLINE, message));
        Ok(answer("PodSandboxStatus", object, call).await?.status.unwrap_or_default())
    }

    pub(crate) async fn list_pod_sandboxes(
        &self,
        filter: cri::PodSandboxFilter,
    ) -> Result<Vec<cri::PodSandbox>, Error> {
        let message = cri::ListPodSandboxRequest { filter: Some(filter) };
        let mut service = self.runtime.clone();
        let call = service.list_pod_sandbox(within(CALL_DEADLINE, message));
        Ok(answer("ListPodSandbox", "pods", call).await?.items)
    }

    /// Answers the id of the new container.
    pub(crate) async fn create_container(
        &self,
        object: &str,
        message: cri::CreateContainerRequest,
    ) -> Result<String, Error> {
        let mut service = self.runtime.clone();
        let call = service.create_container(within(CALL_DEADLINE, message));
        Ok(answer("CreateContainer", object, call).await?.container_id)
    }

    pub(crate) async fn start_container(&self, object: &str, id: &str) -> Result<(), Error> {
        let message = cri::StartContainerRequest { container_id: id.to_owned() };
        let mut service = self.runtime.clone();
        let call = service.start_container(within(CALL_DEADLINE, message));
        answer("StartContainer", object, call).await.map(drop)
    }

    /// `grace_s` seconds pass between the stop signal and SIGKILL.
    pub(crate) async fn stop_container(
        &self,
        object: &str,
        id: &str,
        grace_s: u32,
    ) -> Result<(), Error> {
        let message =
            cri::StopContainerRequest { container_id: id.to_owned(), timeout: i64::from(grace_s) };
        let deadline = CALL_DEADLINE + Duration::from_secs(u64::from(grace_s));
        let mut service = self.runtime.clone();
        let call = service.stop_container(within(deadline, message));
        answer("StopContainer", object, call).await.map(drop)
    }

    pub(crate) async fn remove_container(&self, object: &str, id: &str) -> Result<(), Error> {
        let message = cri::RemoveContainerRequest { container_id: id.to_owned() };
        let mut service = self.runtime.clone();
        let call = service.remove_container(within(CALL_DEADLINE, message));
        answer("RemoveContainer", object, call).await.map(drop)
    }

    pub(crate) async fn container_status(
        &self,
        object: &str,
        id: &str,
    ) -> Result<cri::ContainerStatus, Error> {
        let message = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let mut service = self.runtime.clone();
        let call = service.container_status(within(CALL_DEADLINE, message));
        Ok(answer("ContainerStatus", object, call).await?.status.unwrap_or_default())
    }

    pub(crate) async fn list_containers(
        &self,
        filter: cri::ContainerFilter,
    ) -> Result<Vec<cri::Container>, Error> {
        let message = cri::ListContainersRequest { filter: Some(filter) };
        let mut service = self.runtime.clone();
        let call = service.list_containers(within(CALL_DEADLINE, message));
        Ok(answer("ListContainers", "containers", call).await?.containers)
    }

    /// Each with those of its containers.
    pub(crate) async fn list_pod_sandbox_stats(&self) -> Result<Vec<cri::PodSandboxStats>, Error> {
        let message = cri::ListPodSandboxStatsRequest { filter: None };
        let mut service = self.runtime.clone();
        let call = service.list_pod_sandbox_stats(within(CALL_DEADLINE, message));
        Ok(answer("ListPodSandboxStats", "pods", call).await?.stats)
    }

    /// `timeout_s` of 0 lets the command run for ever.
    pub(crate) async fn exec_sync(
        &self,
        object: &str,
        message: cri::ExecSyncRequest,
    ) -> Result<cri::ExecSyncResponse, Error> {
        let mut request = Request::new(message);
        if let Ok(timeout_s @ 1..) = u64::try_from(request.get_ref().timeout) {
            request.set_timeout(CALL_DEADLINE + Duration::from_secs(timeout_s));
        }
        let mut service = self.runtime.clone();
        answer("ExecSync", object, service.exec_sync(request)).await
    }

    /// The URL at which the command runs for whoever connects to it first.
    pub(crate) async fn exec(
        &self,
        object: &str,
        message: cri::ExecRequest,
    ) -> Result<String, Error> {
        let mut service = self.runtime.clone();
        Ok(answer("Exec", object, service.exec(within(CALL_DEADLINE, message))).await?.url)
    }

    /// The image of that name, if the daemon has it.
    pub(crate) async fn image_status(&self, name: &str) -> Result<Option<cri::Image>, Error> {
        let message = cri::ImageStatusRequest { image: Some(spec(name)), verbose: false };
        let mut service = self.images.clone();
        let call = service.image_status(within(CALL_DEADLINE, message));
        Ok(answer("ImageStatus", &format!("image {name}"), call).await?.image)
    }

    /// Answers the image's reference. No deadline: a pull takes as long as it takes, and dropping
    /// the future gives it up.
    pub(crate) async fn pull_image(
        &self,
        name: &str,
        auth: Option<cri::AuthConfig>,
    ) -> Result<String, Error> {
        let message = cri::PullImageRequest { image: Some(spec(name)), auth, ..Default::default() };
        let mut service = self.images.clone();
        let call = service.pull_image(message);
        Ok(answer("PullImage", &format!("image {name}"), call).await?.image_ref)
    }

    pub(crate) async fn list_images(&self) -> Result<Vec<cri::Image>, Error> {
        let mut service = self.images.clone();
        let call = service.list_images(within(CALL_DEADLINE, cri::ListImagesRequest::default()));
        Ok(answer("ListImages", "images", call).await?.images)
    }

    pub(crate) async fn remove_image(&self, name: &str) -> Result<(), Error> {
        let message = cri::RemoveImageRequest { image: Some(spec(name)) };
        let mut service = self.images.clone();
        let call = service.remove_image(within(CALL_DEADLINE, message));
        answer("RemoveImage", &format!("image {name}"), call).await.map(drop)
    }

    /// Asks every endpoint that a pull would ask.
    pub(crate) async fn explain_image(
        &self,
        name: &str,
        auth: Option<cri::AuthConfig>,
    ) -> Result<admin::ExplainImageResponse, Error> {
        let auth = auth.unwrap_or_default();
        let message = admin::ExplainImageRequest {
            image: name.to_owned(),
            username: auth.username,
            password: auth.password,
        };
        let mut service = self.admin.clone();
        let call = service.explain_image(within(CALL_DEADLINE, message));
        answer("ExplainImage", &format!("image {name}"), call).await
    }

    /// What pods and containers that a word means are waiting for.
    pub(crate) async fn why(&self, word: &str) -> Result<admin::WhyResponse, Error> {
        let mut service = self.admin.clone();
        let call =
            service.why(within(CALL_DEADLINE, admin::WhyRequest { object: word.to_owned() }));
        answer("Why", &format!("pod or container {word}"), call).await
    }

    /// No deadline: reading an image takes as long as it is large.
    pub(crate) async fn verify_image(&self, name: &str) -> Result<Vec<admin::DamagedLayer>, Error> {
        let mut service = self.admin.clone();
        let call = service.verify_image(admin::VerifyImageRequest { image: name.to_owned() });
        Ok(answer("VerifyImage", &format!("image {name}"), call).await?.damaged)
    }

    /// Answers the image's id.
    pub(crate) async fn pin_image(&self, name: &str, pinned: bool) -> Result<String, Error> {
        let message = admin::PinImageRequest { image: name.to_owned(), pinned };
        let mut service = self.admin.clone();
        let call = service.pin_image(within(CALL_DEADLINE, message));
        Ok(answer("PinImage", &format!("image {name}"), call).await?.id)
    }

    pub(crate) async fn export_images(
        &self,
        object: &str,
        images: Vec<String>,
    ) -> Result<Streaming<admin::ExportImagesResponse>, Error> {
        let mut service = self.admin.clone();
        let call = service.export_images(admin::ExportImagesRequest { images });
        answer("ExportImages", object, call).await
    }

    pub(crate) async fn watch_pulls(
        &self,
        name: &str,
    ) -> Result<Streaming<admin::WatchPullsResponse>, Error> {
        let mut service = self.admin.clone();
        let call = service.watch_pulls(admin::WatchPullsRequest { image: name.to_owned() });
        answer("WatchPulls", &format!("image {name}"), call).await
    }

    /// Sends an archive; no deadline, as with a pull.
    pub(crate) async fn import_images(
        &self,
        object: &str,
        chunks: impl Stream<Item = ImportImagesRequest> + Send + 'static,
    ) -> Result<Vec<ImportedImage>, Error> {
        let mut service = self.admin.clone();
        Ok(answer("ImportImages", object, service.import_images(chunks)).await?.images)
    }

    /// Without a deadline: it lasts until somebody ends it.
    pub(crate) async fn watch_events(&self) -> Result<Streaming<Event>, Error> {
        let mut service = self.admin.clone();
        answer("WatchEvents", "the node", service.watch_events(WatchEventsRequest {})).await
    }

    pub(crate) async fn set_log_level(&self, filter: &str) -> Result<(), Error> {
        let mut service = self.admin.clone();
        let request = within(CALL_DEADLINE, SetLogLevelRequest { filter: filter.to_owned() });
        answer("SetLogLevel", filter, service.set_log_level(request)).await?;
        Ok(())
    }
}

/// The next message of a stream; `None`: it ended well.
pub(crate) async fn next<T>(
    call: &'static str,
    object: &str,
    stream: &mut Streaming<T>,
) -> Result<Option<T>, Error> {
    let next = stream.message().await;
    next.map_err(|status| Error::Call { call, object: object.to_owned(), status: Box::new(status) })
}

async fn answer<T>(
    call: &'static str,
    object: &str,
    response: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, Error> {
    response.await.map(Response::into_inner).map_err(|status| Error::Call {
        call,
        object: object.to_owned(),
        status: Box::new(status),
    })
}

fn within<T>(deadline: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

fn spec(name: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: name.to_owned(), ..Default::default() }
}

async fn dial(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(path).await
}

/// The path of a `unix://` endpoint; a bare absolute path is taken as one.
fn socket_path(endpoint: &str) -> Result<PathBuf, Error> {
    let fault = |problem| Error::Endpoint { endpoint: endpoint.to_owned(), problem };
    let path = match endpoint.split_once("://") {
        Some(("unix", path)) => path,
        Some(_) => return Err(fault("only unix:// sockets are served")),
        None => endpoint,
    };
    if !path.starts_with('/') {
        return Err(fault("the path of the socket must be absolute"));
    }
    Ok(PathBuf::from(path))
}

fn connect_hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "; is `lapstrake serve` running? --endpoint names another socket"
        }
        io::ErrorKind::PermissionDenied => "; the socket belongs to root and its group",
        _ => "",
    }
}

fn refusal(status: &Status) -> String {
    match status.message() {
        "" => status.code().to_string(),
        message => format!("{message} ({:?})", status.code()),
    }
}

fn refusal_hint(call: &str, status: &Status) -> &'static str {
    match status.code() {
        Code::NotFound if call == "Why" => "; `lapstrake ps` shows what there is",
        Code::NotFound if ["ExportImages", "PinImage", "VerifyImage"].contains(&call) => {
            "; `lapstrake images ls` shows what there is"
        }
        Code::Unimplemented => "; is the daemon of the same version as this command?",
        Code::Unavailable => "; the daemon went away or is starting, its pods go on without it",
        // How the client's own deadline shows.
        Code::Cancelled if status.message() == "Timeout expired" => {
            "; the daemon did not answer in time, its log says what it does"
        }
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_unix_url_or_an_absolute_path() {
        for (endpoint, expect) in [
            ("unix:///run/x.sock", Some("/run/x.sock")),
            ("/run/x.sock", Some("/run/x.sock")),
            ("unix://run/x.sock", None),
            ("tcp://127.0.0.1:1", None),
            ("", None),
        ] {
            let path = socket_path(endpoint).ok();
            assert_eq!(path.as_deref(), expect.map(Path::new), "{endpoint}");
        }
    }

    #[tokio::test]
    async fn a_missing_socket_is_named_with_its_errno_and_a_hint() {
        let daemon = Daemon::at("unix:///nonexistent/lapstrake.sock");
        let error = Client::connect(&daemon).await.unwrap_err().to_string();
        assert!(error.contains("/nonexistent/lapstrake.sock: No such file"), "{error}");
        assert!(error.contains("lapstrake serve"), "{error}");
    }

    #[test]
    fn a_refused_call_says_what_was_asked_of_what_and_why() {
        let error = Error::Call {
            call: "StartContainer",
            object: "container web".to_owned(),
            status: Box::new(Status::not_found("no such container")),
        };
        assert_eq!(
            error.to_string(),
            "StartContainer of container web: no such container (NotFound)"
        );
    }

    #[test]
    fn who_asks_for_what_is_not_there_or_nonsense_learns_what_to_do() {
        let refused =
            |call, status| Error::Call { call, object: "x".to_owned(), status: Box::new(status) };
        let absent = refused("VerifyImage", Status::not_found("image x does not exist"));
        assert!(absent.to_string().ends_with("; `lapstrake images ls` shows what there is"));
        assert!(!absent.is_usage());
        let nonsense = refused("PullImage", Status::invalid_argument("image: is no reference"));
        assert!(nonsense.is_usage());
    }
}
