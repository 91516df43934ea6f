//! The bytes of every message as they were when it was introduced: a change here breaks running pods.

use prost::Message;
use protocol::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn target(id: &str) -> Target {
    Target { id: id.into() }
}

/// What peers of version 1 say.
fn first() -> Vec<(&'static str, Packet)> {
    let (mut all, answers) = (first_calls(), first_answers());
    all.extend(answers);
    all
}

fn first_calls() -> Vec<(&'static str, Packet)> {
    let rootfs =
        Rootfs { lowers: vec!["/l".into()], upper: "/u".into(), work: "/w".into(), volatile: true };
    let create = CreateContainer {
        id: "c".into(),
        bundle: "/b".into(),
        rootfs: Some(rootfs),
        log_path: "/log".into(),
        tty: true,
        stdin: true,
        stdin_once: true,
        handler: "/h".into(),
        seccomp_bpf: "/s".into(),
        limits: Some(LogLimits { line_max: 9, ..Default::default() }),
        ..Default::default()
    };
    let sandbox = CreateSandbox {
        id: "p".into(),
        bundle: "/p".into(),
        shm_size: 64,
        has_netns: true,
        ..Default::default()
    };
    let exec = ExecSync {
        id: "c".into(),
        process_json: b"{}".to_vec(),
        timeout_ms: 1,
        output_cap: 2,
        seccomp_bpf: "/s".into(),
    };
    vec![
        ("call hello", Packet::call(1, Ask::Hello(Hello { version: 1, pid: 2 }))),
        ("call create_sandbox", Packet::call(1, Ask::CreateSandbox(sandbox))),
        ("call create_container", Packet::call(1, Ask::CreateContainer(create))),
        ("call start", Packet::call(1, Ask::Start(target("c")))),
        ("call signal", Packet::call(1, Ask::Signal(Signal { id: "c".into(), signal: 15 }))),
        ("call kill", Packet::call(1, Ask::Kill(target("c")))),
        ("call exec_sync", Packet::call(1, Ask::ExecSync(exec))),
        ("call reopen_log", Packet::call(1, Ask::ReopenLog(target("c")))),
        (
            "call update",
            Packet::call(1, Ask::Update(Update { id: "c".into(), resources_json: b"{}".to_vec() })),
        ),
        ("call delete", Packet::call(1, Ask::Delete(target("c")))),
        ("call stop_sandbox", Packet::call(1, Ask::StopSandbox(Empty {}))),
        ("call shutdown", Packet::call(1, Ask::Shutdown(Empty {}))),
        ("call inventory", Packet::call(1, Ask::Inventory(Empty {}))),
    ]
}

fn first_answers() -> Vec<(&'static str, Packet)> {
    let exit = Exit {
        code: 137,
        at_ns: 5,
        oom_killed: true,
        start_error: "e".into(),
        ..Default::default()
    };
    let state = State {
        id: "c".into(),
        pid: 7,
        phase: Phase::Exited.into(),
        started_at_ns: 3,
        exit: Some(exit.clone()),
        start_ticks: 4,
        log_dropped_bytes: 6,
        ..Default::default()
    };
    let output = Output {
        exit_code: 1,
        stdout: b"o".to_vec(),
        stderr: b"e".to_vec(),
        stdout_spilled: 2,
        stderr_spilled: 3,
    };
    let failed = Failed::new(Kind::NotFound, "start", "gone");
    vec![
        ("answer failed", Packet::answer(1, Reply::Failed(failed))),
        ("answer done", Packet::answer(1, Reply::Done(Empty {}))),
        ("answer hello", Packet::answer(1, Reply::Hello(Hello { version: 1, pid: 2 }))),
        ("answer created", Packet::answer(1, Reply::Created(Created { pid: 2, start_ticks: 3 }))),
        ("answer started", Packet::answer(1, Reply::Started(Started { at_ns: 2 }))),
        ("answer output", Packet::answer(1, Reply::Output(output))),
        (
            "answer inventory",
            Packet::answer(
                1,
                Reply::Inventory(Inventory { sandbox: None, containers: vec![state] }),
            ),
        ),
        (
            "notice exited",
            Packet::notice(News::Exited(Exited { id: "c".into(), exit: Some(exit) })),
        ),
        ("spilled", Packet { seq: 1, body: Some(Body::Spilled(Spilled { len: 300 })) }),
    ]
}

/// What version 2 added.
fn second() -> Vec<(&'static str, Packet)> {
    let exit =
        Exit { oom_killed: true, oom_scope: OomScope::Ancestor.into(), ..Default::default() };
    let state = State {
        id: "c".into(),
        cgroup: "/g".into(),
        paused: true,
        log_bytes: 1,
        log_lines: 2,
        log_limited_bytes: 3,
        ..Default::default()
    };
    let limits = LogLimits { line_max: 1, rate: 2, size: 3, policy: LogPolicy::Block.into() };
    let create = CreateContainer { id: "c".into(), limits: Some(limits), ..Default::default() };
    let held = Held {
        state: Some(State { id: "c".into(), ..Default::default() }),
        sandbox: true,
        own_pids: true,
        bundle: "/b".into(),
        handler: "/h".into(),
        seccomp_bpf: "/s".into(),
        log_path: "/log".into(),
        limits: Some(LogLimits { line_max: 1, ..Default::default() }),
        shm_path: "/shm".into(),
        stdin: true,
        terminal: true,
        stdout: true,
        stderr: true,
        interactive: true,
    };
    let exec = Exec {
        id: "c".into(),
        process_json: b"{}".to_vec(),
        tty: true,
        stdin: true,
        stdout: true,
        stderr: true,
        seccomp_bpf: "/s".into(),
    };
    let attach = Attach { id: "c".into(), stdin: true, stdout: true, stderr: true, replay: 9 };
    let opened = Opened { session: 7, terminal: true, stdin: true, stdout: true, stderr: true };
    let socket = Socket { family: Family::Inet6.into() };
    let resize = Resize { id: "c".into(), rows: 24, columns: 80 };
    let inventory = Inventory { sandbox: Some(state), containers: vec![] };
    let exited = Exited { id: "c".into(), exit: Some(exit) };
    let ended = SessionEnded { session: 7, code: 3 };
    vec![
        ("call create_container", Packet::call(1, Ask::CreateContainer(create))),
        ("call exec", Packet::call(1, Ask::Exec(exec))),
        ("call kill_session", Packet::call(1, Ask::KillSession(SessionRef { session: 7 }))),
        ("call attach", Packet::call(1, Ask::Attach(attach))),
        ("call close_stdin", Packet::call(1, Ask::CloseStdin(target("c")))),
        ("call socket", Packet::call(1, Ask::Socket(socket))),
        ("call pause", Packet::call(1, Ask::Pause(target("c")))),
        ("call resume", Packet::call(1, Ask::Resume(target("c")))),
        ("call resize", Packet::call(1, Ask::Resize(resize))),
        ("call hold", Packet::call(1, Ask::Hold(target("c")))),
        ("call adopt", Packet::call(1, Ask::Adopt(held.clone()))),
        ("answer held", Packet::answer(1, Reply::Held(held))),
        ("answer opened", Packet::answer(1, Reply::Opened(opened))),
        ("answer inventory", Packet::answer(1, Reply::Inventory(inventory))),
        ("notice exited", Packet::notice(News::Exited(exited))),
        ("notice session_ended", Packet::notice(News::SessionEnded(ended))),
    ]
}

/// What version 3 added.
fn third() -> Vec<(&'static str, Packet)> {
    let create = CreateContainer {
        id: "c".into(),
        init: true,
        trees: vec!["/a".into(), "/b".into()],
        ..Default::default()
    };
    let sandbox = CreateSandbox { id: "p".into(), seccomp_bpf: "/s".into(), ..Default::default() };
    vec![
        ("call create_sandbox", Packet::call(1, Ask::CreateSandbox(sandbox))),
        ("call create_container", Packet::call(1, Ask::CreateContainer(create))),
    ]
}

/// What version 4 added.
fn fourth() -> Vec<(&'static str, Packet)> {
    vec![
        ("call remember", Packet::call(1, Ask::Remember(target("c")))),
        ("call recall", Packet::call(1, Ask::Recall(target("c")))),
    ]
}

/// What version 5 added.
fn fifth() -> Vec<(&'static str, Packet)> {
    let exit = Exit { code: 255, unknown: true, ..Default::default() };
    let exited = News::Exited(Exited { id: "c".into(), exit: Some(exit) });
    vec![("notice exited", Packet::notice(exited))]
}

/// What version 6 added.
fn sixth() -> Vec<(&'static str, Packet)> {
    let sandbox = CreateSandbox { id: "p".into(), has_mounts: true, ..Default::default() };
    let create = CreateContainer { id: "c".into(), has_mounts: true, ..Default::default() };
    vec![
        ("call create_sandbox", Packet::call(1, Ask::CreateSandbox(sandbox))),
        ("call create_container", Packet::call(1, Ask::CreateContainer(create))),
    ]
}

/// Every version since the first, with its file: a file of a version that was released is never edited.
fn versions() -> Vec<(Vec<(&'static str, Packet)>, &'static str)> {
    vec![
        (first(), include_str!("golden/1.txt")),
        (second(), include_str!("golden/2.txt")),
        (third(), include_str!("golden/3.txt")),
        (fourth(), include_str!("golden/4.txt")),
        (fifth(), include_str!("golden/5.txt")),
        (sixth(), include_str!("golden/6.txt")),
    ]
}

#[test]
fn every_version_has_its_golden_bytes() {
    assert_eq!(versions().len(), VERSION as usize);
}

#[test]
fn every_message_still_has_the_bytes_it_was_born_with() {
    for (transcript, golden) in versions() {
        let line = |(n, p): &(&str, Packet)| format!("{n}: {}\n", hex(&p.encode_to_vec()));
        let now: String = transcript.iter().map(line).collect();
        assert!(now == golden, "the wire format changed:\n{now}");
    }
}

#[test]
fn the_bytes_of_every_version_mean_what_they_meant() {
    for (transcript, golden) in versions() {
        for ((name, packet), line) in transcript.iter().zip(golden.lines()) {
            let (_, hex) = line.split_once(": ").expect("a line is `name: hex`");
            let byte = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex");
            let bytes: Vec<u8> = (0..hex.len()).step_by(2).map(byte).collect();
            assert_eq!(&Packet::decode(bytes.as_slice()).expect(name), packet, "{name}");
        }
    }
}

#[test]
fn a_field_from_the_future_is_ignored() {
    let mut bytes = Packet::call(1, Ask::Start(target("c"))).encode_to_vec();
    bytes.extend([0xfa, 0x06, 0x01, 0x00]); // field 111, one byte
    assert!(Packet::decode(bytes.as_slice()).is_ok());
}
