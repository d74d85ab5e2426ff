//! What a text in a workload file stands for: a group, a channel, a set of CPUs. Used by [`super`]; pure.

use vcpu_sched::cpumask::CpuMask;
use vcpu_sched::sim::model::{Affinity, ChannelRef, Member};

/// What a file calls its groups and channels.
pub(super) struct Names {
    pub(super) groups: Vec<String>,
    pub(super) channels: Vec<String>,
}

impl Names {
    pub(super) fn group(&self, name: &str) -> Result<usize, String> {
        find(&self.groups, name, "group")
    }

    /// `name`, `name[3]`, `name[self]`, `name[self/20]`, `name[self+1]`, `name[random]`.
    pub(super) fn channel(&self, text: &str) -> Result<ChannelRef, String> {
        let (name, member) = match text.split_once('[') {
            Some((name, rest)) => match rest.strip_suffix(']') {
                Some(member) => (name, parse_member(member.trim())?),
                None => return Err(format!("a ']' is missing in '{text}'")),
            },
            None => (text, Member::Fixed(0)),
        };
        Ok(ChannelRef { family: find(&self.channels, name.trim(), "channel")?, member })
    }
}

fn find(among: &[String], name: &str, what: &str) -> Result<usize, String> {
    among.iter().position(|known| known == name).ok_or_else(|| {
        let known = if among.is_empty() { "none".to_owned() } else { among.join(", ") };
        format!("there is no {what} '{name}' (there are: {known})")
    })
}

fn parse_member(text: &str) -> Result<Member, String> {
    let bad =
        || format!("'[{text}]' is no choice of a channel: use [3], [self], [self/20], [self+1], [self-1] or [random]");
    if text == "random" {
        return Ok(Member::Random);
    }
    let Some(rest) = text.strip_prefix("self") else {
        return text.parse().map(Member::Fixed).map_err(|_| bad());
    };
    let (divide, add) = match rest.strip_prefix('/') {
        Some(rest) => {
            let end = rest.find(['+', '-']).unwrap_or(rest.len());
            (rest[..end].parse().map_err(|_| bad())?, &rest[end..])
        }
        None => (1, rest),
    };
    let add = if add.is_empty() { 0 } else { add.parse().map_err(|_| bad())? };
    if divide == 0 || !(rest.is_empty() || rest.starts_with(['/', '+', '-'])) {
        return Err(bad());
    }
    Ok(Member::Own { divide, add })
}

pub(super) fn parse_affinity(text: &str) -> Result<Affinity, String> {
    match text.trim() {
        "any" => Ok(Affinity::Any),
        "spread" => Ok(Affinity::Spread),
        text => match text.strip_prefix("random ") {
            Some(count) => count
                .trim()
                .parse()
                .map(Affinity::Random)
                .map_err(|_| format!("'{text}': after random comes a number of CPUs, as in 'random 2'")),
            None => parse_mask(text).map(Affinity::Mask),
        },
    }
}

pub(super) fn parse_mask(text: &str) -> Result<CpuMask, String> {
    text.parse().map_err(|error| {
        format!("affinity '{text}': {error}; write a CPU list as in '0-3,8', or 'any', 'spread' or 'random 2'")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_of_a_family() {
        let own = |divide, add| Ok(Member::Own { divide, add });
        for (text, expected) in [
            ("7", Ok(Member::Fixed(7))),
            ("random", Ok(Member::Random)),
            ("self", own(1, 0)),
            ("self+2", own(1, 2)),
            ("self-1", own(1, -1)),
            ("self/20", own(20, 0)),
            ("self/20+1", own(20, 1)),
        ] {
            assert_eq!(parse_member(text), expected, "{text}");
        }
        for text in ["", "me", "self20", "self/0", "self/", "self+", "-1", "self/2*3"] {
            assert!(parse_member(text).is_err(), "{text}");
        }
    }
}
