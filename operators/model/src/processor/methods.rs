//! Methods of Python's text and dictionary types that published templates call, where they differ from what the template
//! engine's own imitation does.

use minijinja::value::{Kwargs, from_args};
use minijinja::{Error, ErrorKind, State, Value};

/// Calls a method on a value that has none of that name.
pub(super) fn call(
    state: &State,
    value: &Value,
    method: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    if let Some(text) = value.as_str()
        && let Some(result) = text_method(text, method, arguments)
    {
        return result;
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, arguments)
}

fn text_method(text: &str, method: &str, arguments: &[Value]) -> Option<Result<Value, Error>> {
    let result = match method {
        "strip" | "lstrip" | "rstrip" => strip(text, method, arguments),
        "split" | "rsplit" => split(text, method, arguments),
        "splitlines" => split_lines(text, arguments),
        "find" | "rfind" | "index" | "rindex" => find(text, method, arguments),
        "partition" | "rpartition" => partition(text, method, arguments),
        "removeprefix" | "removesuffix" => remove(text, method, arguments),
        "isdigit" | "isnumeric" | "isdecimal" => every(text, arguments, char::is_numeric),
        "isalpha" => every(text, arguments, char::is_alphabetic),
        "isalnum" => every(text, arguments, char::is_alphanumeric),
        "isspace" => every(text, arguments, is_space),
        _ => return None,
    };
    Some(result)
}

/// White space as Python knows it, which has four control characters more than Unicode.
pub(super) fn is_space(character: char) -> bool {
    character.is_whitespace() || matches!(character, '\u{1c}'..='\u{1f}')
}

fn strip(text: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (set,): (Option<&str>,) = from_args(arguments)?;
    let matches = |character: char| match set {
        Some(set) => set.contains(character),
        None => is_space(character),
    };
    Ok(Value::from(match method {
        "lstrip" => text.trim_start_matches(matches),
        "rstrip" => text.trim_end_matches(matches),
        _ => text.trim_matches(matches),
    }))
}

/// `split` and `rsplit`, with the arguments by place or by name.
fn split(text: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (separator, limit, named): (Option<Value>, Option<i64>, Kwargs) = from_args(arguments)?;
    let separator = match separator {
        Some(separator) => Some(separator),
        None => named.get("sep")?,
    };
    let limit = match limit {
        Some(limit) => Some(limit),
        None => named.get("maxsplit")?,
    };
    named.assert_all_used()?;
    // One more piece than splits; a negative limit is none.
    let pieces = limit
        .and_then(|limit| usize::try_from(limit).ok())
        .map_or(usize::MAX, |limit| limit.saturating_add(1));
    let from_right = method == "rsplit";
    let separator = separator.filter(|separator| !separator.is_none());
    let Some(separator) = separator else {
        return Ok(split_at_spaces(text, pieces, from_right));
    };
    let separator = separator
        .as_str()
        .ok_or_else(|| fault("a separator is a text"))?;
    if separator.is_empty() {
        return Err(fault("a separator is not empty"));
    }
    Ok(if from_right {
        let mut parts: Vec<&str> = text.rsplitn(pieces, separator).collect();
        parts.reverse();
        parts.into_iter().map(Value::from).collect()
    } else {
        text.splitn(pieces, separator).map(Value::from).collect()
    })
}

fn split_at_spaces(text: &str, pieces: usize, from_right: bool) -> Value {
    let mut parts = Vec::new();
    let mut rest = if from_right {
        text.trim_end_matches(is_space)
    } else {
        text.trim_start_matches(is_space)
    };
    while !rest.is_empty() {
        let end = if from_right {
            rest.rfind(is_space)
        } else {
            rest.find(is_space)
        };
        let cut = end.filter(|_| parts.len() + 1 < pieces);
        let Some(at) = cut else {
            parts.push(rest);
            break;
        };
        let width = rest[at..].chars().next().map_or(0, char::len_utf8);
        if from_right {
            parts.push(&rest[at + width..]);
            rest = rest[..at].trim_end_matches(is_space);
        } else {
            parts.push(&rest[..at]);
            rest = rest[at..].trim_start_matches(is_space);
        }
    }
    if from_right {
        parts.reverse();
    }
    parts.into_iter().map(Value::from).collect()
}

fn split_lines(text: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (keep,): (Option<bool>,) = from_args(arguments)?;
    let lines = lines(text, keep.unwrap_or(false));
    Ok(lines.into_iter().map(Value::from).collect())
}

/// The lines of a text, at all line ends that Python knows; without one at the end of the text, if it ends with a line end.
fn lines(text: &str, keep_ends: bool) -> Vec<&str> {
    let is_break = |character: char| {
        matches!(
            character,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'
                ..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(is_break).unwrap_or(rest.len());
        let width = if rest[end..].starts_with("\r\n") {
            2
        } else {
            rest[end..].chars().next().map_or(0, char::len_utf8)
        };
        lines.push(&rest[..if keep_ends { end + width } else { end }]);
        rest = &rest[end + width..];
    }
    lines
}

/// The filter `indent`: blanks, or another text, before each line but the first and the empty ones.
pub(super) fn indent(
    text: &str,
    width: Option<Value>,
    first: Option<bool>,
    blank: Option<bool>,
    named: Kwargs,
) -> Result<String, Error> {
    let width = match width {
        Some(width) => Some(width),
        None => named.get("width")?,
    };
    let space = match &width {
        None => " ".repeat(4),
        Some(width) => match width.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(width.as_usize().unwrap_or(0)),
        },
    };
    let flag = |given: Option<bool>, name: &str| match given {
        Some(given) => Ok(given),
        None => Ok::<_, Error>(named.get::<Option<bool>>(name)?.unwrap_or(false)),
    };
    let (first, blank) = (flag(first, "first")?, flag(blank, "blank")?);
    named.assert_all_used()?;
    // With a line end at the end, a last empty line counts.
    let text = format!("{text}\n");
    let lines = lines(&text, false).into_iter().enumerate();
    let lines = lines.map(|(index, line)| {
        if (index == 0 && first) || (index > 0 && (blank || !line.is_empty())) {
            format!("{space}{line}")
        } else {
            line.to_owned()
        }
    });
    Ok(lines.collect::<Vec<String>>().join("\n"))
}

/// Places are counted in characters.
fn find(text: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (what,): (&str,) = from_args(arguments)?;
    let found = if method.starts_with('r') {
        text.rfind(what)
    } else {
        text.find(what)
    };
    match found {
        Some(at) => Ok(Value::from(text[..at].chars().count())),
        None if method.ends_with("index") => Err(fault(format!("`{what}` is not in the text"))),
        None => Ok(Value::from(-1)),
    }
}

fn partition(text: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (separator,): (&str,) = from_args(arguments)?;
    let parts = if method == "partition" {
        text.split_once(separator)
            .map_or([text, "", ""], |(left, right)| [left, separator, right])
    } else {
        text.rsplit_once(separator)
            .map_or(["", "", text], |(left, right)| [left, separator, right])
    };
    Ok(parts.into_iter().map(Value::from).collect())
}

fn remove(text: &str, method: &str, arguments: &[Value]) -> Result<Value, Error> {
    let (end,): (&str,) = from_args(arguments)?;
    let rest = if method == "removeprefix" {
        text.strip_prefix(end)
    } else {
        text.strip_suffix(end)
    };
    Ok(Value::from(rest.unwrap_or(text)))
}

/// Whether there are characters and all of them are of a kind.
fn every(text: &str, arguments: &[Value], is: fn(char) -> bool) -> Result<Value, Error> {
    let () = from_args(arguments)?;
    Ok(Value::from(!text.is_empty() && text.chars().all(is)))
}

fn fault(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}
