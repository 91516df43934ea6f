//! Pulls one image into a directory and says what it cost: `pull ROOT CERTS_D REFERENCE`.

use std::io::Write as _;
use std::time::Instant;

use image::{Config, ImageService};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [root, certs_d, reference] = &arguments[..] else {
        return Err("usage: pull ROOT CERTS_D REFERENCE".into());
    };
    let mut config = Config::new(root.into());
    config.certs_d = vec![certs_d.into()];
    let service = ImageService::open(config).await?;
    for what in ["pull", "pull again"] {
        let (began, before) = (Instant::now(), cpu());
        let id = service.pull(reference, None).await?;
        let (wall, cpu) = (began.elapsed(), cpu() - before);
        let info = service.fs_info();
        writeln!(
            std::io::stdout(),
            "{what} {id}: wall {:.1} ms, cpu {cpu:.0} ms, {} MB in {} inodes, peak RSS {} kB",
            wall.as_secs_f64() * 1000.0,
            info.used_bytes / 1_000_000,
            info.inodes_used,
            peak_rss(),
        )?;
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

fn peak_rss() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
