//! `taskvisor sweep`: a matrix of real runs, its table, and going on where it stopped.

use std::fs;
use std::path::Path;

use taskvisor_tests::guest::taskvisor;
use taskvisor_tests::slurm::Slurm;
use taskvisor_tests::{Outcome, Run, TempDir, prereq, serial};

fn sweep(file: &Path, args: &[&str]) -> Outcome {
    Run::new(taskvisor()).arg("sweep").args(args).arg(file).run()
}

#[test]
fn runs_are_made_once_and_torn_ones_anew() {
    let _beside_others = serial::shared();
    let Some(busybox) = prereq::busybox().filter(|_| prereq::kvm_or_left_out()) else { return };
    let dir = TempDir::new();
    let file = dir.path().join("s.toml");
    let text = format!(
        "seeds = [3]\n[run]\nprogram = [{busybox:?}, \"sh\", \"-c\", \"echo $(busybox nproc) CPUs; exit $SEED\"]\n\
         [matrix]\nvcpus = [1, 2]\n[capture]\ncpus = '(\\d+) CPUs'\n"
    );
    fs::write(&file, &text).expect("it is ours");
    sweep(&file, &["--jobs", "2"]).expect_code(0);
    let results = file.with_extension("results");
    let csv = || fs::read_to_string(results.join("results.csv")).expect("a table was written");
    let cells = |text: &str| -> Vec<Vec<String>> {
        text.lines().map(|line| line.split(',').map(str::to_owned).collect()).collect()
    };
    let first = cells(&csv());
    assert_eq!(first[0], ["vcpus", "seed", "code", "seconds", "cpus"]);
    for (row, vcpus) in first[1..].iter().zip(["1", "2"]) {
        assert_eq!([&row[0], &row[1], &row[2], &row[4]], [vcpus, "3", "3", vcpus], "{row:?}");
    }
    // Times would differ if they had been run again.
    sweep(&file, &[]).expect_code(0);
    assert_eq!(cells(&csv()), first);

    let runs = fs::read_dir(results.join("runs")).expect("a directory").flatten().map(|entry| entry.path());
    let torn = runs.min().expect("there are two");
    fs::write(torn.join("result.json"), "{\"code\": 3").expect("it is ours");
    let listed = sweep(&file, &["--list"]);
    assert_eq!(listed.text().matches("no").count(), 1, "{}", listed.text());
    sweep(&file, &["--gather"]).expect_code(0);
    assert!(csv().contains("3,,,"), "what is not finished is empty: {}", csv());
    sweep(&file, &[]).expect_code(0);
    assert!(!csv().contains(",,"), "{}", csv());
}

#[test]
fn slurm_carries_out_what_is_not_finished() {
    let _beside_others = serial::shared();
    let Some(busybox) = prereq::busybox().filter(|_| prereq::kvm_or_left_out()) else { return };
    let Some(slurm) = Slurm::start() else { return };
    let dir = TempDir::new();
    let file = dir.path().join("it's one.toml");
    let run = format!("[run]\nprogram = [{busybox:?}, \"sh\", \"-c\", \"echo $(busybox nproc) CPUs; exit 4\"]\n");
    let of = |vcpus: &str| format!("{run}[matrix]\nvcpus = {vcpus}\n[capture]\ncpus = '(\\d+) CPUs'\n");
    let submit = |args: &[&str]| {
        let flags = ["sweep", "--engine", "slurm", "--jobs", "2"];
        Run::new(taskvisor()).args(flags).args(args).arg(&file).env("SLURM_CONF", slurm.conf()).run()
    };
    let csv = || fs::read_to_string(file.with_extension("results").join("results.csv")).expect("a table was written");
    fs::write(&file, of("[1, 2]")).expect("it is ours");
    submit(&[]).expect_code(0);
    let first = csv();
    let cells: Vec<Vec<&str>> = first.lines().skip(1).map(|line| line.split(',').collect()).collect();
    assert_eq!(cells.len(), 2, "{first}");
    for (row, vcpus) in cells.iter().zip(["1", "2"]) {
        assert_eq!([row[0], row[1], row[3]], [vcpus, "4", vcpus], "{first}");
    }
    // One more value: only that is submitted. And what Slurm refuses is told.
    fs::write(&file, of("[1, 2, 3]")).expect("it is ours");
    submit(&["--sbatch=--partition=none"]).expect_code(125).expect_stderr("sbatch:").expect_one_line_error();
    submit(&[]).expect_code(0);
    let second = csv();
    assert!(second.starts_with(&first) && second.lines().count() == 4, "{first} became {second}");
}

#[test]
fn a_wrong_name_is_an_error_before_anything_runs() {
    let dir = TempDir::new();
    let file = dir.path().join("s.toml");
    fs::write(&file, "[run]\nprogram = [\"x\"]\n[matrix]\nvcpu = [1]\n").expect("it is ours");
    sweep(&file, &[]).expect_code(125).expect_stderr("unknown key 'vcpu': is it vcpus?").expect_one_line_error();
    assert!(!file.with_extension("results").exists());
}
