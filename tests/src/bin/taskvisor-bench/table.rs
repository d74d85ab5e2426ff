//! The rows and their two forms.

use std::fmt::Write;

/// One figure with what it is compared with.
#[derive(Debug, Clone)]
pub struct Row {
    /// What was measured.
    pub name: String,
    /// The figure; none when it could not be measured.
    pub value: Option<f64>,
    /// Its unit.
    pub unit: &'static str,
    /// What it should not exceed.
    pub budget: Option<f64>,
    /// What it should exceed.
    pub aim: Option<f64>,
    /// The same on the counterpart, and who that is.
    pub counterpart: Option<(&'static str, f64)>,
    /// Whatever a reader must know: where a missed budget goes, why a figure is missing.
    pub note: String,
}

impl Row {
    /// A figure by itself.
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { value: Some(value), unit, ..Self::missing(name, "") }
    }

    /// A figure that could not be had.
    pub fn missing(name: impl Into<String>, why: impl Into<String>) -> Self {
        Self { name: name.into(), value: None, unit: "", budget: None, aim: None, counterpart: None, note: why.into() }
    }

    /// Adds the budget.
    pub fn budget(mut self, budget: f64) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Adds the aim.
    pub fn aim(mut self, aim: f64) -> Self {
        self.aim = Some(aim);
        self
    }

    /// Adds the counterpart's figure, if it has one.
    pub fn beside(mut self, who: &'static str, value: Option<f64>) -> Self {
        self.counterpart = value.map(|value| (who, value));
        self
    }

    /// Adds a note.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// Whether the figure is over its budget.
    pub fn over(&self) -> bool {
        matches!((self.value, self.budget), (Some(value), Some(budget)) if value > budget)
    }

    /// Whether the figure falls short of its aim.
    pub fn short(&self) -> bool {
        matches!((self.value, self.aim), (Some(value), Some(aim)) if value <= aim)
    }
}

/// All rows, by section.
#[derive(Debug, Default)]
pub struct Table {
    sections: Vec<(&'static str, Vec<Row>)>,
}

impl Table {
    /// Begins a section.
    pub fn section(&mut self, title: &'static str) {
        self.sections.push((title, Vec::new()));
    }

    /// Adds a row to the current section.
    pub fn push(&mut self, row: Row) {
        if let Some((_, rows)) = self.sections.last_mut() {
            rows.push(row);
        }
    }

    /// For people.
    pub fn render(&self) -> String {
        let mut out = String::new();
        for (title, rows) in &self.sections {
            let _ = writeln!(out, "\n{title}");
            let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
            for row in rows {
                let value = row.value.map_or("-".into(), number);
                let _ = write!(out, "  {:width$}  {value:>10} {:<13}", row.name, row.unit);
                if let Some(budget) = row.budget {
                    let verdict = if row.over() { "OVER" } else { "ok" };
                    let _ = write!(out, "  budget {:>8} {verdict:<4}", number(budget));
                }
                if let Some(aim) = row.aim {
                    let verdict = if row.short() { "SHORT" } else { "ok" };
                    let _ = write!(out, "  aim    > {:>6} {verdict:<4}", number(aim));
                }
                if let Some((who, value)) = row.counterpart {
                    let _ = write!(out, "  {who}: {}", number(value));
                }
                if !row.note.is_empty() {
                    let _ = write!(out, "  ({})", row.note);
                }
                let trimmed = out.trim_end().len();
                out.truncate(trimmed);
                out.push('\n');
            }
        }
        out
    }

    /// For programs.
    pub fn json(&self) -> String {
        let sections: Vec<_> = self
            .sections
            .iter()
            .map(|(title, rows)| {
                let rows: Vec<_> = rows
                    .iter()
                    .map(|row| {
                        serde_json::json!({
                            "name": row.name,
                            "value": row.value,
                            "unit": row.unit,
                            "budget": row.budget,
                            "aim": row.aim,
                            "counterpart": row.counterpart.map(|(who, value)| serde_json::json!({"who": who, "value": value})),
                            "note": row.note,
                        })
                    })
                    .collect();
                serde_json::json!({"title": title, "rows": rows})
            })
            .collect();
        let mut text = format!("{:#}", serde_json::json!({"version": 1, "sections": sections}));
        text.push('\n');
        text
    }
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 || value.abs() >= 1000.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
