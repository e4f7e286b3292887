//! Surroundings of a verifier for tests: a view without a store, and a server that says what it is told to.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use engine_core::operator::BatchReader;
use engine_core::{Artifact, OperatorError, StageContext, StageEvent, StageView};
use operators_verdict::Outcome;
use serde_json::{Value, json};

use crate::{Judged, Question, Verifier, VerifyConfig};

/// A stage that has nothing but a wish to stop, and keeps its notes.
#[derive(Debug, Default)]
pub(crate) struct NoView {
    pub(crate) is_cancelled: AtomicBool,
    pub(crate) notes: Mutex<Vec<String>>,
}

impl StageView for NoView {
    fn inputs(&self, _port: &str) -> &[Artifact] {
        &[]
    }
    fn input_ports(&self) -> Vec<String> {
        Vec::new()
    }
    fn read(&self, port: &str) -> Result<BatchReader, OperatorError> {
        Err(OperatorError::Internal(format!("no port {port}")))
    }
    fn part_urls(&self, port: &str) -> Result<Vec<String>, OperatorError> {
        Err(OperatorError::Internal(format!("no port {port}")))
    }
    fn model_folder(&self, port: &str) -> Result<PathBuf, OperatorError> {
        Err(OperatorError::Internal(format!("no port {port}")))
    }
    fn put_media(&self, _bytes: &[u8]) -> Result<String, OperatorError> {
        Err(OperatorError::Internal("no store".into()))
    }
    fn media(&self, _digest: &str) -> Result<Vec<u8>, OperatorError> {
        Err(OperatorError::Internal("no store".into()))
    }
    fn scratch(&self) -> &Path {
        // A path without a parent: answers of servers are not kept.
        Path::new("")
    }
    fn event(&self, event: StageEvent) {
        if let StageEvent::Note(note) = event {
            self.notes.lock().unwrap().push(note);
        }
    }
    fn is_cancelled(&self) -> bool {
        self.is_cancelled.load(Ordering::SeqCst)
    }
}

pub(crate) fn config(value: Value) -> VerifyConfig {
    serde_json::from_value(value).unwrap()
}

pub(crate) fn open(config: &VerifyConfig, root: &Path) -> Result<Verifier, OperatorError> {
    let context = StageContext {
        stage: "test",
        seed: 0,
        root,
        backend: None,
    };
    Verifier::open(config, &context, &NoView::default())
}

/// A question of prompt `p` with gold answer 7.
pub(crate) fn ask(text: &str) -> Question<'_> {
    Question {
        prompt_id: "p",
        question: "3 + 4?",
        gold: Some("7"),
        text,
    }
}

pub(crate) fn judge(verifier: &Verifier, texts: &[&str]) -> Vec<Judged> {
    let questions: Vec<Question<'_>> = texts.iter().map(|text| ask(text)).collect();
    verifier.judge(&questions, &NoView::default()).unwrap()
}

pub(crate) fn outcomes(judged: &[Judged]) -> Vec<Outcome> {
    judged.iter().map(|judged| judged.verdict.outcome).collect()
}

#[track_caller]
pub(crate) fn assert_says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "no `{word}` in: {message}");
    }
}

/// Waits for something that comes in moments.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_mins(1), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a server does with a request.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Says(String),
    Status(&'static str),
    /// Breaks off in the middle of the answer.
    Cuts,
}

type Answer = dyn Fn(u64, &Value) -> Reply + Send + Sync;

/// A server on loopback that answers every conversation as a function of its number and its request says.
pub(crate) struct JudgeServer {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Value>>>,
}

impl JudgeServer {
    pub(crate) fn start(answer: impl Fn(u64, &Value) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (answer, seen): (Arc<Answer>, _) = (Arc::new(answer), Arc::clone(&requests));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (answer, seen) = (Arc::clone(&answer), Arc::clone(&seen));
                std::thread::spawn(move || serve(&stream, &*answer, &seen));
            }
        });
        Self { address, requests }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub(crate) fn requests(&self) -> Vec<Value> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve(stream: &TcpStream, answer: &Answer, seen: &Mutex<Vec<Value>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some((line, body)) = read_request(&mut reader) {
        if line.starts_with("GET") {
            respond(stream, "200 OK", &json!({"data": [{"id": "m"}]}));
            continue;
        }
        let request: Value = serde_json::from_str(&body).unwrap();
        let number = {
            let mut seen = seen.lock().unwrap();
            seen.push(request.clone());
            seen.len() as u64 - 1
        };
        match answer(number, &request) {
            Reply::Says(text) => {
                let message = json!({"role": "assistant", "content": text});
                let choice = json!({"message": message, "finish_reason": "stop"});
                let usage = json!({"prompt_tokens": 5, "completion_tokens": 3});
                respond(
                    stream,
                    "200 OK",
                    &json!({"choices": [choice], "usage": usage}),
                );
            }
            Reply::Status(status) => {
                respond(
                    stream,
                    status,
                    &json!({"error": {"message": "told to say so"}}),
                );
            }
            Reply::Cuts => {
                let mut stream = stream;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{");
                let _ = stream.shutdown(std::net::Shutdown::Both);
                return;
            }
        }
    }
}

fn respond(mut stream: &TcpStream, status: &str, body: &Value) {
    let body = body.to_string();
    // A client that has gone reads nothing.
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
}

/// First line and body.
fn read_request(reader: &mut BufReader<TcpStream>) -> Option<(String, String)> {
    let (mut first, mut length) = (String::new(), 0);
    reader.read_line(&mut first).ok().filter(|read| *read > 0)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let Some((name, value)) = line.trim().split_once(':') else {
            break;
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((first, String::from_utf8(body).unwrap()))
}
