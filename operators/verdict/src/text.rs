//! Answers as text: takes the LaTeX dress off, so that what differs in spelling alone becomes equal.

/// Commands that may stand around a whole answer.
const AROUND: &[&str] = &[
    "\\boxed",
    "\\fbox",
    "\\text",
    "\\textbf",
    "\\textit",
    "\\textrm",
    "\\mathrm",
    "\\mathbf",
    "\\mbox",
    "\\displaystyle",
    "\\mathit",
    "\\textnormal",
    "\\operatorname",
];

/// The answer without what may stand around it: space, full stops, dollar signs, boxes, text commands, emphasis.
pub(crate) fn undressed(answer: &str) -> &str {
    let mut text = answer.trim();
    for _ in 0..8 {
        let before = text;
        let bytes = text.as_bytes();
        // Letters and digits at both ends: nothing to take off.
        if let (Some(first), Some(last)) = (bytes.first(), bytes.last())
            && first.is_ascii_alphanumeric()
            && last.is_ascii_alphanumeric()
        {
            return text;
        }
        let bare = text.trim_end_matches(['.', ',', ';']);
        if bare.len() < text.len() {
            // `\,` is a space.
            text = bare.trim_end_matches('\\').trim_end();
        }
        for (open, close) in [
            ("$$", "$$"),
            ("$", "$"),
            ("\\(", "\\)"),
            ("\\[", "\\]"),
            ("**", "**"),
        ] {
            if let Some(inner) = text
                .strip_prefix(open)
                .and_then(|rest| rest.strip_suffix(close))
                && !inner.contains(open)
            {
                text = inner.trim();
            }
        }
        if text.starts_with(['\\', '{']) {
            text = unwrapped(text).unwrap_or(text).trim();
        }
        if text == before {
            break;
        }
    }
    text
}

/// What stands in a command, or in braces, that are the whole answer. Braces around a list may mean a set.
fn unwrapped(text: &str) -> Option<&str> {
    let inner = if let Some(inner) = text.strip_prefix('{') {
        if inner.contains(',') {
            return None;
        }
        inner
    } else {
        let letters = text[1..]
            .bytes()
            .take_while(u8::is_ascii_alphabetic)
            .count();
        let (name, rest) = text.split_at(1 + letters);
        if !AROUND.contains(&name) {
            return None;
        }
        rest.trim_start().strip_prefix('{')?
    };
    let mut depth = 1_usize;
    let mut is_escaped = false;
    for (index, byte) in inner.bytes().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'{' => depth += 1,
            b'}' => {
                depth -= 1;
                if depth == 0 {
                    return (index + 1 == inner.len()).then(|| &inner[..index]);
                }
            }
            _ => {}
        }
    }
    None
}

/// Stands where a text command (`\text{...}`) began: what follows is words, not mathematics.
const TEXT_MARK: char = '\u{E000}';
/// Stands for any thin or fixed space, which may group the digits of a number.
const THIN_SPACE: char = '\u{2009}';

/// The answer without delimiters, sizing and spacing commands; fractions as `\frac`, degrees as a degree sign. Linear.
fn clean(answer: &str) -> String {
    let undressed = strip_delimiters(answer.trim());
    let mut out = String::with_capacity(undressed.len());
    // For each open brace, whether it is kept: the braces of text commands are not.
    let mut braces: Vec<bool> = Vec::new();
    let mut opens_text = false;
    let mut rest = undressed.as_str();
    while let Some(next) = rest.chars().next() {
        rest = &rest[next.len_utf8()..];
        match next {
            '\\' => {
                let (name, after) = command(rest);
                rest = after;
                opens_text = emit_command(name, &mut out);
                continue;
            }
            '{' => {
                braces.push(!opens_text);
                if !opens_text {
                    out.push('{');
                }
            }
            '}' => {
                if braces.pop().unwrap_or(true) {
                    out.push('}');
                }
            }
            '\u{2212}' | '\u{2013}' => out.push('-'),
            '\u{2044}' | '\u{2215}' => out.push('/'),
            '\u{a0}' | '\u{202f}' | THIN_SPACE => out.push(THIN_SPACE),
            '~' => out.push(' '),
            c if c.is_whitespace() => {
                out.push(' ');
                continue;
            }
            c => out.push(c),
        }
        opens_text = false;
    }
    let trimmed = out.trim().trim_end_matches('.').trim_end();
    trimmed.to_owned()
}

/// Removes `$`, `\(`, `\[` and their partners. A single dollar sign is a currency and stays.
fn strip_delimiters(answer: &str) -> String {
    let mut text = answer
        .replace("\\(", "")
        .replace("\\)", "")
        .replace("\\[", "")
        .replace("\\]", "");
    let dollars = text.matches('$').count() - text.matches("\\$").count();
    if dollars > 0 && dollars.is_multiple_of(2) {
        text = text
            .replace("\\$", "\u{E001}")
            .replace('$', "")
            .replace('\u{E001}', "\\$");
    }
    text
}

/// Name of the command after a backslash (letters, or one other character) and the text after it.
fn command(rest: &str) -> (&str, &str) {
    let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
    let len = if letters > 0 {
        letters
    } else {
        rest.chars().next().map_or(0, char::len_utf8)
    };
    rest.split_at(len)
}

/// Writes what a command stands for. Returns whether it is a text command, whose braces go.
fn emit_command(name: &str, out: &mut String) -> bool {
    match name {
        "text" | "textbf" | "textit" | "textrm" | "textnormal" | "mathrm" | "mathbf" | "mathit"
        | "mathsf" | "mbox" | "operatorname" => {
            out.push(TEXT_MARK);
            return true;
        }
        "left" | "right" | "big" | "Big" | "bigg" | "Bigg" | "bigl" | "bigr" | "Bigl" | "Bigr"
        | "displaystyle" | "!" => {}
        "," | ";" | ":" | ">" | " " => out.push(THIN_SPACE),
        "quad" | "qquad" => out.push(' '),
        "dfrac" | "tfrac" | "cfrac" | "frac" => out.push_str("\\frac"),
        "times" | "cdot" => out.push('\u{d7}'),
        "circ" | "degree" | "degrees" => out.push('\u{b0}'),
        "%" => out.push('%'),
        "$" => out.push('$'),
        other => {
            out.push('\\');
            out.push_str(other);
        }
    }
    false
}

/// Text for comparison: lower case, no marks, white space only between letters or digits, no full stop at the end, no
/// quotation marks around it.
pub(crate) fn comparable(answer: &str) -> String {
    let cleaned = clean(answer);
    let mut out = String::with_capacity(cleaned.len());
    let mut is_spaced = false;
    for c in cleaned.chars() {
        if c == TEXT_MARK || c.is_whitespace() {
            is_spaced = true;
            continue;
        }
        if is_spaced
            && c.is_alphanumeric()
            && out.chars().next_back().is_some_and(char::is_alphanumeric)
        {
            out.push(' ');
        }
        is_spaced = false;
        out.extend(c.to_lowercase());
    }
    let mut inner = out.trim_matches('.');
    for quote in ['"', '\''] {
        // Only in pairs: a single one is a prime, or feet and inches.
        let bare = inner.strip_prefix(quote);
        if let Some(bare) = bare.and_then(|rest| rest.strip_suffix(quote)) {
            inner = bare.trim_matches('.');
        }
    }
    let choice = inner
        .strip_prefix('(')
        .and_then(|rest| rest.strip_suffix(')'))
        .or_else(|| inner.strip_suffix(')'));
    match choice {
        Some(letter)
            if letter.len() == 1 && letter.bytes().all(|byte| byte.is_ascii_alphabetic()) =>
        {
            letter.to_owned()
        }
        _ => inner.to_owned(),
    }
}
