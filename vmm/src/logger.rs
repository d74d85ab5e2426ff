//! The VMM's own log: lines on stderr or in the log file, through the `log` crate.
//!
//! The binary installs it once. Invariant: a line is one write, so that lines of threads don't mix.

use std::fs::{File, OpenOptions};
use std::io::Write;

use log::{LevelFilter, Log, Metadata, Record};

use crate::config::{LogLevel, LogSink};
use crate::console::terminal::Lines;

/// Writes lines somewhere.
#[derive(Debug)]
struct Logger(Option<File>);

/// Starts logging; quietly does without a log file that can't be opened, as the VM will say so.
pub fn install(sink: &LogSink, level: LogLevel) {
    let file = match sink {
        LogSink::Off => return,
        LogSink::Stderr => None,
        LogSink::File(path) => match OpenOptions::new().append(true).create(true).open(path) {
            Ok(file) => Some(file),
            Err(_) => return,
        },
    };
    let filter = match level {
        LogLevel::Off => LevelFilter::Off,
        LogLevel::Error => LevelFilter::Error,
        LogLevel::Warn => LevelFilter::Warn,
        LogLevel::Info => LevelFilter::Info,
        LogLevel::Debug => LevelFilter::Debug,
    };
    if log::set_boxed_logger(Box::new(Logger(file))).is_ok() {
        log::set_max_level(filter);
    }
}

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = format!("taskvisor: {}: {}\n", record.level().as_str().to_lowercase(), record.args());
        // A log that can't be written has nowhere to say so.
        let _ = match &self.0 {
            Some(file) => (&*file).write_all(line.as_bytes()),
            None => Lines(std::io::stderr()).write_all(line.as_bytes()),
        };
    }

    fn flush(&self) {}
}
