//! The tables of a workload file, as they stand there: names and types, no meaning. Used by [`super`] alone.

use serde::Deserialize;

use super::MachineTable;
use crate::sim::span::{SpanText, Time};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    #[serde(default)]
    pub(super) description: String,
    #[serde(default)]
    pub(super) machine: MachineTable,
    #[serde(default)]
    pub(super) channel: Vec<RawChannel>,
    #[serde(default)]
    pub(super) group: Vec<RawGroup>,
    #[serde(default)]
    pub(super) at: Vec<RawAt>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawChannel {
    pub(super) name: String,
    pub(super) count: Option<u32>,
    pub(super) initial: Option<u64>,
    pub(super) capacity: Option<u64>,
    #[serde(default)]
    pub(super) wake_all: bool,
    pub(super) parties: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawGroup {
    pub(super) name: String,
    pub(super) count: Option<u32>,
    pub(super) start: Option<SpanText>,
    pub(super) every: Option<SpanText>,
    pub(super) repeat: Option<u32>,
    pub(super) affinity: Option<String>,
    pub(super) nice: Option<OneOrMany>,
    pub(super) policy: Option<String>,
    pub(super) priority: Option<u32>,
    pub(super) slice: Option<Time>,
    pub(super) runtime: Option<Time>,
    pub(super) deadline: Option<Time>,
    pub(super) period: Option<Time>,
    pub(super) program: Vec<RawStep>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a nice value, or a list of them")]
pub(super) enum OneOrMany {
    One(i32),
    Many(Vec<i32>),
}

#[derive(Deserialize, Default)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawStep {
    pub(super) run: Option<SpanText>,
    pub(super) sleep: Option<SpanText>,
    pub(super) r#yield: Option<bool>,
    pub(super) take: Option<String>,
    pub(super) put: Option<String>,
    pub(super) meet: Option<String>,
    pub(super) count: Option<u32>,
    pub(super) fork: Option<String>,
    pub(super) join: Option<bool>,
    pub(super) next_period: Option<Time>,
    pub(super) within: Option<Time>,
    pub(super) affinity: Option<String>,
    pub(super) nice: Option<i32>,
    pub(super) policy: Option<String>,
    pub(super) priority: Option<u32>,
    pub(super) slice: Option<Time>,
    pub(super) repeat: Option<u32>,
    pub(super) r#do: Option<Vec<RawStep>>,
    pub(super) exit: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAt {
    pub(super) time: Time,
    pub(super) group: String,
    pub(super) task: Option<u32>,
    pub(super) cpu: Option<u32>,
    pub(super) affinity: Option<String>,
    pub(super) nice: Option<i32>,
    pub(super) policy: Option<String>,
    pub(super) priority: Option<u32>,
    pub(super) slice: Option<Time>,
    pub(super) wake: Option<bool>,
}
