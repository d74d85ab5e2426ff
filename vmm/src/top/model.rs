//! What `top` shows: two looks at the guest, the rates between them, and what the user chose. No terminal in here.

use std::cmp::Reverse;
use std::collections::HashMap;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::control::api::{Tasks, Vcpu, Vcpus};
use crate::guestview::{Task, TaskState};

/// One look at the guest.
#[derive(Debug, Clone)]
pub struct Look {
    /// Its vCPUs.
    pub vcpus: Vcpus,
    /// Its tasks.
    pub tasks: Tasks,
}

/// What tasks are ordered by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// CPU share, largest first.
    Share,
    /// Number.
    Id,
    /// Name.
    Name,
    /// Run time, longest first.
    Run,
    /// Switches, most first.
    Switches,
    /// State, running first.
    State,
}

impl Order {
    const ALL: [(char, Order, &'static str); 6] = [
        ('c', Order::Share, "CPU%"),
        ('i', Order::Id, "id"),
        ('n', Order::Name, "name"),
        ('r', Order::Run, "run time"),
        ('w', Order::Switches, "switches"),
        ('s', Order::State, "state"),
    ];

    /// What the title says.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, order, _)| *order == self).map_or("", |(_, _, name)| name)
    }
}

/// The keys, for the help.
pub const HELP: [&str; 9] = [
    "q, Esc, Ctrl-C   leave",
    "space            pause, go on",
    "c i n r w s      order by CPU%, id, name, run time, switches, state",
    "R                reverse the order",
    "/                filter by name, number, state or kind; Enter keeps, Esc drops it",
    "I                idle tasks, kernel tasks: show or hide",
    "up, down, j, k   scroll by a line, Page Up and Page Down by a page",
    "h, ?             this help",
    "any key          back",
];

/// What comes after a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Go on.
    Stay,
    /// End.
    Leave,
}

/// A task with its share of a CPU since the look before.
#[derive(Debug, Clone)]
pub struct Row<'a> {
    /// The task.
    pub task: &'a Task,
    /// Percent of one CPU.
    pub share: f64,
}

/// A vCPU with its rates since the look before.
#[derive(Debug, Clone)]
pub struct VcpuRow<'a> {
    /// The vCPU.
    pub vcpu: &'a Vcpu,
    /// Percent of time that it didn't run its idle task; `None`: the guest doesn't tell.
    pub busy: Option<f64>,
    /// Exits in a second.
    pub exits: f64,
    /// Switches in a second.
    pub switches: f64,
}

/// Everything that is shown.
#[derive(Debug)]
pub struct Model {
    now: Look,
    /// Run times of the look before, by task number.
    before: Option<(Look, HashMap<u32, u64>)>,
    order: Order,
    reversed: bool,
    filter: String,
    typing: bool,
    help: bool,
    paused: bool,
    background: bool,
    scroll: usize,
}

impl Model {
    /// After the first look.
    pub fn new(first: Look) -> Self {
        Self {
            now: first,
            before: None,
            order: Order::Share,
            reversed: false,
            filter: String::new(),
            typing: false,
            help: false,
            paused: false,
            background: true,
            scroll: 0,
        }
    }

    /// Another look.
    pub fn update(&mut self, look: Look) {
        let before = std::mem::replace(&mut self.now, look);
        let run = before.tasks.tasks.iter().map(|task| (task.id, task.run_ns)).collect();
        self.before = Some((before, run));
    }

    /// A key was pressed.
    pub fn on_key(&mut self, key: KeyEvent) -> Then {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return Then::Leave;
        }
        if self.typing {
            self.type_filter(key.code);
            return Then::Stay;
        }
        if std::mem::take(&mut self.help) {
            return Then::Stay;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Then::Leave,
            KeyCode::Char('h' | '?') => self.help = true,
            KeyCode::Char(' ') => self.paused = !self.paused,
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char('R') => self.reversed = !self.reversed,
            KeyCode::Char('I') => self.background = !self.background,
            KeyCode::Down | KeyCode::Char('j') => self.scroll += 1,
            KeyCode::Up | KeyCode::Char('k') => self.scroll = self.scroll.saturating_sub(1),
            KeyCode::PageDown => self.scroll += 10,
            KeyCode::PageUp => self.scroll = self.scroll.saturating_sub(10),
            KeyCode::Home => self.scroll = 0,
            KeyCode::Char(c) => {
                if let Some((_, order, _)) = Order::ALL.iter().find(|(key, ..)| *key == c) {
                    self.order = *order;
                }
            }
            _ => {}
        }
        Then::Stay
    }

    fn type_filter(&mut self, key: KeyCode) {
        match key {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(c) => self.filter.push(c),
            _ => {}
        }
    }

    /// Whether the picture stands still.
    pub fn paused(&self) -> bool {
        self.paused
    }

    /// Whether the help is shown.
    pub fn help(&self) -> bool {
        self.help
    }

    /// The filter, and whether it is being typed.
    pub fn filter(&self) -> (&str, bool) {
        (&self.filter, self.typing)
    }

    /// What tasks are ordered by.
    pub fn order(&self) -> (Order, bool) {
        (self.order, self.reversed)
    }

    /// Tasks that the guest has.
    pub fn task_count(&self) -> u64 {
        self.now.tasks.tasks.len() as u64 + self.now.tasks.left_out
    }

    /// How many of them are on a CPU or wait for one, idle tasks not counted.
    pub fn active_count(&self) -> usize {
        let active = |task: &&Task| matches!(task.state, TaskState::Running | TaskState::Ready) && task.kind != "idle";
        self.now.tasks.tasks.iter().filter(active).count()
    }

    /// Time that the guest has run.
    pub fn uptime_ns(&self) -> u64 {
        self.now.tasks.time_ns
    }

    /// vCPUs by number.
    pub fn vcpus(&self) -> Vec<VcpuRow<'_>> {
        let before = self.before.as_ref().map(|(look, _)| &look.vcpus);
        let elapsed = before.map_or(0, |b| self.now.vcpus.time_ns.saturating_sub(b.time_ns)) as f64 / 1e9;
        let rate =
            |now: u64, before: u64| if elapsed > 0.0 { now.saturating_sub(before) as f64 / elapsed } else { 0.0 };
        self.now
            .vcpus
            .vcpus
            .iter()
            .map(|vcpu| {
                let Vcpu { index, exits, guest, .. } = vcpu;
                let old = before.and_then(|b| b.vcpus.iter().find(|old| old.index == *index));
                let old_guest = old.and_then(|old| old.guest.as_ref());
                let (guest, old_guest) = (guest.as_ref(), old_guest.or(guest.as_ref()));
                let idle = guest.and_then(|g| g.idle_ns).zip(old_guest.and_then(|g| g.idle_ns));
                let switches = guest.map(|g| g.switches).zip(old_guest.map(|g| g.switches));
                VcpuRow {
                    vcpu,
                    busy: idle.map(|(now, before)| (100.0 - rate(now, before) / 1e7).clamp(0.0, 100.0)),
                    exits: rate(exits.total, old.map_or(exits.total, |old| old.exits.total)),
                    switches: switches.map_or(0.0, |(now, before)| rate(now, before)),
                }
            })
            .collect()
    }

    /// The tasks to show, filtered and ordered.
    pub fn tasks(&self) -> Vec<Row<'_>> {
        let elapsed = self.before.as_ref().map_or(0, |(b, _)| self.now.tasks.time_ns.saturating_sub(b.tasks.time_ns));
        let share = |task: &Task| {
            // A task that wasn't there before has run all its time since.
            let before = self.before.as_ref().map(|(_, run)| run.get(&task.id).copied().unwrap_or(0))?;
            (elapsed > 0).then(|| (100.0 * task.run_ns.saturating_sub(before) as f64 / elapsed as f64).min(100.0))
        };
        let mut rows: Vec<_> = self
            .now
            .tasks
            .tasks
            .iter()
            .filter(|task| self.wanted(task))
            .map(|task| Row { task, share: share(task).unwrap_or(0.0) })
            .collect();
        // Equals stay in the order of their numbers.
        rows.sort_by_key(|row| row.task.id);
        match self.order {
            Order::Share => rows.sort_by(|a, b| b.share.total_cmp(&a.share)),
            Order::Id => {}
            Order::Name => rows.sort_by(|a, b| a.task.name.cmp(&b.task.name)),
            Order::Run => rows.sort_by_key(|row| Reverse(row.task.run_ns)),
            Order::Switches => rows.sort_by_key(|row| Reverse(switches(row.task))),
            Order::State => rows.sort_by_key(|row| row.task.state),
        }
        if self.reversed {
            rows.reverse();
        }
        rows
    }

    fn wanted(&self, task: &Task) -> bool {
        let text = &self.filter;
        let found = || {
            task.name.contains(text) || task.id.to_string() == *text || task.state.name() == text || task.kind == *text
        };
        (self.background || task.kind == "user") && (text.is_empty() || found())
    }

    /// The first row to show, when `rows` exist and `height` fit.
    pub fn first_row(&self, rows: usize, height: usize) -> usize {
        self.scroll.min(rows.saturating_sub(height))
    }
}

/// All switches away from a task.
pub fn switches(task: &Task) -> u64 {
    task.voluntary_switches + task.involuntary_switches
}
