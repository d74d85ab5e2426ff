//! The target description: which registers there are, made from [`REGISTERS`].
//!
//! Source: gdb's manual, "Target Descriptions", "X86 Features". The features of gdb's own names must hold the registers that
//! gdb asks for in them; ours holds what only a task has.

use std::fmt::Write;

use super::registers::{Feature, REGISTERS};

/// Types that a feature's registers need, as gdb's own files define them.
const EFLAGS: &str = r#"<flags id="i386_eflags" size="4"><field name="" start="22" end="31"/><field name="ID" start="21" end="21"/><field name="VIP" start="20" end="20"/><field name="VIF" start="19" end="19"/><field name="AC" start="18" end="18"/><field name="VM" start="17" end="17"/><field name="RF" start="16" end="16"/><field name="NT" start="14" end="14"/><field name="OF" start="11" end="11"/><field name="DF" start="10" end="10"/><field name="IF" start="9" end="9"/><field name="TF" start="8" end="8"/><field name="SF" start="7" end="7"/><field name="ZF" start="6" end="6"/><field name="AF" start="4" end="4"/><field name="PF" start="2" end="2"/><field name="CF" start="0" end="0"/></flags>"#;
const VECTORS: &str = r#"<vector id="v4f" type="ieee_single" count="4"/><vector id="v2d" type="ieee_double" count="2"/><vector id="v16i8" type="int8" count="16"/><vector id="v8i16" type="int16" count="8"/><vector id="v4i32" type="int32" count="4"/><vector id="v2i64" type="int64" count="2"/><union id="vec128"><field name="v4_float" type="v4f"/><field name="v2_double" type="v2d"/><field name="v16_int8" type="v16i8"/><field name="v8_int16" type="v8i16"/><field name="v4_int32" type="v4i32"/><field name="v2_int64" type="v2i64"/><field name="uint128" type="uint128"/></union><flags id="i386_mxcsr" size="4"><field name="IE" start="0" end="0"/><field name="DE" start="1" end="1"/><field name="ZE" start="2" end="2"/><field name="OE" start="3" end="3"/><field name="UE" start="4" end="4"/><field name="PE" start="5" end="5"/><field name="DAZ" start="6" end="6"/><field name="IM" start="7" end="7"/><field name="DM" start="8" end="8"/><field name="ZM" start="9" end="9"/><field name="OM" start="10" end="10"/><field name="UM" start="11" end="11"/><field name="PM" start="12" end="12"/><field name="FZ" start="15" end="15"/></flags>"#;

const FEATURES: [(Feature, &str, &str); 6] = [
    (Feature::Core, "org.gnu.gdb.i386.core", EFLAGS),
    (Feature::Sse, "org.gnu.gdb.i386.sse", VECTORS),
    (Feature::Segments, "org.gnu.gdb.i386.segments", ""),
    (Feature::Avx, "org.gnu.gdb.i386.avx", ""),
    (Feature::Task, "org.taskvisor.task", ""),
    (Feature::Linux, "org.gnu.gdb.i386.linux", ""),
];

/// The whole description.
pub fn target() -> String {
    let mut out = String::from(
        "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\"><target version=\"1.0\">\
         <architecture>i386:x86-64</architecture><osabi>GNU/Linux</osabi>",
    );
    for (feature, name, types) in FEATURES {
        // Writing to a String can't fail, here and below.
        let _ = write!(out, "<feature name=\"{name}\">{types}");
        for (number, register) in REGISTERS.iter().enumerate().filter(|(_, register)| register.feature == feature) {
            let (name, bits, kind) = (register.name, register.bits, register.kind);
            // lldb wants to be told which ones unwinding needs.
            let generic = match name {
                "rip" => " generic=\"pc\"",
                "rsp" => " generic=\"sp\"",
                "rbp" => " generic=\"fp\"",
                "eflags" => " generic=\"flags\"",
                _ => "",
            };
            let group = if feature == Feature::Task { " group=\"task\"" } else { "" };
            let _ = write!(
                out,
                "<reg name=\"{name}\" bitsize=\"{bits}\" type=\"{kind}\" regnum=\"{number}\"{generic}{group}/>"
            );
        }
        out.push_str("</feature>");
    }
    out.push_str("</target>");
    out
}

/// Text for an XML attribute or element.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_register_is_described_once() {
        let xml = target();
        for (number, register) in REGISTERS.iter().enumerate() {
            let entry = format!("<reg name=\"{}\" ", register.name);
            assert_eq!(xml.matches(&entry).count(), 1, "{entry}");
            assert_eq!(xml.matches(&format!(" regnum=\"{number}\"")).count(), 1);
        }
        assert_eq!(escape("a<\"&>"), "a&lt;&quot;&amp;&gt;");
    }
}
