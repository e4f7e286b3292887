//! Files of many JSON values, cut into them.

use std::io::{self, BufRead};

/// The longest value that is held.
const LONGEST: usize = 256 << 20;

/// A value of a file, not read yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// The line where it begins, counted from 1.
    pub(super) line: u64,
    /// Its bytes.
    pub(super) bytes: Vec<u8>,
}

/// Cuts a file into values: one a line.
pub(super) struct Lines<R> {
    reader: R,
    line: u64,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, line: 0 }
    }

    fn read_line(&mut self) -> io::Result<Option<Piece>> {
        loop {
            let mut bytes = Vec::new();
            loop {
                let chunk = self.reader.fill_buf()?;
                if chunk.is_empty() {
                    break;
                }
                let end = memchr::memchr(b'\n', chunk);
                let taken = end.map_or(chunk.len(), |end| end + 1);
                bytes.extend_from_slice(&chunk[..taken]);
                self.reader.consume(taken);
                if end.is_some() {
                    break;
                }
                check_length(bytes.len(), self.line + 1)?;
            }
            if bytes.is_empty() {
                return Ok(None);
            }
            self.line += 1;
            let is_first = self.line == 1;
            if is_first && bytes.starts_with(BOM) {
                bytes.drain(..BOM.len());
            }
            if !bytes.trim_ascii().is_empty() {
                return Ok(Some(Piece {
                    line: self.line,
                    bytes,
                }));
            }
        }
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = io::Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read_line().transpose()
    }
}

/// The mark that some programs put in front of a text.
pub(super) const BOM: &[u8] = b"\xef\xbb\xbf";

/// Cuts a file into values: the items of a list, or values that follow each other.
pub(super) struct Values<R> {
    reader: R,
    line: u64,
    is_begun: bool,
    is_list: bool,
    is_over: bool,
}

impl<R: BufRead> Values<R> {
    pub(super) fn new(reader: R) -> Self {
        Self {
            reader,
            line: 1,
            is_begun: false,
            is_list: false,
            is_over: false,
        }
    }

    fn byte(&mut self) -> io::Result<Option<u8>> {
        Ok(self.reader.fill_buf()?.first().copied())
    }

    /// Passes over white space and these bytes; the next byte.
    fn skip(&mut self, others: &[u8]) -> io::Result<Option<u8>> {
        while let Some(byte) = self.byte()? {
            if !byte.is_ascii_whitespace() && !others.contains(&byte) {
                return Ok(Some(byte));
            }
            self.line += u64::from(byte == b'\n');
            self.reader.consume(1);
        }
        Ok(None)
    }

    fn read_value(&mut self) -> io::Result<Option<Piece>> {
        if self.is_over {
            return Ok(None);
        }
        if !self.is_begun {
            self.is_begun = true;
            // No value begins with a byte of the mark.
            if self.skip(BOM)? == Some(b'[') {
                self.is_list = true;
                self.reader.consume(1);
            }
        }
        let next = self.skip(if self.is_list { b"," } else { b"" })?;
        match next {
            Some(b']') if self.is_list => {
                self.is_over = true;
                Ok(None)
            }
            Some(_) => self.cut().map(Some),
            None if self.is_list => {
                self.is_over = true;
                Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "the list never ends: its `]` is missing",
                ))
            }
            None => Ok(None),
        }
    }

    /// The bytes of one value, by its brackets and quotes alone.
    fn cut(&mut self) -> io::Result<Piece> {
        let line = self.line;
        let mut bytes = Vec::new();
        let (mut depth, mut is_text, mut is_escaped) = (0_usize, false, false);
        loop {
            let chunk = self.reader.fill_buf()?;
            let (mut used, mut is_over) = (0, chunk.is_empty());
            for &byte in chunk {
                let is_bare = depth == 0 && !is_text;
                let is_begun = used > 0 || !bytes.is_empty();
                if is_bare && is_begun && (byte.is_ascii_whitespace() || b",]".contains(&byte)) {
                    is_over = true;
                    break;
                }
                used += 1;
                self.line += u64::from(byte == b'\n');
                if is_text {
                    (is_text, is_escaped) =
                        (is_escaped || byte != b'"', !is_escaped && byte == b'\\');
                    continue;
                }
                match byte {
                    b'"' => is_text = true,
                    b'{' | b'[' => depth += 1,
                    b'}' | b']' => {
                        depth = depth.saturating_sub(1);
                        is_over = depth == 0;
                    }
                    _ => {}
                }
                if is_over {
                    break;
                }
            }
            bytes.extend_from_slice(&chunk[..used]);
            self.reader.consume(used);
            check_length(bytes.len(), line)?;
            if is_over {
                return Ok(Piece { line, bytes });
            }
        }
    }
}

impl<R: BufRead> Iterator for Values<R> {
    type Item = io::Result<Piece>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read_value().transpose()
    }
}

fn check_length(length: usize, line: u64) -> io::Result<()> {
    if length <= LONGEST {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the value in line {line} is longer than 256 MiB"),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_cut_into_values_with_their_lines() {
        let cut = |text: &str| -> Vec<(u64, String)> {
            let pieces = Values::new(text.as_bytes()).map(Result::unwrap);
            pieces
                .map(|piece| (piece.line, String::from_utf8(piece.bytes).unwrap()))
                .collect()
        };
        let list = "\u{feff}[\n {\"a\": \"]}\\\"\"},\n {\"b\": [1, {}]}, 3\n]\n";
        let values = [
            (2, "{\"a\": \"]}\\\"\"}"),
            (3, "{\"b\": [1, {}]}"),
            (3, "3"),
        ];
        assert_eq!(
            cut(list),
            values.map(|(line, text)| (line, text.to_owned()))
        );
        let stream = "{\"a\":\n1}\n\n{\"a\": 2}{\"a\": 3}";
        let lines: Vec<u64> = cut(stream).into_iter().map(|(line, _)| line).collect();
        assert_eq!(lines, [1, 4, 4]);
        assert!(cut("[]").is_empty() && cut("").is_empty());
        let mut open = Values::new(&b"[{\"a\": 1}"[..]);
        assert!(open.next().unwrap().is_ok());
        assert!(open.next().unwrap().is_err());
        assert!(open.next().is_none());
        let lines: Vec<u64> = Lines::new(&b"\xef\xbb\xbf{}\n\n{}\r\n  \n{}"[..])
            .map(|piece| piece.unwrap().line)
            .collect();
        assert_eq!(lines, [1, 3, 5]);
    }
}
