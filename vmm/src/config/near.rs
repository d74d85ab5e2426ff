//! The known name that a wrong one was most likely meant to be, for the errors of flags and files. Pure.

use std::cmp::Reverse;

/// The nearest of `known`, if any is near; of equally near ones, that which begins like the wrong one for longest.
pub fn nearest<'a>(wrong: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wrong = wrong.as_bytes();
    let alike = |name: &str| wrong.iter().zip(name.as_bytes()).take_while(|(a, b)| a == b).count();
    let measured = known.into_iter().map(|name| (edits(wrong, name.as_bytes()), Reverse(alike(name)), name));
    let (distance, _, name) = measured.min()?;
    (distance <= wrong.len() / 3 + 1).then_some(name)
}

/// Levenshtein's distance.
fn edits(a: &[u8], b: &[u8]) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (slot, y) in row.iter_mut().skip(1).zip(b) {
            let change = diagonal + usize::from(x != y);
            diagonal = *slot;
            left = change.min(left + 1).min(diagonal + 1);
            *slot = left;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, distance) in [("", "", 0), ("a", "", 1), ("", "ab", 2), ("kitten", "sitting", 3), ("cpu", "cpus", 1)]
        {
            assert_eq!(edits(a.as_bytes(), b.as_bytes()), distance, "{a} {b}");
        }
    }

    #[test]
    fn only_what_is_near_is_named() {
        let known = ["cpu", "vcpus", "memory", "policy"];
        assert_eq!(nearest("vcpu", known), Some("vcpus"));
        assert_eq!(nearest("polcy", known), Some("policy"));
        assert_eq!(nearest("hyperdrive", known), None);
        assert_eq!(nearest("x", []), None);
    }
}
