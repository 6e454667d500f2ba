//! The program `diskchain`. All of it is in the library beside this file.

fn main() -> std::process::ExitCode {
    diskchain::main()
}
