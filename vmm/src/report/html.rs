//! The page: one file with everything in it, which a browser opens without a network.
//!
//! The template in `page/` has places for style, script, the report (the JSON of `--json`) and the time line. The time line is
//! JSON too: `{resolution, serials, lanes: [{cpu, slices, data}]}`, with `serials` the number by which slices name each task of the
//! report, and `data` base64 of slices one after the other. A slice is variable-length integers (seven bits a byte, low first): gap
//! since the end of the one before (the first: since the trace's begin), length, task, a plain byte of flags (3 bits of state, 8
//! preempted, 16 several drawn together, 32 woken), wait; if several: their number and their time in all; if woken: waker, its CPU,
//! latency.
//!
//! Whatever a guest has put into a name can't leave its JSON string, nor the element around it: `<` is escaped.

use std::io::{self, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use super::Lanes;
use super::model::Report;

const PAGE: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/style.css");
const SCRIPTS: [&str; 7] = [
    include_str!("page/data.js"),
    include_str!("page/levels.js"),
    include_str!("page/raster.js"),
    include_str!("page/view.js"),
    include_str!("page/lanes.js"),
    include_str!("page/tables.js"),
    include_str!("page/main.js"),
];

#[derive(Serialize)]
struct Picture<'a> {
    resolution: u64,
    serials: &'a [u32],
    lanes: Vec<Lane>,
}

#[derive(Serialize)]
struct Lane {
    cpu: u32,
    slices: usize,
    data: String,
}

pub(super) fn write(out: &mut impl Write, report: &Report, lanes: &Lanes) -> io::Result<()> {
    let begin = report.trace.begin_ns;
    let timeline = lanes.timeline.as_ref();
    let picture = Picture {
        resolution: timeline.map_or(0, |t| t.resolution()),
        serials: &lanes.serials,
        lanes: timeline.into_iter().flat_map(|t| t.lanes(begin)).map(encode).collect(),
    };
    let mut rest = PAGE;
    while let Some((before, after)) = rest.split_once("<!--{") {
        let Some((name, after)) = after.split_once("}-->") else { break };
        out.write_all(before.as_bytes())?;
        match name {
            "style" => out.write_all(STYLE.as_bytes())?,
            "script" => SCRIPTS.iter().try_for_each(|script| out.write_all(script.as_bytes()))?,
            "report" => out.write_all(embedded(report)?.as_bytes())?,
            "timeline" => out.write_all(embedded(&picture)?.as_bytes())?,
            _ => {}
        }
        rest = after;
    }
    out.write_all(rest.as_bytes())
}

fn encode((cpu, slices, bytes): (u32, usize, Vec<u8>)) -> Lane {
    Lane { cpu, slices, data: STANDARD.encode(bytes) }
}

/// JSON inside of a script element.
fn embedded(value: &impl Serialize) -> io::Result<String> {
    Ok(serde_json::to_string(value)?.replace('<', "\\u003c"))
}
