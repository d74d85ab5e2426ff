//! The page, opened in headless Chromium. What is missing fails the test; ALLOW_MISSING=1 leaves it out, and says so.

use std::fs;
use std::io::Write;
use std::process::Command;

use vcpu_sched::events::{Kind, Record, flag};
use vcpu_sched::ids::{CpuId, TaskId};
use vcpu_sched::task::state::State;

use super::report;
use super::tests::{FAIR, complete, cpus, idle, name, side, write};

/// Put before everything else in the page: keeps what goes wrong.
const LISTEN: &str = "<script>window.wrong = []; addEventListener('error', (e) => wrong.push(e.message)); \
    console.error = (...text) => wrong.push(text.join(' '));</script>";

fn browser() -> Option<&'static str> {
    let found = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(|name| {
        std::env::var_os("PATH").is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(name).is_file()))
    });
    if found.is_none() {
        let missing = "a Chromium is missing (Debian: chromium)";
        let allowed = std::env::var("ALLOW_MISSING").is_ok_and(|value| value == "1");
        assert!(allowed, "{missing}: `make setup` installs it or tells how; ALLOW_MISSING=1 leaves out what needs it");
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        // Past the test runner's capture, as the whole-system tests do it.
        let _ = writeln!(std::io::stderr(), "left out: {test}: {missing}");
    }
    found
}

/// Opens the page of a trace, and runs a script in it once it has been drawn. The script's value is a text that is returned, or
/// nothing where there is no browser.
fn look(records: [Vec<Record>; 2], script: &str) -> Option<String> {
    let browser = browser()?;
    let dir = tempfile::tempdir().unwrap();
    let page = dir.path().join("page.html");
    report(&write(&dir, "t.pftrace", records), Some(&page), complete()).unwrap();
    let html = fs::read_to_string(&page).unwrap();
    let look = format!(
        "<script>setTimeout(() => document.body.replaceChildren('LOOKED ' + (() => {{ {script} }})()), 300);</script>"
    );
    let html = html.replacen("<head>", &format!("<head>{LISTEN}"), 1).replacen("</body>", &format!("{look}</body>"), 1);
    fs::write(&page, html).unwrap();
    let out = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,800", "--virtual-time-budget=3000"])
        .arg(format!("--user-data-dir={}", dir.path().join("profile").display()))
        .args(["--dump-dom", &format!("file://{}", page.display())])
        .output()
        .unwrap();
    let dom = String::from_utf8_lossy(&out.stdout);
    let told = dom.rsplit_once("<body>LOOKED ").unwrap_or_else(|| panic!("the page did not run: {out:?}")).1;
    Some(told.split('<').next().unwrap_or_default().trim().to_owned())
}

#[test]
fn the_page_draws_in_a_browser() {
    let told = look(
        cpus(),
        "for (const name of Object.keys(panels)) show(name); \
         for (const key of ['w', 'a', 'd', 's', 't', '0']) dispatchEvent(new KeyboardEvent('keydown', { key })); \
         selectTask(0, byTask.order[0]); step(1); draw(); \
         const g = canvas.getContext('2d'), data = g.getImageData(0, 0, canvas.width, canvas.height).data, seen = new Set(); \
         for (let i = 0; i < data.length; i += 4) seen.add(data[i] * 65536 + data[i + 1] * 256 + data[i + 2]); \
         return `colours=${seen.size} slices=${slices.total} wrong=[${wrong.join(';')}]`;",
    );
    let Some(told) = told else { return };
    assert!(told.ends_with("slices=7 wrong=[]"), "{told}");
    let colours: u32 = told.split(['=', ' ']).nth(1).unwrap().parse().unwrap();
    assert!(colours > 8, "hardly anything is drawn: {told}");
}

/// Two CPUs, on each of which two tasks take turns that are a few microseconds long.
fn turns(count: u64) -> [Vec<Record>; 2] {
    [0, 1].map(|cpu| {
        let tasks = [10 + 2 * cpu, 11 + 2 * cpu];
        let ready = State::Ready as u8;
        let mut records = Vec::new();
        for (task, label) in tasks.into_iter().zip(["left", "right"]) {
            let new = Record::queued(Kind::New, 10, TaskId(task), 1, 0, idle(cpu).task, CpuId(cpu), FAIR, 1);
            records.extend([name(5, task, label), new]);
        }
        let mut seq = [2_u16, 2];
        let mut time = 1_000;
        records.push(Record::switch(time, idle(cpu), side(tasks[0], 2, FAIR), ready, 1));
        for turn in 0..count {
            // Lengths without a pattern.
            time += 1_000 + (turn.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 50);
            let (here, there) = ((turn % 2) as usize, 1 - (turn % 2) as usize);
            seq[here] = seq[here].wrapping_add(1);
            if turn > 0 {
                seq[there] = seq[there].wrapping_add(1);
            }
            let (prev, next) = (side(tasks[here], seq[here], FAIR), side(tasks[there], seq[there], FAIR));
            records.push(Record::switch(time, prev, next, ready | flag::PREEMPTED, 1));
        }
        records
    })
}

/// From afar a frame costs by its pixels, and every level holds all the time there is; from near each slice is there.
#[test]
fn many_slices_are_drawn_by_the_pixel() {
    const TURNS: u64 = 40_000;
    let told = look(
        turns(TURNS),
        "let painted = 0; \
         for (const name of ['rect', 'column']) { const paint = raster[name]; raster[name] = (...all) => { painted++; paint(...all); }; } \
         setRange(0, END); draw(); \
         const lanes = [...cpuLanes, ...taskLanes.values()], far = painted <= 2 * lanes.length * canvas.width; \
         const sum = (lane) => { let ran = 0; for (let i = lane.lo; i < lane.hi; i++) ran += slices.ran[lane.at(i)]; return ran; }; \
         const exact = (lane) => lane.levels.every((level) => Math.abs(level.ran.reduce((a, b) => a + b, 0) / sum(lane) - 1) < 1e-3); \
         const levels = lanes.length === 6 && lanes.every(exact); \
         painted = 0; setRange(END / 2, END / 2 + 300e3); draw(); \
         let seen = 0; for (let k = 0; k < slices.total; k++) seen += slices.end[k] > view.from && slices.start[k] < view.to ? 2 : 0; \
         const near = seen > 20 && painted >= seen; \
         return `far=${far} levels=${levels} near=${near} slices=${slices.total} wrong=[${wrong.join(';')}]`;",
    );
    let Some(told) = told else { return };
    assert_eq!(told, format!("far=true levels=true near=true slices={} wrong=[]", 2 * (TURNS + 1)));
}
