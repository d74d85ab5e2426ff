//! `--config`, `taskvisor config`, completions and manual pages, as a user has them.

use std::fs;
use std::path::{Path, PathBuf};

use taskvisor_tests::guest::taskvisor;
use taskvisor_tests::{Run, TempDir, prereq, serial};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace").to_owned()
}

fn config<T: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = T>) -> Run {
    Run::new(taskvisor()).arg("config").args(args)
}

#[test]
fn a_guest_is_what_file_and_flags_say() {
    let (true, Some(busybox)) = (prereq::kvm_or_left_out(), prereq::busybox()) else { return };
    let _beside_others = serial::shared();
    let dir = TempDir::new();
    let script = "nproc; echo $A $B; cat /etc/note";
    let note = dir.write("note", "from the file\n");
    let file = dir.write(
        "guest.toml",
        format!(
            "vcpus = 3\ntimeout = '60s'\nprogram = [{busybox:?}, 'sh', '-c', '{script}']\n\
             file = [{{ host = {note:?}, guest = '/etc/note' }}]\n[env]\nA = '1'\nB = '2'\n"
        ),
    );
    let run = |flags: &[&str]| Run::new(taskvisor()).args(["run", "--config"]).arg(&file).args(flags).run();
    run(&[]).expect_code(0).expect_stdout("3\n1 2\nfrom the file\n");
    run(&["--vcpus", "2", "--env", "B=3"]).expect_code(0).expect_stdout("2\n1 3\nfrom the file\n");
    let busybox = busybox.to_str().expect("Debian's path");
    run(&["--", busybox, "echo", "another"]).expect_code(0).expect_stdout("another\n");
}

#[test]
fn what_is_shown_is_read_back() {
    let flags = ["--topology", "cores=2", "--env", "A=b", "--timeout", "1500ms", "--stats", "--", "busybox", "true"];
    let shown = config(["show"]).args(flags).run();
    shown.expect_code(0);
    let dir = TempDir::new();
    let file = dir.write("shown.toml", shown.text());
    let again = config(["show", "--config"]).arg(&file).run();
    assert_eq!(again.text(), shown.text());
    assert!(shown.text().contains("timeout = \"1500ms\""), "{}", shown.text());
}

#[test]
fn a_bad_file_is_one_line_that_says_where() {
    let dir = TempDir::new();
    for (text, part) in [
        ("vcpus = 1\nvcpu = 2\n", "bad.toml: line 2, column 1: unknown key 'vcpu': is it vcpus?"),
        ("vcpus = 2\ntopology = 'cores=3'\nprogram = ['busybox']\n", "--topology"),
        ("affinity = '0=4095'\nprogram = ['busybox']\n", "4095"),
        ("program = ['/no/such/program']\n", "/no/such/program"),
    ] {
        let file = dir.write("bad.toml", text);
        let checked = config(["check"]).arg(&file).run();
        checked.expect_one_line_error().expect_stderr(part);
        let run = Run::new(taskvisor()).args(["run", "--config"]).arg(&file).run();
        run.expect_code(checked.code()).expect_one_line_error().expect_stderr(part);
    }
    let missing = config(["check", "/no/such/file.toml"]).run();
    missing.expect_code(125).expect_one_line_error().expect_stderr("/no/such/file.toml");
    config(["check", "/dev/zero"]).run().expect_code(125).expect_one_line_error().expect_stderr("longer than");
}

/// The examples are good, and the schema that editors get says so too.
#[test]
fn the_examples_are_good() {
    if prereq::busybox().is_none() {
        return;
    }
    let schema = config(["schema"]).run();
    let schema: serde_json::Value = serde_json::from_str(&schema.text()).expect("JSON");
    assert_eq!(schema["additionalProperties"], false);
    let examples: Vec<_> = fs::read_dir(root().join("resources/configs"))
        .expect("part of the tree")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .collect();
    assert!(examples.len() >= 4, "{examples:?}");
    for example in &examples {
        config(["check"]).arg(example).dir(&root()).run().expect_code(0).expect_stdout("good");
        let text = fs::read_to_string(example).expect("readable");
        assert!(text.contains("taskvisor run --config"), "{} doesn't say how to use it", example.display());
    }
}

#[test]
fn the_shell_example_runs() {
    let (true, Some(_)) = (prereq::kvm_or_left_out(), prereq::busybox()) else { return };
    let _beside_others = serial::shared();
    let outcome = Run::new(taskvisor()).args(["run", "--config", "resources/configs/shell.toml"]).dir(&root()).run();
    outcome.expect_code(0).expect_stdout("hello, a\nhello, b\n");
}

#[test]
fn image_refuses_what_is_the_machine_s() {
    let dir = TempDir::new();
    let image = |flag: &str| Run::new(taskvisor()).arg("image").arg("-o").arg(dir.path()).args([flag, "--", "x"]).run();
    for (flag, name) in [("--affinity=0=0", "--affinity"), ("--vcpus=2", "--vcpus"), ("--trace=x.jsonl", "--trace")] {
        image(flag).expect_code(125).expect_one_line_error().expect_stderr(&format!("image takes no {name}"));
    }
    assert_eq!(fs::read_dir(dir.path()).expect("our own").count(), 0);
}

#[test]
fn completions_and_manual_pages_are_there() {
    let bash = Run::new(taskvisor()).args(["completions", "bash"]).run();
    let dir = TempDir::new();
    let script = dir.write("taskvisor.bash", bash.text());
    // What bash would offer after `taskvisor run --core-s` and after `taskvisor conf`.
    let ask = "source $1; COMP_WORDS=(taskvisor $2 $3); COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 )); \
               _taskvisor taskvisor \"${COMP_WORDS[COMP_CWORD]}\" x; echo ${COMPREPLY[@]}";
    for (words, offered) in [(&["run", "--core-s"][..], "--core-scheduling\n"), (&["conf"], "config\n")] {
        let run = Run::new("bash").args(["--norc", "-c", ask, "ask"]).arg(&script).args(words).run();
        run.expect_code(0).expect_stdout(offered);
    }
    let pages = dir.path().join("man1");
    Run::new(taskvisor()).args(["man", "--out"]).arg(&pages).run().expect_code(0);
    let page = fs::read_to_string(pages.join("taskvisor-run.1")).expect("a page for run");
    assert!(page.contains(".TH") && page.contains("core\\-scheduling"), "{page}");
}
