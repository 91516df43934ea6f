//! Whether a pod's network is built in or made by the cluster's plugins. Pure.

use std::fmt;

/// What the configuration says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Bridge,
    Cni,
    /// Plugins where there is a configuration for them, decided at the first pod.
    Auto,
}

/// Who makes the network of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Maker {
    Bridge,
    Plugins,
}

impl std::str::FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "bridge" => Ok(Mode::Bridge),
            "cni" => Ok(Mode::Cni),
            "auto" => Ok(Mode::Auto),
            other => Err(format!("{other:?} is none of bridge, cni, auto")),
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Bridge => "bridge",
            Mode::Cni => "cni",
            Mode::Auto => "auto",
        })
    }
}

/// Who makes the next pod's network. Pods that are there decide for `auto`: two kinds of pods would
/// not reach each other. `configured`: the plugins have a configuration.
pub(crate) fn decide(mode: Mode, of_the_others: Option<Maker>, configured: bool) -> Maker {
    match (mode, of_the_others, configured) {
        (Mode::Bridge, _, _) | (Mode::Auto, None, false) => Maker::Bridge,
        (Mode::Cni, _, _) | (Mode::Auto, None, true) => Maker::Plugins,
        (Mode::Auto, Some(maker), _) => maker,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn auto_follows_the_pods_that_are_there_and_else_the_configuration() {
        for (mode, others, configured, expected) in [
            (Mode::Bridge, Some(Maker::Plugins), true, Maker::Bridge),
            (Mode::Cni, Some(Maker::Bridge), false, Maker::Plugins),
            (Mode::Auto, None, false, Maker::Bridge),
            (Mode::Auto, None, true, Maker::Plugins),
            (Mode::Auto, Some(Maker::Bridge), true, Maker::Bridge),
            (Mode::Auto, Some(Maker::Plugins), false, Maker::Plugins),
        ] {
            assert_eq!(decide(mode, others, configured), expected, "{mode} {others:?}");
        }
    }
}
