//! How the guest kernel can be built on this machine: which compiler, whose `core`, which linker.
//!
//! The order of ways is fixed (docs/contributing.md): a toolchain that has the target, a toolchain that has the source of
//! its own standard library, a distribution's compiler with its source. Nothing here installs or downloads anything, and
//! compilers are called by their real path, never through a rustup proxy, which might.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The guest's target triple: no operating system, soft float, no red zone.
pub const TARGET: &str = "x86_64-unknown-none";

/// Where the kernel's `core` and `alloc` come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The toolchain has them compiled for [`TARGET`].
    Installed,
    /// The active toolchain has their source (component `rust-src`).
    ActiveSource,
    /// A distribution's compiler with the source package that belongs to it.
    DistributionSource,
}

/// One way of building the kernel that works here.
#[derive(Debug)]
pub struct Scheme {
    /// Where `core` comes from.
    pub way: Way,
    /// The compiler itself, not a proxy.
    pub rustc: PathBuf,
    /// Its version, such as `1.96.0`.
    pub version: String,
    /// What links the kernel.
    pub linker: Linker,
}

/// A linker and how the compiler must talk to it.
#[derive(Debug)]
pub struct Linker {
    path: PathBuf,
    gnu_ld: bool,
}

impl Linker {
    /// The compiler's arguments that choose this linker.
    pub fn rustc_args(&self) -> Vec<String> {
        let mut args = vec![format!("-Clinker={}", self.path.display())];
        if self.gnu_ld {
            args.push("-Clinker-flavor=ld".into());
        }
        args
    }
}

impl Scheme {
    /// A directory name of its own for each scheme, so that changing between two rebuilds neither.
    pub fn name(&self) -> String {
        let way = match self.way {
            Way::Installed => "target",
            Way::ActiveSource => "source",
            Way::DistributionSource => "dist",
        };
        format!("{way}-{}", self.version)
    }

    /// Whether `core` has to be compiled from source.
    pub fn needs_build_std(&self) -> bool {
        self.way != Way::Installed
    }
}

/// No way was there: names what would give one.
#[derive(Debug)]
pub struct NoWay {
    tried: Vec<String>,
}

impl fmt::Display for NoWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the guest kernel can't be built: no compiler here has `core` for {TARGET}")?;
        for line in &self.tried {
            writeln!(f, "  looked at {line}")?;
        }
        writeln!(f, "one of these gives it (or `make setup`, which chooses):")?;
        writeln!(f, "  apt-get install --no-install-recommends rustc-web rust-web-src   # Debian, as root")?;
        writeln!(f, "  rustup target add {TARGET}")?;
        write!(f, "or set GUEST_KERNEL_ELF to a kernel built elsewhere")
    }
}

/// A compiler that was found, with the facts that decide.
struct Compiler {
    rustc: PathBuf,
    sysroot: PathBuf,
    version: String,
    host: String,
}

impl Compiler {
    /// Asks `rustc` (perhaps a proxy) for its sysroot and goes on with the real binary in it.
    fn probe(rustc: &Path) -> Option<Self> {
        let sysroot = PathBuf::from(output(rustc, &["--print", "sysroot"])?.trim());
        let inner = sysroot.join("bin/rustc");
        let rustc = if inner.is_file() { inner } else { rustc.to_owned() };
        let verbose = output(&rustc, &["-vV"])?;
        let field =
            |name: &str| verbose.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned());
        Some(Self { version: field("release:")?, host: field("host:")?, rustc, sysroot })
    }

    fn has_target(&self) -> bool {
        let libdir = self.sysroot.join("lib/rustlib").join(TARGET).join("lib");
        libdir.read_dir().is_ok_and(|mut entries| {
            entries.any(|entry| entry.is_ok_and(|e| e.file_name().to_string_lossy().starts_with("libcore-")))
        })
    }

    /// A compiler only takes the source of its own version; `rust-src` of a sysroot is that by construction.
    fn has_source(&self) -> bool {
        self.sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file()
    }

    fn rust_lld(&self) -> Option<PathBuf> {
        let path = self.sysroot.join("lib/rustlib").join(&self.host).join("bin/rust-lld");
        path.is_file().then_some(path)
    }
}

/// Chooses the first way that works on this machine.
pub fn find() -> Result<Scheme, NoWay> {
    let active_rustc = env::var_os("RUSTC").map_or_else(|| PathBuf::from("rustc"), PathBuf::from);
    let distribution_rustc = Path::new("/usr/bin/rustc");
    let active = Compiler::probe(&active_rustc);
    let distribution = Compiler::probe(distribution_rustc);

    let mut tried = Vec::new();
    let mut chosen = None;
    for (compiler, path, source_way) in [
        (&active, active_rustc.as_path(), Way::ActiveSource),
        (&distribution, distribution_rustc, Way::DistributionSource),
    ] {
        let Some(compiler) = compiler else {
            tried.push(format!("{}: not there", path.display()));
            continue;
        };
        if compiler.has_target() {
            chosen = Some((Way::Installed, compiler));
        } else if compiler.has_source() {
            chosen = Some((source_way, compiler));
        } else {
            tried.push(format!(
                "{} ({}): neither the target nor the library's source",
                compiler.rustc.display(),
                compiler.version
            ));
            continue;
        }
        break;
    }
    let Some((way, compiler)) = chosen else { return Err(NoWay { tried }) };
    let linker = find_linker([Some(compiler), active.as_ref(), distribution.as_ref()]);
    Ok(Scheme { way, rustc: compiler.rustc.clone(), version: compiler.version.clone(), linker })
}

/// The most robust first: the compiler's own lld, another toolchain's, the system's, GNU ld (there wherever gcc is).
fn find_linker(compilers: [Option<&Compiler>; 3]) -> Linker {
    let lld = compilers.into_iter().flatten().find_map(Compiler::rust_lld).or_else(|| in_path("ld.lld"));
    match lld {
        Some(path) => Linker { path, gnu_ld: false },
        None => Linker { path: in_path("ld").unwrap_or_else(|| "ld".into()), gnu_ld: true },
    }
}

/// Looks a program up as a shell does.
pub fn in_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(program)).find(|candidate| candidate.is_file())
}

fn output(program: &Path, args: &[&str]) -> Option<String> {
    let out = Command::new(program).args(args).env("RUSTUP_AUTO_INSTALL", "0").output().ok()?;
    if !out.status.success() {
        return None;
    }
    String::from_utf8(out.stdout).ok()
}
