//! Plans, results and tables, without a guest.

use super::plan::{Plan, Run, parse};
use super::store::{Outcome, Store};
use super::table;

const SWEEP: &str = r#"
repeats = 2
seeds = [7, 8]
stats = ["exits"]
[run]
program = ["busybox", "echo", "x"]
[matrix]
vcpus = [1, 2]
memory = ["64M"]
[capture]
rate = "rate ([0-9.]+)"
"#;

fn sweep() -> Plan {
    parse(SWEEP).expect("it is one")
}

#[test]
fn every_combination_is_a_run_of_its_own() {
    let plan = sweep();
    assert_eq!(plan.runs.len(), 8);
    let cells = |run: &Run| run.cells.iter().map(|(name, cell)| format!("{name}={cell}")).collect::<Vec<_>>().join(" ");
    assert_eq!(cells(&plan.runs[0]), "memory=64M vcpus=1 seed=7 repeat=0");
    assert_eq!(cells(&plan.runs[7]), "memory=64M vcpus=2 seed=8 repeat=1");
    let said = crate::config::file::parse(&plan.runs[7].config).expect("a configuration");
    assert_eq!(said.machine.vcpus, Some(2));
}

#[test]
fn what_is_wrong_is_told_with_the_nearest_right_name() {
    let run = "[run]\nprogram = [\"x\"]\n";
    for (text, why) in [
        (format!("repeat = 2\n{run}"), "unknown key 'repeat': is it repeats?"),
        (format!("{run}vcpu = 2\n"), "unknown key 'vcpu': is it vcpus?"),
        (format!("{run}[matrix]\nvcpuz = [1]\n"), "unknown key 'vcpuz': is it vcpus?"),
        (format!("{run}[matrix]\nvcpus = []\n"), "at least one value"),
        (format!("{run}vcpus = 1\n[matrix]\nvcpus = [1]\n"), "don't set it in [run] too"),
        (format!("repeats = 0\n{run}"), "0 runs"),
        (format!("repeats = 4000000000\n{run}"), "runs: from 1"),
        (format!("{run}[capture]\nx = \"(\"\n"), "capture.x"),
        ("[matrix]\n".to_owned(), "missing field `run`"),
    ] {
        let error = parse(&text).expect_err("it is wrong");
        assert!(error.contains(why), "{error}");
    }
}

#[test]
fn only_a_whole_result_of_the_same_run_counts() {
    let dir = tempfile::tempdir().unwrap();
    let (plan, store) = (sweep(), Store::open(dir.path()).unwrap());
    let (run, other) = (&plan.runs[0], &plan.runs[1]);
    assert_ne!(store.place(run), store.place(other));
    assert_eq!(store.result(run), None);
    let place = store.place(run);
    std::fs::create_dir(&place).unwrap();
    let outcome = Outcome { code: 3, seconds: 0.5 };
    store.keep(run, &outcome).unwrap();
    assert_eq!(store.result(run), None, "nobody says what was run");
    std::fs::write(place.join("run.toml"), &run.config).unwrap();
    assert_eq!(store.result(run), Some(outcome));
    std::fs::write(place.join("result.json"), "{\"code\": 3,").unwrap();
    assert_eq!(store.result(run), None, "it was torn");
}

#[test]
fn the_table_has_what_was_captured() {
    let dir = tempfile::tempdir().unwrap();
    let (plan, store) = (sweep(), Store::open(dir.path()).unwrap());
    let run = &plan.runs[0];
    let place = store.place(run);
    std::fs::create_dir(&place).unwrap();
    for (name, text) in
        [("run.toml", run.config.as_str()), ("stdout", "rate 12.5, a\n"), ("stderr", "taskvisor: stats: exits 40\n")]
    {
        std::fs::write(place.join(name), text).unwrap();
    }
    store.keep(run, &Outcome { code: 0, seconds: 0.25 }).unwrap();
    table::write(&plan, &store, dir.path()).unwrap();
    let csv = std::fs::read_to_string(dir.path().join("results.csv")).unwrap();
    let mut lines = csv.lines();
    assert_eq!(lines.next(), Some("memory,vcpus,seed,repeat,code,seconds,rate,exits"));
    assert_eq!(lines.next(), Some("64M,1,7,0,0,0.250,12.5,40"));
    assert_eq!(lines.next(), Some("64M,1,7,1,,,,"));
    let json = std::fs::read_to_string(dir.path().join("results.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json[0]["rate"], &json[0]["memory"], &json[1]["code"]), (&12.5.into(), &"64M".into(), &().into()));
}
