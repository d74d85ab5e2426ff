//! Instructions of the kernel, counted under QEMU's `tcg` with one instruction per virtual nanosecond.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use taskvisor_tests::guest::program;
use taskvisor_tests::qemu::Image;
use taskvisor_tests::{Run, TempDir, prereq};
use vcpu_sched::runqueue::PolicyKind;

use crate::origin;
use crate::symbols::Symbols;
use crate::table::{Row, Table};

/// Budgets of the design, in instructions.
const BOOT: f64 = 300_000.0;
const EACH_FURTHER_CPU: f64 = 60_000.0;
const NULL_CALL: f64 = 150.0;
/// Without the two halves of a call that are around it.
const SWITCH: f64 = 350.0;
/// From the wake-up to the end of the switch to the woken task, all of it in the kernel.
const WAKE: f64 = 500.0;
const RECORD: f64 = 60.0;
const MINOR_FAULT: f64 = 1_500.0;

/// QEMU's `tcg` has no CPUID leaf for the TSC's frequency, which Taskvisor gives: told here, so that the kernel's measuring of
/// it by a timer (two million turns of a loop) doesn't count as boot. By `-icount shift=0` it is one instruction a nanosecond.
pub const TSC_KNOWN: [&str; 2] = ["--cmdline", "tsc_khz=1000000"];

/// All counts.
pub fn measure(table: &mut Table) {
    table.section("Instructions, counted under qemu -accel tcg -icount shift=0");
    let Some(qemu) = prereq::qemu() else {
        table.push(Row::missing("all counts", "no QEMU"));
        return;
    };
    boot(table, &qemu);
    operations(table, &qemu);
}

/// From the kernel's entry to the first user instruction, for several numbers of CPUs.
fn boot(table: &mut Table, qemu: &Path) {
    let dir = TempDir::new();
    let plugin = match build_plugin(&dir) {
        Ok(plugin) => plugin,
        Err(why) => return table.push(Row::missing("kernel entry to first user instruction", why)),
    };
    let image = Image::new(&TSC_KNOWN, &program("musl/hello"), &["0"]);
    let symbols = Symbols::read(&image.file("kernel.elf"));
    let mut one_cpu = None;
    for cpus in [1, 2, 4, 8] {
        let name = format!("kernel entry to first user instruction, {cpus} CPU(s)");
        let counted = match count_boot(qemu, &image, cpus, &plugin, symbols.entry, &dir) {
            Ok(counted) => counted,
            Err(why) => {
                table.push(Row::missing(name, why));
                continue;
            }
        };
        let total = counted.per_cpu.values().sum::<u64>() as f64;
        if cpus == 1 {
            one_cpu = Some(total);
            table.push(noted(Row::new(name, total, "instructions").budget(BOOT), &counted, &symbols));
        } else {
            let each = one_cpu.map(|one| (total - one) / f64::from(cpus - 1));
            table.push(Row::new(name, total, "instructions"));
            if let Some(each) = each {
                let row =
                    Row::new(format!("  each further of {cpus} CPUs"), each, "instructions").budget(EACH_FURTHER_CPU);
                table.push(noted(row, &counted, &symbols));
            }
        }
    }
}

/// A missed budget says where the instructions go.
fn noted(row: Row, counted: &Boot, symbols: &Symbols) -> Row {
    if row.over() { row.note(by_function(&counted.places, symbols)) } else { row }
}

/// The functions that took most, and how many instructions each did.
fn by_function(places: &[(u64, u64)], symbols: &Symbols) -> String {
    let mut by_function: BTreeMap<String, u64> = BTreeMap::new();
    for (address, count) in places {
        *by_function.entry(symbols.name(*address)).or_default() += count;
    }
    let mut sorted: Vec<_> = by_function.into_iter().collect();
    sorted.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let note: Vec<_> = sorted.iter().take(8).map(|(name, count)| format!("{name} {count}")).collect();
    note.join(", ")
}

/// What the plugin wrote.
struct Boot {
    per_cpu: BTreeMap<u32, u64>,
    places: Vec<(u64, u64)>,
}

fn build_plugin(dir: &TempDir) -> Result<PathBuf, String> {
    plugin(dir, "icount")
}

/// Builds one of QEMU's plugins in tests/bench.
pub fn plugin(dir: &TempDir, name: &str) -> Result<PathBuf, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("bench/{name}.c"));
    let plugin = dir.path().join(format!("{name}.so"));
    let status = Command::new("gcc").args(["-O2", "-shared", "-fPIC", "-o"]).arg(&plugin).arg(&source).status();
    match status {
        Ok(status) if status.success() => Ok(plugin),
        _ => Err("gcc could not build QEMU's plugin".into()),
    }
}

fn count_boot(qemu: &Path, image: &Image, cpus: u32, plugin: &Path, entry: u64, dir: &TempDir) -> Result<Boot, String> {
    let out = dir.path().join("counts");
    let _ = fs::remove_file(&out);
    let outcome = icount(image.qemu(qemu, "tcg", "microvm", cpus))
        .arg("-plugin")
        .arg(format!("{},entry={entry:#x},out={}", plugin.display(), out.display()))
        .run();
    let text = fs::read_to_string(&out).map_err(|_| format!("QEMU gave no counts, exit code {}", outcome.code()))?;
    let mut boot = Boot { per_cpu: BTreeMap::new(), places: Vec::new() };
    for line in text.lines() {
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["window", "2"] => {}
            ["window", _] => return Err(format!("no user instruction was reached, exit code {}", outcome.code())),
            ["cpu", cpu, count] => {
                boot.per_cpu.insert(cpu.parse().unwrap_or(0), count.parse().unwrap_or(0));
            }
            ["pc", address, count] => boot.places.push(place(address, count)),
            _ => {}
        }
    }
    Ok(boot)
}

/// A "pc" line's address and count.
fn place(address: &str, count: &str) -> (u64, u64) {
    let address = u64::from_str_radix(address.trim_start_matches("0x"), 16).unwrap_or(0);
    (address, count.parse().unwrap_or(0))
}

/// One instruction is one virtual nanosecond.
pub fn icount(run: Run) -> Run {
    run.args(["-cpu", "max", "-icount", "shift=0,sleep=off"]).limit(Duration::from_secs(60))
}

/// Costs of single operations, by differences of the TSC in the program.
fn operations(table: &mut Table, qemu: &Path) {
    let ubench = |what: &str, count: &str| ubench(qemu, "fair", 1, what, count);
    let get = |figures: &BTreeMap<String, f64>, name: &str| figures.get(name).copied().unwrap_or(f64::NAN);

    let null_call = ubench("syscall", "1000").map(|figures| get(&figures, "syscall") - get(&figures, "empty"));
    push(table, "null system call (getppid)", null_call.clone(), NULL_CALL, "in the kernel");
    match null_call {
        Ok(call) => PolicyKind::ALL.iter().for_each(|policy| switches(table, qemu, policy.name(), call)),
        Err(why) => table.push(Row::missing("switches and wakes", why)),
    }
    let fault = ubench("fault", "512").map(|figures| get(&figures, "minor-fault"));
    push(table, "minor page fault (first touch of a page)", fault, MINOR_FAULT, "the touching loop included");
    if let Ok(figures) = ubench("pipe", "200") {
        table.push(Row::new("pipe round trip between two threads", get(&figures, "pipe-round-trip"), "instructions"));
    }
    spans(table, qemu);
    records(table, qemu);
}

/// Two paths to another task, from within: which source files their instructions come from.
fn spans(table: &mut Table, qemu: &Path) {
    let wake = Span {
        name: "wake to running, same CPU, sched::place::place to the end of the switch",
        program: ["wake", "50"],
        from: "sched::place::place",
        budget: WAKE,
        note: "without the futex call around it",
    };
    let switch = Span {
        name: "voluntary switch, the call's entry to the end of the switch",
        program: ["yield", "50"],
        from: "syscall_entry",
        budget: SWITCH,
        note: "the way to the kernel included",
    };
    for span in [wake, switch] {
        table.push(match span.count(qemu) {
            Ok((total, origins)) => {
                Row::new(span.name, total, "instructions").budget(span.budget).note(format!("{}; {origins}", span.note))
            }
            Err(why) => Row::missing(span.name, why),
        });
    }
}

/// A path through the kernel that ends with a switch.
struct Span {
    name: &'static str,
    /// What ubench does.
    program: [&'static str; 2],
    /// The function at whose last call before the switch it begins.
    from: &'static str,
    budget: f64,
    note: &'static str,
}

impl Span {
    /// The least of all times, and where its instructions come from.
    fn count(&self, qemu: &Path) -> Result<(f64, String), String> {
        let dir = TempDir::new();
        let plugin = build_plugin(&dir)?;
        let image = Image::new(&TSC_KNOWN, &program("musl/ubench"), &self.program);
        let symbols = Symbols::read(&image.file("kernel.elf"));
        let address = |name: &str| symbols.address(name).ok_or_else(|| format!("the kernel has no symbol {name}"));
        let (from, to) = (address(self.from)?, address("switch_task_done")?);
        let out = dir.path().join("span");
        let plugin = format!("{},from={from:#x},to={to:#x},out={}", plugin.display(), out.display());
        let outcome = icount(image.qemu(qemu, "tcg", "microvm", 1)).arg("-plugin").arg(plugin).run();
        let text = fs::read_to_string(&out).map_err(|_| format!("no counts, exit code {}", outcome.code()))?;
        let (mut total, mut places) = (None, Vec::new());
        for line in text.lines() {
            match line.split(' ').collect::<Vec<_>>()[..] {
                ["span", count] => total = count.parse().ok(),
                ["pc", address, count] => places.push(place(address, count)),
                _ => {}
            }
        }
        let total = total.ok_or("never reached")?;
        Ok((total, origin::by_file(&image.file("kernel.elf"), &places, &symbols)?))
    }
}

/// What a trace record costs: the same with and without tracing, calls being counted in both, so that the way of a call that
/// somebody looks at is in neither. That way is a row of its own.
fn records(table: &mut Table, qemu: &Path) {
    let counted = ["--cmdline", "tsc_khz=1000000 stats=1"];
    let traced = ["--cmdline", "tsc_khz=1000000 stats=1 trace=ring"];
    let figure = |flags: &[&str], what: &str, key: &str| {
        let figures = ubench_with(qemu, flags, 1, what, "200")?;
        figures.get(key).copied().ok_or_else(|| format!("no figure {key}"))
    };
    let more = |what: &str, key: &str| Ok::<_, String>(figure(&traced, what, key)? - figure(&counted, what, key)?);
    // A call leaves two records; a pair of yields four, and two of a switch.
    let call = more("syscall", "syscall").map(|both| both / 2.0);
    let switch = more("yield", "yield-pair").and_then(|all| Ok(all / 2.0 - 2.0 * call.clone()?));
    let watched =
        || Ok::<_, String>(figure(&counted, "syscall", "syscall")? - figure(&TSC_KNOWN, "syscall", "syscall")?);
    push(table, "trace record of a system call", call, RECORD, "the test whether tracing is on included");
    push(table, "trace record of a switch", switch, RECORD, "both tasks' class and number included");
    let name = "a system call that is counted or traced, besides its records";
    table.push(match watched() {
        Ok(value) => Row::new(name, value, "instructions"),
        Err(why) => Row::missing(name, why),
    });
}

/// What ubench prints: instructions by name.
fn ubench(qemu: &Path, policy: &str, cpus: u32, what: &str, count: &str) -> Result<BTreeMap<String, f64>, String> {
    let flags = [TSC_KNOWN.as_slice(), &["--policy", policy]].concat();
    ubench_with(qemu, &flags, cpus, what, count)
}

fn ubench_with(
    qemu: &Path,
    flags: &[&str],
    cpus: u32,
    what: &str,
    count: &str,
) -> Result<BTreeMap<String, f64>, String> {
    let image = Image::new(flags, &program("musl/ubench"), &[what, count]);
    let outcome = icount(image.qemu(qemu, "tcg", "microvm", cpus)).run();
    let figures: BTreeMap<_, _> = outcome
        .text()
        .lines()
        .filter_map(|line| {
            let words: Vec<_> = line.split_whitespace().collect();
            let [name, _, _, ticks] = words[..] else { return None };
            Some((name.to_owned(), ticks.parse().ok()?))
        })
        .collect();
    if figures.is_empty() {
        Err(format!("ubench {what} gave no figure, exit code {}", outcome.code()))
    } else {
        Ok(figures)
    }
}

/// What changes with the policy. `call`: a null system call, which is taken off.
fn switches(table: &mut Table, qemu: &Path, policy: &str, call: f64) {
    let fair = policy == PolicyKind::Fair.name();
    let figures = ubench(qemu, policy, 1, "switch", "200");
    let remote = ubench(qemu, policy, 2, "remote", "20");
    // The switch alone: half of what a pair of yields costs, without the call. A wake and what follows: without one call,
    // half of which is the waker's and half the woken one's.
    let rows = [
        ("voluntary switch (sched_yield of two threads)", &figures, "yield-pair", 0.5, call, fair.then_some(SWITCH)),
        ("futex wake, wait, switch to the woken", &figures, "wake-pair", 0.5, 2.0 * call, None),
        ("futex call to the woken program's next instruction, same CPU", &figures, "wake-preempts", 1.0, call, None),
        ("tick to the next task's first instruction", &figures, "preempt", 1.0, 0.0, None),
        ("wake to running, other idle CPU", &remote, "wake-remote", 1.0, call, None),
    ];
    for (name, figures, key, share, call, budget) in rows {
        let name = format!("{policy}: {name}");
        table.push(match figures {
            Ok(figures) => match (figures.get(key), budget) {
                (Some(value), Some(budget)) => Row::new(name, value * share - call, "instructions").budget(budget),
                (Some(value), None) => Row::new(name, value * share - call, "instructions"),
                (None, _) => Row::missing(name, "ubench ended before"),
            },
            Err(why) => Row::missing(name, why.clone()),
        });
    }
}

fn push(table: &mut Table, name: &str, figure: Result<f64, String>, budget: f64, note: &str) {
    table.push(match figure {
        Ok(value) => Row::new(name, value, "instructions").budget(budget).note(note),
        Err(why) => Row::missing(name, why),
    });
}
