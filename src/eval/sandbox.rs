//! A user's own command on a program that a model wrote, kept within limits: an empty environment, a
//! temporary folder of its own, and bounds on time, memory, file size and processes.
//!
//! Limits cannot be set on a child from outside without a moment in which it has none. So the command is
//! started through [`confine`]: this very program, which limits itself and then becomes the command.
//! It guards against accidents (endless loops, full disks, all memory), not against malice: a program can
//! still read what its user can read and reach the network. Strangers' models belong in a container.

use std::ffi::OsString;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::{CommandSpec, Judged, Verdict};

/// The hidden command of this program that becomes another one under limits.
pub const CONFINE: &str = "confine";
/// Bytes of what a command says that are looked at.
const HEARD_BYTES: u64 = 4096;
/// Longest reason.
const MAX_REASON: usize = 300;
/// Pauses between two looks at a command.
const PAUSES: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(20)];

/// What a process may take.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessLimits {
    /// Wall-clock time; its processor time may be as much for each of its processes.
    pub time: Duration,
    /// Bytes of address space of each process.
    pub memory_bytes: u64,
    /// Bytes of each file that it writes, its output included.
    pub file_bytes: u64,
    /// Processes and threads that it may start.
    pub processes: u64,
}

/// Why commands cannot be run at all.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The command is not there.
    #[error("command `{command}` is not in PATH")]
    NotFound { command: String },
    /// This program cannot be started again to become the command.
    #[error("commands cannot be confined here")]
    Confine { source: std::io::Error },
}

/// Runs one command on many programs.
pub struct Sandbox {
    /// This program, which becomes the command.
    confine: PathBuf,
    command: PathBuf,
    spec: CommandSpec,
}

impl Sandbox {
    /// Finds the command; the programs themselves come later.
    pub fn new(mut spec: CommandSpec) -> Result<Self, SandboxError> {
        let command = spec.command.first().map_or("", String::as_str);
        let found =
            find(command).ok_or_else(|| SandboxError::NotFound { command: command.to_owned() })?;
        let confine = std::env::current_exe().map_err(|source| SandboxError::Confine { source })?;
        // The system counts all threads of a user, those of this process and of programs side by side too.
        let side_by_side =
            spec.limits.processes.saturating_mul(rayon::current_num_threads() as u64);
        spec.limits.processes = match own_threads() {
            0 => u64::MAX,
            threads => threads.saturating_add(side_by_side),
        };
        Ok(Self { confine, command: found, spec })
    }

    /// Runs the command on a program: right if it ends with 0. `answer` is the model's part of it.
    pub fn run(&self, program: &str, answer: String) -> Judged {
        match self.try_run(program) {
            Err(error) => Judged::unjudged(format!("the command could not be run: {error}")),
            Ok(end) => {
                let right = end == End::Exit(0);
                let score = Some(f64::from(u8::from(right)));
                let reason = (!right).then(|| end.described());
                let verdict = Verdict { score, answer: Some(answer), reason };
                Judged { verdict, vote: None }
            }
        }
    }
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq)]
enum End {
    Exit(i32),
    /// With what it said last.
    Failed(i32, String),
    Signal(i32),
    TimedOut(Duration),
}

impl End {
    fn described(&self) -> String {
        match self {
            Self::Exit(code) => format!("exit code {code}"),
            Self::Failed(code, said) if said.is_empty() => format!("exit code {code}"),
            Self::Failed(code, said) => format!("exit code {code}: {said}"),
            Self::Signal(24) => "killed: too much processor time".into(),
            Self::Signal(25) => "killed: a file became too large".into(),
            Self::Signal(signal) => format!("killed by signal {signal}"),
            Self::TimedOut(time) => format!("not done after {} s", time.as_secs_f64()),
        }
    }
}

/// A command's file, by its path or in PATH.
fn find(command: &str) -> Option<PathBuf> {
    if command.is_empty() {
        return None;
    }
    if command.contains('/') {
        return std::path::absolute(command).ok().filter(|path| path.is_file());
    }
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths).map(|folder| folder.join(command)).find(|path| path.is_file())
}

/// The last thing said that is not empty.
fn last_words(file: &mut std::fs::File) -> String {
    let mut said = Vec::new();
    let length = file.metadata().map_or(0, |metadata| metadata.len());
    let from = SeekFrom::Start(length.saturating_sub(HEARD_BYTES));
    let heard = file.seek(from).and_then(|_| file.take(HEARD_BYTES).read_to_end(&mut said));
    if heard.is_err() {
        return String::new();
    }
    let said = String::from_utf8_lossy(&said);
    let line = said.lines().rev().map(str::trim).find(|line| !line.is_empty());
    line.unwrap_or_default().chars().take(MAX_REASON).collect()
}

#[cfg(unix)]
impl Sandbox {
    fn try_run(&self, program: &str) -> std::io::Result<End> {
        use std::fs::File;
        use std::os::unix::process::CommandExt;
        use std::process::{Command, Stdio};

        let folder = tempfile::tempdir()?;
        let work = folder.path().join("work");
        std::fs::create_dir(&work)?;
        std::fs::write(work.join(&self.spec.file), program)?;
        let arguments = &self.spec.command[1..];
        let stdin = match arguments.iter().any(|argument| argument.contains("{file}")) {
            true => Stdio::null(),
            false => File::open(work.join(&self.spec.file))?.into(),
        };
        // What it says goes to a file, which the limit on files bounds.
        let path = folder.path().join("said");
        let said = File::options().append(true).create_new(true).open(&path)?;
        let mut child = Command::new(&self.confine)
            .arg(CONFINE)
            .arg(serde_json::to_string(&self.spec.limits)?)
            .arg("--")
            .arg(&self.command)
            .args(arguments.iter().map(|argument| argument.replace("{file}", &self.spec.file)))
            .env_clear()
            .current_dir(&work)
            .stdin(stdin)
            .stdout(said.try_clone()?)
            .stderr(said)
            .process_group(0)
            .spawn()?;
        let (ended, timed_out) = wait(&child, self.spec.limits.time);
        // Before it is reaped its group cannot be another's; whatever it left behind goes with it.
        if let Ok(group) = i32::try_from(child.id())
            && let Some(group) = rustix::process::Pid::from_raw(group)
        {
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let status = child.wait()?;
        ended?;
        if timed_out {
            return Ok(End::TimedOut(self.spec.limits.time));
        }
        Ok(end(status, || {
            File::open(&path).map_or(String::new(), |mut said| last_words(&mut said))
        }))
    }
}

#[cfg(unix)]
fn end(status: std::process::ExitStatus, said: impl FnOnce() -> String) -> End {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(0), _) => End::Exit(0),
        (Some(code), _) => End::Failed(code, said()),
        (None, signal) => End::Signal(signal.unwrap_or_default()),
    }
}

/// Waits until a child ends, without reaping it, or its time is over.
#[cfg(unix)]
fn wait(child: &std::process::Child, time: Duration) -> (std::io::Result<()>, bool) {
    use rustix::process::{WaitId, WaitIdOptions, waitid};
    let began = Instant::now();
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let mut pause = PAUSES[0];
    loop {
        match waitid(WaitId::Pid(rustix::process::Pid::from_child(child)), options) {
            Ok(Some(_)) => return (Ok(()), false),
            Ok(None) if began.elapsed() >= time => return (Ok(()), true),
            Ok(None) | Err(rustix::io::Errno::INTR) => std::thread::sleep(pause),
            Err(error) => return (Err(error.into()), false),
        }
        pause = (pause * 2).min(PAUSES[1]);
    }
}

/// Limits this process and becomes the command; comes back only with the reason why it could not.
#[cfg(unix)]
pub fn confine(limits: ProcessLimits, command: &[OsString]) -> std::io::Error {
    use rustix::process::{Resource, Rlimit, setrlimit};
    use std::os::unix::process::CommandExt;

    let seconds = limits.time.as_secs() + 1;
    for (resource, most) in [
        (Resource::Core, 0),
        (Resource::Cpu, seconds),
        (Resource::Fsize, limits.file_bytes),
        (Resource::Nproc, limits.processes),
        (Resource::As, limits.memory_bytes),
    ] {
        let most = Some(most).filter(|most| *most != u64::MAX);
        let limit = Rlimit { current: most, maximum: most };
        if let Err(error) = setrlimit(resource, limit) {
            return error.into();
        }
    }
    // Should nightshift be killed, its programs shall not outlive it.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    match command {
        [] => std::io::Error::other("no command is given"),
        [program, arguments @ ..] => std::process::Command::new(program).args(arguments).exec(),
    }
}

/// Threads that the user of this process has; 0 where that cannot be known.
#[cfg(unix)]
fn own_threads() -> u64 {
    let user = rustix::process::getuid().as_raw().to_string();
    let of = |entry: std::io::Result<std::fs::DirEntry>| {
        let status = std::fs::read_to_string(entry.ok()?.path().join("status")).ok()?;
        let field = |name: &str| {
            status.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next())
        };
        (field("Uid:")? == user).then(|| field("Threads:")?.parse::<u64>().ok())?
    };
    std::fs::read_dir("/proc").into_iter().flatten().filter_map(of).sum()
}

#[cfg(not(unix))]
fn own_threads() -> u64 {
    0
}

#[cfg(not(unix))]
impl Sandbox {
    fn try_run(&self, _: &str) -> std::io::Result<End> {
        Err(std::io::Error::other("processes can be limited on Unix only"))
    }
}

#[cfg(not(unix))]
pub fn confine(_: ProcessLimits, _: &[OsString]) -> std::io::Error {
    std::io::Error::other("processes can be limited on Unix only")
}
