use super::*;
use crate::session::{Order, QuerySession};
use arrow::array::{LargeStringArray, UInt32Array};
use arrow::datatypes::Field;

fn batch() -> RecordBatch {
    let schema = Schema::new(vec![
        Field::new("verdict", DataType::LargeUtf8, false),
        Field::new("sample", DataType::UInt32, false),
        Field::new("answer", DataType::LargeUtf8, true),
        Field::new("tokens", DataType::Int64, true),
    ]);
    let verdicts = LargeStringArray::from(vec!["correct", "wrong", "correct", "unparsed"]);
    let answers = LargeStringArray::from(vec![Some("12"), Some("x"), None, Some("")]);
    let tokens = arrow::array::Int64Array::from(vec![Some(10), Some(600), Some(40), None]);
    RecordBatch::try_new(
        Arc::new(schema),
        vec![
            Arc::new(verdicts),
            Arc::new(UInt32Array::from(vec![0, 1, 2, 3])),
            Arc::new(answers),
            Arc::new(tokens),
        ],
    )
    .unwrap()
}

fn pairs(texts: &[&str]) -> Vec<(String, String)> {
    let named = texts.iter().enumerate();
    named
        .map(|(place, text)| (format!("p{place}"), (*text).to_owned()))
        .collect()
}

/// Expressions as people write them, over the columns of [`batch`].
const GOOD: [&str; 12] = [
    "1",
    "tokens < 512",
    "verdict = 'correct' and sample > 0",
    "CASE WHEN verdict = 'correct' THEN 1 ELSE -1 END",
    "length(answer) / 4",
    "coalesce(length(answer), 0) / 4.0",
    "greatest(0, 1 - tokens / 1000.0)",
    "answer is null",
    "Verdict LIKE 'cor%'",
    "verdict IN ('correct', 'wrong') AS judged",
    "CAST(regexp_like(answer, '^[0-9]+$') AS INT) * 0.5",
    "nullif(sample, 2) * 2",
];

#[test]
fn gives_what_a_query_gives() {
    let batch = batch();
    let expressions = Expressions::compile(&pairs(&GOOD), &batch.schema()).unwrap();
    let ours = expressions.evaluate(&batch).unwrap().into_columns();
    let session = QuerySession::new(Order::Repeatable).unwrap();
    session
        .register_batches("t", &batch.schema(), vec![batch.clone()])
        .unwrap();
    for (text, ours) in GOOD.iter().zip(ours) {
        let text = text.trim_end_matches(" AS judged");
        let frame = session.sql(&format!("SELECT CAST(({text}) AS DOUBLE) AS x FROM t"));
        let theirs = session.collect(frame.unwrap()).unwrap();
        let theirs = theirs[0].column(0).as_primitive::<Float64Type>();
        assert_eq!(&ours, theirs, "{text}");
    }
}

#[test]
fn rows_come_in_any_parts_and_columns_in_any_order() {
    let batch = batch();
    let expressions = Expressions::compile(&pairs(&GOOD), &batch.schema()).unwrap();
    let whole = expressions.evaluate(&batch).unwrap();
    let turned = batch.project(&[3, 2, 1, 0]).unwrap();
    for row in 0..batch.num_rows() {
        let one = expressions.evaluate(&turned.slice(row, 1)).unwrap();
        assert_eq!(one.row(0), whole.row(row));
    }
    assert_eq!(whole.row(3)[1], None, "null stays null");
    let nothing = expressions.evaluate(&batch.slice(0, 0)).unwrap();
    assert_eq!(nothing.into_columns()[0].len(), 0);
}

#[test]
fn only_the_columns_that_are_used_must_be_there() {
    let batch = batch();
    let both = pairs(&["sample + 1", "length(answer)"]);
    let expressions = Expressions::compile(&both, &batch.schema()).unwrap();
    let columns: Vec<String> = expressions.columns().into_iter().collect();
    assert_eq!(columns, ["answer", "sample"]);
    let some = batch.project(&[1, 2]).unwrap();
    assert_eq!(
        expressions.evaluate(&some).unwrap().row(0),
        [Some(1.0), Some(2.0)]
    );
    let error = expressions.evaluate(&batch.project(&[1]).unwrap());
    assert!(error.unwrap_err().to_string().contains("`answer`"));
}

#[test]
fn what_is_no_number_of_one_row_is_named() {
    let schema = batch().schema();
    for (text, message, help) in [
        (
            "tokns < 5",
            "no column `tokns`",
            "columns are verdict, sample",
        ),
        ("tokens <", "expected", "one SQL expression"),
        ("tokens) from t", "", "one SQL expression"),
        ("1; drop table t", "", "one SQL expression"),
        ("answer", "it gives text", "CASE WHEN"),
        ("null", "it gives null", "CASE WHEN"),
        ("avg(tokens)", "`avg()` is over several rows", "`sql` stage"),
        ("row_number() over ()", "`row_number()`", "`sql` stage"),
        ("(select 1)", "a query within", "`sql` stage"),
        (
            "random()",
            "`random()` gives something else",
            "write the value",
        ),
        (
            "now() is null",
            "`now()` gives something else",
            "write the value",
        ),
        ("nosuch(tokens)", "nosuch", "one SQL expression"),
        ("answer + sample", "", "one SQL expression"),
        ("$1 + 1", "", ""),
    ] {
        let errors = Expressions::compile(&pairs(&["1", text]), &schema).unwrap_err();
        assert_eq!(errors.len(), 1, "{text}");
        let error = &errors[0];
        assert_eq!(error.name, "p1", "{text}");
        let lower = error.message.to_lowercase();
        assert!(lower.contains(&message.to_lowercase()), "{text}: {error}");
        assert!(!lower.contains('\n'), "{text}: {error}");
        assert!(
            error.help.as_ref().unwrap().contains(help),
            "{text}: {error:?}"
        );
    }
}

#[test]
fn what_fails_on_a_row_says_so() {
    let batch = batch();
    let expressions =
        Expressions::compile(&pairs(&["CAST(answer AS INT)"]), &batch.schema()).unwrap();
    let error = expressions.evaluate(&batch).unwrap_err().to_string();
    assert!(
        error.contains("expression `p0`") && error.contains('x'),
        "{error}"
    );
}

#[test]
fn the_first_of_equal_names_counts() {
    let left = Schema::new(vec![Field::new("a", DataType::Int64, false)]);
    let right = Schema::new(vec![
        Field::new("b", DataType::Int64, false),
        Field::new("a", DataType::LargeUtf8, false),
    ]);
    let both = side_by_side(&[&left, &right]);
    let names: Vec<&String> = both.fields().iter().map(|field| field.name()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(both.field(0).data_type(), &DataType::Int64);
}
