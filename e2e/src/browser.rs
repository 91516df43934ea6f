//! A Chromium without a screen, driven by its debugging protocol over two pipes: it listens on no port.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::wait;

/// For all that a test does with it: a browser that hangs is ended, and the test with it.
const LIFE: Duration = Duration::from_secs(90);

/// What every start of Chromium is given.
pub const FLAGS: [&str; 8] = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--hide-scrollbars",
];

/// A browser with one page; both end with this value.
#[derive(Debug)]
pub struct Browser {
    process: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    next: u64,
    session: Option<String>,
    _profile: TempDir,
}

/// A key: its name, its number on Windows, by which Chromium knows it, and what it types.
#[derive(Debug, Clone, Copy)]
pub struct Key(pub &'static str, pub u32, pub &'static str);

pub const TAB: Key = Key("Tab", 9, "");
pub const ENTER: Key = Key("Enter", 13, "\r");
pub const ESCAPE: Key = Key("Escape", 27, "");
pub const SLASH: Key = Key("/", 191, "/");

impl Browser {
    pub fn open(url: &str) -> Self {
        let profile = TempDir::with_prefix("lapstrake-browser-").unwrap();
        // The protocol is spoken on descriptors 3 and 4.
        let redirected = "exec \"$@\" 3<&0 4>&1 0</dev/null 1>/dev/null";
        let mut process = Command::new("timeout")
            .args(["--kill-after=5", &wait::scaled(LIFE).as_secs().to_string()])
            .args(["sh", "-c", redirected, "sh", "chromium", "--remote-debugging-pipe"])
            .args(FLAGS)
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let commands = process.stdin.take().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        let mut browser =
            Self { process, commands, answers, next: 0, session: None, _profile: profile };
        let page = browser.call("Target.createTarget", json!({ "url": url }));
        let page = json!({ "targetId": page["targetId"], "flatten": true });
        let session = browser.call("Target.attachToTarget", page);
        browser.session = session["sessionId"].as_str().map(str::to_owned);
        browser
    }

    /// The value of an expression in the page.
    pub fn value(&mut self, expression: &str) -> Value {
        let parameters =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", parameters);
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    /// Waits until an expression is true.
    #[track_caller]
    pub fn until(&mut self, expression: &str) {
        let value = format!("Boolean({expression})");
        wait::until(expression, LIFE, || (self.value(&value) == true).then_some(()));
    }

    pub fn press(&mut self, Key(key, number, text): Key) {
        for kind in ["keyDown", "keyUp"] {
            let parameters = json!({
                "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": number, "text": text,
            });
            self.call("Input.dispatchKeyEvent", parameters);
        }
    }

    pub fn type_text(&mut self, text: &str) {
        self.call("Input.insertText", json!({ "text": text }));
    }

    fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.next += 1;
        let mut message = json!({ "id": self.next, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        self.commands.write_all(format!("{message}\0").as_bytes()).expect("chromium listens");
        loop {
            let mut text = Vec::new();
            self.answers.read_until(0, &mut text).unwrap();
            assert_eq!(text.pop(), Some(0), "chromium is gone, or is not installed: {method}");
            let answer: Value = serde_json::from_slice(&text).unwrap();
            if answer["id"] == self.next {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // `timeout` hands it on to the browser, which it is the parent of.
        let pid = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.process.wait();
    }
}
