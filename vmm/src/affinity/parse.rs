//! The grammar of `--affinity`, `--vcpu-sched` and `--io-affinity`.
//!
//! Pure; used by the command line and by the control socket. Whether the vCPUs and CPUs exist is checked by [`super::plan`].

use super::{Class, Entry};
use crate::config::text::{Cursor, IdSet, TextError};

/// `VCPUS=CPUS;...`: `0=0;1-2=1,3`, or `all=0-1`.
pub fn affinity(text: &str) -> Result<Vec<Entry<IdSet>>, TextError> {
    entries(text, |cursor| {
        let vcpus = vcpus(cursor)?;
        cursor.expect('=')?;
        Ok(Entry { vcpus, value: cursor.ids()? })
    })
}

/// `CLASS` for all vCPUs, or `VCPUS=CLASS;...`.
pub fn classes(text: &str) -> Result<Vec<Entry<Class>>, TextError> {
    entries(text, |cursor| {
        let listed = cursor.peek().is_some_and(|c| c.is_ascii_digit()) || cursor.rest().starts_with("all=");
        let vcpus = if listed {
            let vcpus = vcpus(cursor)?;
            cursor.expect('=')?;
            vcpus
        } else {
            None
        };
        Ok(Entry { vcpus, value: class(cursor)? })
    })
}

/// A list of host CPUs.
pub fn cpus(text: &str) -> Result<IdSet, TextError> {
    text.parse()
}

fn entries<T>(text: &str, mut entry: impl FnMut(&mut Cursor<'_>) -> Result<T, TextError>) -> Result<Vec<T>, TextError> {
    let mut cursor = Cursor::new(text);
    let mut all = Vec::new();
    loop {
        all.push(entry(&mut cursor)?);
        if !cursor.eat(';') {
            cursor.end()?;
            return Ok(all);
        }
        // A closing semicolon is no further entry.
        if cursor.is_at_end() {
            return Ok(all);
        }
    }
}

fn vcpus(cursor: &mut Cursor<'_>) -> Result<Option<IdSet>, TextError> {
    if cursor.rest().starts_with("all=") {
        cursor.until(&['=']);
        return Ok(None);
    }
    cursor.ids().map(Some)
}

fn class(cursor: &mut Cursor<'_>) -> Result<Class, TextError> {
    let start = cursor.clone();
    let name = cursor.until(&[':', ';']);
    match name {
        "other" => Ok(Class::Other),
        "fifo" | "rr" => {
            cursor.expect(':')?;
            let before = cursor.clone();
            let priority = cursor.number()?;
            if !(1..=99).contains(&priority) {
                return Err(before.error("a real-time priority is 1 to 99", ""));
            }
            Ok(if name == "fifo" { Class::Fifo(priority) } else { Class::RoundRobin(priority) })
        }
        "nice" => {
            cursor.expect(':')?;
            let before = cursor.clone();
            let minus = cursor.eat('-');
            let value = cursor.number()?;
            let value = i32::try_from(value).ok().map(|value| if minus { -value } else { value });
            match value.filter(|value| (-20..=19).contains(value)) {
                Some(value) => Ok(Class::Nice(value)),
                None => Err(before.error("a nice value is -20 to 19", "")),
            }
        }
        _ => Err(start.error(format_args!("unknown class '{name}'"), "use other, fifo:PRIO, rr:PRIO or nice:N")),
    }
}
