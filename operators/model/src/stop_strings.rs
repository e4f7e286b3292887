//! Stop strings of operators: completions end where one is complete, and their text is cut where it begins.

use std::sync::Arc;

use engine_core::policy::StopCheck;

use crate::processor::{Processor, StopStrings};

/// Tokens that are decoded beside those that a stop string can have: what decoders make of the first tokens of a text can
/// differ, and special tokens have none.
const MARGIN: usize = 16;

/// Ends a completion when its text has a stop string; none if there are no stop strings.
pub(crate) fn stop_check(processor: &Arc<Processor>, stop: &[String]) -> Option<StopCheck> {
    // A token with a text has at least a byte of it.
    let tokens = stop.iter().map(String::len).max()? + MARGIN;
    let (processor, stops) = (Arc::clone(processor), StopStrings::new(stop.to_vec()));
    Some(StopCheck(Arc::new(move |completion: &[u32]| {
        let tail = &completion[completion.len().saturating_sub(tokens)..];
        // What cannot be decoded is an error of the row when it is done.
        let text = processor.decode(tail).unwrap_or_default();
        stops.find(&text).is_some()
    })))
}

/// Cuts a text before the first stop string. Returns whether there was one.
pub(crate) fn cut(text: &mut String, stop: &[String]) -> bool {
    let found = StopStrings::new(stop.to_vec()).find(text);
    if let Some(start) = found {
        text.truncate(start);
    }
    found.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_support::model_folder;

    #[test]
    fn a_completion_ends_with_the_token_that_completes_a_stop_string() {
        let processor = Arc::new(Processor::load(&model_folder()).unwrap());
        assert!(stop_check(&processor, &[]).is_none());
        let stop = ["4 5".to_owned(), "6".to_owned()];
        let check = stop_check(&processor, &stop).unwrap();
        let tokens = processor.encode_completion("7 7 7 4 5 6").unwrap();
        let ends: Vec<usize> = (1..=tokens.len())
            .filter(|length| (check.0)(&tokens[..*length]))
            .collect();
        let mut text = processor.decode(&tokens[..ends[0]]).unwrap();
        assert!(text.ends_with("4 5"), "{text}");
        assert!(cut(&mut text, &stop));
        assert_eq!(text, "7 7 7 ");
        // However much text is before it.
        let long = [vec![tokens[0]; 500], tokens[..ends[0]].to_vec()].concat();
        assert!((check.0)(&long) && !(check.0)(&long[..long.len() - 1]));
    }
}
