//! The scheduling core on the host, in nanoseconds: the medians of `cargo bench -p vcpu-sched`.

use crate::divan::{Figure, medians};
use crate::table::{Row, Table};

/// What the design asks of putting a task back and picking the next among 100.
const TURN_AT_100: f64 = 50.0;

/// All rows.
pub fn measure(table: &mut Table) {
    table.section("Scheduling core on the host, medians of `cargo bench -p vcpu-sched`");
    match medians("vcpu-sched", "queues") {
        Ok(figures) => figures.into_iter().for_each(|figure| table.push(row(&figure))),
        Err(why) => table.push(Row::missing("all", why)),
    }
}

fn row(Figure { path, ns }: &Figure) -> Row {
    // `enqueue_x16`: sixteen of them in a row.
    let (what, many) = path[0].split_once("_x16").map_or((path[0].as_str(), 1.0), |(what, _)| (what, 16.0));
    let names: Vec<_> = std::iter::once(what).chain(path[1..].iter().map(String::as_str)).collect();
    let row = Row::new(names.join(", "), ns / many, "ns");
    let budgeted = path.len() == 3 && path[0] == "turn" && path[1].contains("Fair") && path[2] == "100";
    if budgeted { row.budget(TURN_AT_100) } else { row }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(path: [&str; 3], ns: f64) -> (String, Option<f64>, bool) {
        let row = row(&Figure { path: path.map(str::to_owned).to_vec(), ns });
        (row.name.clone(), row.value, row.over())
    }

    #[test]
    fn a_row_is_of_one_operation_and_the_turn_has_a_budget() {
        assert_eq!(told(["enqueue_x16", "Whole", "1"], 160.0), ("enqueue, Whole, 1".to_owned(), Some(10.0), false));
        assert!(told(["turn", "Alone<Fair<Task>>", "100"], 60.0).2);
        assert!(!told(["turn", "Whole", "100"], 60.0).2);
    }
}
