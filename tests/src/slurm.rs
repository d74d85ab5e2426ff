//! A Slurm of our own for one test: controller and node daemon of the system's packages, on private ports, in a private directory,
//! without munge, as whoever runs the test.

use std::ffi::OsStr;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::{TempDir, prereq};

/// How long the daemons may take to find each other.
const PATIENCE: Duration = Duration::from_secs(60);

/// Running daemons; they end with it.
#[derive(Debug)]
pub struct Slurm {
    daemons: Vec<Child>,
    dir: TempDir,
}

impl Slurm {
    /// Starts them, and waits until the node takes jobs.
    pub fn start() -> Option<Self> {
        let programs = prereq::slurm()?;
        let dir = TempDir::new();
        fs::write(dir.path().join("slurm.conf"), configuration(dir.path())).expect("it is ours");
        for name in ["state", "spool"] {
            fs::create_dir(dir.path().join(name)).expect("it is ours");
        }
        let mut slurm = Self { daemons: Vec::new(), dir };
        for program in programs {
            let log = fs::File::create(slurm.dir.path().join(program.file_name().unwrap_or_default())).expect("ours");
            let mut daemon = slurm.command(&program);
            daemon.args(["-D", "-c"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
            slurm.daemons.push(daemon.spawn().expect("it is installed"));
        }
        let deadline = Instant::now() + PATIENCE;
        while slurm.command("sinfo").args(["-h", "-o", "%T"]).output().is_ok_and(|told| told.stdout != b"idle\n") {
            if Instant::now() > deadline {
                let told = |name| fs::read_to_string(slurm.dir.path().join(name)).unwrap_or_default();
                panic!("Slurm's node takes no jobs:\n{}\n{}", told("slurmctld"), told("slurmd"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(slurm)
    }

    /// What its clients need in their environment.
    pub fn conf(&self) -> PathBuf {
        self.dir.path().join("slurm.conf")
    }

    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env("SLURM_CONF", self.conf());
        command
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        for daemon in &mut self.daemons {
            // SAFETY: our own child, which has not been waited for.
            unsafe { libc::kill(daemon.id() as i32, libc::SIGTERM) };
            let _ = daemon.wait();
        }
    }
}

/// Ports that are free now; both at once, so that they differ.
fn ports() -> [u16; 2] {
    let bound = [(), ()].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free"));
    bound.map(|listener| listener.local_addr().expect("it is bound").port())
}

fn configuration(dir: &Path) -> String {
    let ([controller, node], dir) = (ports(), dir.display());
    let host = fs::read_to_string("/proc/sys/kernel/hostname").expect("Linux has it");
    let host = host.trim().split('.').next().unwrap_or_default();
    let user = Command::new("id").arg("-un").output().expect("coreutils").stdout;
    let user = String::from_utf8_lossy(&user).trim().to_owned();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    format!(
        "ClusterName=test\nSlurmctldHost={host}(127.0.0.1)\nSlurmctldPort={controller}\nSlurmdPort={node}\n\
         SlurmUser={user}\nSlurmdUser={user}\nAuthType=auth/none\nCredType=cred/none\n\
         ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nJobAcctGatherType=jobacct_gather/none\n\
         SelectType=select/cons_tres\nSelectTypeParameters=CR_CPU\nMpiDefault=none\nSlurmdParameters=config_overrides\n\
         SlurmctldPidFile={dir}/slurmctld.pid\nSlurmdPidFile={dir}/slurmd.pid\n\
         StateSaveLocation={dir}/state\nSlurmdSpoolDir={dir}/spool\n\
         NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN\n\
         PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n"
    )
}
