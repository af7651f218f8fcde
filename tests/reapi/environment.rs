//! What a command finds when it starts: its arguments, its variables, its directory, its program.

use crate::shared::{can_execute, shared};
use proto::reapi::{Platform, platform::Property};
use ringforge_tests::action::{Folder, Job};
use std::collections::BTreeSet;
use tonic::Code;

const SCRIPT: &str = "#!/bin/sh\nprintf '%s' \"$0\"\n";

fn lines(text: &str) -> BTreeSet<&str> {
    text.lines().collect()
}

#[tokio::test]
async fn the_environment_is_exactly_what_was_declared_and_a_path() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let job = Job::new(&["/usr/bin/env"]).variable("A", "1").variable("B", "two words = $HOME");
    let printed = node.printed(&job).await;
    let path = printed.lines().find(|line| line.starts_with("PATH=")).expect("a PATH").to_owned();
    assert!(path.contains("/usr/bin") && path.contains(":/bin"), "{path}");
    let expected = ["A=1", "B=two words = $HOME", &path];
    assert_eq!(lines(&printed), expected.into_iter().collect());
    let job = Job::new(&["/usr/bin/env"]).variable("PATH", "/nowhere").variable("EMPTY", "");
    let printed = node.printed(&job).await;
    assert_eq!(lines(&printed), ["PATH=/nowhere", "EMPTY="].into_iter().collect());
}

#[tokio::test]
async fn arguments_arrive_as_they_were_said() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let arguments = ["/usr/bin/printf", "[%s]", "a b", "", "$HOME", "*", "ü", "\n", "-n", "\\"];
    let printed = node.printed(&Job::new(&arguments)).await;
    assert_eq!(printed, "[a b][][$HOME][*][ü][\n][-n][\\]");
    let long = "x".repeat(100_000);
    let counted = node.printed(&Job::new(&["/bin/sh", "-c", "printf ${#1}", "sh", &long])).await;
    assert_eq!(counted, "100000");
}

#[tokio::test]
async fn a_command_as_long_as_the_kernel_takes_runs_and_a_longer_one_fails() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let long = "x".repeat(120_000);
    let mut arguments = vec!["/bin/sh", "-c", "printf $#", "sh"];
    arguments.extend([&*long; 12]);
    assert_eq!(node.printed(&Job::new(&arguments)).await, "12");
    let longer = "x".repeat(200_000);
    let many = [&arguments[..], &[&*long; 8]].concat();
    for arguments in [&["true", &longer][..], &many] {
        let response = node.run(&Job::new(arguments)).await;
        let code = Code::from_i32(response.status.clone().unwrap_or_default().code);
        let failed = response.result.is_some_and(|result| result.exit_code != 0);
        let clear = matches!(code, Code::InvalidArgument | Code::ResourceExhausted);
        assert!(clear || (code == Code::Ok && failed), "{:?}", response.status);
    }
    let many =
        (0..5000).fold(Job::new(&["/usr/bin/env"]), |job, n| job.variable(&format!("V{n}"), "v"));
    assert_eq!(node.printed(&many).await.lines().count(), 5001);
}

#[tokio::test]
async fn a_program_is_found_as_a_shell_finds_it() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let inputs = Folder::new().executable("tool", SCRIPT).folder(
        "d",
        Folder::new()
            .executable("tool", SCRIPT)
            .folder("bin", Folder::new().executable("t", SCRIPT)),
    );
    let run = |program: &str, directory: &str, path: Option<&str>| {
        let job = Job::new(&[program]).with(inputs.clone()).working_directory(directory);
        let job = match path {
            Some(path) => job.variable("PATH", path),
            None => job,
        };
        let client = (*node).clone();
        async move { client.run(&job).await.result.unwrap().exit_code }
    };
    for (program, directory, path, code) in [
        ("./tool", "", None, 0),
        ("./tool", "d", None, 0),
        ("d/tool", "", None, 0),
        ("../tool", "d", None, 0),
        ("bin/t", "d", None, 0),
        ("t", "d", Some("/nowhere:bin"), 0),
        ("true", "", None, 0),
        ("/bin/true", "", Some("/nowhere"), 0),
        ("tool", "", None, 127),
        ("t", "", Some("bin"), 127),
        ("true", "", Some("/nowhere"), 127),
        ("bin/t", "", None, 127),
        ("no-such-program", "", None, 127),
        ("/no/such/program", "", None, 127),
        ("d", "", Some("."), 126),
        ("./d", "", None, 126),
    ] {
        assert_eq!(
            run(program, directory, path).await,
            code,
            "{program} in {directory:?} {path:?}"
        );
    }
}

#[tokio::test]
async fn an_input_that_is_not_executable_is_not_executed() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let job = Job::new(&["./tool"]).with(Folder::new().file("tool", SCRIPT));
    assert_eq!(node.run(&job).await.result.unwrap().exit_code, 126);
}

#[tokio::test]
async fn the_working_directory_is_the_commands() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let inputs = Folder::new()
        .folder("a", Folder::new().folder("b", Folder::new().file("here", "yes")))
        .file("top", "top");
    let job = Job::shell("cat here ../../top > out; mkdir -p deep; echo x > deep/out")
        .with(inputs.clone())
        .working_directory("a/b")
        .outputs(&["out", "deep/out"]);
    let result = node.result(&job).await;
    let paths: Vec<&str> = result.output_files.iter().map(|file| &*file.path).collect();
    assert_eq!(paths, ["out", "deep/out"], "relative to the working directory");
    let out = result.output_files[0].digest.clone().unwrap();
    assert_eq!(node.read(&out).await.unwrap(), "yestop");
    for directory in ["absent", "a/absent", "top", "a/b/here"] {
        let job = Job::new(&["true"]).with(inputs.clone()).working_directory(directory);
        let status = node.failure(&job).await;
        let code = Code::from_i32(status.code);
        let clear = matches!(code, Code::InvalidArgument | Code::FailedPrecondition);
        assert!(clear, "{directory}: {status:?}");
    }
}

#[tokio::test]
async fn a_working_directory_of_one_dot_is_the_root() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let job = Job::new(&["/bin/cat", "top"]).with(Folder::new().file("top", "here"));
    assert_eq!(node.printed(&job.working_directory(".")).await, "here");
}

#[tokio::test]
async fn working_directories_that_lead_elsewhere_are_refused() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let inputs = Folder::new().symlink("up", "..").symlink("etc", "/etc");
    for directory in ["/", "/etc", "..", "../..", "a/..", "./", "a//b", "a/", "a\0b", "up", "etc"] {
        let job = Job::shell("pwd").with(inputs.clone()).working_directory(directory);
        let status = node.failure(&job).await;
        let code = Code::from_i32(status.code);
        let clear = matches!(code, Code::InvalidArgument | Code::FailedPrecondition);
        assert!(clear, "{directory:?}: {status:?}");
    }
}

#[tokio::test]
async fn standard_input_is_empty() {
    if !can_execute() {
        return;
    }
    assert_eq!(shared().await.printed(&Job::shell("cat | wc -c")).await.trim(), "0");
}

#[tokio::test]
async fn commands_that_cannot_be_run_are_refused() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    for (what, job) in [
        ("no arguments", Job::new(&[])),
        ("an empty program", Job::new(&[""])),
        ("NUL in an argument", Job::new(&["true", "a\0b"])),
        ("NUL in a value", Job::new(&["true"]).variable("A", "a\0b")),
        ("NUL in a name", Job::new(&["true"]).variable("A\0", "a")),
        ("a name of nothing", Job::new(&["true"]).variable("", "a")),
        ("= in a name", Job::new(&["true"]).variable("A=B", "a")),
    ] {
        let status = node.failure(&job).await;
        assert_eq!(status.code, Code::InvalidArgument as i32, "{what}: {status:?}");
    }
    let mut job = Job::new(&["true"]);
    job.command.output_node_properties = vec!["mtime".to_owned()];
    let status = node.failure(&job).await;
    assert_eq!(status.code, Code::InvalidArgument as i32, "a node property: {status:?}");
}

#[tokio::test]
async fn a_platform_that_is_not_offered_is_refused() {
    if !can_execute() {
        return;
    }
    let node = shared().await;
    let platform = |name: &str, value: &str| {
        let property = Property { name: name.to_owned(), value: value.to_owned() };
        Some(Platform { properties: vec![property] })
    };
    for (name, value, good) in [
        ("OSFamily", "linux", true),
        ("OSFamily", "Linux", true),
        ("OSFamily", "windows", false),
        ("ISA", "no-such-isa", false),
        ("container-image", "docker://x", false),
        ("", "", false),
    ] {
        let mut job = Job::new(&["true"]);
        job.action.platform = platform(name, value);
        node.put(job.blobs()).await;
        let status = node.outcome(job.request()).await;
        let code = Code::from_i32(status.code);
        let refused = matches!(code, Code::InvalidArgument | Code::FailedPrecondition);
        assert_eq!(code == Code::Ok, good, "{name}={value}: {status:?}");
        assert_eq!(refused, !good, "{name}={value}: {status:?}");
    }
    // The action's platform is meant before the command's.
    let mut job = Job::new(&["true"]);
    job.action.platform = platform("OSFamily", "linux");
    #[expect(deprecated, reason = "what clients up to API 2.1 send")]
    {
        job.command.platform = platform("OSFamily", "windows");
    }
    node.result(&job).await;
    job.action.platform = None;
    assert_ne!(node.failure(&job).await.code, 0);
}
