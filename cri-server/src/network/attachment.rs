//! What a pod has of the cluster's plugins, on record before they are called and until all of it is
//! given back: the way down, and the way back after a crash, need nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::id::Id;
use crate::store::disk;

/// The kind in the header of the record.
const KIND: &str = "attachment";

/// The longest pause between two attempts to pay a debt: soon enough after the plugin is well again,
/// seldom enough to cost nothing.
const PAUSE_MAX: Duration = Duration::from_secs(20);

/// One pod's record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Attachment {
    pub(crate) sandbox_id: Id,
    /// `namespace/name`, for people.
    pub(crate) pod: String,
    /// Where its network namespace is pinned.
    pub(crate) netns: PathBuf,
    /// In the order they were made.
    pub(crate) links: Vec<Link>,
    /// Set when the pod is gone and its network is not.
    pub(crate) debt: Option<Debt>,
}

/// One link of the pod, in one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Link {
    pub(crate) network: cni::Network,
    pub(crate) attachment: cni::Attachment,
    /// `None` as long as the plugins have not answered.
    pub(crate) answer: Option<cni::Answer>,
}

/// What is still to be given back for a pod that is gone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Debt {
    pub(crate) since_ns: i64,
    pub(crate) attempts: u32,
    pub(crate) last_attempt_ns: i64,
    pub(crate) last_error: String,
}

impl Debt {
    /// A pod was found gone.
    pub(crate) fn new(now_ns: i64, why: String) -> Debt {
        Debt { since_ns: now_ns, attempts: 0, last_attempt_ns: 0, last_error: why }
    }

    /// The same after an attempt that failed.
    pub(crate) fn grown(&self, now_ns: i64, error: String) -> Debt {
        let attempts = self.attempts.saturating_add(1);
        Debt { attempts, last_attempt_ns: now_ns, last_error: error, ..self.clone() }
    }

    /// Whether it is time for another attempt: the pauses double up to a bound.
    pub(crate) fn is_due(&self, now_ns: i64) -> bool {
        let pause = match self.attempts {
            0 => Duration::ZERO,
            attempts => Duration::from_secs(1 << attempts.min(10)).min(PAUSE_MAX),
        };
        let pause_ns = i64::try_from(pause.as_nanos()).unwrap_or(i64::MAX);
        now_ns >= self.last_attempt_ns.saturating_add(pause_ns)
    }
}

/// All records, in memory and on disk.
#[derive(Debug)]
pub(crate) struct Book {
    dir: PathBuf,
    records: Mutex<BTreeMap<Id, Attachment>>,
}

impl Book {
    /// Reads what the last daemon left. A record that cannot be read is put aside.
    pub(crate) fn open(dir: &Path) -> Result<Book, Error> {
        disk::create_dir(dir)?;
        let mut records = BTreeMap::new();
        let entries = fs::read_dir(dir).map_err(|source| Error::io("read", dir, source))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let Some(id) = Id::parse(name) else { continue };
            match disk::read_record::<Attachment>(&path, KIND) {
                Ok(record) => drop(records.insert(id, record)),
                Err(error) => {
                    tracing::error!(%error, "put the record of a pod's network plugins aside");
                    let _ = fs::rename(&path, path.with_extension("quarantined"));
                }
            }
        }
        Ok(Book { dir: dir.to_owned(), records: Mutex::new(records) })
    }

    pub(crate) fn get(&self, id: &Id) -> Option<Attachment> {
        self.lock().get(id).cloned()
    }

    pub(crate) fn all(&self) -> Vec<Attachment> {
        self.lock().values().cloned().collect()
    }

    pub(crate) fn debts(&self) -> Vec<Attachment> {
        self.lock().values().filter(|record| record.debt.is_some()).cloned().collect()
    }

    /// On disk first.
    pub(crate) fn put(&self, record: Attachment) -> Result<(), Error> {
        disk::write_record(&self.path(&record.sandbox_id), KIND, &record)?;
        self.lock().insert(record.sandbox_id.clone(), record);
        Ok(())
    }

    /// The end of a record; none is success.
    pub(crate) fn remove(&self, id: &Id) -> Result<(), Error> {
        let path = self.path(id);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("remove the record", path, source));
            }
            _ => {}
        }
        self.lock().remove(id);
        Ok(())
    }

    fn path(&self, id: &Id) -> PathBuf {
        self.dir.join(id.as_str())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Id, Attachment>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000_000;

    #[test]
    fn a_debt_is_tried_at_once_and_then_ever_more_seldom() {
        let mut debt = Debt::new(0, "crash".into());
        assert!(debt.is_due(0));
        for (attempt, pause) in [(1, 2), (2, 4), (3, 8), (4, 16), (5, 20), (6, 20)] {
            debt = debt.grown(100 * SECOND, "no".into());
            assert_eq!(debt.attempts, attempt);
            assert!(!debt.is_due((100 + pause) * SECOND - 1), "attempt {attempt}");
            assert!(debt.is_due((100 + pause) * SECOND), "attempt {attempt}");
        }
        assert!(Debt { attempts: u32::MAX, ..debt }.is_due(i64::MAX));
    }

    #[test]
    fn records_survive_the_daemon_and_a_bad_one_costs_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        let id = |digit: char| Id::parse(&digit.to_string().repeat(64)).unwrap();
        let record = |id: Id| Attachment {
            sandbox_id: id,
            pod: "default/web".into(),
            netns: "/run/netns/x".into(),
            links: vec![],
            debt: Some(Debt::new(7, "why".into())),
        };
        let book = Book::open(dir.path()).unwrap();
        book.put(record(id('a'))).unwrap();
        book.put(record(id('b'))).unwrap();
        std::fs::write(dir.path().join(id('b').as_str()), "rubbish").unwrap();
        let book = Book::open(dir.path()).unwrap();
        assert_eq!(book.all(), [record(id('a'))]);
        book.remove(&id('a')).unwrap();
        book.remove(&id('a')).unwrap();
        assert!(Book::open(dir.path()).unwrap().all().is_empty());
    }
}
