//! The C header of the delegation ABI is what `abi.rs` says, and a C compiler agrees about every offset.
//! `UPDATE_HEADER=1 cargo test -p vcpu-sched --test delegation_header` writes it anew.

use std::fmt::Write as _;
use std::mem::offset_of;
use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

use vcpu_sched::delegation::message::MessageType;
use vcpu_sched::delegation::txn::TxnState;
use vcpu_sched::delegation::{abi, door};

const PRELUDE: &str = "\
/* Scheduling from outside the guest: the shared region, for agents in C. docs/delegation.md tells how to use it.
 *
 * Generated from vcpu-sched/src/delegation/abi.rs and door.rs; a test keeps it so. Do not edit.
 *
 * All numbers are little-endian. The first 8 bytes of a message, a status word, a CPU word and a transaction are one 64-bit
 * word, written last by its owner: load it whole, as uint64_t, with __ATOMIC_ACQUIRE before the other fields; exchange that of a
 * transaction whole with __ATOMIC_ACQ_REL after them. Copy what you read, and check it: the other side may write at any time. */";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn committed() -> PathBuf {
    root().join("../resources/include/taskvisor_delegation.h")
}

/// `TargetNotFound` as `TARGET_NOT_FOUND`.
fn shouted(name: &str) -> String {
    name.char_indices().fold(String::new(), |mut out, (at, c)| {
        if at > 0 && c.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(c.to_ascii_uppercase());
        out
    })
}

fn constants() -> String {
    let mut out = String::new();
    let mut define = |name: &str, value: u64, suffix: &str| {
        writeln!(out, "#define TVD_{name} {value:#x}{suffix}").expect("a string takes all");
    };
    define("MAGIC", abi::MAGIC, "ULL");
    define("DOOR_MAGIC", door::DOOR_MAGIC, "ULL");
    define("DOOR_WELCOME", door::DOOR_WELCOME.into(), "u");
    define("DOOR_OCCUPIED", door::DOOR_OCCUPIED.into(), "u");
    define("MAX_KICKS", door::MAX_KICKS as u64, "u");
    define("VERSION", abi::VERSION.into(), "u");
    define("SECTION_ALIGN", abi::SECTION_ALIGN, "u");
    define("GTID_NONE", abi::GTID_NONE, "ULL");
    define("GTID_AGENT", abi::GTID_AGENT, "ULL");
    define("GTID_IDLE", abi::GTID_IDLE, "ULL");
    for kind in MessageType::ALL {
        define(&format!("MSG_{}", shouted(&format!("{kind:?}"))), *kind as u64, "u");
    }
    for state in TxnState::ALL {
        define(&format!("TXN_{}", shouted(&format!("{state:?}"))), *state as u64, "u");
    }
    macro_rules! modules {
        ($($module:ident = $prefix:literal),* $(,)?) => {$(
            for (name, value) in abi::$module::NAMES {
                define(&format!("{}_{name}", $prefix), u64::from(*value), "u");
            }
        )*};
    }
    modules!(
        cpu_flags = "CPU",
        task_flags = "TASK",
        message_flags = "MSGF",
        txn_flags = "TXNF",
        commit_flags = "COMMIT",
        run_flags = "RUN",
        host_flags = "HOST",
        attach_flags = "ATTACH",
        tunables = "TUNE",
        guest_state = "GUEST",
        request = "REQUEST",
        answer = "ANSWER",
    );
    out
}

fn generated() -> String {
    let config = cbindgen::Config {
        language: cbindgen::Language::C,
        header: Some(PRELUDE.into()),
        include_guard: Some("TASKVISOR_DELEGATION_H".into()),
        no_includes: true,
        sys_includes: vec!["stdint.h".into()],
        documentation_style: cbindgen::DocumentationStyle::C99,
        trailer: Some(constants()),
        export: cbindgen::ExportConfig {
            item_types: vec![cbindgen::ItemType::Structs],
            include: ["Header", "GuestPage", "CpuWord", "StatusWord", "ChannelHead", "Message", "Transaction"]
                .into_iter()
                .chain(["PickEntry", "HostWord", "AgentPage", "Welcome", "Kicks"])
                .map(String::from)
                .collect(),
            prefix: Some("tvd_".into()),
            ..Default::default()
        },
        ..Default::default()
    };
    let source = |file: &str| root().join("src/delegation").join(file);
    let builder = cbindgen::Builder::new().with_src(source("abi.rs")).with_src(source("door.rs"));
    let bindings = builder.with_config(config).generate().expect("abi.rs is Rust");
    let mut out = Vec::new();
    bindings.write(&mut out);
    // Links are rustdoc's.
    String::from_utf8(out).expect("text").replace("[`", "`").replace("`]", "`")
}

#[test]
fn the_header_is_what_the_source_says() {
    let generated = generated();
    if env::var_os("UPDATE_HEADER").is_some() {
        fs::write(committed(), &generated).expect("written");
    }
    let found = fs::read_to_string(committed()).expect("committed");
    assert!(found == generated, "run UPDATE_HEADER=1 cargo test -p vcpu-sched --test delegation_header, and review");
}

#[test]
fn a_c_compiler_has_the_same_offsets() {
    let mut code = String::from("#include <stddef.h>\n#include \"taskvisor_delegation.h\"\n");
    macro_rules! same {
        ($($module:ident::$record:ident { $($field:ident),* $(,)? })*) => {$(
            let size = size_of::<$module::$record>();
            writeln!(code, "_Static_assert(sizeof(tvd_{0}) == {size}, \"{0}\");", stringify!($record)).expect("a string");
            $(
                let at = offset_of!($module::$record, $field);
                let (record, field) = (stringify!($record), stringify!($field));
                writeln!(code, "_Static_assert(offsetof(tvd_{record}, {field}) == {at}, \"{record}.{field}\");").expect("a string");
            )*
        )*};
    }
    same! {
        abi::Header {
            magic, version, enclave, cpus, tasks, channels, channel_len, pick_len, reserved, bytes, guest, cpu, task,
            channel, host, agent, tail, transaction, pick, cpu_set,
        }
        abi::GuestPage { nonce, state, answered, answer }
        abi::CpuWord { barrier, flags, gtid, switch_time, cpu_seqnum, pick_tail }
        abi::StatusWord { barrier, flags, gtid, switch_time, runtime }
        abi::ChannelHead { overflow }
        abi::Message {
            position, kind, flags, slot, seqnum, gtid, cpu_seqnum, runtime, time, cpu, wake_up_cpu, waker_cpu, nice, extra,
        }
        abi::Transaction {
            state, claimer, version, flags, gtid, slot, task_barrier, agent_barrier, cpu, sync_group_owner, run_flags,
            commit_flags, commit_time, cpu_seqnum,
        }
        abi::PickEntry { slot, task_barrier, gtid }
        abi::HostWord { flags, host_cpu, since, stolen, core }
        abi::AgentPage { nonce, flags, tunables, runnable_timeout, bell, request, op, slot, barrier, value, cookie }
        door::Welcome { magic, version, state, cpus, occupant, guest_bytes, agent_bytes }
        door::Kicks { first, count }
    }
    writeln!(code, "_Static_assert(TVD_MSG_SWITCH_TO == 8 && TVD_TXN_READY == 256, \"numbers\");").expect("a string");
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    fs::write(directory.join("taskvisor_delegation.h"), generated()).expect("written");
    let file = directory.join("delegation_offsets.c");
    fs::write(&file, code).expect("written");
    let compiled = Command::new(env::var_os("CC").unwrap_or_else(|| "cc".into()))
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", "-I"])
        .arg(&directory)
        .arg(&file)
        .output()
        .expect("a C compiler; Rust links with one");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
}
