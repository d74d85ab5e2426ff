//! Runtimes and libraries that nobody here wrote and that ask more of a kernel than a shell does: Go's, and SQLite. Built here from
//! tests/programs; their output must be the host's, byte for byte.

use std::path::{Path, PathBuf};
use std::time::Duration;

use taskvisor_tests::{Guest, Run, TempDir, prereq};

/// Where the sources are.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/programs");
/// More than a first build with an empty cache takes on a loaded machine.
const BUILD: Duration = Duration::from_secs(300);

fn source(name: &str) -> PathBuf {
    Path::new(SOURCES).join(name)
}

#[test]
fn go() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let Some(go) = prereq::system_program(&["go"]) else { return };
    let work = TempDir::new();
    let program = work.path().join("runtime");
    let build = Run::new(&go).args(["build", "-o"]).arg(&program).arg(source("runtime.go"));
    let build = build.env("CGO_ENABLED", "0").env("GOCACHE", work.path().join("cache")).env("GOFLAGS", "-mod=mod");
    build.limit(BUILD).run().expect_code(0);
    Guest::new(2).same_as_host::<&str>(&program, &[]).expect_code(0).expect_stdout("PASS");
}

#[test]
fn sqlite() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let Some(gcc) = prereq::system_program(&["gcc"]) else { return };
    let work = TempDir::new();
    let program = work.path().join("database");
    let build = Run::new(&gcc).args(["-O2", "-static", "-w", "-o"]).arg(&program).arg(source("database.c"));
    let built = build.args(["-lsqlite3", "-lm", "-lpthread"]).limit(BUILD).run();
    if !prereq::there_or_left_out(built.code() == 0, "SQLite's static library (Debian: libsqlite3-dev)") {
        return;
    }
    let sql = std::fs::read(source("database.sql")).expect("our own file");
    let host = Run::new(&program).arg(work.path().join("on-host")).stdin(sql.clone()).run();
    host.expect_code(0).expect_stdout("rows left|859");
    Guest::new(2).stdin(sql).run(&program, ["/tmp/in-guest"]).expect_same_output(&host).expect_code(0);
}
