//! The control interface: how long an answer takes, how many tasks are listed in a second, and what that costs the guest.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use taskvisor_tests::guest::{program, taskvisor};
use taskvisor_tests::{TempDir, prereq};

use crate::table::{Row, Table};

/// Requests of each kind.
const REQUESTS: usize = 2000;
/// Tasks to be listed.
const CROWD: usize = 10_000;
/// Lists of them.
const LISTS: usize = 20;
/// The crowd may take so long to come: each of them is a clone of ring 0's work.
const PATIENCE: Duration = Duration::from_secs(600);

/// All of it.
pub fn measure(table: &mut Table) {
    table.section("Control interface, a guest of 2 vCPUs with 10,000 waiting threads");
    if !prereq::kvm_or_left_out() {
        table.push(Row::missing("all", "no /dev/kvm"));
        return;
    }
    if let Err(why) = all(table) {
        table.push(Row::missing("the rest", why.to_string()));
    }
}

fn all(table: &mut Table) -> io::Result<()> {
    let guest = Crowd::start()?;
    let mut client = Client(BufReader::new(UnixStream::connect(guest.dir.path().join("control"))?));
    for (name, method, path) in [
        ("GET of the clock (asks nobody)", "GET", "/v1/clock"),
        ("POST resume of a task (asks the guest's kernel)", "POST", "/v1/tasks/1/resume"),
    ] {
        let mut times = Vec::with_capacity(REQUESTS);
        let count = if method == "GET" { REQUESTS } else { REQUESTS / 10 };
        for _ in 0..count {
            let start = Instant::now();
            client.ask(method, path)?;
            times.push(start.elapsed().as_secs_f64() * 1e6);
        }
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        table.push(Row::new(format!("{name}, p50"), at(0.5), "us"));
        table.push(Row::new(format!("{name}, p99"), at(0.99), "us"));
    }
    let exits = |client: &mut Client| -> io::Result<f64> {
        let vcpus: Value = serde_json::from_slice(&client.ask("GET", "/v1/vcpus")?)?;
        let vcpus = vcpus["vcpus"].as_array().cloned().unwrap_or_default();
        Ok(vcpus.iter().filter_map(|vcpu| vcpu["exits"]["total"].as_f64()).sum())
    };
    let before = exits(&mut client)?;
    let (start, mut listed) = (Instant::now(), 0);
    for _ in 0..LISTS {
        let list: Value = serde_json::from_slice(&client.ask("GET", "/v1/tasks")?)?;
        listed += list["tasks"].as_array().map_or(0, Vec::len);
    }
    let seconds = start.elapsed().as_secs_f64();
    let caused = exits(&mut client)? - before;
    table.push(Row::new("tasks listed", listed as f64 / seconds, "1/s").note(format!("{} a list", listed / LISTS)));
    table.push(Row::new("exits of the guest meanwhile", caused, "exits").budget(0.0));
    Ok(())
}

/// The guest, which ends with this.
struct Crowd {
    vmm: Child,
    dir: TempDir,
}

impl Crowd {
    fn start() -> io::Result<Self> {
        let dir = TempDir::new();
        let vmm = Command::new(taskvisor())
            .args(["run", "--vcpus", "2", "--memory", "2G", "--timeout", "1500s", "--control"])
            .arg(dir.path().join("control"))
            .arg("--")
            .arg(program("musl/crowd"))
            .args([&CROWD.to_string(), "100000"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let mut crowd = Self { vmm, dir };
        let (sender, line) = std::sync::mpsc::channel();
        let stdout = crowd.vmm.stdout.take();
        std::thread::spawn(move || {
            let mut text = String::new();
            let read = stdout.map(|stdout| BufReader::new(stdout).read_line(&mut text));
            // The receiver may have lost its patience.
            let _ = sender.send(read.is_some_and(|r| r.is_ok()) && text.contains("threads wait"));
        });
        match line.recv_timeout(PATIENCE) {
            Ok(true) => Ok(crowd),
            _ => Err(io::Error::other(format!("{CROWD} threads did not come within {PATIENCE:?}"))),
        }
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        let _ = self.vmm.kill();
        let _ = self.vmm.wait();
    }
}

/// One connection, one request at a time.
struct Client(BufReader<UnixStream>);

impl Client {
    /// The body of the answer.
    fn ask(&mut self, method: &str, path: &str) -> io::Result<Vec<u8>> {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: taskvisor\r\nContent-Length: 0\r\n\r\n");
        self.0.get_mut().write_all(request.as_bytes())?;
        let (mut line, mut length) = (String::new(), 0);
        self.0.read_line(&mut line)?;
        if !line.contains(" 200 ") {
            return Err(io::Error::other(format!("{method} {path}: {}", line.trim_end())));
        }
        while line.trim_end() != "" {
            line.clear();
            self.0.read_line(&mut line)?;
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok(body)
    }
}
