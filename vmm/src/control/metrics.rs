//! The machine's counters as Prometheus reads them: text format 0.0.4 (Prometheus, "Exposition formats").

use std::fmt::{Display, Write};

use super::api::VmState;
use super::machine::Machine;

/// What the text is.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

const NANOS: f64 = 1e9;

/// Lines that grow.
#[derive(Default)]
struct Text(String);

impl Text {
    /// The head of a family.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String can't fail, here and below.
        let _ = write!(self.0, "# HELP taskvisor_{name} {help}\n# TYPE taskvisor_{name} {kind}\n");
    }

    /// One sample. Label values are escaped.
    fn sample(&mut self, name: &str, labels: &[(&str, &dyn Display)], value: impl Display) {
        let _ = write!(self.0, "taskvisor_{name}");
        for (n, (label, text)) in labels.iter().enumerate() {
            let text = text.to_string().replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{}{label}=\"{text}\"", if n == 0 { '{' } else { ',' });
        }
        let _ = writeln!(self.0, "{} {value}", if labels.is_empty() { "" } else { "}" });
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: impl Display) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }
}

fn seconds(nanos: u64) -> f64 {
    nanos as f64 / NANOS
}

/// All of them, as they are now.
pub fn render(machine: &Machine) -> String {
    let mut text = Text::default();
    let (vm, vcpus) = (machine.vm(), machine.vcpus().vcpus);
    text.family("info", "gauge", "What runs.");
    text.sample("info", &[("version", &vm.version), ("kernel", &vm.kernel), ("program", &vm.program.join(" "))], 1);
    text.single("uptime_seconds", "gauge", "Time since the vCPUs were started.", seconds(vm.uptime_ns));
    text.single("paused", "gauge", "1 while somebody holds the vCPUs.", u8::from(vm.state == VmState::Paused));
    text.single("memory_bytes", "gauge", "Guest memory.", vm.memory);
    text.single("vcpus", "gauge", "How many vCPUs there are.", vm.vcpus);

    text.family("vcpu_exits_total", "counter", "Exits to the VMM, by reason.");
    for vcpu in &vcpus {
        for (reason, count) in &vcpu.exits.by_reason {
            text.sample("vcpu_exits_total", &[("vcpu", &vcpu.index), ("reason", reason)], count);
        }
    }
    type Value = fn(&super::api::Vcpu) -> Option<f64>;
    let families: [(&str, &str, &str, Value); 9] = [
        ("vcpu_host_run_seconds_total", "counter", "Time of the thread on a host CPU.", |v| v.host_run_ns.map(seconds)),
        ("vcpu_host_wait_seconds_total", "counter", "Time that the thread waited for one.", |v| {
            v.host_wait_ns.map(seconds)
        }),
        ("vcpu_halted_ratio", "gauge", "Share of its time that it neither ran nor waited.", |v| v.halted_share),
        ("cpu_idle_seconds_total", "counter", "Time that the idle task has run.", |v| {
            v.guest.as_ref()?.idle_ns.map(seconds)
        }),
        ("cpu_ready_tasks", "gauge", "Tasks ready or running.", |v| Some(v.guest.as_ref()?.nr_running.into())),
        ("cpu_switches_total", "counter", "Task switches.", |v| Some(v.guest.as_ref()?.switches as f64)),
        ("cpu_syscalls_total", "counter", "System calls.", |v| Some(v.guest.as_ref()?.syscalls as f64)),
        ("cpu_faults_total", "counter", "Page faults.", |v| Some(v.guest.as_ref()?.faults as f64)),
        ("cpu_timer_interrupts_total", "counter", "Timer interrupts.", |v| {
            Some(v.guest.as_ref()?.timer_interrupts as f64)
        }),
    ];
    for (name, kind, help, value) in families {
        text.family(name, kind, help);
        for vcpu in &vcpus {
            if let Some(value) = value(vcpu) {
                text.sample(name, &[("vcpu", &vcpu.index)], value);
            }
        }
    }
    if let Some(tasks) = machine.task_counts() {
        text.family("tasks", "gauge", "Tasks by state, idle tasks not counted.");
        for (state, count) in [
            ("running", tasks.running),
            ("ready", tasks.ready),
            ("blocked", tasks.blocked),
            ("suspended", tasks.suspended),
        ] {
            text.sample("tasks", &[("state", &state)], count);
        }
    }
    text.0
}
