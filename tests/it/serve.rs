//! `metis-flow serve`: the official client against a small model, limits, clients that go away, and the end.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{Project, plain_environment, python, send_signal, wait_until};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/models/expert");
const KEY: &str = "key-of-the-tests";

/// A server that ends with this value.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
}

impl Server {
    /// Starts `metis-flow serve` and waits until the model is loaded.
    pub(crate) fn start(project: &Project, model: &str, more: &[&str]) -> Self {
        let mut arguments = vec![
            "serve",
            model,
            "--json",
            "--device",
            "cpu",
            "--threads",
            "2",
        ];
        if !more.contains(&"--port") {
            arguments.extend(["--port", "0"]);
        }
        arguments.extend(more);
        let mut command = project.command(&arguments);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        stdout.read_line(&mut line).unwrap();
        let said: Value = serde_json::from_str(&line).unwrap();
        let address = said["address"].as_str().unwrap().parse().unwrap();
        let server = Self { child, address };
        wait_until("the model is loaded", || {
            let (status, body) = server.ask("GET", "/health", "", "");
            assert!(matches!(status, 200 | 503), "{status}: {body}");
            (status == 200).then_some(())
        });
        server
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// Sends a request and reads the response.
    fn ask(&self, method: &str, path: &str, key: &str, body: &str) -> (u16, String) {
        let stream = self.send(method, path, key, body);
        read_response(stream)
    }

    fn send(&self, method: &str, path: &str, key: &str, body: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nAuthorization: Bearer {key}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        stream
    }

    /// A figure of `/metrics`.
    fn metric(&self, name: &str) -> u64 {
        let (status, text) = self.ask("GET", "/metrics", "", "");
        assert_eq!(status, 200);
        let start = format!("metis_flow_{name} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&start));
        line.unwrap_or_else(|| panic!("no {name} in {text}"))
            .trim()
            .parse()
            .unwrap()
    }

    /// Ends the server in order and returns its exit code.
    pub(crate) fn end(mut self) -> Option<i32> {
        send_signal(self.child.id(), "INT");
        let status = wait_until("the server ends", || self.child.try_wait().unwrap());
        status.code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Its worker ends when its input closes.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_response(mut stream: TcpStream) -> (u16, String) {
    let mut text = Vec::new();
    stream.read_to_end(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
    (status.unwrap_or(0), body.to_owned())
}

/// A chat that goes on until it is stopped.
fn endless(n: u32, stream: bool) -> String {
    json!({
        "messages": [{"role": "user", "content": "What is 3 + 4?"}], "n": n, "ignore_eos": true, "stream": stream, "temperature": 1.0,
    })
    .to_string()
}

#[test]
fn the_official_client_is_at_home() {
    let project = Project::new();
    let server = Server::start(&project, MODEL, &["--api-key", KEY]);
    let mut client = Command::new(python());
    plain_environment(&mut client);
    let output = client
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/it/serve/client.py"
        ))
        .args([&server.url(), KEY])
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/examples/data/test.parquet"
        ))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{errors}");
    assert_eq!(server.end(), Some(0));
}

#[test]
fn what_is_too_much_is_refused_with_its_status() {
    let project = Project::new();
    let limits = [
        "--max-concurrent",
        "1",
        "--max-waiting",
        "1",
        "--max-body-mib",
        "1",
        "--max-tokens",
        "500",
    ];
    let server = Server::start(&project, MODEL, &limits);
    let path = "/v1/chat/completions";
    let large = "x".repeat(2 << 20);
    // The server stops reading, so that the client may not be able to send it all.
    let mut stream = TcpStream::connect(server.address).unwrap();
    let head = format!(
        "POST {path} HTTP/1.1\r\nContent-Length: {}\r\n\r\n",
        large.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let (status, body) = read_response(stream);
    assert_eq!(status, 413, "{body}");
    assert!(body.contains("--max-body-mib"), "{body}");
    assert_eq!(server.ask("POST", path, "", &endless(3, false)).0, 400);
    let busy = [
        server.send("POST", path, "", &endless(1, true)),
        server.send("POST", path, "", &endless(1, true)),
    ];
    wait_until("both are let in", || {
        (server.metric("sequences") == 2).then_some(())
    });
    let (status, body) = server.ask("POST", path, "", &endless(1, false));
    assert_eq!(status, 429, "{body}");
    assert!(body.contains("rate_limit_error"), "{body}");
    drop(busy);
    assert_eq!(server.ask("GET", "/v1/nothing", "", "").0, 404);
    assert_eq!(server.ask("GET", path, "", "").0, 405);
    assert_eq!(server.ask("POST", path, "", "{").0, 400);
}

#[test]
fn a_client_that_goes_away_frees_its_place() {
    let project = Project::new();
    let server = Server::start(&project, MODEL, &["--max-concurrent", "2"]);
    for is_stream in [true, false] {
        let before = server.metric("sequences_cancelled_total");
        let stream = server.send("POST", "/v1/chat/completions", "", &endless(8, is_stream));
        wait_until("it is let in", || {
            (server.metric("sequences") == 8).then_some(())
        });
        drop(stream);
        wait_until("it is cancelled", || {
            (server.metric("sequences") == 0).then_some(())
        });
        assert!(server.metric("sequences_cancelled_total") > before);
    }
    let (status, body) = server.ask("POST", "/v1/chat/completions", "", &endless(1, false));
    assert_eq!(status, 200, "{body}");
}

#[test]
fn the_end_comes_in_seconds_and_streams_are_closed_in_order() {
    let project = Project::new();
    let server = Server::start(&project, MODEL, &["--max-concurrent", "1"]);
    let stream = server.send("POST", "/v1/chat/completions", "", &endless(64, true));
    stream
        .set_read_timeout(Some(Duration::from_mins(1)))
        .unwrap();
    wait_until("it is let in", || {
        (server.metric("sequences") == 64).then_some(())
    });
    assert_eq!(server.end(), Some(0));
    let (status, body) = read_response(stream);
    assert_eq!(status, 200);
    assert!(
        body.ends_with("data: [DONE]\n\n\r\n0\r\n\r\n"),
        "{}",
        &body[body.len().saturating_sub(300)..]
    );
}

#[test]
fn a_model_of_a_run_is_served_under_its_name() {
    let project = Project::new();
    project.write(
        "pipelines/p.yaml",
        "version: 1\nname: p\nseed: 1\nstages:\n  tiny: { load-model: { path: $repo/examples/models/expert } }\n  \
         rows: { source: { path: $repo/examples/data/test.parquet } }\n",
    );
    project.run("pipelines/p.yaml");
    let server = Server::start(&project, "tiny@latest", &["--name", "small"]);
    let (status, body) = server.ask("GET", "/v1/models", "", "");
    assert_eq!(status, 200);
    let models: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(models["data"][0]["id"], "small");
    drop(server);
    let table = project.call(&["serve", "rows"]).expect(2);
    assert!(table.stderr.contains("not a model"), "{}", table.stderr);
}

#[test]
fn a_wrong_command_line_says_what_to_do() {
    let project = Project::new();
    let open = project
        .call(&["serve", MODEL, "--host", "0.0.0.0"])
        .expect(2);
    assert!(
        open.stderr.contains("METIS_FLOW_API_KEY"),
        "{}",
        open.stderr
    );
    let missing = project.call(&["serve", "no/such/folder"]).expect(2);
    assert!(
        missing.stderr.contains("there is no folder"),
        "{}",
        missing.stderr
    );
    let empty = project.path("empty");
    std::fs::create_dir(&empty).unwrap();
    let empty = project.call(&["serve", empty.to_str().unwrap()]).expect(2);
    assert!(empty.stderr.contains("config.json"), "{}", empty.stderr);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let taken = project
        .call(&["serve", MODEL, "--port", &port, "--device", "cpu"])
        .expect(1);
    assert!(taken.stderr.contains("--port"), "{}", taken.stderr);
    let long = project.call(&[
        "serve",
        MODEL,
        "--port",
        "0",
        "--device",
        "cpu",
        "--max-tokens",
        "100000",
    ]);
    assert!(long.expect(1).stderr.contains("positions"));
}
