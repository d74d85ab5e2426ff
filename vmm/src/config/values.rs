//! The values of flags, each a type of its own that reads and writes its text.
//!
//! [`super::flags`] is made of them. Pure, but for [`FileSpec`], which looks whether a name with a colon exists.
//! Invariant: what `Display` writes, `FromStr` reads back as the same value.

use std::collections::BTreeMap;
use std::fmt;
use std::num::ParseIntError;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use vcpu_sched::clock::rate::RateError;
use vcpu_sched::delegation::policies::named::PolicyError;
use vcpu_sched::runqueue::{PolicyKind, UnknownPolicy};

use super::text::{IdSet, TextError};
use super::text_value::{as_text, as_text_or};
use super::units::{UnitError, parse_duration, parse_size};
use super::{FileSpec, LogSink};
use crate::affinity::{Class, Entry, parse as pins};
use crate::archive::build::clean;
use crate::boot::cpuid::model::Model;
use crate::clock::Rate;
use crate::clock::settings::Offsets;
use crate::debug::address::GdbAddress;
use crate::delegate::Who;
use crate::topology::{NodeSpec, TopologyChoice, parse};
use crate::trace::{Format, FormatError};

/// Why a flag's value can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// `--env`.
    #[error("it has no '=': write NAME=VALUE")]
    NoEquals,
    /// `--env`.
    #[error("the name before '=' is empty")]
    EmptyName,
    /// `--env`.
    #[error("the name {0} holds a '='")]
    EqualsInName(String),
    /// `--file`.
    #[error("the host path is empty: write HOST or HOST:GUEST")]
    EmptyPath,
    /// `--file`.
    #[error("the guest path {0} names no file")]
    NoGuestName(String),
}

/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse_size(text).map(Self)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
        let fits = |(shift, _): &(u32, &str)| self.0 != 0 && self.0.trailing_zeros() >= *shift;
        match units.into_iter().find(fits) {
            Some((shift, unit)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

as_text!(Size, { "type": ["string", "integer"], "minimum": 0, "pattern": "^[0-9]+([KkMmGgTt]?(i?[Bb])?)$" });

/// A time that isn't zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(pub Duration);

impl FromStr for Time {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        parse_duration(text).map(Self)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.subsec_millis() {
            0 => write!(f, "{}s", self.0.as_secs()),
            _ => write!(f, "{}ms", self.0.as_millis()),
        }
    }
}

as_text!(Time, { "type": "string", "pattern": "^[0-9]+(ms|s|m|min|h)$" });

/// Where random numbers come from: decimal, or hexadecimal with 0x.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seed(pub u64);

impl FromStr for Seed {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => text.parse(),
        }
        .map(Self)
    }
}

impl fmt::Display for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

as_text!(Seed, { "type": ["string", "integer"], "minimum": 0, "pattern": "^(0x[0-9a-fA-F]+|[0-9]+)$" });

/// How fast virtual time runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClockRate(pub Rate);

impl FromStr for ClockRate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        text.parse().map(Self)
    }
}

impl fmt::Display for ClockRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

as_text!(ClockRate, { "type": ["string", "number"], "minimum": 0.01, "maximum": 100, "pattern": "^[0-9]*\\.?[0-9]*$" });

as_text!(GdbAddress, { "type": "string", "pattern": "^(unix:.+|.+:[0-9]+)$" });

as_text!(Offsets, { "type": ["string", "integer"] });

/// How ordinary tasks are scheduled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy(pub PolicyKind);

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, UnknownPolicy> {
        text.parse().map(Self)
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.name())
    }
}

as_text!(Policy, { "type": "string", "enum": (PolicyKind::ALL.map(PolicyKind::name)) });

/// Who decides for delegated tasks: a policy of `vcpu_sched::delegation::policies` by its name, with its option; or a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decider(pub Who);

/// Nobody of that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeciderError {
    /// No policy.
    #[error("{0}; and external:SOCKET for an agent in a process of its own")]
    Policy(PolicyError),
    /// No socket.
    #[error("there is no path behind external:")]
    NoPath,
}

impl FromStr for Decider {
    type Err = DeciderError;

    fn from_str(text: &str) -> Result<Self, DeciderError> {
        match text.strip_prefix("external:") {
            Some("") => Err(DeciderError::NoPath),
            Some(path) => Ok(Self(Who::Process(path.into()))),
            None => text.parse().map(|policy| Self(Who::Vmm(policy))).map_err(DeciderError::Policy),
        }
    }
}

impl fmt::Display for Decider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Who::Vmm(policy) => policy.fmt(f),
            Who::Process(path) => write!(f, "external:{}", path.display()),
        }
    }
}

as_text!(Decider, { "type": "string" });

/// The trace's file. Its name tells a format, so that a wrong one shows before a guest has run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceFile(pub PathBuf);

impl FromStr for TraceFile {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, FormatError> {
        Format::of(Path::new(text)).map(|_| Self(text.into()))
    }
}

impl fmt::Display for TraceFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

as_text!(TraceFile, { "type": "string" });
as_text!(Model, { "type": "string" });
as_text!(IdSet, { "type": ["string", "integer"], "minimum": 0, "pattern": "^[0-9]+(-[0-9]+)?(,[0-9]+(-[0-9]+)?)*$" });
as_text!(LogSink, { "type": "string" });

impl FromStr for LogSink {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.into())
    }
}

impl fmt::Display for LogSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LogSink::Stderr => f.write_str("stderr"),
            LogSink::Off => f.write_str("off"),
            LogSink::File(path) => path.display().fmt(f),
        }
    }
}

/// `--topology` as a table.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct TreeTable {
    sockets: Option<u32>,
    dies: Option<u32>,
    cores: Option<u32>,
    threads: Option<u32>,
}

impl TryFrom<TreeTable> for TopologyChoice {
    type Error = TextError;

    fn try_from(table: TreeTable) -> Result<Self, TextError> {
        let TreeTable { sockets, dies, cores, threads } = table;
        // By way of its text, so that the same checks apply.
        TopologyChoice::Shape(parse::ShapeSpec { sockets, dies, cores, threads }).to_string().parse()
    }
}

as_text_or!(TopologyChoice, TreeTable);

/// `--numa`, as one value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nodes(pub Vec<NodeSpec>);

impl FromStr for Nodes {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        parse::numa(text).map(Self)
    }
}

impl fmt::Display for Nodes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(f, &self.0, |f, node| node.fmt(f))
    }
}

/// A node as a table.
#[derive(Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct NodeTable {
    node: u32,
    cpus: Option<IdSet>,
    mem: Option<Size>,
    #[serde(default)]
    dist: BTreeMap<String, u32>,
}

impl TryFrom<Vec<NodeTable>> for Nodes {
    type Error = TextError;

    fn try_from(tables: Vec<NodeTable>) -> Result<Self, TextError> {
        let node = |table: &NodeTable| {
            let mut text = format!("node={}", table.node);
            text.extend(table.cpus.iter().map(|cpus| format!(",cpus={cpus}")));
            text.extend(table.mem.iter().map(|mem| format!(",mem={mem}")));
            for (i, (to, distance)) in table.dist.iter().enumerate() {
                text.push_str(&format!(",{}{to}@{distance}", if i == 0 { "dist=" } else { "" }));
            }
            text
        };
        tables.iter().map(node).collect::<Vec<_>>().join(";").parse()
    }
}

as_text_or!(Nodes, Vec<NodeTable>);

/// `--affinity`, as one value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pins(pub Vec<Entry<IdSet>>);

impl FromStr for Pins {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        pins::affinity(text).map(Self)
    }
}

impl fmt::Display for Pins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(f, &self.0, |f, entry| entry.fmt(f))
    }
}

impl TryFrom<BTreeMap<String, IdSet>> for Pins {
    type Error = TextError;

    fn try_from(table: BTreeMap<String, IdSet>) -> Result<Self, TextError> {
        table.iter().map(|(vcpus, cpus)| format!("{vcpus}={cpus}")).collect::<Vec<_>>().join(";").parse()
    }
}

as_text_or!(Pins, BTreeMap<String, IdSet>);

/// `--vcpu-sched`, as one value.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Classes(pub Vec<Entry<Class>>);

impl FromStr for Classes {
    type Err = TextError;

    fn from_str(text: &str) -> Result<Self, TextError> {
        pins::classes(text).map(Self)
    }
}

impl fmt::Display for Classes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        list(f, &self.0, |f, entry| entry.fmt(f))
    }
}

impl TryFrom<BTreeMap<String, String>> for Classes {
    type Error = TextError;

    fn try_from(table: BTreeMap<String, String>) -> Result<Self, TextError> {
        table.iter().map(|(vcpus, class)| format!("{vcpus}={class}")).collect::<Vec<_>>().join(";").parse()
    }
}

as_text_or!(Classes, BTreeMap<String, String>);

/// `--env`, one variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// Not empty, without '='.
    pub name: String,
    /// Anything.
    pub value: String,
}

impl FromStr for Variable {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (name, value) = text.split_once('=').ok_or(ValueError::NoEquals)?;
        if name.is_empty() {
            return Err(ValueError::EmptyName);
        }
        Ok(Self { name: name.to_owned(), value: value.to_owned() })
    }
}

/// The variables of a file: a table.
pub(super) mod variables {
    use std::collections::BTreeMap;

    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{ValueError, Variable};

    pub fn serialize<S: Serializer>(variables: &[Variable], serializer: S) -> Result<S::Ok, S::Error> {
        // Of two with one name the later counts.
        let table: BTreeMap<_, _> = variables.iter().map(|v| (&v.name, &v.value)).collect();
        table.serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Variable>, D::Error> {
        let table = BTreeMap::<String, String>::deserialize(deserializer)?;
        let variable = |(name, value): (String, String)| match name.as_str() {
            "" => Err(ValueError::EmptyName),
            _ if name.contains('=') => Err(ValueError::EqualsInName(name)),
            _ => Ok(Variable { name, value }),
        };
        table.into_iter().map(variable).collect::<Result<_, _>>().map_err(D::Error::custom)
    }
}

/// `HOST`, or `HOST:GUEST`. A host path may hold colons itself: if the whole names a file, it is one.
impl FromStr for FileSpec {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text.rsplit_once(':') {
            Some((host, guest)) if !Path::new(text).exists() => FileSpec::new(host, Some(guest)),
            _ => FileSpec::new(text, None),
        }
    }
}

impl FileSpec {
    /// A guest path that ends in a slash is a directory to put the file into; none means the host's.
    fn new(host: &str, guest: Option<&str>) -> Result<Self, ValueError> {
        if host.is_empty() {
            return Err(ValueError::EmptyPath);
        }
        let guest = match guest.and_then(|guest| guest.strip_suffix('/')) {
            Some(directory) => {
                let name = clean(host);
                format!("{directory}/{}", name.rsplit('/').next().unwrap_or_default())
            }
            None => guest.unwrap_or(host).to_owned(),
        };
        let cleaned = clean(&guest);
        if cleaned.is_empty() {
            return Err(ValueError::NoGuestName(guest));
        }
        Ok(Self { host: host.into(), guest: format!("/{cleaned}") })
    }
}

/// `--file` as a table.
#[derive(Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
struct FileTable {
    host: String,
    guest: Option<String>,
}

impl TryFrom<FileTable> for FileSpec {
    type Error = ValueError;

    fn try_from(table: FileTable) -> Result<Self, ValueError> {
        FileSpec::new(&table.host, table.guest.as_deref())
    }
}

/// As a table: a text with a colon would be read according to which files exist.
impl Serialize for FileSpec {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let host = self.host.to_str().ok_or_else(|| serde::ser::Error::custom("a file's path is not valid UTF-8"))?;
        FileTable { host: host.to_owned(), guest: Some(self.guest.clone()) }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for FileSpec {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(super::text_value::TextOr::<Self, FileTable>(std::marker::PhantomData))
    }
}

impl schemars::JsonSchema for FileSpec {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "FileSpec".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let table = generator.subschema_for::<FileTable>();
        schemars::json_schema!({ "anyOf": [{ "type": "string" }, table] })
    }
}

/// Entries with ';' between them, as the flags take them.
fn list<T>(
    f: &mut fmt::Formatter<'_>,
    entries: &[T],
    mut write: impl FnMut(&mut fmt::Formatter<'_>, &T) -> fmt::Result,
) -> fmt::Result {
    for (i, entry) in entries.iter().enumerate() {
        f.write_str(if i == 0 { "" } else { ";" })?;
        write(f, entry)?;
    }
    Ok(())
}
