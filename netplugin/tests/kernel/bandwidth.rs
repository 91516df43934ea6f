//! Bandwidth limits, as `tc` sees them and as they feel.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use netplugin::{Bandwidth, LinkOptions, Rate};

use crate::host::{address, inside, json, on_a_host, request};

#[test]
fn a_pod_sends_and_receives_no_faster_than_it_may() {
    on_a_host(|host| {
        let network = host.network(&["10.9.0.0/24"]);
        let rate = |bits_per_second| Some(Rate { bits_per_second, burst_bits: None });
        let bandwidth = Bandwidth { ingress: rate(8_000_000), egress: rate(16_000_000) };
        let options = LinkOptions { bandwidth, ..LinkOptions::default() };
        let limited = network.attach_with(&request("limited"), &options).unwrap();
        let free = network.attach(&request("free")).unwrap();
        let queue = json(&format!("tc -j qdisc show dev {}", limited.host_link));
        assert_eq!(queue[0]["kind"], "tbf");
        assert_eq!(queue[0]["options"]["rate"], 1_000_000, "bytes a second");

        let seconds = |from, to, ip| transfer(from, to, ip).as_secs_f64();
        let limited_ip = address(&limited, "0.0.0.0");
        let free_ip = address(&free, "0.0.0.0");
        // 500 kB at 1 MB/s in and 2 MB/s out.
        let received = seconds(&free.netns, &limited.netns, limited_ip);
        let sent = seconds(&limited.netns, &free.netns, free_ip);
        assert!((0.3..1.5).contains(&received), "received in {received} s");
        assert!((0.1..0.8).contains(&sent), "sent in {sent} s");
    });
}

fn transfer(
    from: &std::os::fd::OwnedFd,
    to: &std::os::fd::OwnedFd,
    ip: std::net::IpAddr,
) -> Duration {
    let listener = inside(to, || TcpListener::bind((ip, 9000)).unwrap());
    let receiver = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let begin = Instant::now();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), 500_000);
        begin.elapsed()
    });
    let mut stream = inside(from, || TcpStream::connect((ip, 9000)).unwrap());
    stream.write_all(&vec![7; 500_000]).unwrap();
    drop(stream);
    receiver.join().unwrap()
}
