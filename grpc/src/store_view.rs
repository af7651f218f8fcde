//! `ringforge store`: looks at a store that no node has at the moment, and prints what it finds.
//! Must never make one.

use crate::{cli::StoreCommand, config::Config, node};
use anyhow::{Context, anyhow, bail};
use engine::{
    digest::{Digest, DigestFunction},
    shard::{Stat, Stopped, StoreConfig},
};
use serde_json::json;
use std::{
    fmt::Write as _,
    fs::File,
    io::{self, BufWriter, IsTerminal, Write},
    path::Path,
    process::ExitCode,
};

/// Damaged blobs that are named one by one.
const DAMAGED_SHOWN_MAX: usize = 1000;

/// Does what was asked for.
///
/// # Errors
/// One line: there is no store, a node has it, it can't be read, no such blob.
pub(crate) fn run(config: &Config, command: &StoreCommand) -> anyhow::Result<ExitCode> {
    let store = node::store_config(&config.store);
    let stopped = Stopped::open(&store).map_err(|error| refused(&store, &error))?;
    match command {
        StoreCommand::Stat { json } => {
            let stat = stopped.stat();
            let text = if *json { format!("{:#}\n", json_of(&stat)) } else { table(&stat) };
            io::stdout().write_all(text.as_bytes()).context("printing")?;
            Ok(ExitCode::SUCCESS)
        }
        StoreCommand::Verify => verify(&stopped),
        StoreCommand::Get { digest, file } => {
            let digest = find(&stopped, digest)?;
            get(&stopped, &digest, file.as_deref())?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn refused(store: &StoreConfig, error: &io::Error) -> anyhow::Error {
    let root = store.layout.root().display();
    match error.kind() {
        io::ErrorKind::NotFound => anyhow!("{root} holds no store (say which by --data)"),
        io::ErrorKind::WouldBlock => anyhow!("{root} is in use by a node: stop it first"),
        _ => anyhow!("{root} can't be read: {error}"),
    }
}

fn json_of(stat: &Stat) -> serde_json::Value {
    json!({
        "blobs": stat.blobs,
        "content_bytes": stat.content_bytes,
        "results": stat.results,
        "disk_bytes": stat.bytes(),
        "segments": stat.segments,
        "segment_bytes": stat.segment_bytes,
        "live_bytes": stat.live_bytes,
        "segments_by_use": stat.segments_by_use,
        "files": stat.files,
        "file_bytes": stat.file_bytes,
    })
}

fn table(stat: &Stat) -> String {
    let rows = [
        ("blobs", format!("{} ({})", stat.blobs, size(stat.content_bytes))),
        ("results", stat.results.to_string()),
        ("on disk", size(stat.bytes())),
        ("files", format!("{} ({})", stat.files, size(stat.file_bytes))),
        ("segments", format!("{} ({})", stat.segments, size(stat.segment_bytes))),
        ("of them used", format!("{} ({})", size(stat.live_bytes), used(stat))),
    ];
    let mut text = String::new();
    for (name, value) in rows {
        let _ = writeln!(text, "{name:<14}{value}");
    }
    let _ = writeln!(text, "segments by how much of each is used:");
    for (tenth, count) in stat.segments_by_use.iter().enumerate() {
        let _ = writeln!(text, "  {:>3} to {:>3} %  {count}", tenth * 10, (tenth + 1) * 10);
    }
    text
}

fn used(stat: &Stat) -> String {
    match stat.live_bytes.checked_mul(100).and_then(|used| used.checked_div(stat.segment_bytes)) {
        Some(percent) => format!("{percent} %"),
        None => "none".to_owned(),
    }
}

/// Bytes as people read them.
fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

fn verify(stopped: &Stopped) -> anyhow::Result<ExitCode> {
    let all = stopped.bytes_to_verify();
    let bar = io::stderr().is_terminal();
    let mut shown = u64::MAX;
    let verified = stopped.verify(|bytes| {
        let percent = bytes.saturating_mul(100) / all.max(1);
        if bar && percent != shown {
            shown = percent;
            let done = usize::try_from(percent / 2).unwrap_or(50).min(50);
            eprint!("\r[{:<50}] {percent:>3} % of {}", "#".repeat(done), size(all));
        }
    });
    if bar {
        eprintln!();
    }
    let mut out = io::stdout().lock();
    for (digest, home, why) in verified.damaged.iter().take(DAMAGED_SHOWN_MAX) {
        writeln!(out, "damaged {digest} {home:?}: {why}").context("printing")?;
    }
    let damaged = verified.damaged.len();
    let (read, bytes) = (verified.read, size(verified.bytes));
    writeln!(out, "{read} records and files read ({bytes}), {damaged} damaged")
        .context("printing")?;
    Ok(if damaged == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The blob that is meant by HASH or HASH/SIZE.
fn find(stopped: &Stopped, said: &str) -> anyhow::Result<Digest> {
    let (hash, length) = match said.split_once('/') {
        Some((hash, length)) => {
            (hash, Some(length.parse::<i64>().map_err(|_| anyhow!("{length:?} is no size"))?))
        }
        None => (said, None),
    };
    let parse = |length| Digest::parse(DigestFunction::Sha256, hash, length);
    let digest = parse(length.unwrap_or(1)).map_err(|error| anyhow!("{said:?}: {error}"))?;
    let mut found = stopped.find(digest.hash());
    found.retain(|one| length.is_none_or(|length| i64::try_from(one.size()) == Ok(length)));
    match found[..] {
        [one] => Ok(one),
        [] => bail!("{said} is not in the store"),
        _ => bail!("{said} is several: say HASH/SIZE"),
    }
}

fn get(stopped: &Stopped, digest: &Digest, file: Option<&Path>) -> anyhow::Result<()> {
    let copy = |to: &mut dyn Write| {
        let mut to = BufWriter::new(to);
        stopped.copy(digest, &mut to)?;
        to.flush()
    };
    match file {
        None => copy(&mut io::stdout().lock()).with_context(|| format!("{digest}")),
        Some(path) => {
            let mut file = File::create_new(path).with_context(|| path.display().to_string())?;
            let copied = copy(&mut file).with_context(|| format!("{digest}"));
            if copied.is_err() {
                // What is there is not the blob.
                let _ = std::fs::remove_file(path);
            }
            copied
        }
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_are_written_with_the_unit_that_fits() {
        let table = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_572_864, "1.5 MiB"),
            (u64::MAX, "16777216.0 TiB"),
        ];
        for (bytes, expect) in table {
            assert_eq!(size(bytes), expect);
        }
    }
}
