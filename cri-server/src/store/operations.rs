//! Operations under way, by name: a repeat of the same request joins the one that runs.
//!
//! An operation outlives the call that began it: the kubelet's deadline drops a call in the
//! middle, and half a pod must not be the result.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tracing::Instrument;

use crate::container;
use crate::error::Error;
use crate::id::Id;
use crate::sandbox;

/// What an operation makes, by CRI's rules for names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Key {
    Sandbox(sandbox::spec::Metadata),
    Container { sandbox: Id, name: String, attempt: u32 },
}

/// The configuration a request came with; equal ones are the same request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wish {
    Sandbox(Box<sandbox::spec::Spec>),
    Container(Box<container::spec::Spec>),
}

impl From<&sandbox::spec::Spec> for Wish {
    fn from(spec: &sandbox::spec::Spec) -> Self {
        Self::Sandbox(Box::new(spec.clone()))
    }
}

impl From<&container::spec::Spec> for Wish {
    fn from(spec: &container::spec::Spec) -> Self {
        Self::Container(Box::new(spec.clone()))
    }
}

type Outcome = Shared<BoxFuture<'static, Result<Id, Arc<Error>>>>;

#[derive(Debug, Default)]
pub(crate) struct Operations {
    running: Arc<Mutex<HashMap<Key, (Wish, Outcome)>>>,
}

impl Operations {
    /// Runs `work` detached, or waits for the operation of this name that runs already. `None`
    /// when that one was asked for with another configuration.
    pub(crate) fn join<F>(
        &self,
        key: Key,
        wish: impl Into<Wish>,
        work: F,
    ) -> impl Future<Output = Option<Result<Id, Error>>> + Send + 'static
    where
        F: Future<Output = Result<Id, Error>> + Send + 'static,
    {
        let outcome = self.enter(key, wish.into(), work);
        async move { Some(outcome?.await.map_err(Error::Shared)) }
    }

    fn enter<F>(&self, key: Key, wish: Wish, work: F) -> Option<Outcome>
    where
        F: Future<Output = Result<Id, Error>> + Send + 'static,
    {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((known, outcome)) = running.get(&key) {
            return (*known == wish).then(|| outcome.clone());
        }
        let (registry, name) = (self.running.clone(), key.clone());
        let work = async move {
            let result = work.await.map_err(Arc::new);
            registry.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
            result
        };
        // Its lines in the log are those of the call that began it.
        let task = tokio::spawn(work.in_current_span());
        // A panic skips the removal above, so it is repeated here.
        let (registry, name) = (self.running.clone(), key.clone());
        let outcome = async move {
            task.await.unwrap_or_else(|_| {
                registry.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
                Err(Arc::new(Error::Panicked { operation: "create" }))
            })
        }
        .boxed()
        .shared();
        running.insert(key, (wish, outcome.clone()));
        Some(outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::testing;

    fn key() -> Key {
        Key::Container {
            sandbox: Id::parse(&"a".repeat(64)).unwrap(),
            name: "app".into(),
            attempt: 0,
        }
    }

    fn wish(command: &str) -> Wish {
        let spec = container::spec::Spec { command: vec![command.to_owned()], ..testing::spec() };
        Wish::from(&spec)
    }

    fn id(digit: &str) -> Id {
        Id::parse(&digit.repeat(64)).unwrap()
    }

    #[tokio::test]
    async fn a_repeat_joins_the_running_operation_and_gets_its_id() {
        let operations = Operations::default();
        let (release, held) = tokio::sync::oneshot::channel::<()>();
        let first = operations.join(key(), wish("sh"), async move {
            let _ = held.await;
            Ok(id("1"))
        });
        let repeat = operations.join(key(), wish("sh"), async { Ok(id("2")) });
        release.send(()).unwrap();
        assert_eq!(first.await.unwrap().unwrap(), id("1"));
        assert_eq!(repeat.await.unwrap().unwrap(), id("1"));
    }

    #[tokio::test]
    async fn the_same_name_with_another_configuration_does_not_join() {
        let operations = Operations::default();
        let first = operations.join(key(), wish("sh"), std::future::pending());
        assert!(operations.join(key(), wish("top"), async { Ok(id("2")) }).await.is_none());
        drop(first);
    }

    #[tokio::test]
    async fn an_operation_outlives_the_call_that_began_it() {
        let operations = Operations::default();
        let (done, ended) = tokio::sync::oneshot::channel();
        drop(operations.join(key(), wish("sh"), async move {
            tokio::task::yield_now().await;
            let _ = done.send(());
            Ok(id("1"))
        }));
        ended.await.unwrap();
    }

    #[tokio::test]
    async fn a_panic_ends_the_operation_and_frees_its_name() {
        let operations = Operations::default();
        let panicked = operations.join(key(), wish("sh"), async { panic!("on purpose") });
        assert!(matches!(panicked.await, Some(Err(Error::Shared(_)))));
        let next = operations.join(key(), wish("top"), async { Ok(id("2")) });
        assert_eq!(next.await.unwrap().unwrap(), id("2"));
    }
}
