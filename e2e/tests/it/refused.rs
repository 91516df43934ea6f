//! What a good refusal looks like: the right code, and words that say what and why.

use tonic::{Code, Status};

/// Asserts code and words (in any case) of the error.
#[track_caller]
pub(crate) fn refused<T>(result: Result<T, Status>, code: Code, words: &[&str]) {
    let Err(status) = result else { panic!("should be refused with {code:?}") };
    assert_eq!(status.code(), code, "{status}");
    let message = status.message().to_lowercase();
    for word in words {
        assert!(message.contains(&word.to_lowercase()), "{word:?} is not in {message:?}");
    }
}
