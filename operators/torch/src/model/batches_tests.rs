use super::*;

/// Prompts that so many completions of these lengths share, then sequences of their own.
pub(in crate::model) fn spans(shared: &[(i64, &[i64])], single: &[i64]) -> Spans {
    let mut spans = Spans::default();
    let mut end = 0;
    let mut push = |own: &mut Vec<Span>, length: i64| {
        let span = Span { start: end, length };
        end += length;
        own.push(span);
        span
    };
    let prompts: Vec<Span> = (shared.iter())
        .map(|(prompt, _)| push(&mut spans.own, *prompt))
        .collect();
    for ((_, completions), prompt) in shared.iter().zip(prompts) {
        let first = push(&mut spans.own, completions[0]);
        let rest = completions[1..].iter();
        let rest: i64 = rest
            .map(|length| push(&mut spans.own, *length).length)
            .sum();
        let length = first.length + rest;
        let queries = Span { length, ..first };
        spans.shared.push((queries, prompt));
    }
    for length in single {
        push(&mut spans.own, *length);
    }
    spans
}

fn shapes(spans: &Spans) -> Option<Vec<(i64, i64)>> {
    let batches = Batches::new(spans)?.batches;
    Some(
        (batches.iter())
            .map(|batch| (batch.count, batch.length))
            .collect(),
    )
}

#[test]
fn samples_of_equal_length_are_one_batch() {
    let group: (i64, &[i64]) = (256, &[511; 8]);
    assert_eq!(shapes(&spans(&[group], &[])), Some(vec![(8, 768)]));
    assert_eq!(shapes(&spans(&[group; 4], &[])), Some(vec![(32, 768)]));
}

#[test]
fn long_sequences_are_batches_by_length() {
    let batches = shapes(&spans(&[], &[1100, 1100, 5000, 1100]));
    assert_eq!(batches, Some(vec![(2, 1280), (1, 1280), (1, 5120)]));
    // The most padding of one sequence.
    for (length, padded) in [(1025, 1280), (2049, 2560), (16_384, 16_384)] {
        assert_eq!(shapes(&spans(&[], &[length])), Some(vec![(1, padded)]));
    }
}

#[test]
fn much_padding_and_many_copies_are_for_others() {
    // Short ones, one long among short ones, a long prompt with short completions.
    assert_eq!(shapes(&spans(&[], &[100; 20])), None);
    assert_eq!(shapes(&spans(&[], &[1100, 70, 1, 1])), None);
    assert_eq!(shapes(&spans(&[(2000, &[50; 8])], &[])), None);
}

#[test]
fn few_shapes_at_the_cost_of_some_padding() {
    // Seven and seven make six shapes; eight and eight make two.
    let lengths = [[500_i64; 7], [760; 7]].concat();
    assert_eq!(
        shapes(&spans(&[], &lengths)),
        Some(vec![(8, 512), (8, 768)])
    );
    let ragged: Vec<i64> = (1..=8).map(|step| 256 * step - 20).collect();
    assert_eq!(
        shapes(&spans(&[], &ragged[..4])).map(|all| all.len()),
        Some(4)
    );
    assert_eq!(shapes(&spans(&[], &ragged[..5])), None);
}

#[test]
fn numbers_are_sums_of_powers_of_two() {
    let split = |count, terms| powers(count, terms).collect::<Vec<i64>>();
    assert_eq!(split(13, u32::MAX), [8, 4, 1]);
    assert_eq!(split(13, 2), [16]);
    assert_eq!(split(9, 2), [8, 1]);
    assert_eq!(split(10, 2), [8, 2]);
    assert_eq!(split(7, 1), [8]);
    assert_eq!(split(16, 1), [16]);
}

#[test]
fn each_sequence_has_its_prompt_before_it_and_padding_behind() {
    let spans = spans(
        &[(200, &[300, 310, 40][..]), (150, &[290, 100][..])],
        &[250, 750, 760],
    );
    let Batches { batches, standing } = Batches::new(&spans).unwrap();
    let mut found: Vec<Vec<i64>> = Vec::new();
    let mut start = 0;
    for batch in &batches {
        for _ in 0..batch.count {
            let rows = &standing[start..start + batch.length as usize];
            start += batch.length as usize;
            let tokens: Vec<i64> = rows.iter().map_while(|token| *token).collect();
            assert!(rows[tokens.len()..].iter().all(Option::is_none));
            found.push(tokens);
        }
    }
    assert_eq!(start, standing.len());
    found.retain(|tokens| !tokens.is_empty());
    found.sort_by_key(|tokens| tokens.last().copied());
    let expected = [
        (0..200, 350..650),
        (0..200, 650..960),
        (0..200, 960..1000),
        (200..350, 1000..1290),
        (200..350, 1290..1390),
        (0..0, 1390..1640),
        (0..0, 1640..2390),
        (0..0, 2390..3150),
    ];
    let expected = expected.map(|(prompt, own)| prompt.chain(own).collect::<Vec<i64>>());
    assert_eq!(found, expected);
}

#[test]
fn only_rows_in_the_order_of_the_pass_are_plain() {
    let is_plain = |spans: &Spans| {
        let tokens: i64 = spans.own.iter().map(|span| span.length).sum();
        Batches::new(spans).unwrap().is_plain(tokens)
    };
    assert!(is_plain(&spans(&[], &[5000])));
    assert!(is_plain(&spans(&[], &[1024, 1024, 1024])));
    assert!(!is_plain(&spans(&[], &[1000, 1000])));
    assert!(!is_plain(&spans(&[(256, &[768, 768])], &[])));
}
