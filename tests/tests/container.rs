//! The Dockerfile, followed without a container engine: its builder stage is run step by step on the
//! files that `.dockerignore` lets through, its last stage is laid out by its own COPY lines, and what
//! comes out is started from that root alone, as its user (`tests/systemd/scenarios/container.sh`).

use std::fs;
use std::path::{Path, PathBuf};

use diskchain_tests::machine::Machine;
use diskchain_tests::project_root;
use diskchain_tests::server::{diskchain, diskchain_binary};
use diskchain_tests::tool::Tool;

#[test]
fn the_image_has_all_that_the_daemon_needs() {
    let machine = Machine::installed();
    let [builder, image] = &stages()[..] else { panic!("a builder and an image") };
    assert_eq!(image[0], ("FROM".to_owned(), "scratch".to_owned()));
    let out = tempfile::tempdir().unwrap();
    build(builder, out.path());
    let root = machine.root().join("image");
    lay_out(image, out.path(), &root);

    let entrypoint = words_of(image, "ENTRYPOINT");
    let environment = assignments(value_of(image, "ENV"));
    let (_, path) = environment.iter().find(|(key, _)| key == "PATH").expect("ENV sets PATH");
    let program = format!("{path}/{}", entrypoint[0]);
    assert!(root.join(program.trim_start_matches('/')).is_file(), "{program}");
    let (_, healthcheck) = value_of(image, "HEALTHCHECK").split_once("CMD ").expect("HEALTHCHECK has a CMD");
    assert_eq!(words(healthcheck), ["diskchain", "healthcheck"]);
    assert_eq!(words_of(image, "VOLUME"), ["/var/lib/diskchain/images"]);

    // The configuration of the guide, at the place that CMD names.
    machine.write("/image/etc/diskchain/diskchain.toml", &guides_configuration());
    machine.write(
        "/image.env",
        &format!(
            "PROGRAM={program}\nIMAGE_ENV='{}'\nIMAGE_USER={}\nIMAGE_CMD='{}'\nIMAGE_STOPSIGNAL={}\n",
            value_of(image, "ENV"),
            value_of(image, "USER"),
            words_of(image, "CMD").join(" "),
            value_of(image, "STOPSIGNAL"),
        ),
    );
    machine.play("container");
}

#[test]
fn the_guides_configuration_is_valid() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("diskchain.toml");
    fs::write(&config, guides_configuration()).unwrap();
    diskchain(&["check"]).arg(config).run();
}

type Instruction = (String, String);

/// The stages of the Dockerfile: instructions and their arguments, each stage beginning with its FROM.
fn stages() -> Vec<Vec<Instruction>> {
    let text = fs::read_to_string(project_root().join("Dockerfile")).unwrap();
    let text: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let text = text.join("\n").replace("\\\n", " ");
    let mut stages: Vec<Vec<Instruction>> = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let (instruction, arguments) = line.split_once(' ').expect("an instruction has arguments");
        if instruction == "FROM" {
            stages.push(Vec::new());
        }
        let stage = stages.last_mut().expect("a Dockerfile begins with FROM");
        stage.push((instruction.to_owned(), arguments.trim().to_owned()));
    }
    stages
}

/// Runs the builder's RUN steps; what they leave in its `/out` is in `out` afterwards.
fn build(stage: &[Instruction], out: &Path) {
    let context = build_context();
    // Kept between runs, beside the folder of the daemon under test.
    let target = diskchain_binary().parent().unwrap().with_file_name("container-test");
    fs::create_dir_all(&target).unwrap();
    // Without optimisation: this is about what the program needs, and takes a third of the time.
    let mut environment = vec![("CARGO_PROFILE_RELEASE_OPT_LEVEL".to_owned(), "0".to_owned())];
    for (instruction, arguments) in stage {
        match instruction.as_str() {
            "FROM" | "WORKDIR" | "COPY" => {}
            "ENV" => environment.extend(assignments(arguments)),
            "RUN" => {
                let options = |word: &&str| word.starts_with("--mount=");
                let command: Vec<&str> = arguments.split_whitespace().skip_while(options).collect();
                let step = project_root().join("tests/container/run-step.sh");
                let mut tool = Tool::new(step).args([context.path(), &target, out]).arg(command.join(" "));
                for (key, value) in &environment {
                    tool = tool.env(key, value);
                }
                tool.seconds(1200).run();
            }
            _ => panic!("{instruction} in the builder stage"),
        }
    }
}

/// A copy of the files that `.dockerignore` lets through: it names them with `!`, all else is ignored.
fn build_context() -> tempfile::TempDir {
    let context = tempfile::tempdir().unwrap();
    let rules = fs::read_to_string(project_root().join(".dockerignore")).unwrap();
    assert!(rules.lines().any(|rule| rule == "*"));
    let names: Vec<&str> = rules.lines().filter_map(|rule| rule.strip_prefix('!')).collect();
    let copy = r#"cp -r --parents "$@" "$CONTEXT""#;
    Tool::new("sh")
        .args(["-euc", copy, "sh"])
        .args(names)
        .env("CONTEXT", context.path())
        .current_dir(project_root())
        .run();
    context
}

/// `KEY="value" KEY=value`, as ENV takes them.
fn assignments(text: &str) -> Vec<(String, String)> {
    let mut rest = text.trim();
    let mut found = Vec::new();
    while let Some((key, after)) = rest.split_once('=') {
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').expect("a closing quote"),
            None => after.split_once(' ').unwrap_or((after, "")),
        };
        found.push((key.to_owned(), value.to_owned()));
        rest = after.trim();
    }
    found
}

/// Follows the COPY lines of the last stage.
fn lay_out(stage: &[Instruction], out: &Path, root: &Path) {
    let copies: Vec<&str> = stage
        .iter()
        .filter(|(instruction, _)| instruction == "COPY")
        .map(|(_, text)| text.as_str())
        .collect();
    assert!(!copies.is_empty());
    for copy in copies {
        let (options, paths): (Vec<&str>, Vec<&str>) =
            copy.split_whitespace().partition(|word| word.starts_with("--"));
        let [from, to] = paths[..] else { panic!("COPY {copy}") };
        let from = out.join(from.strip_prefix("/out/").expect("the builder's results are in /out"));
        let to: PathBuf = root.join(to.trim_start_matches('/'));
        fs::create_dir_all(&to).unwrap();
        Tool::new("cp").arg("-r").arg(from.join(".")).arg(&to).run();
        if let Some(owner) = options.iter().find_map(|option| option.strip_prefix("--chown=")) {
            Tool::new("chown").args(["-R", owner]).arg(&to).run();
        }
    }
}

fn value_of<'a>(stage: &'a [Instruction], instruction: &str) -> &'a str {
    let found = stage.iter().find(|(name, _)| name == instruction);
    &found.unwrap_or_else(|| panic!("the image has {instruction}")).1
}

fn words_of(stage: &[Instruction], instruction: &str) -> Vec<String> {
    words(value_of(stage, instruction))
}

/// The words of an instruction's JSON form.
fn words(json: &str) -> Vec<String> {
    let words: serde_json::Value = serde_json::from_str(json).expect("the JSON form");
    words.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
}

/// The TOML of docs/container.md.
fn guides_configuration() -> String {
    let guide = fs::read_to_string(project_root().join("docs/container.md")).unwrap();
    let (_, rest) = guide.split_once("```toml\n").expect("the guide shows a configuration");
    rest.split_once("```").expect("its end").0.to_owned()
}
