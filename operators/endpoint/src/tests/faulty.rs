//! An HTTP server that misbehaves as it is told.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How it misbehaves.
#[derive(Clone, Debug, Default)]
pub(super) struct Behaviour {
    /// Share of requests that go wrong, each in a way that seed and number draw.
    pub(super) faults: f64,
    pub(super) seed: u64,
    /// Answers so many and then no connection is taken any more.
    pub(super) dies_after: Option<u64>,
    /// Takes connections and says nothing.
    pub(super) is_mute: bool,
    /// Refuses conversations with this text.
    pub(super) refuses: Option<String>,
    /// The only key that is let in.
    pub(super) key: Option<String>,
    /// Knows no keys but OpenAI's.
    pub(super) is_narrow: bool,
    /// Asks, at the first request, to be left alone for so long.
    pub(super) busy_seconds: Option<f64>,
}

#[derive(Debug, Default)]
struct Seen {
    requests: u64,
    answered: u64,
    is_dead: bool,
    met: BTreeSet<&'static str>,
    keys: Vec<String>,
    busy_until: Option<Instant>,
    too_early: u64,
}

/// A running server. It goes on until the process ends.
pub(super) struct FaultyServer {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

impl FaultyServer {
    pub(super) fn start(behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = Arc::clone(&seen);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if shared.lock().unwrap().is_dead {
                    // Dropping the listener refuses all that come later.
                    return;
                }
                let (behaviour, seen) = (behaviour.clone(), Arc::clone(&shared));
                std::thread::spawn(move || serve(&stream, &behaviour, &seen));
            }
        });
        Self { address, seen }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    pub(super) fn requests(&self) -> u64 {
        self.seen.lock().unwrap().requests
    }

    pub(super) fn faults_met(&self) -> BTreeSet<&'static str> {
        self.seen.lock().unwrap().met.clone()
    }

    pub(super) fn keys_seen(&self) -> Vec<String> {
        self.seen.lock().unwrap().keys.clone()
    }

    pub(super) fn too_early(&self) -> u64 {
        self.seen.lock().unwrap().too_early
    }
}

fn serve(stream: &TcpStream, behaviour: &Behaviour, seen: &Mutex<Seen>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    while let Some((line, key, body)) = read_request(&mut reader) {
        if behaviour.is_mute {
            std::thread::sleep(Duration::from_mins(10));
        }
        let key_fits =
            (behaviour.key.as_ref()).is_none_or(|wanted| key == format!("Bearer {wanted}"));
        if !key_fits {
            respond(stream, "401 Unauthorized", "", &error("wrong key"));
        } else if line.starts_with("GET") {
            respond(
                stream,
                "200 OK",
                "",
                &json!({"data": [{"id": "m"}]}).to_string(),
            );
        } else if !chat(stream, behaviour, seen, key, &body) {
            // The other copy of the socket would keep the connection open.
            let _ = stream.shutdown(Shutdown::Both);
            return;
        }
    }
}

/// Answers a question; whether the connection goes on.
fn chat(
    stream: &TcpStream,
    behaviour: &Behaviour,
    seen: &Mutex<Seen>,
    key: String,
    body: &str,
) -> bool {
    let number = {
        let mut seen = seen.lock().unwrap();
        if seen.is_dead {
            return false;
        }
        seen.requests += 1;
        seen.keys.push(key);
        seen.requests
    };
    let request: Value = serde_json::from_str(body).unwrap();
    if let Some(seconds) = behaviour.busy_seconds {
        let mut seen = seen.lock().unwrap();
        let Some(until) = seen.busy_until else {
            seen.busy_until = Some(Instant::now() + Duration::from_secs_f64(seconds));
            respond(
                stream,
                "429 Too Many Requests",
                &format!("Retry-After: {seconds}\r\n"),
                &error("slow down"),
            );
            return true;
        };
        seen.too_early += u64::from(Instant::now() < until);
    }
    if behaviour
        .refuses
        .as_ref()
        .is_some_and(|text| body.contains(text))
    {
        respond(
            stream,
            "400 Bad Request",
            "",
            &error("the prompt is too long"),
        );
        return true;
    }
    if behaviour.is_narrow {
        for name in ["return_token_ids", "max_tokens"] {
            if request.get(name).is_some() {
                let hint = if name == "max_tokens" {
                    ", use max_completion_tokens"
                } else {
                    ""
                };
                respond(
                    stream,
                    "400 Bad Request",
                    "",
                    &error(&format!("unknown argument {name}{hint}")),
                );
                return true;
            }
        }
    }
    let draw = mix(behaviour.seed ^ mix(number));
    if (draw >> 11) as f64 / (1_u64 << 53) as f64 <= behaviour.faults {
        return fault(stream, mix(draw), seen);
    }
    let answer = answer(&request).to_string();
    {
        let mut seen = seen.lock().unwrap();
        if behaviour
            .dies_after
            .is_some_and(|count| seen.answered >= count)
        {
            seen.is_dead = true;
            // Wakes the listener, which ends.
            let _ = TcpStream::connect(stream.local_addr().unwrap());
            return false;
        }
        seen.answered += 1;
    }
    respond(stream, "200 OK", "", &answer);
    true
}

fn answer(request: &Value) -> Value {
    let text = request["messages"][0]["content"].as_str().unwrap();
    let tokens: Vec<Value> = (0..3)
        .map(|_| json!({"token": "x", "logprob": -0.25}))
        .collect();
    let mut choice = json!({
        "index": 0,
        "message": {"role": "assistant", "content": format!("{text} by {}", request["seed"])},
        "finish_reason": "stop",
    });
    if request["return_token_ids"] == true {
        choice["token_ids"] = json!([0, 1, 2]);
    }
    if request["logprobs"] == true {
        choice["logprobs"] = json!({ "content": tokens });
    }
    json!({"choices": [choice], "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}})
}

/// One of the things that go wrong; whether the connection goes on.
fn fault(stream: &TcpStream, draw: u64, seen: &Mutex<Seen>) -> bool {
    let kinds = [
        "500",
        "429",
        "503",
        "stall",
        "cut",
        "no JSON",
        "two choices",
        "empty",
    ];
    let kind = kinds[(draw % kinds.len() as u64) as usize];
    seen.lock().unwrap().met.insert(kind);
    match kind {
        "500" => respond(stream, "500 Internal Server Error", "", &error("oh")),
        "429" => respond(
            stream,
            "429 Too Many Requests",
            "Retry-After: 0.1\r\n",
            &error("slow down"),
        ),
        "503" => respond(stream, "503 Service Unavailable", "", "<html>down</html>"),
        "stall" => std::thread::sleep(Duration::from_millis(1500)),
        "no JSON" => respond(stream, "200 OK", "", "<html>welcome</html>"),
        "two choices" => {
            let choice = json!({"message": {"content": "a lie"}, "finish_reason": "stop"});
            respond(
                stream,
                "200 OK",
                "",
                &json!({"choices": [choice, choice]}).to_string(),
            );
        }
        "empty" => respond(stream, "200 OK", "", &json!({"choices": []}).to_string()),
        _ => {
            let mut stream = stream;
            let _ =
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{\"choices\": [{");
            return false;
        }
    }
    kind != "stall"
}

fn error(message: &str) -> String {
    json!({"error": {"message": message, "type": "invalid_request_error"}}).to_string()
}

fn respond(mut stream: &TcpStream, status: &str, headers: &str, body: &str) {
    // A client that has gone reads nothing.
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
}

/// First line, `Authorization` and body.
fn read_request(reader: &mut BufReader<TcpStream>) -> Option<(String, String, String)> {
    let (mut first, mut key, mut length) = (String::new(), String::new(), 0);
    reader.read_line(&mut first).ok().filter(|read| *read > 0)?;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok().filter(|read| *read > 0)?;
        let Some((name, value)) = line.trim().split_once(':') else {
            break;
        };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => value.trim().clone_into(&mut key),
            "content-length" => length = value.trim().parse().unwrap(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some((first, key, String::from_utf8(body).unwrap()))
}

/// Mixes the bits of a number (the finaliser of SplitMix64).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
