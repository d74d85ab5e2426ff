//! Figures of `cargo bench`, whose benches print with divan.

use std::path::Path;
use std::process::Command;

/// One figure: the names from the bench's function down to the leaf, and the nanoseconds of one operation.
#[derive(Debug, Clone, PartialEq)]
pub struct Figure {
    /// Bench, type, argument.
    pub path: Vec<String>,
    /// Median of the samples.
    pub ns: f64,
}

/// Runs a package's bench; its figures in the order printed.
pub fn medians(package: &str, bench: &str) -> Result<Vec<Figure>, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["bench", "--quiet", "--locked", "-p", package, "--bench", bench])
        .current_dir(root)
        .output()
        .map_err(|e| format!("cargo: {e}"))?;
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!("cargo bench failed: {}", errors.lines().last().unwrap_or("no message")));
    }
    let figures = parse(&String::from_utf8_lossy(&output.stdout));
    if figures.is_empty() { Err("the benches printed no figures".to_owned()) } else { Ok(figures) }
}

/// Divan prints a tree, each leaf with fastest, slowest, median and mean between bars:
/// `│  ├─ Alone<Fair<Task>>` above `│  │  ├─ 100   23.9 ns │ 98.1 ns │ 24.4 ns │ ...`.
fn parse(tree: &str) -> Vec<Figure> {
    let mut figures = Vec::new();
    let mut path: Vec<&str> = Vec::new();
    for line in tree.lines() {
        let Some(branch) = line.find(['├', '╰']) else { continue };
        let depth = line[..branch].chars().count() / 3;
        let columns: Vec<_> = line[branch..].trim_start_matches(['├', '╰', '─', ' ']).split('│').collect();
        let Some(name) = columns[0].split_whitespace().next() else { continue };
        path.truncate(depth);
        path.push(name);
        if let Some(ns) = columns.get(2).and_then(|median| nanoseconds(median)) {
            figures.push(Figure { path: path.iter().map(|name| (*name).to_owned()).collect(), ns });
        }
    }
    figures
}

fn nanoseconds(text: &str) -> Option<f64> {
    let (value, unit) = text.trim().split_once(' ')?;
    let factor = match unit.trim() {
        "ns" => 1.0,
        "µs" => 1e3,
        "ms" => 1e6,
        "s" => 1e9,
        _ => return None,
    };
    Some(value.parse::<f64>().ok()? * factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_found_in_the_tree() {
        let tree = "queues          fastest │ slowest │ median │ mean │ samples │ iters\n\
            ├─ turn                 │         │        │      │         │\n\
            │  ├─ Whole             │         │        │      │         │\n\
            │  │  ├─ 1      20.1 ns │ 1 ms    │ 1.5 µs │ 3 ns │ 100     │ 100\n\
            │  │  ╰─ 100    20.1 ns │ 1 ms    │ 60 ns  │ 3 ns │ 100     │ 100\n\
            │  ╰─ Alone<Fair<Task>> │         │        │      │         │\n\
            │     ╰─ 100    20.1 ns │ 1 ms    │ 40 ns  │ 3 ns │ 100     │ 100\n\
            ╰─ wake_placement       │         │        │      │         │\n\
            \u{20}  ╰─ 4      5 ns    │ 6 ns    │ 5.5 ns │ 5 ns │ 100     │ 100\n";
        let figures: Vec<_> = parse(tree).into_iter().map(|figure| (figure.path.join(", "), figure.ns)).collect();
        assert_eq!(
            figures,
            [
                ("turn, Whole, 1".to_owned(), 1500.0),
                ("turn, Whole, 100".to_owned(), 60.0),
                ("turn, Alone<Fair<Task>>, 100".to_owned(), 40.0),
                ("wake_placement, 4".to_owned(), 5.5),
            ]
        );
    }
}
