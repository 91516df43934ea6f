//! One lock per object, so that start, stop and remove of the same one take turns.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::id::Id;

#[derive(Debug, Default)]
pub(crate) struct Locks {
    locks: Mutex<HashMap<Id, Arc<tokio::sync::Mutex<()>>>>,
}

impl Locks {
    pub(crate) fn of(&self, id: &Id) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        locks.entry(id.clone()).or_default().clone()
    }

    /// The object is gone; who still waits finds that out by itself.
    pub(crate) fn forget(&self, id: &Id) {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}
