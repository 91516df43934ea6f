//! A peer of version 1 understands what it is told today, and is understood: its messages are kept as they were.

mod v1;

use prost::Message;

/// Every line `name: hex` of a golden file.
fn golden(text: &str) -> impl Iterator<Item = (&str, Vec<u8>)> {
    text.lines().map(|line| {
        let (name, hex) = line.split_once(": ").expect("a line is `name: hex`");
        let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
        (name, (0..hex.len()).step_by(2).map(byte).collect())
    })
}

#[test]
fn what_an_old_peer_says_arrives_whole() {
    for (name, bytes) in golden(include_str!("golden/1.txt")) {
        let said = v1::Packet::decode(bytes.as_slice()).expect(name);
        let heard = protocol::Packet::decode(bytes.as_slice()).expect(name);
        assert_eq!(heard.encode_to_vec(), said.encode_to_vec(), "{name}");
    }
}

#[test]
fn an_old_peer_takes_from_a_new_message_what_it_knows() {
    for (name, bytes) in golden(include_str!("golden/2.txt")) {
        let heard = v1::Packet::decode(bytes.as_slice()).expect(name);
        match heard.body.expect(name) {
            v1::Body::Call(call) => {
                // A call it has never heard of is seen to be one, so that it can say so.
                assert!(call.ask.is_none() || name == "call create_container", "{name}");
            }
            v1::Body::Answer(v1::Answer { reply: Some(v1::Reply::Inventory(i)) }) => {
                assert_eq!(i.sandbox.expect("sandbox").id, "c");
            }
            v1::Body::Notice(v1::Notice { news: Some(v1::News::Exited(e)) }) => {
                assert!(e.exit.expect("exit").oom_killed);
            }
            v1::Body::Answer(a) => assert!(a.reply.is_none(), "{name}"),
            v1::Body::Notice(n) => assert!(n.news.is_none(), "{name}"),
            v1::Body::Spilled(_) => panic!("{name}"),
        }
    }
}
