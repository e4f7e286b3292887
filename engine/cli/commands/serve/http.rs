//! As much of HTTP/1.1 as an API needs: one thread for each connection, bodies with a limit, events in chunks, and a look
//! whether the client is still there.

use std::io::{self, BufRead as _, BufReader, ErrorKind, Read, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use chunked_transfer::Decoder;

/// How long a connection may be idle between two requests, or a read take.
const IDLE: Duration = Duration::from_secs(75);
/// How long the first lines of a request may take.
const HEAD_TIME: Duration = Duration::from_secs(20);
/// How long a client may take nothing of what is sent.
const SEND_TIME: Duration = Duration::from_secs(30);
/// Bytes of the first lines of a request.
const HEAD_BYTES: usize = 32 << 10;

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    reader: BufReader<TcpStream>,
    stream: TcpStream,
}

/// The first lines of a request.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) method: String,
    /// Without what follows a question mark.
    pub(super) path: String,
    /// The header `Authorization`.
    pub(super) authorization: Option<String>,
    pub(super) keep_alive: bool,
    length: Length,
    expects_continue: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    Bytes(u64),
    Chunked,
}

/// Why a body could not be read.
#[derive(Debug)]
pub(super) enum BodyFault {
    TooLarge,
    Broken,
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(IDLE))?;
        stream.set_write_timeout(Some(SEND_TIME))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            reader: BufReader::new(stream.try_clone()?),
            stream,
        })
    }

    /// Reads the first lines of the next request; none when the client has no more.
    ///
    /// # Errors
    /// `InvalidData` when they are no HTTP, else when the connection broke.
    pub(super) fn read_head(&mut self) -> io::Result<Option<Head>> {
        let mut lines = Vec::new();
        if self.reader.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let (begun, mut room) = (Instant::now(), HEAD_BYTES);
        loop {
            let mut line = Vec::new();
            let read = (&mut self.reader)
                .take(room as u64)
                .read_until(b'\n', &mut line)?;
            if read == 0 || line.last() != Some(&b'\n') || begun.elapsed() > HEAD_TIME {
                return Err(invalid(
                    "the first lines of the request are too long or have no end",
                ));
            }
            room -= read;
            let line = String::from_utf8(line).map_err(|_| invalid("a header is no text"))?;
            let line = line.trim_end_matches(['\r', '\n']);
            if line.is_empty() {
                if lines.is_empty() {
                    continue;
                }
                return Head::parse(&lines).map(Some);
            }
            lines.push(line.to_owned());
        }
    }

    /// Reads the body of a request.
    pub(super) fn read_body(&mut self, head: &Head, limit: usize) -> Result<Vec<u8>, BodyFault> {
        if matches!(head.length, Length::Bytes(length) if length > limit as u64) {
            return Err(BodyFault::TooLarge);
        }
        if head.expects_continue {
            let go_on = self.stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n");
            go_on.map_err(|_| BodyFault::Broken)?;
        }
        let mut body = Vec::new();
        let read = match head.length {
            Length::Bytes(length) => (&mut self.reader).take(length).read_to_end(&mut body),
            Length::Chunked => Decoder::new(&mut self.reader)
                .take(limit as u64 + 1)
                .read_to_end(&mut body),
        };
        read.map_err(|_| BodyFault::Broken)?;
        match head.length {
            Length::Bytes(length) if (body.len() as u64) < length => Err(BodyFault::Broken),
            Length::Chunked if body.len() > limit => Err(BodyFault::TooLarge),
            _ => Ok(body),
        }
    }

    /// Sends a whole response.
    pub(super) fn respond(
        &mut self,
        status: u16,
        content_type: &str,
        more: &str,
        body: &[u8],
        keep_alive: bool,
    ) -> io::Result<()> {
        let head = format!(
            "HTTP/1.1 {status} {}\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n{more}Connection: {}\r\n\r\n",
            reason(status),
            body.len(),
            connection(keep_alive)
        );
        let mut response = head.into_bytes();
        response.extend_from_slice(body);
        self.stream.write_all(&response)
    }

    /// Begins a response of events.
    pub(super) fn begin_events(&mut self, keep_alive: bool) -> io::Result<()> {
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\n\
             Transfer-Encoding: chunked\r\nConnection: {}\r\n\r\n",
            connection(keep_alive)
        );
        self.stream.write_all(head.as_bytes())
    }

    /// Sends an event at once: one chunk, one write.
    pub(super) fn event(&mut self, data: &str) -> io::Result<()> {
        let event = format!("data: {data}\n\n");
        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
        self.stream.write_all(chunk.as_bytes())
    }

    /// Ends a response of events.
    pub(super) fn end_events(&mut self) -> io::Result<()> {
        self.stream.write_all(b"0\r\n\r\n")
    }

    /// Whether the client has closed the connection.
    pub(super) fn is_gone(&self) -> bool {
        if !self.reader.buffer().is_empty() || self.stream.set_nonblocking(true).is_err() {
            return false;
        }
        let peeked = self.stream.peek(&mut [0]);
        let is_restored = self.stream.set_nonblocking(false).is_ok();
        match peeked {
            Ok(read) => read == 0 || !is_restored,
            Err(error) => error.kind() != ErrorKind::WouldBlock || !is_restored,
        }
    }
}

impl Head {
    fn parse(lines: &[String]) -> io::Result<Self> {
        let words: Vec<&str> = lines[0].split(' ').collect();
        let [method, target, version @ ("HTTP/1.1" | "HTTP/1.0")] = words[..] else {
            return Err(invalid("the first line is no HTTP/1.1"));
        };
        let mut head = Self {
            method: method.to_owned(),
            path: target.split('?').next().unwrap_or_default().to_owned(),
            authorization: None,
            keep_alive: version == "HTTP/1.1",
            length: Length::Bytes(0),
            expects_continue: false,
        };
        let mut lengths = 0;
        for line in &lines[1..] {
            let (name, value) = line
                .split_once(':')
                .filter(|(name, _)| !name.is_empty() && !name.contains([' ', '\t']))
                .ok_or_else(|| invalid("a header has no name"))?;
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "authorization" => head.authorization = Some(value.to_owned()),
                "content-length" => {
                    let length = value.bytes().all(|byte| byte.is_ascii_digit());
                    let length = length.then(|| value.parse().ok()).flatten();
                    head.length = Length::Bytes(
                        length.ok_or_else(|| invalid("Content-Length is no number"))?,
                    );
                    lengths += 1;
                }
                "transfer-encoding" if value.eq_ignore_ascii_case("chunked") => {
                    head.length = Length::Chunked;
                    lengths += 1;
                }
                "transfer-encoding" => return Err(invalid("only chunked bodies are taken")),
                "connection" => {
                    let value = value.to_ascii_lowercase();
                    if value.contains("close") {
                        head.keep_alive = false;
                    } else if value.contains("keep-alive") {
                        head.keep_alive = true;
                    }
                }
                "expect" => head.expects_continue = value.eq_ignore_ascii_case("100-continue"),
                _ => {}
            }
        }
        if lengths > 1 {
            // Two lengths are how requests are smuggled through proxies.
            return Err(invalid("the body has more than one length"));
        }
        Ok(head)
    }

    /// Whether the body has been read when the head has.
    pub(super) fn has_no_body(&self) -> bool {
        self.length == Length::Bytes(0)
    }
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, message)
}

fn connection(keep_alive: bool) -> &'static str {
    if keep_alive { "keep-alive" } else { "close" }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        404 => "Not Found",
        405 => "Method Not Allowed",
        413 => "Content Too Large",
        429 => "Too Many Requests",
        503 => "Service Unavailable",
        _ => "Internal Server Error",
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    fn served(request: &'static [u8]) -> (Connection, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        client.write_all(request).unwrap();
        let (stream, _) = listener.accept().unwrap();
        (Connection::new(stream).unwrap(), client)
    }

    #[test]
    fn requests_follow_each_other_on_one_connection() {
        let (mut connection, client) = served(
            b"POST /v1/a?x=1 HTTP/1.1\r\nAuthorization: Bearer k\r\nContent-Length: 3\r\n\r\nabc\
              POST /b HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nde\r\n1\r\nf\r\n0\r\n\r\n\
              GET /c HTTP/1.0\r\n\r\n",
        );
        let head = connection.read_head().unwrap().unwrap();
        assert_eq!(
            (head.method.as_str(), head.path.as_str()),
            ("POST", "/v1/a")
        );
        assert_eq!(head.authorization.as_deref(), Some("Bearer k"));
        assert!(head.keep_alive);
        assert_eq!(connection.read_body(&head, 3).unwrap(), b"abc");
        let head = connection.read_head().unwrap().unwrap();
        assert_eq!(connection.read_body(&head, 3).unwrap(), b"def");
        let head = connection.read_head().unwrap().unwrap();
        assert!(!head.keep_alive && head.has_no_body());
        assert!(!connection.is_gone());
        drop(client);
        assert!(connection.read_head().unwrap().is_none());
        assert!(connection.is_gone());
    }

    #[test]
    fn large_bodies_are_refused_before_they_are_read() {
        let (mut connection, _client) =
            served(b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n");
        let head = connection.read_head().unwrap().unwrap();
        assert!(matches!(
            connection.read_body(&head, 8),
            Err(BodyFault::TooLarge)
        ));
        let (mut connection, _client) = served(
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n123456789\r\n0\r\n\r\n",
        );
        let head = connection.read_head().unwrap().unwrap();
        assert!(matches!(
            connection.read_body(&head, 8),
            Err(BodyFault::TooLarge)
        ));
    }

    #[test]
    fn what_is_no_http_is_an_error() {
        let wrong: [&[u8]; 5] = [
            b"hello\r\n\r\n",
            b"GET / HTTP/2\r\n\r\n",
            b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: +3\r\n\r\n",
        ];
        for request in wrong {
            let (mut connection, _client) = served(request);
            let error = connection.read_head().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{request:?}");
        }
    }

    #[test]
    fn an_event_is_a_chunk_of_its_own() {
        let (mut connection, mut client) = served(b"");
        connection.begin_events(false).unwrap();
        connection.event("{}").unwrap();
        connection.end_events().unwrap();
        drop(connection);
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        assert!(
            text.ends_with("\r\n\r\na\r\ndata: {}\n\n\r\n0\r\n\r\n"),
            "{text}"
        );
    }
}
