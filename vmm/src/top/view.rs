//! How [`Model`] looks: on a terminal, and as plain text for `--once`.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Style, Stylize};
use ratatui::text::Line;
use ratatui::widgets::{Block, Cell, Clear, Paragraph, Row, Table};

use super::model::{self, HELP, Model, VcpuRow};
use crate::control::ctl::{or_dash, state, table, time};
use crate::guestview::TaskState;

/// Heads of the vCPU table; `>`: numbers.
const VCPU_HEAD: [&str; 8] = [">VCPU", ">BUSY%", ">EXITS/S", ">SWITCHES/S", ">READY", ">ON", ">TID", "TASK"];
/// Heads of the task table.
const TASK_HEAD: [&str; 14] = [
    ">ID",
    ">CPU%",
    ">CPU",
    "STATE",
    ">RUN",
    ">WAIT",
    ">SLEEP",
    ">SWITCHES",
    ">MOVED",
    "POLICY",
    ">PRIO",
    ">NICE",
    "KIND",
    "NAME",
];
/// Lines of the vCPU table at most; the tasks need room too.
const MAX_VCPU_LINES: u16 = 16;

fn summary(model: &Model) -> String {
    let count = model.vcpus().len();
    let busy: f64 = model.vcpus().iter().filter_map(|row| row.busy).sum();
    format!(
        "taskvisor top - up {}, {count} vCPU(s) {busy:.0}% busy of {}%, {} tasks, {} active",
        time(model.uptime_ns()),
        100 * count,
        model.task_count(),
        model.active_count(),
    )
}

fn vcpu_cells(row: &VcpuRow<'_>) -> Vec<String> {
    let vcpu = row.vcpu;
    vec![
        vcpu.index.to_string(),
        or_dash(row.busy.map(|busy| format!("{busy:.1}"))),
        format!("{:.0}", row.exits),
        format!("{:.0}", row.switches),
        or_dash(vcpu.guest.as_ref().map(|cpu| cpu.nr_running)),
        or_dash(vcpu.host_cpu),
        or_dash(vcpu.tid),
        vcpu.current.as_ref().map_or_else(|| "-".to_owned(), |task| format!("{} {}", task.id, task.name)),
    ]
}

fn task_cells(row: &model::Row<'_>) -> Vec<String> {
    let task = row.task;
    vec![
        task.id.to_string(),
        format!("{:.1}", row.share),
        task.cpu.to_string(),
        state(task),
        time(task.run_ns),
        or_dash(task.wait_ns.map(time)),
        or_dash(task.sleep_ns.map(time)),
        model::switches(task).to_string(),
        task.migrations.to_string(),
        or_dash(task.policy.as_ref()),
        or_dash(task.priority),
        or_dash(task.nice),
        task.kind.clone(),
        task.name.clone(),
    ]
}

/// One snapshot as text.
pub fn plain(model: &Model) -> String {
    let vcpus: Vec<_> = model.vcpus().iter().map(vcpu_cells).collect();
    let tasks: Vec<_> = model.tasks().iter().map(task_cells).collect();
    format!("{}\n\n{}\n{}", summary(model), table(&VCPU_HEAD, &vcpus), table(&TASK_HEAD, &tasks))
}

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, model: &Model) {
    let vcpus = model.vcpus();
    // Its head, its lines, and a blank one.
    let vcpu_height = (vcpus.len() as u16 + 2).min(MAX_VCPU_LINES);
    let [title, upper, lower, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(vcpu_height),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let pause = if model.paused() { "  PAUSED" } else { "" };
    frame.render_widget(Line::from(summary(model) + pause).bold(), title);

    let rows = vcpus.iter().map(|row| {
        let style = if row.busy.is_some_and(|busy| busy >= 90.0) { Style::new().bold() } else { Style::new() };
        (vcpu_cells(row), style)
    });
    draw_table(frame, upper, &VCPU_HEAD, rows.collect());

    let tasks = model.tasks();
    let height = usize::from(lower.height.saturating_sub(1));
    let rows = tasks.iter().skip(model.first_row(tasks.len(), height)).take(height).map(|row| {
        let style = match row.task.state {
            TaskState::Running => Style::new().green(),
            TaskState::Ready => Style::new().yellow(),
            TaskState::Invalid => Style::new().red(),
            TaskState::Blocked | TaskState::New | TaskState::Dead => Style::new(),
        };
        (task_cells(row), style)
    });
    draw_table(frame, lower, &TASK_HEAD, rows.collect());

    frame.render_widget(Line::from(status(model)).dim(), keys);
    if model.help() {
        draw_help(frame);
    }
}

/// The last line: what was chosen, and the keys.
fn status(model: &Model) -> String {
    let (filter, typing) = model.filter();
    if typing {
        return format!("filter: {filter}_   (Enter keeps it, Esc drops it)");
    }
    let (order, reversed) = model.order();
    let filter = if filter.is_empty() { String::new() } else { format!(", only \"{filter}\"") };
    let reversed = if reversed { ", reversed" } else { "" };
    format!("by {}{reversed}{filter}   q leave  space pause  / filter  h help", order.name())
}

fn draw_table(frame: &mut Frame<'_>, area: Rect, head: &[&str], rows: Vec<(Vec<String>, Style)>) {
    let width = |n: usize, column: &str| {
        let cells = rows.iter().filter_map(|(cells, _)| cells.get(n)).map(|cell| cell.chars().count());
        cells.chain([column.trim_start_matches('>').len()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = head.iter().enumerate().map(|(n, column)| width(n, column)).collect();
    let cell = |n: usize, text: &str| match head[n].starts_with('>') {
        true => Cell::from(format!("{text:>width$}", width = widths[n])),
        false => Cell::from(text.to_owned()),
    };
    let titles = head.iter().enumerate().map(|(n, column)| cell(n, column.trim_start_matches('>')));
    let titles = Row::new(titles).style(Style::new().reversed());
    let lines = rows.iter().map(|(cells, style)| {
        Row::new(cells.iter().enumerate().take(head.len()).map(|(n, text)| cell(n, text))).style(*style)
    });
    // The last column takes what is left.
    let mut constraints: Vec<_> = widths.iter().map(|width| Constraint::Length(*width as u16)).collect();
    if let Some(last) = constraints.last_mut() {
        *last = Constraint::Fill(1);
    }
    frame.render_widget(Table::new(lines, constraints).header(titles).column_spacing(2), area);
}

fn draw_help(frame: &mut Frame<'_>) {
    let area = frame.area();
    let wide = HELP.iter().map(|line| line.len()).max().unwrap_or(0) as u16 + 4;
    let (width, height) = (wide.min(area.width), (HELP.len() as u16 + 2).min(area.height));
    let place = Rect::new((area.width - width) / 2, (area.height - height) / 2, width, height);
    frame.render_widget(Clear, place);
    let text: Vec<Line<'_>> = HELP.iter().map(|line| Line::from(format!(" {line}"))).collect();
    frame.render_widget(Paragraph::new(text).block(Block::bordered().title(" keys ")), place);
}
