use arrow::array::{Array, AsArray};
use arrow::datatypes::UInt32Type;
use serde_json::json;

use super::*;
use crate::testing::{TestIo, prompts, text_values, verdicts};

fn config(value: serde_json::Value) -> FilterByPassRate {
    serde_json::from_value(value).unwrap()
}

/// A prompt with each of these counts (correct of samples), named after them.
fn counted_rows(counts: &[(u32, u32)]) -> Vec<(String, u32, &'static str, bool)> {
    let rows = counts.iter().flat_map(|(correct, samples)| {
        (0..*samples).map(move |sample| {
            let verdict = if sample < *correct {
                "correct"
            } else {
                "wrong"
            };
            (format!("{correct}/{samples}"), sample, verdict, true)
        })
    });
    rows.collect()
}

fn io(counts: &[(u32, u32)], more: &[&str]) -> TestIo {
    let rows = counted_rows(counts);
    let rows: Vec<_> = rows
        .iter()
        .map(|row| (row.0.as_str(), row.1, row.2, row.3))
        .collect();
    let ids: Vec<String> = counts
        .iter()
        .map(|(correct, samples)| format!("{correct}/{samples}"))
        .chain(more.iter().map(|id| (*id).to_owned()))
        .collect();
    let ids: Vec<_> = ids.iter().map(|id| (id.as_str(), None, None)).collect();
    let mut io = TestIo::new();
    io.input("verdicts", &[verdicts(&rows)]);
    io.input("prompts", &[prompts(&ids)]);
    io
}

fn port(io: &TestIo, name: &str) -> Vec<String> {
    text_values(&io.output(name), "prompt_id")
}

fn table() -> RecordBatch {
    verdicts(&[
        ("solved", 0, "correct", true),
        ("solved", 1, "correct", true),
        ("masked", 0, "timed-out", true),
        ("partial", 0, "correct", true),
        ("partial", 1, "unparsed", true),
        ("partial", 2, "failed", true),
        ("failed", 0, "wrong", true),
        ("failed", 1, "unparsed", false),
        ("one", 0, "correct", true),
    ])
}

#[test]
fn prompts_go_by_their_counts_and_keep_columns_and_order() {
    let ids = [
        "z", "solved", "partial", "one", "masked", "failed", "unseen",
    ];
    let all: Vec<_> = ids.iter().map(|id| (*id, Some("1"), Some("sum"))).collect();
    let prompts = prompts(&all);
    let cut = |batch: &RecordBatch, rows: usize| -> Vec<RecordBatch> {
        (0..batch.num_rows())
            .step_by(rows)
            .map(|start| batch.slice(start, rows.min(batch.num_rows() - start)))
            .collect()
    };
    for rows in [100, 4, 1] {
        let mut io = TestIo::new();
        io.input("verdicts", &cut(&table(), rows));
        io.input("prompts", &cut(&prompts, rows));
        io.run(&FilterByPassRate::default(), 0).unwrap();
        assert_eq!(port(&io, "solved"), ["solved", "one"]);
        assert_eq!(port(&io, "partial"), ["partial"]);
        assert_eq!(port(&io, "failed"), ["failed"]);
        assert_eq!(port(&io, "undecided"), ["z", "masked", "unseen"]);
        assert_eq!(io.output("failed").schema(), prompts.schema());
        let rates = io.output("pass_rates");
        assert_eq!(
            text_values(&rates, "prompt_id"),
            ["solved", "partial", "failed", "one"]
        );
        let samples = rates.column_by_name("samples").unwrap();
        assert_eq!(samples.as_primitive::<UInt32Type>().values(), &[2, 2, 2, 1]);
        assert_eq!(
            crate::testing::floats(&rates, "pass_rate"),
            [1.0, 0.5, 0.0, 1.0]
        );
        assert_eq!(
            io.warnings(),
            ["3 prompts have fewer than 1 usable samples and go to `undecided`"]
        );
    }
}

#[test]
fn too_few_samples_are_undecided() {
    let mut io = io(&[(2, 2), (1, 1), (0, 1)], &[]);
    io.run(&config(json!({ "min-samples": 2 })), 0).unwrap();
    assert_eq!(port(&io, "solved"), ["2/2"]);
    assert_eq!(port(&io, "undecided"), ["1/1", "0/1"]);
    assert_eq!(io.output("pass_rates").num_rows(), 3);
    let faults = config(json!({ "min-samples": 0 })).output_types(&PortTypes::new());
    assert_eq!(faults.unwrap_err()[0].path, ["min-samples"]);
}

#[test]
fn counts_near_the_ends_are_not_rounded() {
    let mut io = io(&[(3000, 3001), (1, 3001)], &[]);
    io.run(&FilterByPassRate::default(), 0).unwrap();
    assert_eq!(port(&io, "partial"), ["3000/3001", "1/3001"]);
    assert_eq!(io.output("solved").num_rows(), 0);
}

#[test]
fn empty_inputs_give_empty_ports() {
    let mut io = io(&[], &[]);
    let config = config(json!({
        "bands": { "all": {} },
        "posterior": { "alpha": 1, "beta": 1, "credible": 0.9, "more-if-wider-than": 0.5 },
    }));
    io.run(&config, 0).unwrap();
    for output in config.ports().outputs {
        let rows = io.output(&output.name);
        assert_eq!(rows.num_rows(), 0, "{}", output.name);
    }
    assert_eq!(io.output("pass_rates").num_columns(), 7);
}

#[test]
fn bands_have_ports_and_exact_ends() {
    // A third is no binary fraction, nor is a tenth.
    let config = config(json!({ "bands": {
        "hard": { "above": 0, "to": "1/3" },
        "middle": { "above": "1/3", "below": 0.7 },
        "easy": { "from": 0.7, "below": 1 },
    } }));
    let names: Vec<String> = config
        .ports()
        .outputs
        .into_iter()
        .map(|port| port.name)
        .collect();
    assert_eq!(
        names,
        [
            "easy",
            "hard",
            "middle",
            "others",
            "undecided",
            "pass_rates"
        ]
    );
    assert!(config.output_types(&PortTypes::new()).is_ok());
    let counts = [
        (0, 3),
        (1, 3),
        (2, 6),
        (34, 100),
        (7, 10),
        (699, 1000),
        (21, 30),
        (9, 9),
    ];
    let mut io = io(&counts, &["none"]);
    io.run(&config, 0).unwrap();
    assert_eq!(port(&io, "hard"), ["1/3", "2/6"]);
    assert_eq!(port(&io, "middle"), ["34/100", "699/1000"]);
    assert_eq!(port(&io, "easy"), ["7/10", "21/30"]);
    assert_eq!(port(&io, "others"), ["0/3", "9/9"]);
    assert_eq!(port(&io, "undecided"), ["none"]);
}

#[test]
fn wrong_bands_are_found_at_plan_time() {
    for (bands, expected) in [
        (json!({}), "names no band"),
        (
            json!({ "a": { "to": 0.5 }, "b": { "from": 0.5 } }),
            "`a` and `b` overlap",
        ),
        (
            json!({ "a": {}, "b": { "from": 1 } }),
            "`a` and `b` overlap",
        ),
        (
            json!({ "a": { "from": 0.5, "below": 0.5 } }),
            "no pass rate is in the band `a`",
        ),
        (
            json!({ "a": { "from": 0.5, "to": 0.25 } }),
            "no pass rate is in the band `a`",
        ),
        (json!({ "a": { "to": 1.5 } }), "ends at 3/2"),
        (
            json!({ "a": { "from": 0.1, "above": 0.1 } }),
            "both `from` and `above`",
        ),
        (json!({ "pass_rates": {} }), "another output"),
        (json!({ "Very hard": {} }), "cannot be the name"),
    ] {
        let config = config(json!({ "bands": bands }));
        let faults = config.output_types(&PortTypes::new()).unwrap_err();
        assert_eq!(faults[0].path[0], "bands");
        assert!(
            faults[0].message.contains(expected),
            "{bands}: {}",
            faults[0].message
        );
    }
    let touching =
        json!({ "a": { "below": 0.5 }, "b": { "from": 0.5, "to": 0.5 }, "c": { "above": 0.5 } });
    let config = config(json!({ "bands": touching }));
    assert!(config.output_types(&PortTypes::new()).is_ok());
}

#[test]
fn runs_are_pooled_and_unsure_prompts_asked_for() {
    let posterior = json!({ "alpha": 1, "beta": 1, "credible": 0.95, "more-if-wider-than": 0.45 });
    let config = config(json!({ "posterior": posterior }));
    let mut io = io(&[(2, 4), (10, 20)], &["none"]);
    io.run(&config, 0).unwrap();
    assert_eq!(port(&io, "more"), ["2/4", "none"]);
    assert_eq!(port(&io, "partial"), ["2/4", "10/20"]);

    // A second run with the same sample numbers: samples add up.
    let first = counted_rows(&[(2, 4), (10, 20)]);
    let mut rows: Vec<_> = first
        .iter()
        .map(|row| (row.0.as_str(), row.1, row.2, row.3))
        .collect();
    let second: Vec<_> = (0..28)
        .map(|sample| {
            (
                "2/4",
                sample,
                if sample < 20 { "correct" } else { "wrong" },
                true,
            )
        })
        .collect();
    rows.extend(second.iter().map(|row| (row.0, row.1, row.2, row.3)));
    io.input("verdicts", &[verdicts(&rows[..24]), verdicts(&rows[24..])]);
    io.run(&config, 0).unwrap();
    let rates = io.output("pass_rates");
    // The port has the rows of both runs, one after the other.
    let last = rates.slice(rates.num_rows() - 2, 1);
    assert_eq!(text_values(&last, "prompt_id"), ["2/4"]);
    let number = |column: &str| crate::testing::floats(&last, column)[0];
    assert_eq!(number("pass_rate"), 22.0 / 32.0);
    assert!((number("posterior_mean") - 23.0 / 34.0).abs() < 1e-12);
    let found = (number("posterior_low"), number("posterior_high"));
    // scipy.stats.beta(23, 11).ppf([0.025, 0.975])
    assert!((found.0 - 0.512_889_3).abs() < 1e-6, "{found:?}");
    assert!((found.1 - 0.820_394_87).abs() < 1e-6, "{found:?}");
}

#[test]
fn a_posterior_needs_sensible_numbers() {
    for (key, value) in [
        ("alpha", 0.0),
        ("beta", -1.0),
        ("credible", 1.0),
        ("more-if-wider-than", 0.0),
    ] {
        let mut posterior =
            json!({ "alpha": 1.0, "beta": 1.0, "credible": 0.95, "more-if-wider-than": 0.3 });
        posterior[key] = json!(value);
        let config = config(json!({ "posterior": posterior }));
        let faults = config.output_types(&PortTypes::new()).unwrap_err();
        assert_eq!(faults[0].path, ["posterior", key]);
    }
}

#[test]
fn rows_without_an_id_are_refused() {
    let mut io = io(&[(1, 2)], &[]);
    let mut columns = verdicts(&[("a", 0, "correct", true)]).columns().to_vec();
    columns[0] = Arc::new(LargeStringArray::new_null(1));
    let fields: Vec<Field> = TableName::Verdicts
        .schema()
        .fields()
        .iter()
        .map(|field| field.as_ref().clone().with_nullable(true))
        .collect();
    let nulls = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
    assert_eq!(nulls.column(0).null_count(), 1);
    io.input("verdicts", &[nulls]);
    let error = io.run(&FilterByPassRate::default(), 0).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("`verdicts` has a row whose `prompt_id` is null")
    );
}
