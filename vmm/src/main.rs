//! The command `taskvisor`.

fn main() {
    eprintln!("taskvisor: not ready yet");
    std::process::exit(125);
}
