//! A program before a terminal, as a person has it: by `script` of util-linux.

use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::wait;

/// For a program to say or do what is awaited.
const LIMIT: Duration = Duration::from_secs(20);

/// The program and its terminal; both end with this value.
#[derive(Debug)]
pub struct Terminal {
    process: Child,
    keys: ChildStdin,
    seen: Arc<Mutex<Vec<u8>>>,
    /// The file of the terminal.
    device: String,
}

impl Terminal {
    /// Runs a command before a terminal of that many rows and columns.
    pub fn open(command: &[&str], (rows, columns): (u16, u16)) -> Self {
        let line = format!("tty; stty rows {rows} cols {columns}; exec {}", quoted(command));
        let mut process = Command::new("script")
            .args(["--quiet", "--return", "--flush", "--command", &line, "/dev/null"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("script is there: Debian's package `bsdutils`");
        let keys = process.stdin.take().unwrap();
        let mut screen = process.stdout.take().unwrap();
        let seen: Arc<Mutex<Vec<u8>>> = Arc::default();
        let keeps = seen.clone();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(length @ 1..) = screen.read(&mut chunk) {
                keeps.lock().unwrap().extend_from_slice(&chunk[..length]);
            }
        });
        let mut terminal = Self { process, keys, seen, device: String::new() };
        let first = terminal.until("\n");
        terminal.device = first.lines().next().unwrap().trim().to_owned();
        assert!(terminal.device.starts_with("/dev/pts/"), "{first:?}");
        terminal
    }

    pub fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    /// As when its window is pulled larger.
    pub fn resize(&self, (rows, columns): (u16, u16)) {
        let [rows, columns] = [rows, columns].map(|it| it.to_string());
        let done = Command::new("stty")
            .args(["-F", &self.device, "rows", &rows, "cols", &columns])
            .status();
        assert!(done.unwrap().success());
    }

    /// How the line discipline is set.
    pub fn settings(&self) -> String {
        let shown = Command::new("stty").args(["-F", &self.device, "-a"]).output().unwrap();
        String::from_utf8(shown.stdout).unwrap()
    }

    /// Waits until it shows `text`; all that it has shown.
    #[track_caller]
    pub fn until(&self, text: &str) -> String {
        let all = || String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned();
        wait::until(&format!("{text:?} at the terminal"), LIMIT, || {
            let all = all();
            all.contains(text).then_some(all)
        })
    }

    /// Waits for the end of the program.
    #[track_caller]
    pub fn end(mut self) -> ExitStatus {
        wait::until("the program ends", LIMIT, || self.process.try_wait().unwrap())
    }
}

/// Words as a shell reads them.
pub fn quoted(words: &[&str]) -> String {
    let quoted = words.iter().map(|word| format!("'{}'", word.replace('\'', "'\\''")));
    quoted.collect::<Vec<_>>().join(" ")
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("at the terminal: {}", String::from_utf8_lossy(&self.seen.lock().unwrap()));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
