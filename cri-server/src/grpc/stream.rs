//! Streamed answers: one consistent state, in messages of a bounded size, made as they are taken.

use futures::StreamExt;
use prost::Message;
use tonic::{Response, Status};

use super::runtime_service::Items;

/// Items are put together until a message is so large: far below what clients take, and enough
/// that a message costs little beside what is in it. A single larger item is sent alone.
const MESSAGE_BYTES: usize = 256 << 10;

/// Streams `items` as `wire` makes messages of them; nothing is converted before it is asked for.
pub(super) fn chunked<S, T, R>(
    items: Vec<S>,
    mut convert: impl FnMut(&S) -> T + Send + 'static,
    mut wire: impl FnMut(Vec<T>) -> R + Send + 'static,
) -> Response<Items<R>>
where
    S: Send + 'static,
    T: Message + 'static,
    R: Send + 'static,
{
    let mut items = items.into_iter().peekable();
    let messages = std::iter::from_fn(move || {
        items.peek()?;
        let (mut chunk, mut size) = (Vec::new(), 0);
        while size < MESSAGE_BYTES {
            let Some(item) = items.next() else { break };
            let item = convert(&item);
            size += item.encoded_len();
            chunk.push(item);
        }
        Some(Ok::<_, Status>(wire(chunk)))
    });
    Response::new(futures::stream::iter(messages).boxed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_item_comes_once_in_messages_of_a_bounded_size() {
        let items: Vec<_> = (0..5000).collect();
        // Ten for a kilobyte.
        let convert = |number: &u32| format!("{number:0100}");
        let stream = chunked(items, convert, |chunk: Vec<String>| chunk).into_inner();
        let messages: Vec<_> = stream.map(Result::unwrap).collect().await;
        assert!(messages.len() > 1, "{}", messages.len());
        assert!(messages.iter().all(|it| !it.is_empty()));
        assert!(messages.iter().all(|it| it.encode_len() < MESSAGE_BYTES + 200));
        let all: Vec<u32> = messages.concat().iter().map(|it| it.parse().unwrap()).collect();
        assert_eq!(all, (0..5000).collect::<Vec<_>>());
    }

    trait EncodeLen {
        fn encode_len(&self) -> usize;
    }

    impl EncodeLen for Vec<String> {
        fn encode_len(&self) -> usize {
            self.iter().map(Message::encoded_len).sum()
        }
    }

    #[tokio::test]
    async fn no_items_are_an_empty_stream() {
        let stream = chunked(Vec::<u32>::new(), |it| it.to_string(), |chunk| chunk).into_inner();
        assert_eq!(stream.count().await, 0);
    }
}
