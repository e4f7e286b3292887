//! What an error of the object store means: whether it may pass, and what to tell a user in one line.

use std::error::Error as _;
use std::io::ErrorKind;

use object_store::Error;

/// Longest piece of a server's answer that is repeated.
const MESSAGE_LETTERS: usize = 200;

/// Whether the operation may work when it is tried again.
pub(crate) fn is_transient(error: &Error) -> bool {
    let Error::Generic { .. } = error else {
        return false;
    };
    if let Some(kind) = io_kind(error) {
        return !is_lasting(kind);
    }
    let text = error.to_string();
    match status(&text) {
        Some(status) => status >= 500 || status == 408 || status == 429,
        // A redirect comes from another region, which does not change by asking again.
        None => !text.contains("redirect") && !text.contains("URL scheme is not allowed"),
    }
}

fn is_lasting(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::StorageFull
            | ErrorKind::QuotaExceeded
            | ErrorKind::FileTooLarge
            | ErrorKind::ReadOnlyFilesystem
            | ErrorKind::NotADirectory
            | ErrorKind::IsADirectory
    )
}

/// Kind of the system's error at the root, if that is what it is.
pub(crate) fn io_kind(error: &Error) -> Option<ErrorKind> {
    let mut cause = error.source();
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return Some(error.kind());
        }
        cause = error.source();
    }
    None
}

/// HTTP status that a server answered with.
pub(crate) fn status(text: &str) -> Option<u16> {
    let after = text.split_once("status code: ")?.1;
    after.get(..3)?.parse().ok()
}

/// Content of an element of an XML answer.
pub(crate) fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let after = text.split_once(&format!("<{name}>"))?.1;
    Some(after.split_once(&format!("</{name}>"))?.0.trim()).filter(|text| !text.is_empty())
}

/// The cause in a line: what the server said, or what the system said.
pub(crate) fn brief(error: &Error) -> String {
    let text = error.to_string();
    if let Some(status) = status(&text) {
        let said = match (element(&text, "Code"), element(&text, "Message")) {
            (Some(code), Some(message)) => format!(" {code}: {message}"),
            (Some(code), None) => format!(" {code}"),
            _ => String::new(),
        };
        return shortened(&format!("the server answered {status}{said}"));
    }
    let mut root: &dyn std::error::Error = error;
    while let Some(source) = root.source() {
        root = source;
    }
    shortened(&root.to_string())
}

fn shortened(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default().trim();
    match line.char_indices().nth(MESSAGE_LETTERS) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::Generic {
            store: "S3",
            source: source.into(),
        }
    }

    #[test]
    fn only_what_may_pass_is_tried_again() {
        let answer = |status: &str| {
            generic(format!(
                "Error performing PUT in 2ms - Server returned non-2xx status code: {status}: <Error><Code>X</Code></Error>"
            ))
        };
        for error in [
            answer("503 Slow Down"),
            answer("500 Internal Server Error"),
            answer("429 Too Many Requests"),
            generic("connection reset by peer"),
            generic(std::io::Error::from(ErrorKind::TimedOut)),
        ] {
            assert!(is_transient(&error), "{error}");
        }
        for error in [
            answer("400 Bad Request"),
            answer("403 Forbidden"),
            generic(std::io::Error::from(ErrorKind::StorageFull)),
            generic(std::io::Error::from(ErrorKind::PermissionDenied)),
            Error::NotFound {
                path: "a".to_owned(),
                source: "gone".into(),
            },
            Error::AlreadyExists {
                path: "a".to_owned(),
                source: "there".into(),
            },
        ] {
            assert!(!is_transient(&error), "{error}");
        }
    }

    #[test]
    fn an_answer_is_told_in_a_line() {
        let error = generic(
            "Error performing GET http://host/bucket in 3ms - Server returned non-2xx status code: 403 Forbidden: \
             <?xml version=\"1.0\"?><Error><Code>SignatureDoesNotMatch</Code><Message>The signature is wrong.</Message></Error>",
        );
        assert_eq!(
            brief(&error),
            "the server answered 403 SignatureDoesNotMatch: The signature is wrong."
        );
    }
}
