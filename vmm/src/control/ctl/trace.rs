//! `ctl trace`: recordings that begin and end while the guest runs.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::Show;
use crate::config::units::parse_size;
use crate::control::client::{Client, ClientError};
use crate::trace::Format;
use crate::trace::live::{Phase, Status, Wanted};

/// What to do about recordings.
#[derive(Debug, Clone, PartialEq, Eq, clap::Subcommand)]
pub enum TraceCommand {
    /// Record from now on; what was recorded before is forgotten
    Start {
        /// Records of each CPU's ring, a power of two; the rings stay as the first recording made them
        #[arg(long, value_name = "N")]
        ring_records: Option<u32>,
        /// The recording's size at most; what comes then is counted, not kept
        #[arg(long, value_name = "SIZE", value_parser = parse_size)]
        limit: Option<u64>,
    },
    /// Record no more
    Stop,
    /// Whether there is a recording, and how large it is
    Status,
    /// Get what was recorded
    Fetch {
        /// Where to: .pftrace or no extension for Perfetto and taskvisor report, .jsonl for JSON lines; - is standard output
        file: PathBuf,
    },
}

/// Does it; what there is to say.
pub fn ask(client: &mut Client, command: TraceCommand, show: &Show) -> Result<String, ClientError> {
    let status = match command {
        TraceCommand::Start { ring_records, limit } => {
            client.send("/v1/trace/start", &Wanted { ring_records, limit_bytes: limit })?
        }
        TraceCommand::Stop => client.post("/v1/trace/stop")?,
        TraceCommand::Status => client.get("/v1/trace")?,
        TraceCommand::Fetch { file } => return fetch(client, &file).map(|()| String::new()),
    };
    Ok(show.one::<Status>(&status, table))
}

fn fetch(client: &mut Client, file: &Path) -> Result<(), ClientError> {
    let refused = |source| ClientError::File { path: file.to_owned(), source };
    let format = Format::of(file).map_err(|error| refused(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    let path = match format {
        Format::Pftrace => "/v1/trace/file.pftrace",
        Format::Jsonl => "/v1/trace/file.jsonl",
    };
    if file.as_os_str() == "-" {
        return client.download(path, &mut io::stdout().lock(), file);
    }
    // The name of a file that is complete: what breaks off leaves none.
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut part = tempfile::NamedTempFile::new_in(dir).map_err(refused)?;
    client.download(path, part.as_file_mut(), file)?;
    let kept: File = part.persist(file).map_err(|error| refused(error.error))?;
    drop(kept);
    Ok(())
}

fn table(status: &Status) -> String {
    let mut out = String::new();
    let state = match status.state {
        Phase::Idle => "idle",
        Phase::Recording => "recording",
        Phase::Stopped => "stopped",
    };
    let mut row = |name: &str, value: &str| {
        out.push_str(&format!("{name:8} {value}\n"));
    };
    row("state", state);
    row("records", &status.records.to_string());
    row("lost", &format!("{} in the guest, {} over the limit", status.lost, status.over_limit));
    row("size", &format!("{} KiB", status.bytes >> 10));
    row("run", if status.run_is_traced { "traced to a file of its own" } else { "not traced" });
    out
}
