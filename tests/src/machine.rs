//! A throw-away machine: the host's own systemd as PID 1 of new namespaces, with diskchain installed as
//! docs/systemd.md says. `tests/systemd/boot.sh` makes it; it takes root, but neither KVM nor a network.
//!
//! The unit files are the shipped ones, byte for byte.

use std::fs;
use std::path::Path;
use std::process::ExitStatus;

use tempfile::TempDir;

use crate::project_root;
use crate::server::diskchain_binary;
use crate::tool::Tool;

/// What will lie over the root of a machine that has not booted yet.
pub struct Machine {
    files: TempDir,
}

/// What a machine left behind.
pub struct Ended {
    /// How its scenario ended.
    pub status: ExitStatus,
    /// What the scenario printed.
    pub log: String,
    journal: String,
    console: String,
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "the machine ended with {}", self.status)?;
        writeln!(f, "-- scenario:\n{}\n-- journal:\n{}", self.log, self.journal)?;
        write!(f, "-- console:\n{}", self.console)
    }
}

impl Machine {
    /// A machine with everything in place that the commands of docs/systemd.md install. Its
    /// `/usr/bin/diskchain` does nothing before it boots.
    ///
    /// # Panics
    /// When one of the commands fails.
    #[track_caller]
    pub fn installed() -> Machine {
        let files = tempfile::tempdir().expect("make a temporary folder");
        let guide = project_root().join("docs/systemd.md");
        let guide = fs::read_to_string(&guide).expect("the guide is readable");
        let (_, install) = guide.split_once("## Install").expect("the guide says how to install");
        let (commands, _) = install.split_once("\n## ").expect("it goes on");
        let commands: Vec<&str> = commands
            .lines()
            .filter_map(|line| line.strip_prefix("sudo "))
            .filter(|line| line.starts_with("install "))
            .collect();
        assert!(commands.len() >= 5, "the guide says how to install");
        // Not a path may be left that means this host.
        let commands = commands
            .join("\n")
            .replace(" target/release/diskchain ", " \"$TRUE\" ")
            .replace(" /", " \"$ROOT\"/");
        let script = format!("set -eu\nmkdir -p \"$ROOT/etc\"\n{commands}\n");
        let shell = Tool::new("sh").args(["-c", &script]).env("ROOT", files.path()).env("TRUE", "/bin/true");
        shell.current_dir(project_root()).run();
        Machine { files }
    }

    /// The folder that will be laid over its root.
    pub fn root(&self) -> &Path {
        self.files.path()
    }

    /// Writes a file of the machine; `path` is as in the machine.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.root().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().expect("a file lies in a folder")).expect("make a folder");
        fs::write(path, text).expect("write a file of the machine");
    }

    /// Boots it with the built binary, and runs `tests/systemd/scenarios/NAME.sh` in it to its end.
    ///
    /// # Panics
    /// When the scenario fails, with what it printed and the machine's journal.
    #[track_caller]
    pub fn play(&self, name: &str) {
        let scenario = project_root().join("tests/systemd/scenarios").join(name).with_extension("sh");
        let ended = self.run(&fs::read_to_string(scenario).expect("the scenario is readable"));
        assert!(ended.status.success() && ended.log.ends_with("== done\n"), "{ended}");
    }

    /// Boots it with the built binary, and runs `scenario`, which may use what `lib.sh` defines.
    ///
    /// # Panics
    /// When this host cannot boot systemd in namespaces.
    #[track_caller]
    pub fn run(&self, scenario: &str) -> Ended {
        let harness = project_root().join("tests/systemd");
        let read = |name: &str| fs::read_to_string(harness.join(name)).expect("the harness is readable");
        self.write("scenario.sh", &format!("{}\n{scenario}\nstep done\n", read("scenarios/lib.sh")));
        self.write("etc/systemd/system/scenario.service", &read("scenario.service"));

        let out = tempfile::tempdir().expect("make a temporary folder");
        let booted = Tool::new(harness.join("boot.sh"))
            .args([self.root(), &diskchain_binary(), out.path()])
            .seconds(90)
            .run_any();
        assert_ne!(booted.status.code(), Some(125), "{}", booted.stderr);
        let read = |name: &str| fs::read_to_string(out.path().join(name)).unwrap_or_default();
        Ended {
            status: booted.status,
            log: read("scenario.log"),
            journal: read("journal.log"),
            console: read("console.log") + &booted.stderr,
        }
    }
}
