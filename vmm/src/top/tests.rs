//! What `top` shows of two looks made by hand, and what keys do to it.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::json;

use super::model::{Look, Model, Then};
use super::view;

/// The guest `seconds` after its start: task 5 uses all of CPU 1, task 6 a quarter of CPU 0, task 7 sleeps.
fn look(seconds: u64) -> Look {
    let ns = seconds * 1_000_000_000;
    let task = |id: u32, name: &str, kind: &str, state: &str, cpu: u32, run: u64| {
        json!({
            "id": id, "name": name, "kind": kind, "state": state, "on_cpu": state == "running", "cpu": cpu, "run_ns": run,
            "process": (kind == "user").then_some(id), "waits_for": (state == "blocked").then_some("sleep"),
            "policy": "other", "priority": 0, "nice": 0, "affinity": "0-1", "wait_ns": 1_500_000, "sleep_ns": ns / 2,
            "voluntary_switches": seconds * u64::from(id), "involuntary_switches": 3, "migrations": 1, "faults": 9,
            "address": "0x100000", "page_table": "0x200000", "saved_rsp": "0xffffff0000004f00", "fs_base": "0x0",
        })
    };
    let vcpu = |index: u32, idle: u64, id: u32, name: &str, kind: &str| {
        json!({
            "index": index, "tid": 4000 + index, "thread": format!("vcpu{index}"), "affinity": "0-1", "host_cpu": index,
            "exits": { "total": 100 * seconds, "by_reason": { "port_out": 100 * seconds } },
            "guest": {
                "index": index, "apic_id": index, "current": id, "nr_running": 1, "idle_ns": idle, "switches": 50 * seconds,
                "syscalls": 1, "faults": 2, "timer_interrupts": 3, "reschedule_ipis": 4,
            },
            "current": { "id": id, "name": name, "kind": kind },
        })
    };
    let tasks = json!({ "time_ns": ns, "torn": false, "left_out": 0, "tasks": [
        task(5, "spin", "user", "running", 1, ns),
        task(6, "ticker", "user", "ready", 0, ns / 4),
        task(7, "sleeper", "user", "blocked", 0, 12_000),
        task(4_194_305, "idle/0", "idle", "running", 0, ns * 3 / 4),
        task(4_194_306, "idle/1", "idle", "ready", 1, 0),
    ] });
    let vcpus = json!({ "time_ns": ns, "vcpus": [
        vcpu(0, ns * 3 / 4, 4_194_305, "idle/0", "idle"),
        vcpu(1, 0, 5, "spin", "user"),
    ] });
    Look { vcpus: serde_json::from_value(vcpus).unwrap(), tasks: serde_json::from_value(tasks).unwrap() }
}

fn model() -> Model {
    let mut model = Model::new(look(2));
    model.update(look(4));
    model
}

fn press(model: &mut Model, keys: &str) -> Then {
    keys.chars().fold(Then::Stay, |_, c| model.on_key(KeyEvent::from(KeyCode::Char(c))))
}

fn screen(model: &Model, columns: u16, rows: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(columns, rows)).unwrap();
    terminal.draw(|frame| view::draw(frame, model)).unwrap();
    terminal.backend().to_string()
}

/// Names of the tasks shown, in order.
fn names(model: &Model) -> Vec<&str> {
    model.tasks().iter().map(|row| row.task.name.as_str()).collect()
}

#[test]
fn the_screen() {
    let screen = screen(&model(), 120, 14);
    for part in
        ["up 4.00s, 2 vCPU(s) 125% busy of 200%, 5 tasks, 2 active", "BUSY%", "5 spin", "blocked: sleep", "by CPU%"]
    {
        assert!(screen.contains(part), "{part} is missing in\n{screen}");
    }
}

#[test]
fn a_narrow_screen_and_the_help() {
    let mut model = model();
    press(&mut model, "h");
    let screen = screen(&model, 80, 16);
    assert!(screen.contains(" keys ") && screen.contains("Ctrl-C   leave"), "{screen}");
    press(&mut model, "x");
    assert!(!model.help());
}

#[test]
fn plain_text() {
    let text = view::plain(&model());
    assert_eq!(text.lines().count(), 12, "{text}");
    let spin =
        text.lines().find(|line| line.ends_with("spin") && line.contains("running")).expect("a line for the task");
    let cells: Vec<_> = spin.split_whitespace().collect();
    assert_eq!(
        cells,
        ["5", "100.0", "1", "running", "4.00s", "1.5ms", "2.00s", "23", "1", "other", "0", "0", "user", "spin"]
    );
}

#[test]
fn every_size_can_be_drawn() {
    let mut model = model();
    for help in ["", "h"] {
        press(&mut model, help);
        for (columns, rows) in [(1, 1), (2, 40), (300, 2), (20, 5), (500, 200)] {
            screen(&model, columns, rows);
        }
    }
}

#[test]
fn rates_are_those_between_the_looks() {
    let model = model();
    let vcpus = model.vcpus();
    assert_eq!(vcpus[0].busy.map(f64::round), Some(25.0));
    assert_eq!(vcpus[1].busy.map(f64::round), Some(100.0));
    assert_eq!((vcpus[0].exits.round(), vcpus[0].switches.round()), (100.0, 50.0));
    let shares: Vec<_> = model.tasks().iter().map(|row| (row.task.id, row.share.round())).collect();
    assert_eq!(shares, [(5, 100.0), (4_194_305, 75.0), (6, 25.0), (7, 0.0), (4_194_306, 0.0)]);
}

#[test]
fn one_look_has_no_rates() {
    let model = Model::new(look(3));
    assert!(model.tasks().iter().all(|row| row.share == 0.0));
    assert!(model.vcpus().iter().all(|row| row.exits == 0.0));
}

#[test]
fn a_clock_that_runs_backwards_does_no_harm() {
    let mut model = model();
    model.update(look(1));
    assert!(model.tasks().iter().all(|row| row.share == 0.0));
}

#[test]
fn tasks_are_ordered_as_asked() {
    let mut model = model();
    press(&mut model, "n");
    assert_eq!(names(&model), ["idle/0", "idle/1", "sleeper", "spin", "ticker"]);
    press(&mut model, "R");
    assert_eq!(names(&model)[0], "ticker");
    press(&mut model, "RsI");
    assert_eq!(names(&model), ["spin", "ticker", "sleeper"]);
    press(&mut model, "w");
    assert_eq!(names(&model), ["sleeper", "ticker", "spin"]);
}

#[test]
fn a_filter_is_typed_kept_and_dropped() {
    let mut model = model();
    press(&mut model, "/sq");
    assert!(names(&model).is_empty(), "q is text here, not the way out");
    model.on_key(KeyEvent::from(KeyCode::Backspace));
    model.on_key(KeyEvent::from(KeyCode::Backspace));
    press(&mut model, "blocked");
    model.on_key(KeyEvent::from(KeyCode::Enter));
    assert_eq!(names(&model), ["sleeper"]);
    press(&mut model, "/");
    model.on_key(KeyEvent::from(KeyCode::Esc));
    assert_eq!(names(&model).len(), 5);
}

#[test]
fn scrolling_stops_at_the_ends() {
    let mut model = model();
    press(&mut model, "kk");
    assert_eq!(model.first_row(5, 3), 0);
    press(&mut model, "jjjjjjjj");
    assert_eq!(model.first_row(5, 3), 2);
    assert_eq!(model.first_row(5, 30), 0);
}

#[test]
fn every_way_out() {
    assert_eq!(press(&mut model(), "q"), Then::Leave);
    assert_eq!(model().on_key(KeyEvent::from(KeyCode::Esc)), Then::Leave);
    let mut typing = model();
    press(&mut typing, "/");
    assert_eq!(typing.on_key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Then::Leave);
}
