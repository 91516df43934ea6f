//! Pulls images into a directory, each twice, and says what it cost: `pull ROOT CERTS_D REFERENCE…`.

use std::io::Write as _;
use std::time::Instant;

use image::{Config, ImageService};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [root, certs_d, references @ ..] = &arguments[..] else {
        return Err("usage: pull ROOT CERTS_D REFERENCE…".into());
    };
    let mut config = Config::new(root.into());
    config.certs_d = vec![certs_d.into()];
    let service = ImageService::open(config).await?;
    writeln!(std::io::stdout(), "idle: RSS {} kB", memory("VmRSS:"))?;
    for reference in references {
        for what in ["pull", "pull again"] {
            let (began, before) = (Instant::now(), (cpu(), service.received_bytes()));
            service.pull(reference, None).await?;
            let (wall, cpu) = (began.elapsed(), cpu() - before.0);
            let info = service.fs_info();
            writeln!(
                std::io::stdout(),
                "{what} {reference}: wall {:.1} ms, cpu {cpu:.0} ms, received {:.1} MB, on disk \
                 {} MB in {} inodes, peak RSS {} kB",
                wall.as_secs_f64() * 1000.0,
                (service.received_bytes() - before.1) as f64 / 1e6,
                info.used_bytes / 1_000_000,
                info.inodes_used,
                memory("VmHWM:"),
            )?;
        }
    }
    Ok(())
}

/// User and system time of this process in milliseconds.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = stat.rsplit(')').next().unwrap_or_default();
    let ticks = |n: usize| after.split_whitespace().nth(n).and_then(|t| t.parse::<f64>().ok());
    // Fields 14 and 15, in hundredths of a second.
    (ticks(11).unwrap_or(0.0) + ticks(12).unwrap_or(0.0)) * 10.0
}

/// A line of `/proc/self/status`, in kB.
fn memory(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
