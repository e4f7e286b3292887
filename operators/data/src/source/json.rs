//! JSON as data files have it: values with their numbers spelled as they are.
//!
//! Numbers keep their spelling because they may be gold answers: no reader may round a large integer or print 7.0 as 7.

use super::cell::Cell;

/// The deepest nesting that is read.
const DEPTH: usize = 64;

/// Where a text is no JSON, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NoJson {
    /// Bytes before it.
    pub(super) at: usize,
    /// What is wrong.
    pub(super) what: &'static str,
}

/// Reads one value.
pub(super) fn parse(bytes: &[u8]) -> Result<Cell, NoJson> {
    let mut parser = Parser { bytes, at: 0 };
    parser.space();
    let cell = parser.value(0)?;
    parser.space();
    if parser.at < bytes.len() {
        return Err(parser.fault("there is more after the value"));
    }
    Ok(cell)
}

struct Parser<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Parser<'_> {
    fn fault(&self, what: &'static str) -> NoJson {
        NoJson { at: self.at, what }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while self.peek().is_some_and(|byte| byte.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    fn take(&mut self, byte: u8) -> bool {
        let is_there = self.peek() == Some(byte);
        self.at += usize::from(is_there);
        is_there
    }

    fn value(&mut self, depth: usize) -> Result<Cell, NoJson> {
        if depth > DEPTH {
            return Err(self.fault("it is nested too deep"));
        }
        match self.peek() {
            Some(b'{') => self.object(depth),
            Some(b'[') => self.list(depth),
            Some(b'"') => Ok(Cell::Text(self.string()?)),
            Some(_) => self.word(),
            None => Err(self.fault("it ends where a value belongs")),
        }
    }

    fn object(&mut self, depth: usize) -> Result<Cell, NoJson> {
        self.at += 1;
        let mut fields = Vec::new();
        self.space();
        if self.take(b'}') {
            return Ok(Cell::Struct(fields));
        }
        loop {
            self.space();
            if self.peek() != Some(b'"') {
                return Err(self.fault("a name in quotes belongs here"));
            }
            let name = self.string()?;
            self.space();
            if !self.take(b':') {
                return Err(self.fault("a `:` belongs here"));
            }
            self.space();
            fields.push((name, self.value(depth + 1)?));
            self.space();
            if self.take(b'}') {
                return Ok(Cell::Struct(fields));
            }
            if !self.take(b',') {
                return Err(self.fault("a `,` or `}` belongs here"));
            }
        }
    }

    fn list(&mut self, depth: usize) -> Result<Cell, NoJson> {
        self.at += 1;
        let mut items = Vec::new();
        self.space();
        if self.take(b']') {
            return Ok(Cell::List(items));
        }
        loop {
            self.space();
            items.push(self.value(depth + 1)?);
            self.space();
            if self.take(b']') {
                return Ok(Cell::List(items));
            }
            if !self.take(b',') {
                return Err(self.fault("a `,` or `]` belongs here"));
            }
        }
    }

    fn string(&mut self) -> Result<String, NoJson> {
        let start = self.at;
        self.at += 1;
        loop {
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => self.at += 2,
                Some(_) => self.at += 1,
                None => {
                    self.at = start;
                    return Err(self.fault("this text never ends"));
                }
            }
        }
        self.at += 1;
        let quoted = self.bytes.get(start..self.at).unwrap_or_default();
        serde_json::from_slice(quoted).map_err(|_| NoJson {
            at: start,
            what: "this text has a wrong escape, a control character, or bytes that are no UTF-8",
        })
    }

    /// A number, a truth value or null. Python writes numbers that are none as words too.
    fn word(&mut self) -> Result<Cell, NoJson> {
        let start = self.at;
        while self
            .peek()
            .is_some_and(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        {
            self.at += 1;
        }
        let word = std::str::from_utf8(&self.bytes[start..self.at]).unwrap_or_default();
        match word {
            "null" => Ok(Cell::Null),
            "true" | "false" | "NaN" | "Infinity" | "-Infinity" => Ok(Cell::Plain(word.to_owned())),
            _ if is_number(word) => Ok(Cell::Plain(word.to_owned())),
            _ => {
                self.at = start;
                Err(self.fault("this is no value"))
            }
        }
    }
}

/// Whether it is spelled like a number, however large.
fn is_number(word: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let (number, exponent) = match word.split_once(['e', 'E']) {
        Some((number, exponent)) => (
            number,
            exponent.strip_prefix(['+', '-']).unwrap_or(exponent),
        ),
        None => (word, "0"),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let whole = whole.strip_prefix('-').unwrap_or(whole);
    digits(whole)
        && digits(fraction)
        && digits(exponent)
        && (whole == "0" || !whole.starts_with('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> Cell {
        Cell::Text(value.to_owned())
    }

    #[test]
    fn numbers_keep_their_spelling() {
        for number in [
            "7",
            "-7",
            "7.0",
            "0.50",
            "1e3",
            "123456789012345678901234567890",
            "true",
            "NaN",
            "1e999",
        ] {
            let cell = parse(format!(" {number} ").as_bytes()).unwrap();
            assert_eq!(cell, Cell::Plain(number.to_owned()));
        }
        assert_eq!(parse(br#""a\u00e9\n""#).unwrap(), text("a\u{e9}\n"));
    }

    /// The same value as another reader gives, numbers by their value.
    fn is_same(cell: &Cell, value: &serde_json::Value) -> bool {
        use serde_json::Value;
        match (cell, value) {
            (Cell::Null, Value::Null) => true,
            (Cell::Text(text), Value::String(other)) => text == other,
            (Cell::Plain(text), Value::Bool(other)) => *text == other.to_string(),
            (Cell::Plain(text), Value::Number(other)) => {
                let (one, other): (f64, f64) = (text.parse().unwrap(), other.as_f64().unwrap());
                (one - other).abs() <= 1e-15 * one.abs()
            }
            (Cell::List(items), Value::Array(others)) => {
                items.len() == others.len() && items.iter().zip(others).all(|(a, b)| is_same(a, b))
            }
            (Cell::Struct(fields), Value::Object(others)) => {
                let is_field = |(name, other): (&String, &Value)| {
                    let cell = fields.iter().rev().find(|(field, _)| field == name);
                    cell.is_some_and(|(_, cell)| is_same(cell, other))
                };
                others.iter().all(is_field)
            }
            _ => false,
        }
    }

    #[test]
    fn damaged_texts_are_read_as_another_reader_reads_them() {
        let texts = [
            r#"{"a": [1, -2.5e3, "x\"\\\u00e9"], "b": {"c": null, "d": true}, "e": ""}"#,
            r#"[{"messages": [{"role": "user", "content": "<image>\n1 + 1?"}]}, 0.10, 1E5, false]"#,
        ];
        let alphabet = br#"{}[]",:\ue0123456789.-+trufalsn x"#;
        let mut state = 7_u64;
        let mut draw = |below: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let mut good = 0;
        for _ in 0..40_000 {
            let mut bytes = texts[draw(2)].as_bytes().to_vec();
            for _ in 0..draw(4) {
                let at = draw(bytes.len());
                match draw(3) {
                    0 => bytes[at] = alphabet[draw(alphabet.len())],
                    1 => bytes.insert(at, alphabet[draw(alphabet.len())]),
                    _ => drop(bytes.remove(at)),
                }
            }
            let shown = String::from_utf8_lossy(&bytes).into_owned();
            match (parse(&bytes), serde_json::from_slice(&bytes)) {
                (Ok(cell), Ok(value)) => {
                    assert!(is_same(&cell, &value), "{shown}");
                    good += 1;
                }
                (Err(fault), Err(_)) => assert!(fault.at <= bytes.len(), "{shown}"),
                // Only this reader keeps numbers that are too large for a float.
                (Ok(_), Err(error)) => {
                    assert!(error.to_string().contains("out of range"), "{shown}");
                }
                (Err(fault), Ok(_)) => panic!("{shown}: {fault:?}"),
            }
        }
        assert!(good > 10_000, "{good}");
    }

    #[test]
    fn what_is_no_json_is_named_where_it_is() {
        let cases = [
            ("", 0),
            ("{\"a\" 1}", 5),
            ("{\"a\": }", 6),
            ("{\"a\": 1,}", 8),
            ("[1 2]", 3),
            ("{a: 1}", 1),
            ("\"abc", 0),
            ("{\"a\": \"\\x\"}", 6),
            ("1 2", 2),
            ("007", 0),
            ("{\"a\": \"\u{1}\"}", 6),
            ("None", 0),
        ];
        for (json, at) in cases {
            assert_eq!(parse(json.as_bytes()).unwrap_err().at, at, "{json}");
        }
        let deep = "[".repeat(100) + &"]".repeat(100);
        assert_eq!(
            parse(deep.as_bytes()).unwrap_err().what,
            "it is nested too deep"
        );
        assert!(parse(&[b'"', 0xff, b'"']).is_err());
    }
}
