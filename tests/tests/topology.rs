//! The tree that was asked for, read inside the guest and judged by others' eyes: the host's lscpu and hwloc, which get what
//! the guest's /proc and /sys hold, and the same kernel under QEMU, whose CPUID and tables are not ours.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use taskvisor_tests::qemu::Image;
use taskvisor_tests::{Guest, Outcome, Run, TempDir, prereq, serial};

/// Sockets, dies of a socket, cores of a die, threads of a core.
type Shape = [u32; 4];

/// Odd counts on every level, and the ordinary ones: twenty in all.
const ONE_SOCKET: [Shape; 9] = [
    [1, 1, 1, 1],
    [1, 1, 2, 1],
    [1, 1, 3, 1],
    [1, 1, 5, 1],
    [1, 1, 7, 1],
    [1, 1, 1, 2],
    [1, 1, 1, 3],
    [1, 1, 2, 2],
    [1, 1, 3, 2],
];
const SEVERAL_SOCKETS: [Shape; 6] =
    [[2, 1, 1, 1], [3, 1, 1, 1], [5, 1, 1, 1], [2, 1, 3, 1], [2, 1, 1, 3], [3, 1, 1, 2]];
const SEVERAL_DIES: [Shape; 5] = [[1, 2, 1, 1], [1, 3, 2, 1], [1, 2, 3, 1], [2, 2, 1, 2], [1, 3, 1, 3]];

/// A vCPU's socket, die, core and itself, as numbers of the whole machine.
fn place([_, dies, cores, threads]: Shape, vcpu: u32) -> [u32; 4] {
    let core = vcpu / threads;
    [core / cores / dies, core / cores, core, vcpu]
}

fn vcpus(shape: Shape) -> u32 {
    shape.iter().product()
}

fn flag([sockets, dies, cores, threads]: Shape) -> String {
    format!("sockets={sockets},dies={dies},cores={cores},threads={threads}")
}

/// What the guest's files hold, put under a directory of the host.
fn unpack(outcome: &Outcome) -> TempDir {
    let mut files: BTreeMap<&str, String> = BTreeMap::new();
    let text = outcome.text();
    for line in text.lines() {
        let Some((path, content)) = line.split_once(':') else { outcome.fail("grep prints PATH:LINE") };
        let file = files.entry(path).or_default();
        file.push_str(content);
        file.push('\n');
    }
    let root = TempDir::new();
    for (path, content) in files {
        let path = root.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().expect("below the root")).expect("a directory of ours");
        fs::write(path, content).expect("a file of ours");
    }
    root
}

/// Boots a guest with these flags and reads its /proc/cpuinfo, CPUs and nodes.
fn dump(busybox: &Path, flags: &[&str]) -> (TempDir, Outcome) {
    // The number of vCPUs follows from the flags.
    let run = Run::new(taskvisor_tests::guest::taskvisor()).args(["run", "--timeout", "180s"]).args(flags);
    let run = run.arg("--").arg(busybox).args(["grep", "-rs", "", "/proc/cpuinfo", "/sys/devices/system"]);
    let outcome = run.limit(std::time::Duration::from_secs(200)).run();
    outcome.expect_code(0);
    (unpack(&outcome), outcome)
}

/// What lscpu says of each CPU, by column: CPU, Core, Socket, Node, and L1d to L3 where the caches are known.
fn lscpu(lscpu: &Path, root: &Path, again: &Outcome) -> Vec<BTreeMap<String, String>> {
    let run = Run::new(lscpu).arg("--sysroot").arg(root).arg("-p=CPU,CORE,SOCKET,NODE,CACHE").run();
    run.expect_code(0);
    let text = run.text();
    let cells = |line: &str| line.split([',', ':']).map(str::to_owned).collect::<Vec<_>>();
    let head = text.lines().filter_map(|line| line.strip_prefix("# ")).rfind(|line| line.starts_with("CPU,"));
    let Some(head) = head.map(cells) else { run.fail("lscpu names its columns") };
    let rows = text.lines().filter(|line| !line.starts_with('#'));
    let rows: Vec<_> = rows.map(|row| head.iter().cloned().zip(cells(row)).collect()).collect();
    if rows.is_empty() {
        again.fail("lscpu finds no CPU in what the guest shows");
    }
    rows
}

/// Fails unless two CPUs have equal values in `column` exactly if their places are equal on `level`.
fn same_groups(rows: &[BTreeMap<String, String>], shape: Shape, column: &str, level: usize, again: &Outcome) {
    for a in rows {
        for b in rows {
            let number = |row: &BTreeMap<String, String>| row["CPU"].parse().expect("lscpu numbers CPUs");
            let expected = place(shape, number(a))[level] == place(shape, number(b))[level];
            if (a[column] == b[column]) != expected {
                let not = if expected { "" } else { "not " };
                again.fail(&format!("lscpu: CPUs {} and {} should {not}share {column}", a["CPU"], b["CPU"]));
            }
        }
    }
}

/// How many objects of each kind hwloc finds.
fn hwloc(hwloc: &Path, root: &Path) -> impl Fn(&str) -> usize {
    let run = Run::new(hwloc).arg("--input").arg(root).args(["--of", "console", "--no-io", "--no-collapse"]).run();
    run.expect_code(0);
    let text = run.text();
    // Objects with one child share a line with it.
    move |kind| text.matches(&format!("{kind} L#")).count()
}

/// What a number of shapes look like to the host's lscpu and hwloc. Several tests, each with some of the shapes, so that they run beside
/// each other: a guest that reads its thousands of files keeps one CPU busy.
fn lscpu_and_hwloc_find(shapes: &[Shape]) {
    let tools = (prereq::busybox(), prereq::system_program(&["lscpu"]), prereq::system_program(&["hwloc-ls"]));
    let (Some(busybox), Some(lscpu_path), Some(hwloc_path)) = tools else { return };
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    for &shape in shapes {
        let (root, outcome) = dump(&busybox, &["--topology", &flag(shape)]);
        let rows = lscpu(&lscpu_path, root.path(), &outcome);
        if rows.len() != vcpus(shape) as usize {
            outcome.fail(&format!("{} CPUs were asked for, lscpu finds {}", vcpus(shape), rows.len()));
        }
        same_groups(&rows, shape, "Core", 2, &outcome);
        same_groups(&rows, shape, "Socket", 0, &outcome);
        // As far as the host tells its caches.
        for (cache, level) in [("L1d", 2), ("L2", 2), ("L3", 1)] {
            if rows.iter().all(|row| row.contains_key(cache)) {
                same_groups(&rows, shape, cache, level, &outcome);
            }
        }
        let count = hwloc(&hwloc_path, root.path());
        let [sockets, dies, cores, _] = shape;
        let found = [count("Package"), count("Core"), count("PU")];
        let expected = [sockets, sockets * dies * cores, vcpus(shape)].map(|n| n as usize);
        if found != expected {
            outcome.fail(&format!("hwloc finds {found:?} packages, cores, PUs instead of {expected:?}"));
        }
        // hwloc shows no die that is a single core; those are told apart by the level 3 cache, above.
        if dies > 1 && cores > 1 && count("Die") != (sockets * dies) as usize {
            outcome.fail(&format!("hwloc finds {} dies", count("Die")));
        }
    }
}

#[test]
fn lscpu_and_hwloc_find_one_socket() {
    lscpu_and_hwloc_find(&ONE_SOCKET);
}

#[test]
fn lscpu_and_hwloc_find_several_sockets() {
    lscpu_and_hwloc_find(&SEVERAL_SOCKETS);
}

#[test]
fn lscpu_and_hwloc_find_several_dies() {
    lscpu_and_hwloc_find(&SEVERAL_DIES);
}

/// With 72 CPUs, sets of CPUs are more than one word in the kernel: all come up, tasks run where they are told to on both sides of the border,
/// and those that wait for a busy CPU find an idle one. `make soak` does the same with 255 and more.
#[test]
fn more_cpus_than_a_word_has_bits() {
    let Some(busybox) = prereq::busybox() else { return };
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    let script = "nproc; cat /sys/devices/system/cpu/online /sys/devices/system/cpu/cpu71/topology/package_cpus
        for cpu in 63 64 71; do taskset -c $cpu grep Cpus_allowed_list /proc/self/status; done
        i=0; while [ $i -lt 6 ]; do taskset -c 62-66 true & i=$((i + 1)); done; wait; echo all ended";
    let outcome =
        Guest::new(72).flag("--topology").flag("sockets=2,cores=18,threads=2").run(&busybox, ["sh", "-c", script]);
    outcome.expect_code(0).expect_stdout(
        "72\n0-71\nff,fffffff0,00000000\n\
         Cpus_allowed_list:\t63\nCpus_allowed_list:\t64\nCpus_allowed_list:\t71\nall ended\n",
    );
}

#[test]
fn cpuinfo_tells_packages_cores_and_apic_ids_with_gaps() {
    let Some(busybox) = prereq::busybox() else { return };
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    let (root, outcome) = dump(&busybox, &["--topology", "sockets=2,cores=3,threads=2", "--vcpus", "12"]);
    let text = fs::read_to_string(root.path().join("proc/cpuinfo")).expect("the guest has it");
    let values = |key: &str| -> Vec<String> {
        let lines = text.lines().filter_map(|line| line.split_once(':'));
        lines.filter(|(k, _)| k.trim() == key).map(|(_, v)| v.trim().to_owned()).collect()
    };
    for (key, expected) in [
        ("physical id", ["0", "0", "0", "0", "0", "0", "1", "1", "1", "1", "1", "1"]),
        ("core id", ["0", "0", "1", "1", "2", "2", "0", "0", "1", "1", "2", "2"]),
        ("apicid", ["0", "1", "2", "3", "4", "5", "8", "9", "10", "11", "12", "13"]),
        ("siblings", ["6"; 12]),
        ("cpu cores", ["3"; 12]),
    ] {
        if values(key) != expected {
            outcome.fail(&format!("/proc/cpuinfo, {key}: {:?} instead of {expected:?}", values(key)));
        }
    }
}

#[test]
fn nodes_have_their_cpus_memory_and_distances() {
    let (Some(busybox), Some(lscpu_path)) = (prereq::busybox(), prereq::system_program(&["lscpu"])) else { return };
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    let nodes = "node=0,cpus=0,3,mem=96M,dist=1@31;node=1,cpus=1-2,mem=160M;node=2,mem=64M";
    let (root, outcome) = dump(&busybox, &["--topology", "cores=2,threads=2", "--numa", nodes]);
    let rows = lscpu(&lscpu_path, root.path(), &outcome);
    let found: Vec<&str> = rows.iter().map(|row| row["Node"].as_str()).collect();
    if found != ["0", "1", "1", "0"] {
        outcome.fail(&format!("lscpu finds the CPUs on nodes {found:?}"));
    }
    let read = |name: &str| {
        let path = root.path().join("sys/devices/system/node").join(name);
        fs::read_to_string(&path).unwrap_or_else(|error| outcome.fail(&format!("{name}: {error}"))).trim().to_owned()
    };
    assert_eq!(read("online"), "0-2");
    assert_eq!(read("has_cpu"), "0-1");
    assert_eq!((read("node0/distance"), read("node1/distance")), ("10 31 20".into(), "31 10 20".into()));
    assert_eq!((read("node0/cpulist"), read("node1/cpumap")), ("0,3".into(), "6".into()));
    for (node, mib) in [(0, 96), (1, 160), (2, 64)] {
        let meminfo = read(&format!("node{node}/meminfo"));
        let kib: Option<u64> = meminfo.split_whitespace().rev().nth(1).and_then(|word| word.parse().ok());
        assert_eq!(kib, Some(mib << 10), "{meminfo}");
    }
}

#[test]
fn the_host_s_own_tree_is_mirrored() {
    let (Some(busybox), Some(lscpu_path)) = (prereq::busybox(), prereq::system_program(&["lscpu"])) else { return };
    if !prereq::kvm_or_left_out() {
        return;
    }
    let _beside_others = serial::shared();
    // Hosts with more CPUs than the kernel brings up, or with unequal branches, say so; their message is tested elsewhere.
    let probe = Run::new(taskvisor_tests::guest::taskvisor())
        .args(["run", "--topology", "host", "--"])
        .arg(&busybox)
        .arg("true")
        .run();
    if probe.stderr.contains("--topology host") || probe.stderr.contains("vCPUs") {
        return;
    }
    let (root, outcome) = dump(&busybox, &["--topology", "host"]);
    let levels = |root: &Path| {
        let rows = lscpu(&lscpu_path, root, &outcome);
        let count =
            |column: &str| rows.iter().map(|row| row[column].clone()).collect::<std::collections::BTreeSet<_>>().len();
        (rows.len(), count("Core"), count("Socket"))
    };
    assert_eq!(levels(root.path()), levels(Path::new("/")), "CPUs, cores and sockets; again: {}", outcome.typed);
}

/// The kernel reads QEMU's CPUID and MADT as well as ours.
#[test]
fn the_kernel_finds_qemu_s_tree() {
    let tools = (prereq::busybox(), prereq::system_program(&["lscpu"]), prereq::qemu());
    let (Some(busybox), Some(lscpu_path), Some(qemu)) = tools else { return };
    let _beside_others = serial::shared();
    let image = Image::new(&[], &busybox, &["grep", "-rs", "", "/proc/cpuinfo", "/sys/devices/system"]);
    // sockets, dies, cores, threads
    for shape in [[2, 1, 2, 2], [1, 1, 3, 2], [2, 1, 3, 1]] {
        let [sockets, dies, cores, threads] = shape;
        let smp = format!("{},sockets={sockets},dies={dies},cores={cores},threads={threads}", vcpus(shape));
        let outcome = image.qemu(&qemu, "tcg", "q35", vcpus(shape)).args(["-cpu", "max", "-smp", &smp]).run();
        let root = unpack(&outcome);
        let rows = lscpu(&lscpu_path, root.path(), &outcome);
        assert_eq!(rows.len() as u32, vcpus(shape), "again: {}", outcome.typed);
        same_groups(&rows, shape, "Core", 2, &outcome);
        same_groups(&rows, shape, "Socket", 0, &outcome);
    }
}

#[test]
fn contradictions_are_refused_in_one_line() {
    for (flags, part) in [
        (&["--vcpus", "4", "--topology", "sockets=2,cores=3"][..], "makes 6 vCPUs, but --vcpus is 4"),
        (&["--vcpus", "5", "--topology", "threads=2"], "--vcpus 5 can't be divided by 2"),
        (&["--topology", "cores=0"], "cores= must be at least 1 at character 7"),
        (&["--topology", "core=2"], "unknown word 'core' at character 1"),
        (&["--topology", "sockets=100,cores=100"], "10000 vCPUs: 1 to 4096 are possible"),
        (&["--vcpus", "2", "--numa", "node=0,cpus=0,mem=64M"], "vCPUs 1 belong to no node"),
        (&["--numa", "node=0,cpus=0-1,mem=64M"], "vCPUs 1 that don't exist"),
        (&["--memory", "128M", "--numa", "node=0,cpus=0,mem=64M"], "--memory is 131072 KiB"),
        (&["--cpu", "host,-avx51f"], "unknown feature 'avx51f' at character 7: is it avx512f?"),
        (&["--cpu", "486"], "unknown model '486' at character 1"),
    ] {
        let run = Run::new(taskvisor_tests::guest::taskvisor()).arg("run").args(flags).args(["--", "/bin/true"]).run();
        run.expect_code(125).expect_one_line_error().expect_stderr(part);
    }
}

/// What no host has is refused by name: AMD's XOP and Intel's AMX never meet.
#[test]
fn a_feature_that_the_host_lacks_is_named() {
    if !prereq::kvm_or_left_out() {
        return;
    }
    let Some(busybox) = prereq::busybox() else { return };
    for (model, part) in [
        ("host,+xop,+amx_tile", "this host can't give"),
        ("baseline,+avx", "avx needs xsave, which the model lacks: add +xsave"),
    ] {
        let outcome = Guest::new(1).flag("--cpu").flag(model).run(&busybox, ["true"]);
        outcome.expect_code(125).expect_one_line_error().expect_stderr(part);
    }
}
