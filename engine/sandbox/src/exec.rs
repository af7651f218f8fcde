//! Owns the lookup of a program as a shell does it, and what the action sees when there is none.
//! Never searches outside of the sandbox: by now there is no outside.

use std::convert::Infallible;
use std::ffi::{CString, NulError};
use std::io::{self, Write};

use nix::errno::Errno;
use nix::unistd::execve;

use crate::DEFAULT_PATH;
use crate::spec::Spec;
use crate::step::{Step, StepFailure};
use crate::sys;

/// Exit codes of a shell.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;

/// What execve(2) takes, ready.
pub(crate) struct Command {
    candidates: Vec<CString>,
    arguments: Vec<CString>,
    environment: Vec<CString>,
}

impl Command {
    pub(crate) fn of(spec: &Spec) -> Result<Command, StepFailure> {
        let Some(program) = spec.arguments.first().filter(|program| !program.is_empty()) else {
            return Err(StepFailure::invalid(Step::Exec, "no program"));
        };
        Command::encode(spec, program)
            .map_err(|_| StepFailure::invalid(Step::Exec, "NUL in an argument or variable"))
    }

    fn encode(spec: &Spec, program: &str) -> Result<Command, NulError> {
        let path = spec.environment.iter().rev().find(|(name, _)| name == "PATH");
        let mut environment = spec
            .environment
            .iter()
            .map(|(name, value)| CString::new(format!("{name}={value}")))
            .collect::<Result<Vec<_>, _>>()?;
        if path.is_none() {
            environment.push(CString::new(format!("PATH={DEFAULT_PATH}"))?);
        }
        let path = path.map_or(DEFAULT_PATH, |(_, value)| value);
        let candidates = if program.contains('/') {
            vec![CString::new(program)?]
        } else {
            path.split(':').map(|folder| candidate(folder, program)).collect::<Result<_, _>>()?
        };
        let arguments =
            spec.arguments.iter().map(|a| CString::new(a.as_str())).collect::<Result<_, _>>()?;
        Ok(Command { candidates, arguments, environment })
    }
}

fn candidate(folder: &str, program: &str) -> Result<CString, NulError> {
    // POSIX: an empty entry of PATH is the working directory.
    let folder = if folder.is_empty() { "." } else { folder };
    CString::new(format!("{folder}/{program}"))
}

/// Replaces this process by the program; without one, says so on stderr and exits as a shell does.
pub(crate) fn replace(command: &Command) -> Result<Infallible, StepFailure> {
    let mut reason = Errno::ENOENT;
    for candidate in &command.candidates {
        let Err(error) = execve(candidate, &command.arguments, &command.environment);
        match error {
            // The first hit that may not be run is told, but a later one may still be run.
            Errno::ENOENT | Errno::ENOTDIR => {}
            Errno::EACCES => reason = error,
            _ => {
                reason = error;
                break;
            }
        }
    }
    let program = command.arguments[0].to_string_lossy();
    let line = format!("sandbox: {program}: {}\n", reason.desc());
    // Standard error may be full or closed; the exit code still tells.
    let _ = io::stderr().write_all(line.as_bytes());
    sys::exit(if reason == Errno::ENOENT { NOT_FOUND } else { NOT_EXECUTABLE })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Limits;

    fn spec(arguments: &[&str], environment: &[(&str, &str)]) -> Spec {
        Spec {
            root: "/r".into(),
            working_directory: String::new(),
            arguments: arguments.iter().map(ToString::to_string).collect(),
            environment: environment.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect(),
            uid: 1,
            gid: 1,
            mounts: Vec::new(),
            network: false,
            limits: Limits {
                file_bytes_max: 1,
                open_files_max: 1,
                processes_max: 1,
                tmp_bytes_max: 1,
                tmp_inodes_max: 1,
            },
        }
    }

    fn candidates(program: &str, environment: &[(&str, &str)]) -> Vec<String> {
        let command = Command::of(&spec(&[program], environment)).unwrap();
        command.candidates.iter().map(|c| c.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_program_is_looked_up_as_a_shell_does() {
        let default = ["/usr/local/bin/cc", "/usr/bin/cc", "/bin/cc"];
        assert_eq!(candidates("cc", &[]), default);
        assert_eq!(candidates("cc", &[("PATH", "/a:b:")]), ["/a/cc", "b/cc", "./cc"]);
        assert_eq!(candidates("cc", &[("PATH", "/a"), ("PATH", "/b")]), ["/b/cc"]);
        assert_eq!(candidates("./cc", &[("PATH", "/a")]), ["./cc"]);
        assert_eq!(candidates("/x/cc", &[]), ["/x/cc"]);
    }

    #[test]
    fn only_a_missing_path_is_added_to_the_environment() {
        let given = Command::of(&spec(&["cc"], &[("A", "1"), ("PATH", "")])).unwrap();
        assert_eq!(given.environment, [c"A=1".to_owned(), c"PATH=".to_owned()]);
        let missing = Command::of(&spec(&["cc"], &[("A", "1")])).unwrap();
        let path = CString::new(format!("PATH={DEFAULT_PATH}")).unwrap();
        assert_eq!(missing.environment, [c"A=1".to_owned(), path]);
    }

    #[test]
    fn a_command_that_execve_cannot_take_is_a_failure_of_the_exec_step() {
        for arguments in [&[][..], &[""], &["a\0b"], &["a", "b\0"]] {
            let failure = Command::of(&spec(arguments, &[])).err().unwrap();
            assert_eq!(failure.step, Step::Exec, "{arguments:?}");
        }
    }
}
