//! Jobs on a real S3-compatible server, which the test starts: moto's, from PyPI (`moto[server]`). Where
//! it is not installed these tests say so and pass.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::job::{chat_rows, model};

/// A server, and a folder for job files.
struct Server {
    process: Child,
    port: u16,
    folder: TempDir,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    /// Starts a server with an empty bucket; none where there is no such program.
    fn start() -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let program = std::env::var("MOTO_SERVER").unwrap_or_else(|_| "moto_server".into());
        let started = Command::new(&program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(process) = started else {
            eprintln!("skipped: `{program}` is not there (pip install 'moto[server]')");
            return None;
        };
        let server = Self { process, port, folder: TempDir::new().unwrap() };
        for _ in 0..300 {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                server.put("", b"");
                return Some(server);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        panic!("the server did not come up");
    }

    /// Puts an object into the bucket; an empty key makes the bucket.
    fn put(&self, key: &str, bytes: &[u8]) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let head = format!(
            "PUT /night/{key} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nAuthorization: AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            self.port,
            bytes.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(bytes).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(" 200 "), "{answer}");
    }

    fn put_folder(&self, key: &str, folder: &Path) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            self.put(&format!("{key}/{name}"), &std::fs::read(path).unwrap());
        }
    }

    fn job(&self, input: &str, more: &str) {
        let job = format!(
            "[model]\npath = '{}'\n[input]\npaths = ['s3://night/{input}']\nmessages = 'messages'\nid = 'id'\n[output]\npath = 's3://night/out'\nrows_per_part = 10\n{more}",
            model("a_v2like")
        );
        std::fs::write(self.folder.path().join("job.toml"), job).unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nightshift"));
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", self.port))
            .env("AWS_ALLOW_HTTP", "true")
            .env("AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "very-secret")
            .env("NIGHTSHIFT_CACHE", self.folder.path().join("cache"))
            .stdin(Stdio::null());
        command
    }

    fn nightshift(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn is_sound(&self, output: &str) -> Value {
        let found = self.nightshift(&["verify", output, "--json"]);
        let value: Value = serde_json::from_slice(&found.stdout).unwrap();
        assert!(found.status.success(), "{value}");
        value
    }

    /// The merged completions of an output.
    fn merged(&self, output: &str, to: &str) -> String {
        let to = self.folder.path().join(to).display().to_string();
        let merged = self.nightshift(&["merge", output, &to, "--format", "jsonl"]);
        assert!(merged.status.success(), "{}", String::from_utf8_lossy(&merged.stderr));
        let text = std::fs::read_to_string(Path::new(&to).join("part-00000.jsonl")).unwrap();
        let fixed = |line: &str| {
            let row: Value = serde_json::from_str(line).unwrap();
            format!(
                "{} {} {} {}\n",
                row["id"], row["sample_index"], row["status"], row["completion"]
            )
        };
        text.lines().map(fixed).collect()
    }
}

/// A server before the server: the first requests get an answer of its own, later ones go through.
fn proxy(to: u16, answers: Vec<&'static str>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut answers = answers.into_iter();
        for client in listener.incoming() {
            let mut client = client.unwrap();
            match answers.next() {
                // Cut off without a word.
                Some("") => {}
                Some(answer) => {
                    let _ = client.read(&mut [0; 4096]);
                    let _ = client.write_all(answer.as_bytes());
                }
                None => {
                    let server = TcpStream::connect(("127.0.0.1", to)).unwrap();
                    let copies = [
                        (client.try_clone().unwrap(), server.try_clone().unwrap()),
                        (server, client),
                    ];
                    for (mut from, mut to) in copies {
                        std::thread::spawn(move || {
                            let _ = std::io::copy(&mut from, &mut to);
                            let _ = to.shutdown(std::net::Shutdown::Write);
                        });
                    }
                }
            }
        }
    });
    port
}

const SLOW_DOWN: &str = "HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const INTERNAL: &str =
    "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
const WRONG_KEY: &str = "HTTP/1.1 403 Forbidden\r\nContent-Length: 92\r\nConnection: close\r\n\r\n<?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code><Message>wrong</Message></Error>";

#[test]
fn a_server_that_is_busy_or_cuts_off_is_asked_again() {
    let Some(server) = Server::start() else { return };
    server.put("in.jsonl", chat_rows(12).as_bytes());
    server.job("in.jsonl", "[sampling]\nmax_tokens = 5\n");
    let port = proxy(server.port, vec![SLOW_DOWN, INTERNAL, "", SLOW_DOWN, "", INTERNAL]);
    let run = server
        .command(&["run", "job.toml"])
        .env("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{port}"))
        .output()
        .unwrap();
    assert!(run.status.success(), "{}", words(&run));
    assert_eq!(server.is_sound("s3://night/out")["rows"], 12);
}

#[test]
fn wrong_credentials_are_one_clear_error_before_weights_are_loaded() {
    // No server of ours checks signatures: this one refuses them all.
    let folder = TempDir::new().unwrap();
    let process = Command::new("true").spawn().unwrap();
    let server = Server { process, port: proxy(0, vec![WRONG_KEY; 50]), folder };
    server.job("in.jsonl", "[sampling]\nmax_tokens = 5\n");
    let run = server.nightshift(&["run", "job.toml"]);
    assert_eq!(run.status.code(), Some(1));
    let words = words(&run);
    assert!(
        words.contains("permission denied") && words.contains("AWS_SECRET_ACCESS_KEY"),
        "{words}"
    );
    assert!(!words.contains("very-secret") && !words.contains("loading"), "{words}");
}

fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_job_on_s3_survives_kills_and_two_runners() {
    let Some(server) = Server::start() else { return };
    server.put("in/a.jsonl", chat_rows(70).as_bytes());
    server.put("in/b.jsonl", chat_rows(31).as_bytes());
    server.job(
        "in/*.jsonl",
        "[sampling]\nmax_tokens = 100\nignore_eos = true\ntemperature = 0.7\n[run]\njournal_seconds = 0.1\n",
    );
    let clean = server.nightshift(&["run", "job.toml", "--output", "s3://night/clean"]);
    assert!(clean.status.success(), "{}", words(&clean));
    let mut kills = 0;
    for round in 0..12u64 {
        let slow = ["run", "job.toml", "--quiet", "--set", "devices.threads=1"];
        let mut run = server.command(&slow).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(150 + 70 * round));
        run.kill().unwrap();
        if run.wait().unwrap().success() {
            break;
        }
        kills += 1;
    }
    let two = [(); 2].map(|()| server.command(&["run", "job.toml", "--quiet"]).spawn().unwrap());
    for run in two {
        let ended = run.wait_with_output().unwrap();
        assert!(ended.status.success(), "{}", words(&ended));
    }
    assert!(kills > 0);
    let found = server.is_sound("s3://night/out");
    assert_eq!((&found["rows"], &found["parts"]), (&101.into(), &11.into()));
    assert_eq!(server.merged("s3://night/out", "x"), server.merged("s3://night/clean", "y"));
    let status = server.nightshift(&["status", "s3://night/out"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("complete"), "{}", words(&status));
}

#[test]
fn a_model_on_s3_is_fetched_once() {
    let Some(server) = Server::start() else { return };
    server.put("in.jsonl", chat_rows(7).as_bytes());
    server.put_folder("models/tiny", Path::new(&model("a_v2like")));
    server.job("in.jsonl", "[sampling]\nmax_tokens = 5\n");
    let local = server.nightshift(&["run", "job.toml", "--output", "local"]);
    assert!(local.status.success(), "{}", words(&local));
    let remote = ["run", "job.toml", "--set", "model.path=s3://night/models/tiny"];
    let run = server.nightshift(&[&remote[..], &["--output", "remote"]].concat());
    assert!(run.status.success() && words(&run).contains("fetching"), "{}", words(&run));
    assert_eq!(server.merged("remote", "x"), server.merged("local", "y"));
    let again = server.nightshift(&[&remote[..], &["--output", "again"]].concat());
    assert!(again.status.success() && !words(&again).contains("fetching"), "{}", words(&again));
}

#[test]
fn errors_of_a_bucket_say_what_is_wrong_and_no_secret() {
    let Some(server) = Server::start() else { return };
    server.put("in.jsonl", chat_rows(3).as_bytes());
    server.job("in.jsonl", "[sampling]\nmax_tokens = 5\n");
    let cases = [
        (vec!["--output", "s3://nowhere/out"], "nowhere"),
        (vec!["--input", "s3://night/none.jsonl"], "none.jsonl"),
        (vec!["--set", "model.path=s3://night/no-model"], "config.json"),
    ];
    for (arguments, expected) in cases {
        let run = server.nightshift(&[&["run", "job.toml"], &arguments[..]].concat());
        assert_eq!(run.status.code(), Some(1), "{arguments:?}");
        let words = words(&run);
        assert!(words.contains(expected) && words.contains("hint:"), "{words}");
        assert!(!words.contains("very-secret"), "{words}");
    }
}
