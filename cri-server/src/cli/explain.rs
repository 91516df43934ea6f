//! `lapstrake explain`: where an image would come from, and what stands in the way.

use std::process::ExitCode;

use clap::builder::NonEmptyStringValueParser;
use proto::admin::v1::{ExplainImageResponse, ExplainedEndpoint};

use super::{Cause, client, console, images};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// An image reference, short or whole
    #[arg(value_name = "REF", value_parser = NonEmptyStringValueParser::new())]
    reference: String,

    #[command(flatten)]
    login: images::Login,

    #[command(flatten)]
    daemon: client::Daemon,
}

pub(crate) async fn explain(args: &Args) -> Result<ExitCode, Cause> {
    let auth = args.login.credentials(&args.reference).await?;
    let client = client::Client::connect(&args.daemon).await?;
    let explained = client.explain_image(&args.reference, auth).await?;
    console::out(render(&explained)).map_err(Cause::Output)?;
    let found = explained.names.iter().flat_map(|name| &name.endpoints).any(|e| e.found);
    Ok(if found { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn render(explained: &ExplainImageResponse) -> String {
    let mut lines = Vec::new();
    for name in &explained.names {
        lines.push(name.reference.clone());
        lines.push(format!("  policy: {}", name.policy));
        for (at, endpoint) in name.endpoints.iter().enumerate() {
            lines.push(format!("  {}. {}", at + 1, endpoint.url));
            lines.push(format!("     {}", about(endpoint)));
            lines.push(format!("     credentials: {}", endpoint.login));
            let mark = if endpoint.found { "has it" } else { "no" };
            lines.push(format!("     {mark}: {}", endpoint.answer));
        }
    }
    lines.join("\n")
}

fn about(endpoint: &ExplainedEndpoint) -> String {
    let named = match endpoint.named_in.as_str() {
        "" => "follows from the name".to_owned(),
        file => format!("named in {file}"),
    };
    let mut words = vec![if endpoint.mirror { "mirror" } else { "registry" }.to_owned(), named];
    if !endpoint.resolve {
        words.push("not asked for tags".into());
    }
    if !endpoint.pull {
        words.push("not asked for content".into());
    }
    if endpoint.insecure {
        words.push("not verified".into());
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use proto::admin::v1::ExplainedName;

    use super::*;

    #[test]
    fn endpoints_are_listed_in_order_with_what_they_say() {
        let endpoint = ExplainedEndpoint {
            url: "https://m.example/v2/a/manifests/latest".into(),
            named_in: "/etc/x/hosts.toml".into(),
            mirror: true,
            resolve: false,
            pull: true,
            insecure: false,
            login: "none".into(),
            found: false,
            answer: "404 Not Found".into(),
        };
        let names = vec![ExplainedName {
            reference: "r.example/a:latest".into(),
            policy: "none".into(),
            endpoints: vec![endpoint],
        }];
        assert_eq!(
            render(&ExplainImageResponse { names }),
            "\
r.example/a:latest
  policy: none
  1. https://m.example/v2/a/manifests/latest
     mirror, named in /etc/x/hosts.toml, not asked for tags
     credentials: none
     no: 404 Not Found"
        );
    }
}
