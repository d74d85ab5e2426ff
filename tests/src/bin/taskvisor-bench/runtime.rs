//! The async runtime: in the guest in instructions beside a thread that does the same, on the host in nanoseconds beside other executors.

use std::path::Path;

use taskvisor_tests::guest::program;
use taskvisor_tests::qemu::Image;
use taskvisor_tests::{prereq, selftest};

use crate::counts::{TSC_KNOWN, icount};
use crate::divan::{Figure, medians};
use crate::table::{Row, Table};

/// The in-guest test that prints the figures; run by nothing else.
const FIGURES: &str = "test=soak_figures_of_futures_beside_threads";
/// How a line of it begins: `figure: WHAT: future N, thread N`.
const FIGURE: &str = "figure: ";
/// The name that the benches on the host give our own executor.
const OURS: &str = "Ours";
/// Operations of one sample there.
const BATCH: f64 = 1000.0;

/// All rows.
pub fn measure(table: &mut Table) {
    table.section("Futures in the guest, beside kernel threads, instructions under qemu -accel tcg -icount shift=0");
    let Some(qemu) = prereq::qemu() else {
        table.push(Row::missing("all counts", "no QEMU"));
        return;
    };
    match guest(&qemu) {
        Ok(rows) => rows.into_iter().for_each(|row| table.push(row)),
        Err(why) => table.push(Row::missing("all counts", why)),
    }
    table.section("The runtime on the host, medians of `cargo bench -p vcpu-sched-bench-runtime`");
    match medians("vcpu-sched-bench-runtime", "runtime") {
        Ok(figures) => host(&figures).into_iter().for_each(|row| table.push(row)),
        Err(why) => table.push(Row::missing("all", why)),
    }
}

fn guest(qemu: &Path) -> Result<Vec<Row>, String> {
    let kernel = selftest::kernel().to_str().ok_or("the kernel's path is not UTF-8")?;
    let cmdline = format!("{} {FIGURES}", TSC_KNOWN[1]);
    let flags = ["--kernel", kernel, TSC_KNOWN[0], &cmdline];
    let image = Image::new(&flags, &program("musl/hello"), &[] as &[&str]);
    let outcome = icount(image.qemu(qemu, "tcg", "microvm", 1)).run();
    let rows = told(&outcome.text());
    if rows.is_empty() {
        return Err(format!("the kernel printed no figures, exit code {}; again: {}", outcome.code(), outcome.typed));
    }
    Ok(rows)
}

fn told(log: &str) -> Vec<Row> {
    let row = |line: &str| {
        let (_, figure) = line.split_once(FIGURE)?;
        let (what, figures) = figure.split_once(": future ")?;
        let (future, thread) = figures.split_once(", thread ")?;
        let thread = thread.trim().parse().ok()?;
        Some(Row::new(what, future.parse().ok()?, "instructions").beside("thread", Some(thread)))
    };
    log.lines().filter_map(row).collect()
}

/// A row for each of ours, beside the quickest of the others that do the same.
fn host(figures: &[Figure]) -> Vec<Row> {
    let ours = figures.iter().filter(|figure| figure.path.get(1).is_some_and(|who| who == OURS));
    let row = |ours: &Figure| {
        let others: Vec<_> = figures.iter().filter(|other| other.path[0] == ours.path[0] && *other != ours).collect();
        let told: Vec<_> =
            others.iter().map(|other| format!("{} {:.1}", other.path[1..].join(" "), other.ns / BATCH)).collect();
        let best = others.iter().map(|other| other.ns / BATCH).min_by(f64::total_cmp);
        Row::new(ours.path[0].clone(), ours.ns / BATCH, "ns").beside("best other", best).note(told.join(", "))
    };
    ours.map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_lines_become_rows() {
        let log = "[0.1] something else\n[0.2] figure: yield, two in turn: future 182, thread 336\n";
        let rows = told(log);
        assert_eq!(rows.len(), 1);
        assert_eq!((rows[0].name.as_str(), rows[0].value), ("yield, two in turn", Some(182.0)));
        assert_eq!(rows[0].counterpart, Some(("thread", 336.0)));
    }

    #[test]
    fn ours_stands_beside_the_quickest_of_the_others() {
        let figure = |bench: &str, who: &str, ns| Figure { path: vec![bench.to_owned(), who.to_owned()], ns };
        let figures = [figure("hops", "Ours", 57e3), figure("hops", "Tokio", 98e3), figure("hops", "Embassy", 49e3)];
        let rows = host(&figures);
        assert_eq!(rows.len(), 1);
        assert_eq!(rows[0].value, Some(57.0));
        assert_eq!(rows[0].counterpart, Some(("best other", 49.0)));
        assert_eq!(rows[0].note, "Tokio 98.0, Embassy 49.0");
    }
}
