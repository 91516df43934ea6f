//! `lapstrake images verify`: is what is on disk what was pulled?

use super::Error;
use crate::cli::client::{self, Client};
use crate::cli::console;

pub(super) async fn verify(
    daemon: &client::Daemon,
    mut references: Vec<String>,
) -> Result<(), Error> {
    let client = Client::connect(daemon).await?;
    if references.is_empty() {
        references = client.list_images().await?.into_iter().map(|image| image.id).collect();
    }
    let mut bad = 0;
    for reference in references {
        let damaged = client.verify_image(&reference).await?;
        let word = if damaged.is_empty() { "good" } else { "DAMAGED" };
        console::out(format!("{reference}: {word}")).map_err(Error::Output)?;
        bad += usize::from(!damaged.is_empty());
        for layer in damaged {
            for difference in layer.differences {
                let line = format!("  layer {} {difference}", console::short_id(&layer.layer));
                console::out(line).map_err(Error::Output)?;
            }
        }
    }
    if bad == 0 { Ok(()) } else { Err(Error::Damaged(bad)) }
}
