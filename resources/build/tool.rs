//! The guest kernel's build as a command: `build-kernel.sh` compiles and runs it. It shares every module with the build
//! script, so both use the same directories and neither rebuilds what the other built.
//!
//! Usage: tool ROOT [FEATURES]. Prints the path of the ELF file.

mod kernel;
mod scheme;
mod symbols;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = env::args_os().skip(1);
    let Some(root) = args.next().map(PathBuf::from) else {
        eprintln!("usage: tool ROOT [FEATURES]");
        return ExitCode::from(2);
    };
    let features = args.next().unwrap_or_default();
    let target_dir = env::var_os("TASKVISOR_GUEST_TARGET_DIR")
        .or_else(|| env::var_os("CARGO_TARGET_DIR").map(|dir| PathBuf::from(dir).join("guest").into()))
        .map_or_else(|| root.join("target/guest"), PathBuf::from);
    let result = scheme::find().map_err(|e| e.to_string()).and_then(|scheme| {
        let features = features.to_str().ok_or("features must be UTF-8")?;
        let locked = env::var_os("CI").is_some();
        kernel::build(&scheme, &kernel::Request { root: &root, target_dir: &target_dir, features, locked })
    });
    match result {
        Ok(path) => {
            println!("{}", path.display());
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}
