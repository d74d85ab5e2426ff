//! The grammar of `--topology` and `--numa`.
//!
//! Pure; used by the command line. What the numbers mean together is checked by [`super::resolve`].

use std::fmt;

use super::numa::Distance;
use super::{Shape, TopologyChoice, TopologyError};
use crate::config::text::{Cursor, IdSet, TextError};
use crate::config::units::parse_size;
use crate::config::values::Size;

/// The numbers of `--topology`. What is left out is 1, but for the cores, which follow from `--vcpus` if that is given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShapeSpec {
    /// `sockets=`.
    pub sockets: Option<u32>,
    /// `dies=`.
    pub dies: Option<u32>,
    /// `cores=`.
    pub cores: Option<u32>,
    /// `threads=`.
    pub threads: Option<u32>,
}

impl ShapeSpec {
    /// The whole shape.
    pub fn complete(self, vcpus: Option<u32>) -> Result<Shape, TopologyError> {
        let [sockets, dies, threads] = [self.sockets, self.dies, self.threads].map(|n| n.unwrap_or(1));
        let known = u64::from(sockets).saturating_mul(dies.into()).saturating_mul(threads.into());
        let cores = match (self.cores, vcpus) {
            (Some(cores), _) => cores,
            (None, None) => 1,
            // `known` divides a 32-bit number, so the quotient fits.
            (None, Some(vcpus)) if known != 0 && u64::from(vcpus) % known == 0 => (u64::from(vcpus) / known) as u32,
            (None, Some(vcpus)) => return Err(TopologyError::Indivisible { vcpus, known }),
        };
        let shape = Shape { sockets, dies, cores, threads };
        let product = known.saturating_mul(cores.into());
        match vcpus {
            Some(vcpus) if product != u64::from(vcpus) => Err(TopologyError::Product { shape, product, vcpus }),
            _ => Ok(shape),
        }
    }
}

impl std::str::FromStr for TopologyChoice {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        topology(text)
    }
}

/// As `--topology` takes it.
impl fmt::Display for TopologyChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TopologyChoice::Shape(spec) = self else { return f.write_str("host") };
        let words = [("sockets", spec.sockets), ("dies", spec.dies), ("cores", spec.cores), ("threads", spec.threads)];
        let mut separator = "";
        for (name, number) in words.into_iter().filter_map(|(name, number)| Some((name, number?))) {
            write!(f, "{separator}{name}={number}")?;
            separator = ",";
        }
        Ok(())
    }
}

/// `host`, or `sockets=,dies=,cores=,threads=` in any order.
pub fn topology(text: &str) -> Result<TopologyChoice, TextError> {
    if text == "host" {
        return Ok(TopologyChoice::Host);
    }
    let mut cursor = Cursor::new(text);
    let mut spec = ShapeSpec::default();
    loop {
        let start = cursor.clone();
        let key = cursor.until(&['=', ',']);
        let slot = match key {
            "sockets" => &mut spec.sockets,
            "dies" => &mut spec.dies,
            "cores" => &mut spec.cores,
            "threads" => &mut spec.threads,
            _ => {
                let hint = "write sockets=, dies=, cores= and threads=, or host";
                return Err(start.error(format_args!("unknown word '{key}'"), hint));
            }
        };
        cursor.expect('=')?;
        let before = cursor.clone();
        let number = cursor.number()?;
        if number == 0 {
            return Err(before.error(format_args!("{key}= must be at least 1"), ""));
        }
        if slot.replace(number).is_some() {
            return Err(start.error(format_args!("{key}= is there twice"), ""));
        }
        if !cursor.eat(',') {
            cursor.end()?;
            return Ok(TopologyChoice::Shape(spec));
        }
    }
}

/// One node of `--numa`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeSpec {
    /// `node=`.
    pub id: u32,
    /// `cpus=`.
    pub cpus: IdSet,
    /// `mem=`, in bytes.
    pub memory: u64,
    /// `dist=`.
    pub distances: Vec<Distance>,
}

/// As `--numa` takes it; what is nothing is left out.
impl fmt::Display for NodeSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node={}", self.id)?;
        if !self.cpus.is_empty() {
            write!(f, ",cpus={}", self.cpus)?;
        }
        if self.memory != 0 {
            write!(f, ",mem={}", Size(self.memory))?;
        }
        for (i, distance) in self.distances.iter().enumerate() {
            write!(f, ",{}{}@{}", if i == 0 { "dist=" } else { "" }, distance.to, distance.value)?;
        }
        Ok(())
    }
}

/// `node=0,cpus=0-1,mem=64M,dist=1@20;node=1,...`; cpus, mem and dist may be left out.
pub fn numa(text: &str) -> Result<Vec<NodeSpec>, TextError> {
    let mut cursor = Cursor::new(text);
    let mut nodes: Vec<NodeSpec> = Vec::new();
    loop {
        let start = cursor.clone();
        let node = node(&mut cursor)?;
        if nodes.iter().any(|known| known.id == node.id) {
            return Err(start.error(format_args!("node={} is there twice", node.id), ""));
        }
        nodes.push(node);
        if !cursor.eat(';') {
            cursor.end()?;
            return Ok(nodes);
        }
        // A closing semicolon is no further node.
        if cursor.is_at_end() {
            return Ok(nodes);
        }
    }
}

fn node(cursor: &mut Cursor<'_>) -> Result<NodeSpec, TextError> {
    let mut node = NodeSpec::default();
    let mut seen = Vec::new();
    loop {
        let start = cursor.clone();
        let key = cursor.until(&['=', ',', ';']);
        if seen.contains(&key) {
            return Err(start.error(format_args!("{key}= is there twice"), ""));
        }
        if seen.is_empty() && key != "node" {
            return Err(start.error("each node begins with node=NUMBER", "node=0,cpus=0-1,mem=64M;node=1,..."));
        }
        seen.push(key);
        if !matches!(key, "node" | "cpus" | "mem" | "dist") {
            return Err(start.error(format_args!("unknown word '{key}'"), "write node=, cpus=, mem= and dist="));
        }
        cursor.expect('=')?;
        match key {
            "node" => node.id = cursor.number()?,
            "cpus" => node.cpus = cursor.ids()?,
            "mem" => {
                let before = cursor.clone();
                let size = cursor.until(&[',', ';']);
                node.memory = parse_size(size)
                    .map_err(|error| before.error(format_args!("'{size}' is no size ({error})"), ""))?;
            }
            _ => node.distances = distances(cursor, node.id)?,
        }
        if !cursor.eat(',') {
            return Ok(node);
        }
    }
}

/// `1@20,2@31`: node and distance.
fn distances(cursor: &mut Cursor<'_>, from: u32) -> Result<Vec<Distance>, TextError> {
    let mut list = Vec::new();
    loop {
        let to = cursor.number()?;
        cursor.expect('@')?;
        let before = cursor.clone();
        let value = cursor.number()?;
        let value = u8::try_from(value).ok().filter(|value| (10..255).contains(value));
        let value = value.ok_or_else(|| before.error("a distance is 10 to 254", ""))?;
        list.push(Distance { from, to, value });
        let mut next = cursor.clone();
        if !(next.eat(',') && next.peek().is_some_and(|c| c.is_ascii_digit())) {
            return Ok(list);
        }
        *cursor = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn topologies() {
        assert_eq!(topology("host"), Ok(TopologyChoice::Host));
        let spec = ShapeSpec { sockets: Some(2), threads: Some(3), ..Default::default() };
        assert_eq!(topology("threads=3,sockets=2"), Ok(TopologyChoice::Shape(spec)));
        for (text, message) in [
            ("", "unknown word '' at character 1: write sockets=, dies=, cores= and threads=, or host"),
            ("sockets", "'=' is missing at character 8"),
            (
                "sockets=2,core=3",
                "unknown word 'core' at character 11: write sockets=, dies=, cores= and threads=, or host",
            ),
            ("sockets=0", "sockets= must be at least 1 at character 9"),
            ("cores=2,cores=2", "cores= is there twice at character 9"),
            ("cores=2x", "'x' doesn't belong here at character 8"),
        ] {
            assert_eq!(topology(text).unwrap_err().to_string(), message, "{text}");
        }
    }

    #[test]
    fn nodes() {
        let parsed = numa("node=0,cpus=0-1,4,mem=64M,dist=1@21,2@31;node=1,mem=1G;").unwrap();
        assert_eq!(parsed.len(), 2);
        assert_eq!((parsed[0].cpus.to_string(), parsed[0].memory), ("0-1,4".into(), 64 << 20));
        assert_eq!(parsed[0].distances[1], Distance { from: 0, to: 2, value: 31 });
        assert_eq!((parsed[1].id, parsed[1].cpus.is_empty()), (1, true));
        for (text, part) in [
            ("cpus=0", "each node begins with node=NUMBER at character 1"),
            ("node=0,mem=64Q", "'64Q' is no size (unknown unit 'Q' at character 3: use K, M, G or T) at character 12"),
            ("node=0;node=0", "node=0 is there twice at character 8"),
            ("node=0,cpu=0", "unknown word 'cpu' at character 8"),
            ("node=0,dist=1@9", "a distance is 10 to 254 at character 15"),
            ("node=0,cpus=0-1 ", "' ' doesn't belong here at character 16"),
        ] {
            let error = numa(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a-z=,;@0-9MG ü-]{0,60}") {
            for error in [topology(&text).err(), numa(&text).err()].into_iter().flatten() {
                prop_assert!((1..=text.chars().count() + 1).contains(&error.at), "{}", error);
            }
        }

        #[test]
        fn every_shape_reads_back(sockets in 1u32..100, dies in 1u32..9, cores in 1u32..300, threads in 1u32..9) {
            let shape = Shape { sockets, dies, cores, threads };
            let Ok(TopologyChoice::Shape(spec)) = topology(&shape.to_string()) else { panic!("{shape}") };
            prop_assert_eq!(spec.complete(None).unwrap(), shape);
        }
    }
}
