//! `lapstrake images pull`, with its progress as the daemon tells it.

use std::time::Instant;

use proto::admin::v1::PullProgress;
use proto::cri::v1 as cri;

use super::{Error, Login};
use crate::cli::client::{self, Client};
use crate::cli::console::{self, Progress};

pub(super) async fn pull(
    daemon: &client::Daemon,
    reference: &str,
    login: &Login,
) -> Result<(), Error> {
    let auth = login.credentials(reference).await?;
    let client = Client::connect(daemon).await?;
    let image = pull_with_notes(&client, reference, auth).await?;
    console::out(image).map_err(Error::Output)
}

/// Pulls and says so; answers the image's reference.
pub(crate) async fn pull_with_notes(
    client: &Client,
    reference: &str,
    auth: Option<cri::AuthConfig>,
) -> Result<String, client::Error> {
    let began = Instant::now();
    let mut progress = Progress::start(format!("pulling {reference}"), None);
    let mut pulls = client.watch_pulls(reference).await.ok();
    let image = {
        let pulling = client.pull_image(reference, auth);
        tokio::pin!(pulling);
        loop {
            let news = async {
                match &mut pulls {
                    Some(stream) => stream.message().await.ok().flatten(),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                pulled = &mut pulling => break pulled?,
                news = news => match news {
                    Some(news) => news.pulls.first().map(|pull| show(&mut progress, pull)),
                    // A daemon that cannot tell still pulls.
                    None => { pulls = None; None }
                },
            };
        }
    };
    drop(progress);
    console::note(format!("pulled {reference} in {:.1} s", began.elapsed().as_secs_f64()));
    Ok(image)
}

fn show(progress: &mut Progress, pull: &PullProgress) {
    progress.say(match pull.stage.as_str() {
        "fetching" => format!(
            "{} of {} in {} of {} layers",
            console::size(pull.bytes_here),
            console::size(pull.bytes),
            pull.layers_done,
            pull.layers
        ),
        stage => stage.to_owned(),
    });
}
