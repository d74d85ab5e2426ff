//! Scripts that need no guest: bounds, errors with their place, tables and files.

use super::*;

struct Ran {
    result: Result<(), ScriptError>,
    out: tempfile::TempDir,
}

impl Ran {
    fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.out.path().join("out").join(name)).unwrap()
    }

    fn error(&self) -> (usize, usize, String) {
        match &self.result {
            Err(ScriptError::Failed { line, column, what, .. }) => (*line, *column, what.clone()),
            other => panic!("{other:?}"),
        }
    }
}

fn run_text(text: &str) -> Ran {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("script.rhai");
    std::fs::write(&path, text).unwrap();
    let result = run(&Script { path, args: vec!["a".into()], out: out.path().join("out") });
    Ran { result, out }
}

#[test]
fn results_are_written_as_csv_json_and_svg() {
    let ran = run_text(
        r#"
        let t = table(["policy", "vcpus", "seconds"]);
        t.row(["fair", 1, 2.5]);
        t.row(["r\"r,x", 2, 1.25]);
        t.csv("t.csv");
        t.json("t.json");
        t.plot("t.svg", #{title: "speed", x: "vcpus", y: "seconds", series: "policy"});
        if ARGS != ["a"] { fail("arguments") }
        "#,
    );
    ran.result.as_ref().unwrap();
    assert_eq!(ran.file("t.csv"), "policy,vcpus,seconds\r\nfair,1,2.5\r\n\"r\"\"r,x\",2,1.25\r\n");
    let rows: serde_json::Value = serde_json::from_str(&ran.file("t.json")).unwrap();
    assert_eq!(rows[1], serde_json::json!({ "policy": "r\"r,x", "vcpus": 2, "seconds": 1.25 }));
    assert!(ran.file("t.svg").contains("speed"));
}

#[test]
fn errors_say_where_they_are() {
    for (text, line, column, what) in [
        ("let x = 1;\nlet y = ;", 2, 9, ""),
        ("let x = 1;\n  nothing(x);", 2, 3, "nothing"),
        ("\n\nfail(\"that\")", 3, 1, "that"),
        ("let t = table([\"a\"]);\nt.row([1, 2]);", 2, 3, "2 values"),
        ("let t = table([\"a\"]);\nt.csv(\"../x\");", 2, 3, "plain file name"),
        ("let t = table([\"a\"]);\nt.plot(\"x\", #{x: \"a\"});", 2, 3, "needs y"),
        ("sleep(\"2 fortnights\")", 1, 1, ""),
        ("sleep(\"2h\")", 1, 1, "more than an hour"),
        ("fn f() { fail(\"deep\") }\nf();", 2, 1, "deep"),
    ] {
        let (l, c, w) = run_text(text).error();
        assert_eq!((l, c), (line, column), "{text}: {w}");
        assert!(w.contains(what), "{text}: {w}");
    }
}

#[test]
fn a_script_that_does_not_end_is_ended() {
    for text in [
        "loop { }",
        "fn f(n) { f(n + 1) } f(0)",
        "let a = []; loop { a.push(a.len()) }",
        "let s = \"x\"; loop { s += s }",
    ] {
        run_text(text).error();
    }
}
