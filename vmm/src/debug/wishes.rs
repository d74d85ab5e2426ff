//! What a client wants of the guest's scheduler: `monitor suspend` and the like.
//!
//! Only a guest that runs can answer, and it may be stopped before it has. So a thread of its own ([`Clerk`]) asks, through the
//! guest's one mailbox, and waits over any number of stops; what the guest has answered is told by `monitor requests`. Invariants: a
//! client that goes leaves no task held by the debugger; no more than [`MAX`] requests wait.

use std::collections::{BTreeSet, VecDeque};
use std::fmt::Write;
use std::io;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use vcpu_sched::cpumask::{CpuMask, MAX_CPUS};
use vcpu_sched::ids::CpuId;
use vcpu_sched::requests::change::{ParamChange, policy_number};
use vcpu_sched::requests::message::Request;
use vcpu_sched::task::suspension::Holder;

use crate::affinity::parse;
use crate::requests::Mailbox;
use crate::sandbox::{self, Kind};

/// How long a guest may stand still before it answers.
const PATIENCE: Duration = Duration::from_secs(24 * 3600);
/// Requests that wait, and answers that are kept.
const MAX: usize = 64;

/// What was asked, and what became of it.
#[derive(Debug, Default)]
struct Book {
    waiting: VecDeque<String>,
    answered: VecDeque<String>,
    /// Tasks that the debugger holds, or will.
    held: BTreeSet<u32>,
}

/// Takes requests to the guest. Ends with its last handle, or with the machine.
#[derive(Debug, Clone)]
pub struct Clerk {
    orders: SyncSender<(String, Request)>,
    book: Arc<Mutex<Book>>,
}

/// A panic can't leave it half written.
fn lock(book: &Mutex<Book>) -> MutexGuard<'_, Book> {
    book.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Clerk {
    /// Starts it.
    pub fn start(mailbox: Mailbox) -> io::Result<Self> {
        let (clerk, orders) = Self::new();
        let book = clerk.book.clone();
        thread::Builder::new().name("gdb-requests".into()).spawn(move || {
            // It reads what the guest writes, as the debugger's server does.
            if let Err(error) = sandbox::enter(Kind::Gdb) {
                log::error!("nothing is asked for debuggers: {error}");
                return;
            }
            for (line, request) in orders {
                let answer = mailbox.ask_within(&request, PATIENCE);
                let answer = answer.map_or_else(|error| error.to_string(), |_| "done".to_owned());
                log::debug!("gdb: {line}: {answer}");
                lock(&book).answer(&line, &answer);
            }
        })?;
        Ok(clerk)
    }

    fn new() -> (Self, Receiver<(String, Request)>) {
        let (orders, taken) = sync_channel(2 * MAX);
        (Self { orders, book: Arc::default() }, taken)
    }

    /// Takes a line of `monitor`, or says why not.
    pub fn ask(&self, line: &str) -> Result<(), String> {
        let request = parse_wish(line)?;
        if lock(&self.book).waiting.len() >= MAX {
            return Err(format!("{MAX} requests wait already: let the guest go on"));
        }
        self.send(line.to_owned(), request);
        Ok(())
    }

    fn send(&self, line: String, request: Request) {
        let mut book = lock(&self.book);
        match request {
            Request::Suspend { task, .. } => drop(book.held.insert(task)),
            Request::Resume { task, .. } => drop(book.held.remove(&task)),
            _ => {}
        }
        // Full or gone: the machine is ending, and nobody waits for an answer.
        if self.orders.try_send((line.clone(), request)).is_ok() {
            book.waiting.push_back(line);
        }
    }

    /// The client goes: what it holds is let go.
    pub fn end(&self) {
        let held = std::mem::take(&mut lock(&self.book).held);
        for task in held {
            self.send(format!("resume {task}"), Request::Resume { task, holder: Holder::Debugger });
        }
    }

    /// For `monitor requests`.
    pub fn render(&self) -> String {
        let book = lock(&self.book);
        let mut out = String::new();
        for line in &book.answered {
            // Writing to a String can't fail, here and below.
            let _ = writeln!(out, "{line}");
        }
        for line in &book.waiting {
            let _ = writeln!(out, "{line}: waits until the guest goes on");
        }
        out
    }
}

impl Book {
    fn answer(&mut self, line: &str, answer: &str) {
        self.waiting.pop_front();
        if self.answered.len() >= MAX {
            self.answered.pop_front();
        }
        self.answered.push_back(format!("{line}: {answer}"));
    }
}

/// `suspend TASK`, `resume TASK`, `affinity TASK CPUS`, `policy TASK NAME [PRIORITY]`.
fn parse_wish(line: &str) -> Result<Request, String> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    let task = |word: &str| word.parse::<u32>().map_err(|_| format!("{word:?} is no number of a task"));
    Ok(match words.as_slice() {
        ["suspend", id] => Request::Suspend { task: task(id)?, holder: Holder::Debugger },
        ["resume", id] => Request::Resume { task: task(id)?, holder: Holder::Debugger },
        ["affinity", id, cpus] => Request::SetAffinity { task: task(id)?, cpus: mask(cpus)? },
        ["policy", id, name] => Request::SetParams { task: task(id)?, change: policy(name, None)? },
        ["policy", id, name, priority] => {
            let priority = priority.parse().map_err(|_| format!("{priority:?} is no priority"))?;
            Request::SetParams { task: task(id)?, change: policy(name, Some(priority))? }
        }
        _ => return Err("suspend TASK, resume TASK, affinity TASK CPUS, or policy TASK NAME [PRIORITY]".to_owned()),
    })
}

fn mask(text: &str) -> Result<CpuMask, String> {
    let cpus = parse::cpus(text).map_err(|error| error.to_string())?;
    let mut mask = CpuMask::empty();
    for cpu in cpus.iter() {
        if cpu >= MAX_CPUS {
            return Err(format!("there is no CPU {cpu}"));
        }
        mask.set(CpuId(cpu));
    }
    Ok(mask)
}

fn policy(name: &str, priority: Option<u32>) -> Result<ParamChange, String> {
    let number = policy_number(name).ok_or_else(|| format!("{name:?} is no policy: other, batch, idle, fifo, rr"))?;
    Ok(ParamChange { policy: Some(number), priority, ..ParamChange::default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_understood_or_explained() {
        assert_eq!(parse_wish("suspend 7"), Ok(Request::Suspend { task: 7, holder: Holder::Debugger }));
        assert_eq!(parse_wish("resume 7"), Ok(Request::Resume { task: 7, holder: Holder::Debugger }));
        let Ok(Request::SetAffinity { task: 7, cpus }) = parse_wish("affinity 7 0,2-3") else { panic!("no affinity") };
        assert_eq!(cpus.to_string(), "0,2-3");
        let Ok(Request::SetParams { change, .. }) = parse_wish("policy 7 fifo 10") else { panic!("no policy") };
        assert_eq!((change.policy, change.priority), (policy_number("fifo"), Some(10)));
        for wrong in [
            "suspend",
            "suspend x",
            "affinity 7",
            "affinity 7 x",
            "affinity 7 99999",
            "policy 7 none",
            "policy 7 fifo x",
        ] {
            assert!(parse_wish(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_held_is_let_go_in_the_end() {
        let (clerk, orders) = Clerk::new();
        for line in ["suspend 3", "suspend 9", "resume 3", "suspend 5"] {
            clerk.ask(line).unwrap();
        }
        assert!(clerk.render().starts_with("suspend 3: waits until the guest goes on\n"));
        clerk.end();
        let lines: Vec<_> = orders.try_iter().map(|(line, _)| line).collect();
        assert_eq!(lines[4..], ["resume 5", "resume 9"]);
        lock(&clerk.book).answer("suspend 3", "done");
        assert!(clerk.render().starts_with("suspend 3: done\nsuspend 9: waits"));
        for _ in 0..MAX {
            let _ = clerk.ask("suspend 1");
        }
        assert!(clerk.ask("suspend 1").is_err());
    }
}
