//! What a container runs: arguments, environment and working directory from the pod and the
//! image. Pure.

use image::ImageConfig;

use super::spec::Spec;
use crate::error::Error;

/// What images without a PATH are used to find.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: String,
}

pub(crate) fn process(spec: &Spec, image: &ImageConfig, hostname: &str) -> Result<Process, Error> {
    let cwd = [&spec.working_dir, &image.working_dir].into_iter().find(|dir| !dir.is_empty());
    Ok(Process {
        args: args(spec, image)?,
        env: env(spec, image, hostname),
        cwd: match cwd {
            Some(dir) if dir.starts_with('/') => dir.clone(),
            // Docker takes a relative one of an image from the root.
            Some(dir) => format!("/{dir}"),
            None => "/".to_owned(),
        },
    })
}

/// The image's command counts only as long as the pod does not give one of its own: a pod that
/// sets `command` means it whole.
fn args(spec: &Spec, image: &ImageConfig) -> Result<Vec<String>, Error> {
    let no_entrypoint = image.entrypoint.is_empty() || image.entrypoint == [""];
    let command = match spec.command.as_slice() {
        [] if no_entrypoint => [].as_slice(),
        [] => image.entrypoint.as_slice(),
        command => command,
    };
    let args = match spec.args.as_slice() {
        [] if spec.command.is_empty() => image.cmd.as_slice(),
        args => args,
    };
    let all: Vec<String> = command.iter().chain(args).cloned().collect();
    match all.first() {
        Some(program) if !program.is_empty() => Ok(all),
        _ => Err(Error::invalid(
            "config.command",
            format!(
                "no command specified: neither the pod nor image {:?} names one",
                spec.image.image
            ),
        )),
    }
}

fn env(spec: &Spec, image: &ImageConfig, hostname: &str) -> Vec<String> {
    let mut merged: Vec<(String, String)> = vec![("PATH".into(), DEFAULT_PATH.into())];
    if !hostname.is_empty() {
        merged.push(("HOSTNAME".into(), hostname.into()));
    }
    if spec.tty {
        merged.push(("TERM".into(), "xterm".into()));
    }
    let image = image.env.iter().map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let pod = spec.envs.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in image.chain(pod).filter(|(name, _)| !name.is_empty()) {
        match merged.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => value.clone_into(old),
            None => merged.push((name.to_owned(), value.to_owned())),
        }
    }
    merged.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::testing;

    fn list(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[track_caller]
    fn check(pod: (&[&str], &[&str]), image: (&[&str], &[&str]), expect: Option<&[&str]>) {
        let spec = Spec { command: list(pod.0), args: list(pod.1), ..testing::spec() };
        let image =
            ImageConfig { entrypoint: list(image.0), cmd: list(image.1), ..Default::default() };
        assert_eq!(args(&spec, &image).ok(), expect.map(list));
    }

    #[test]
    fn command_and_args_combine_as_docker_and_kubernetes_say() {
        check((&[], &[]), (&["/ep"], &["c"]), Some(&["/ep", "c"]));
        check((&[], &["a"]), (&["/ep"], &["c"]), Some(&["/ep", "a"]));
        check((&["/cmd"], &[]), (&["/ep"], &["c"]), Some(&["/cmd"]));
        check((&["/cmd"], &["a"]), (&["/ep"], &["c"]), Some(&["/cmd", "a"]));
        check((&[], &[]), (&[""], &["c"]), Some(&["c"]));
        check((&[], &[]), (&[], &[]), None);
        check((&[""], &[]), (&["/ep"], &[]), None);
    }

    #[test]
    fn the_pod_overrides_the_image_and_the_image_the_defaults() {
        let spec = Spec {
            envs: vec![("A".into(), "pod".into()), ("A".into(), "last".into())],
            tty: true,
            ..testing::spec()
        };
        let image =
            ImageConfig { env: list(&["A=image", "PATH=/bin", "=x"]), ..Default::default() };
        let expect = ["PATH=/bin", "HOSTNAME=web", "TERM=xterm", "A=last"];
        assert_eq!(env(&spec, &image, "web"), expect);
    }
}
