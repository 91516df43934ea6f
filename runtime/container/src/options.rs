//! Mount options: the words of the OCI specification become attributes, propagation and file system parameters.

use crate::error::Error;
use crate::sys::mount::attr;

/// What a mount's options say, flags told apart from the file system's own parameters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    pub bind: bool,
    /// The whole tree below the source, not only its top mount.
    pub recursive: bool,
    pub attributes: Attributes,
    /// Applied to the mount and everything below it (`rro`, `rnosuid` …).
    pub recursive_attributes: Attributes,
    pub propagation: Option<Propagation>,
    /// Parameters of the file system: key, and value unless it is a flag.
    pub parameters: Vec<(String, Option<String>)>,
    /// Copy what is below the mount point into the fresh tmpfs.
    pub tmpcopyup: bool,
    pub idmap: Idmap,
}

/// MOUNT_ATTR_* bits to set and to clear.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    pub set: u64,
    pub clear: u64,
}

/// Whether ids are mapped on this mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Idmap {
    #[default]
    No,
    Top,
    Recursive,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Private,
    Slave,
    Shared,
    Unbindable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Propagation {
    pub kind: Kind,
    pub recursive: bool,
}

impl Attributes {
    /// A later word overrides an earlier one that says the opposite.
    fn add(&mut self, (set, clear): (u64, u64)) {
        self.set = (self.set & !clear) | set;
        self.clear = (self.clear & !set) | clear;
    }

    pub fn is_empty(&self) -> bool {
        self.set == 0 && self.clear == 0
    }
}

/// Reads the words of one mount.
pub fn parse(words: &[String]) -> Result<Options, Error> {
    let mut o = Options::default();
    for word in words {
        if let Some(bits) = attribute(word) {
            o.attributes.add(bits);
        } else if let Some(bits) = word.strip_prefix('r').and_then(attribute) {
            o.recursive_attributes.add(bits);
        } else if let Some(p) = propagation(word) {
            o.propagation = Some(p);
        } else {
            other(word, &mut o)?;
        }
    }
    Ok(o)
}

/// `rshared`, `slave` …
pub fn propagation(word: &str) -> Option<Propagation> {
    let (recursive, base) = match word {
        "rprivate" | "rslave" | "rshared" | "runbindable" => (true, &word[1..]),
        _ => (false, word),
    };
    let kind = match base {
        "private" => Kind::Private,
        "slave" => Kind::Slave,
        "shared" => Kind::Shared,
        "unbindable" => Kind::Unbindable,
        _ => return None,
    };
    Some(Propagation { kind, recursive })
}

/// The (set, clear) bits of an attribute word without its recursive `r`.
fn attribute(word: &str) -> Option<(u64, u64)> {
    Some(match word {
        "ro" => (attr::RDONLY, 0),
        "rw" => (0, attr::RDONLY),
        "nosuid" => (attr::NOSUID, 0),
        "suid" => (0, attr::NOSUID),
        "nodev" => (attr::NODEV, 0),
        "dev" => (0, attr::NODEV),
        "noexec" => (attr::NOEXEC, 0),
        "exec" => (0, attr::NOEXEC),
        "nosymfollow" => (attr::NOSYMFOLLOW, 0),
        "symfollow" => (0, attr::NOSYMFOLLOW),
        "nodiratime" => (attr::NODIRATIME, 0),
        "diratime" => (0, attr::NODIRATIME),
        // The three access-time modes share a field: the kernel wants all of it cleared and one of them set.
        "noatime" => (attr::NOATIME, attr::ATIME),
        "strictatime" => (attr::STRICTATIME, attr::ATIME),
        "relatime" | "atime" | "norelatime" | "nostrictatime" => (0, attr::ATIME),
        _ => return None,
    })
}

fn other(word: &str, o: &mut Options) -> Result<(), Error> {
    match word {
        "defaults" | "async" | "nolazytime" | "nomand" | "loud" | "noiversion" => {}
        "bind" => o.bind = true,
        "rbind" => (o.bind, o.recursive) = (true, true),
        "tmpcopyup" => o.tmpcopyup = true,
        "idmap" => o.idmap = Idmap::Top,
        "ridmap" => o.idmap = Idmap::Recursive,
        "remount" => {
            return Err(Error::new(
                "mount options",
                "`remount` has no meaning for a mount that is made",
            ));
        }
        _ => {
            let (key, value) =
                word.split_once('=').map_or((word, None), |(k, v)| (k, Some(v.to_owned())));
            o.parameters.push((key.to_owned(), value));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(words: &str) -> Options {
        let words: Vec<_> = words.split(',').map(str::to_owned).collect();
        parse(&words).expect("options")
    }

    #[test]
    fn every_attribute_word_has_its_bit_and_its_opposite() {
        let pairs = [
            ("ro", "rw", attr::RDONLY),
            ("nosuid", "suid", attr::NOSUID),
            ("nodev", "dev", attr::NODEV),
            ("noexec", "exec", attr::NOEXEC),
            ("nosymfollow", "symfollow", attr::NOSYMFOLLOW),
            ("nodiratime", "diratime", attr::NODIRATIME),
        ];
        for (on, off, bit) in pairs {
            assert_eq!(read(on).attributes, Attributes { set: bit, clear: 0 }, "{on}");
            assert_eq!(read(off).attributes, Attributes { set: 0, clear: bit }, "{off}");
            assert_eq!(
                read(&format!("{on},{off}")).attributes,
                Attributes { set: 0, clear: bit },
                "{on},{off}"
            );
            let recursive = read(&format!("r{on}"));
            assert_eq!(recursive.recursive_attributes.set, bit, "r{on}");
            assert!(recursive.attributes.is_empty(), "r{on} is not about the top mount alone");
        }
    }

    #[test]
    fn relatime_is_not_a_recursive_something() {
        assert_eq!(read("relatime").attributes, Attributes { set: 0, clear: attr::ATIME });
        assert_eq!(
            read("rrelatime").recursive_attributes,
            Attributes { set: 0, clear: attr::ATIME }
        );
    }

    #[test]
    fn propagation_words_are_read_with_their_reach() {
        for (word, kind) in [
            ("private", Kind::Private),
            ("slave", Kind::Slave),
            ("shared", Kind::Shared),
            ("unbindable", Kind::Unbindable),
        ] {
            assert_eq!(read(word).propagation, Some(Propagation { kind, recursive: false }));
            assert_eq!(
                read(&format!("r{word}")).propagation,
                Some(Propagation { kind, recursive: true })
            );
        }
    }

    #[test]
    fn what_is_no_flag_belongs_to_the_file_system() {
        let o = read("nosuid,size=65536k,newinstance,mode=755");
        let want = [("size", Some("65536k")), ("newinstance", None), ("mode", Some("755"))];
        let want: Vec<_> =
            want.iter().map(|(k, v)| ((*k).to_owned(), v.map(str::to_owned))).collect();
        assert_eq!(o.parameters, want);
    }

    #[test]
    fn rbind_is_bind_and_recursive() {
        let o = read("rbind,rprivate,ro");
        assert!(o.bind && o.recursive && o.parameters.is_empty());
    }
}
