use super::*;
use crate::testing::{TestIo, floats, prompts, rollouts_with_tokens, text_values, verdicts};
use arrow::compute::concat_batches;
use operators_verdict::{Advantage, Facts, Outcome, Verdict};

fn score(json: serde_json::Value) -> Score {
    serde_json::from_value(json).unwrap()
}

/// A batch as so many rows in each part.
fn cut(batch: &RecordBatch, rows: usize) -> Vec<RecordBatch> {
    (0..batch.num_rows())
        .step_by(rows)
        .map(|start| batch.slice(start, rows.min(batch.num_rows() - start)))
        .collect()
}

type Row = (&'static str, u32, &'static str, bool);

const VERDICTS: [Row; 7] = [
    ("b", 0, "wrong", true),
    ("a", 1, "correct", false),
    ("a", 0, "correct", true),
    ("b", 1, "timed-out", true),
    ("b", 2, "unparsed", false),
    ("b", 3, "failed", true),
    ("b", 4, "correct", true),
];

/// The rollouts of [`VERDICTS`], in another order.
fn rollouts() -> RecordBatch {
    rollouts_with_tokens(&[
        ("a", 0, "so it is", &[1, 2, 3, 1, 2, 3], "stop"),
        ("a", 1, "вот so", &[1, 2, 3, 4, 5, 6, 7, 8], "length"),
        ("b", 4, "", &[9], "stop"),
        ("b", 3, "never judged", &[1], "stop"),
        ("b", 2, "no", &[4, 4, 4, 4], "stop"),
        ("b", 1, "nor this", &[1], "stop"),
        ("b", 0, "well", &[5, 6], "stop"),
    ])
}

fn questions() -> RecordBatch {
    prompts(&[
        ("b", Some("22"), None),
        ("c", Some("never asked"), None),
        ("a", Some("1"), Some("easy")),
    ])
}

fn io(rows: usize) -> TestIo {
    let mut io = TestIo::new();
    io.input("verdicts", &cut(&verdicts(&VERDICTS), rows));
    io.input("rollouts", &cut(&rollouts(), rows));
    io.input("prompts", &cut(&questions(), rows));
    io
}

fn all_parts() -> serde_json::Value {
    json!({
        "accuracy": 1.0, "format": 0.5,
        "overlong": {"weight": 0.5, "max-tokens": 6, "cache-tokens": 4},
        "repetition": {"weight": 1.0, "ngram": 2},
        "length": {"weight": 0.1, "shape": "linear", "max-tokens": 8, "exceeded": -3.0,
                   "correct": {"shortest": 1.0, "longest": 0.0}, "wrong": {"shortest": -1.0, "longest": 0.0}},
        "language": {"weight": 0.25, "scripts": ["latin"]},
        "sql": {
            "brief": {"weight": 0.25, "expression": "tokens < 3"},
            "easy": {"weight": -0.5, "expression": "coalesce(category = 'easy', false)"},
            "echo": {"weight": 0.5, "expression": "length(text) + length(answer) + CASE WHEN verdict = 'correct' THEN 10 ELSE 0 END"},
            "early": {"weight": 1.0, "expression": "1.0 / (1 + sample)"},
            "known": {"weight": 2.0, "expression": "extracted is not null"},
            "sum": {"weight": 0.125, "expression": "tokens + length(answer) * 100"}
        }
    })
}

#[test]
fn rewards_are_weighted_sums_and_masked_rollouts_have_none() {
    let plain = score(json!({"accuracy": 1.0, "format": 0.5}));
    for rows in [7, 3, 1] {
        let mut io = TestIo::new();
        io.input("verdicts", &cut(&verdicts(&VERDICTS), rows));
        io.run(&plain, 0).unwrap();
        let out = io.output("scores");
        // In the order of the verdicts.
        assert_eq!(text_values(&out, "prompt_id"), ["b", "a", "a", "b", "b"]);
        assert_eq!(floats(&out, "reward"), [0.5, 1.0, 1.5, 0.0, 1.5]);
        assert_eq!(floats(&out, "reward_accuracy"), [0.0, 1.0, 1.0, 0.0, 1.0]);
        assert_eq!(out.schema(), TableName::Scores.schema());
    }
}

#[test]
fn parts_over_texts_tokens_and_sql_are_the_same_in_any_parts() {
    let config = score(all_parts());
    let types = config.output_types(&connected(&["verdicts", "rollouts", "prompts"]));
    let mut whole = None;
    for rows in [7, 3, 1] {
        let mut io = io(rows);
        io.run(&config, 0).unwrap();
        let out = io.output("scores");
        let expected = PortType::Table {
            table: TableName::Scores,
            schema: out.schema(),
        };
        assert_eq!(types.as_ref().unwrap()["scores"], [expected]);
        assert_eq!(whole.get_or_insert_with(|| out.clone()), &out);
    }
    let out = whole.unwrap();
    let column = |name: &str| floats(&out, &format!("reward_{name}"));
    // Rows: a 0, a 1, b 0, b 2, b 4.
    assert_eq!(column("overlong"), [-1.0, -1.0, 0.0, -0.5, 0.0]);
    // 3 of 5 pairs differ; 1 of 3 pairs differs.
    let (some, most) = (-(1.0 - 3.0 / 5.0), -(1.0 - 1.0 / 3.0));
    assert_eq!(column("repetition"), [some, 0.0, 0.0, most, 0.0]);
    assert_eq!(column("length"), [0.25, -3.0, -0.75, -0.5, 0.875]);
    assert_eq!(column("language"), [1.0, 0.4, 1.0, 1.0, 1.0]);
    assert_eq!(column("brief"), [0.0, 0.0, 1.0, 0.0, 1.0]);
    assert_eq!(column("easy"), [1.0, 1.0, 0.0, 0.0, 0.0]);
    assert_eq!(column("echo"), [19.0, 17.0, 6.0, 4.0, 12.0]);
    assert_eq!(column("early"), [1.0, 0.5, 1.0, 1.0 / 3.0, 0.2]);
    assert_eq!(column("known"), [0.0; 5]);
    assert_eq!(column("sum"), [106.0, 108.0, 202.0, 204.0, 201.0]);
}

#[test]
fn a_stage_gives_what_a_training_step_gives() {
    let config = score(all_parts());
    let mut io = io(7);
    io.run(&config, 0).unwrap();
    let out = io.output("scores");
    let parts = config.parts();
    let rewards = floats(&out, "reward");
    let names = parts.part_names();
    for (row, reward) in rewards.iter().enumerate() {
        let value = |name: &str| floats(&out, &format!("reward_{name}"))[row];
        let sql: Vec<Option<f64>> = parts.sql.keys().map(|name| Some(value(name))).collect();
        let correct = value("accuracy") == 1.0;
        let verdict = Verdict {
            outcome: if correct {
                Outcome::Correct
            } else {
                Outcome::Wrong
            },
            extracted: None,
            format_ok: value("format") == 1.0,
        };
        let (text, tokens): (&str, &[u32]) = [
            ("so it is", &[1, 2, 3, 1, 2, 3][..]),
            ("вот so", &[1, 2, 3, 4, 5, 6, 7, 8]),
            ("well", &[5, 6]),
            ("no", &[4, 4, 4, 4]),
            ("", &[9]),
        ][row];
        let facts = Facts {
            verdict: &verdict,
            measured: parts.measure(text, tokens),
            truncated: row == 1,
            sql: &sql,
        };
        let expected = parts.reward(&facts).unwrap().unwrap();
        assert_eq!(*reward, expected.total);
        let shown: Vec<f64> = names.iter().map(|name| value(name)).collect();
        assert_eq!(shown, expected.parts);
    }
}

#[test]
fn rollouts_in_the_order_of_their_verdicts_are_not_joined_and_give_the_same() {
    let config = score(all_parts());
    let mut joined = io(7);
    joined.run(&config, 0).unwrap();
    let joined = joined.output("scores");
    // As the rollouts come: a 0, a 1, b 4, b 3, b 2, b 1, b 0; the one that failed has no verdict at all.
    let order = [2, 1, 6, 4, 3, 0].map(|place| VERDICTS[place]);
    for rows in [7, 2, 1] {
        let mut io = io(3);
        io.input("verdicts", &cut(&verdicts(&order), rows));
        io.run(&config, 0).unwrap();
        let out = io.output("scores");
        assert_eq!(text_values(&out, "prompt_id"), ["a", "a", "b", "b", "b"]);
        assert_eq!(counts(&out, "sample"), [0, 1, 4, 2, 0]);
        // Where the joined rows have these.
        let places = UInt32Array::from(vec![0, 1, 4, 3, 2]);
        let expected = arrow::compute::take_record_batch(&joined, &places).unwrap();
        assert_eq!(out, expected);
    }
    let mut io = io(7);
    io.input("verdicts", &[verdicts(&order)]);
    let twice = [rollouts(), rollouts().slice(6, 1)];
    io.input("rollouts", &twice);
    let error = io.run(&config, 0).unwrap_err().to_string();
    assert!(
        error.contains("sample 0 of prompt `b` has more than one"),
        "{error}"
    );
}

#[test]
fn an_sql_part_equals_the_query_of_the_same_expression() {
    let expression =
        "CASE WHEN r.finish_reason = 'length' THEN -1 ELSE character_length(r.text) * v.sample END";
    let config = score(json!({
        "sql": {"mine": {"weight": 2.0, "expression": expression.replace("r.", "").replace("v.", "")}}
    }));
    let mut io = io(2);
    io.run(&config, 0).unwrap();
    let ours = io.output("scores");
    let session = QuerySession::new(Order::Repeatable).unwrap();
    for (name, batch) in [("v", verdicts(&VERDICTS)), ("r", rollouts())] {
        let schema = batch.schema();
        session
            .register_batches(name, &schema, vec![batch])
            .unwrap();
    }
    let frame = session.sql(&format!(
        "SELECT CAST(2.0 * ({expression}) AS DOUBLE) AS reward FROM v JOIN r ON v.prompt_id = r.prompt_id AND v.sample = r.sample \
         WHERE v.verdict NOT IN ('timed-out', 'failed') ORDER BY v.prompt_id, v.sample"
    ));
    let theirs = session.collect(frame.unwrap()).unwrap();
    let theirs = concat_batches(&theirs[0].schema(), &theirs).unwrap();
    assert_eq!(floats(&ours, "reward"), floats(&theirs, "reward"));
    assert_eq!(floats(&ours, "reward"), [0.0, -2.0, 0.0, 8.0, 0.0]);
}

#[test]
fn advantages_are_those_of_a_training_step() {
    let config = score(json!({
        "accuracy": 1.0, "format": 0.5,
        "advantages": ["grpo", "dr-grpo", "rloo", "reinforce-plus-plus", "reinforce-plus-plus-baseline", "batch-std", "max-rl"]
    }));
    let groups = vec![vec![1.5, 1.0], vec![0.5, 0.0, 1.5]];
    for rows in [7, 2, 1] {
        let mut io = TestIo::new();
        io.input("verdicts", &cut(&verdicts(&VERDICTS), rows));
        io.run(&config, 0).unwrap();
        let out = io.output("scores");
        for kind in Advantage::ALL {
            let ours = floats(&out, &format!("advantage_{}", kind.column()));
            assert_eq!(ours, kind.of_groups(&groups).concat(), "{kind:?}");
        }
        assert_eq!(floats(&out, "group_mean")[..2], [1.25; 2]);
        assert_eq!(floats(&out, "group_max")[2..], [1.5; 3]);
        assert_eq!(counts(&out, "group_samples"), [2, 2, 3, 3, 3]);
        assert_eq!(counts(&out, "group_rank"), [1, 2, 2, 3, 1]);
        assert_eq!(out.schema(), config.schema());
    }
}

#[test]
fn verdicts_of_no_known_name_get_no_row() {
    let rows: [Row; 4] = [
        ("a", 0, "correct", false),
        ("a", 1, "dubious", true),
        ("a", 2, "timed-out", true),
        ("b", 0, "unparsed", true),
    ];
    let config = score(json!({"accuracy": 1.0, "format": 0.25}));
    for parts in [4, 1] {
        let mut io = TestIo::new();
        io.input("verdicts", &cut(&verdicts(&rows), parts));
        io.run(&config, 0).unwrap();
        let out = io.output("scores");
        assert_eq!(text_values(&out, "prompt_id"), ["a", "b"]);
        assert_eq!(counts(&out, "sample"), [0, 0]);
        assert_eq!(floats(&out, "reward"), [1.0, 0.25]);
    }
}

#[test]
fn groups_that_stand_together_stay_in_their_order() {
    let rows: [Row; 5] = [
        ("b", 2, "correct", false),
        ("b", 0, "wrong", false),
        ("c", 0, "failed", false),
        ("b", 1, "wrong", false),
        ("a", 0, "wrong", true),
    ];
    let config = score(json!({"accuracy": 1.0, "advantages": ["dr-grpo", "batch-std"]}));
    for parts in [5, 2, 1] {
        let mut io = TestIo::new();
        io.input("verdicts", &cut(&verdicts(&rows), parts));
        io.run(&config, 0).unwrap();
        let out = io.output("scores");
        assert_eq!(text_values(&out, "prompt_id"), ["b", "b", "b", "a"]);
        let third = 1.0 / 3.0;
        let expected = [1.0 - third, -third, -third, 0.0];
        assert_eq!(floats(&out, "advantage_dr_grpo"), expected);
        assert_eq!(counts(&out, "group_rank"), [1, 2, 2, 1]);
    }
    let mut io = TestIo::new();
    io.input("verdicts", &[verdicts(&[rows[0], rows[1], rows[0]])]);
    let error = io.run(&config, 0).unwrap_err().to_string();
    assert!(error.contains("sample 2 of prompt `b`"), "{error}");
}

fn counts(batch: &RecordBatch, column: &str) -> Vec<u32> {
    let column = batch.column_by_name(column).unwrap();
    column.as_primitive::<UInt32Type>().values().to_vec()
}

#[test]
fn groups_over_several_batches_are_whole() {
    // More rows than a batch of the query has, in few and in many groups.
    for prompts in [2_usize, 9_000] {
        let ids: Vec<String> = (0..prompts).map(|prompt| format!("p{prompt:05}")).collect();
        let samples = 20_000 / prompts;
        let rows: Vec<(&str, u32, &str, bool)> = (0..samples * prompts)
            .map(|row| {
                let (prompt, sample) = (row % prompts, (row / prompts) as u32);
                let verdict = if (row / 3) % 2 == 0 {
                    "correct"
                } else {
                    "wrong"
                };
                (ids[prompt].as_str(), sample, verdict, row % 5 == 0)
            })
            .collect();
        let mut groups = vec![Vec::new(); prompts];
        for (row, (.., verdict, format)) in rows.iter().enumerate() {
            let reward =
                f64::from(u8::from(*verdict == "correct")) + 0.5 * f64::from(u8::from(*format));
            groups[row % prompts].push(reward);
        }
        let mut io = TestIo::new();
        io.input("verdicts", &cut(&verdicts(&rows), 6_000));
        let config = score(json!({
            "accuracy": 1.0, "format": 0.5, "advantages": ["grpo", "reinforce-plus-plus-baseline"]
        }));
        io.run(&config, 0).unwrap();
        let out = io.output("scores");
        let grpo = Advantage::Grpo.of_groups(&groups).concat();
        assert_eq!(floats(&out, "advantage_grpo"), grpo);
        let baseline = Advantage::ReinforcePlusPlusBaseline
            .of_groups(&groups)
            .concat();
        assert_eq!(
            floats(&out, "advantage_reinforce_plus_plus_baseline"),
            baseline
        );
    }
}

fn connected(ports: &[&str]) -> PortTypes {
    ports
        .iter()
        .map(|port| {
            let table = match *port {
                "verdicts" => TableName::Verdicts,
                "rollouts" => TableName::Rollouts,
                _ => TableName::Prompts,
            };
            ((*port).to_owned(), vec![PortType::table(table)])
        })
        .collect()
}

#[test]
fn mistakes_are_named_at_plan_time_with_the_fix() {
    let sql =
        |expression: &str| json!({"sql": {"mine": {"weight": 1.0, "expression": expression}}});
    let overlong = json!({"overlong": {"weight": 1.0, "max-tokens": 10, "cache-tokens": 5}});
    let all = ["verdicts", "rollouts", "prompts"];
    for (config, ports, path, message, help) in [
        (
            json!({"accuracy": 1.0, "format": 0.5, "advantages": ["grpo", "grpo"]}),
            &all[..],
            "advantages",
            "twice",
            "once",
        ),
        (
            json!({"accuracy": 0.0}),
            &all,
            "",
            "every weight",
            "at least one",
        ),
        (
            overlong,
            &all[..1],
            "overlong",
            "the input `rollouts` is not connected",
            "as `rollouts`",
        ),
        (
            sql("length(text)"),
            &all[..1],
            "sql.mine.expression",
            "uses `text`, a column of rollouts",
            "as `rollouts`",
        ),
        (
            sql("tokens"),
            &all[..1],
            "sql.mine.expression",
            "uses `tokens`",
            "as `rollouts`",
        ),
        (
            sql("length(answer)"),
            &all[..2],
            "sql.mine.expression",
            "uses `answer`, a column of prompts",
            "as `prompts`",
        ),
        (
            sql("lenght"),
            &all,
            "sql.mine.expression",
            "no column `lenght`",
            "finish_reason",
        ),
        (
            sql("text"),
            &all,
            "sql.mine.expression",
            "it gives text",
            "CASE",
        ),
        (
            sql("avg(sample)"),
            &all,
            "sql.mine.expression",
            "several rows",
            "`sql` stage",
        ),
        (
            sql("random()"),
            &all,
            "sql.mine.expression",
            "every run",
            "into the expression",
        ),
        (sql(" "), &all, "sql.mine.expression", "is empty", ""),
    ] {
        let faults = score(config.clone()).output_types(&connected(ports));
        let faults = faults.expect_err(&config.to_string());
        assert_eq!(faults[0].path.join("."), path, "{config}");
        assert!(faults[0].message.contains(message), "{config}: {faults:?}");
        assert!(
            faults[0].help.as_ref().unwrap().contains(help),
            "{config}: {faults:?}"
        );
    }
}

#[test]
fn inputs_are_there_where_a_part_needs_them() {
    let sql =
        |expression: &str| json!({"sql": {"mine": {"weight": 1.0, "expression": expression}}});
    let all = ["verdicts", "rollouts", "prompts"];
    let mut others = connected(&all);
    let rows = PortType::table(TableName::Prompts);
    others.insert("rollouts".to_owned(), vec![rows]);
    let faults = score(sql("tokens")).output_types(&others).unwrap_err();
    assert!(
        faults[0].message.contains("have no such lists"),
        "{faults:?}"
    );
    let fine = [(sql("sample"), &all[..1]), (sql("tokens * 2"), &all[..2])];
    for (config, ports) in fine {
        score(config).output_types(&connected(ports)).unwrap();
    }
    let names = |config: serde_json::Value| -> Vec<String> {
        let ports = score(config).ports();
        ports.inputs.into_iter().map(|port| port.name).collect()
    };
    assert_eq!(names(json!({"accuracy": 1.0})), ["verdicts"]);
    assert_eq!(names(all_parts()), all);
}

#[test]
fn rows_that_do_not_go_together_are_named() {
    let run = |config: serde_json::Value, change: &dyn Fn(&mut TestIo)| {
        let mut io = io(7);
        change(&mut io);
        io.run(&score(config), 0).unwrap_err().to_string()
    };
    let overlong = json!({"overlong": {"weight": 1.0, "max-tokens": 10, "cache-tokens": 5}});
    let nothing = |_: &mut TestIo| {};
    let error = run(overlong.clone(), &|io| {
        io.input("rollouts", &[rollouts().slice(1, 6)]);
    });
    assert!(
        error.contains("sample 0 of prompt `a` has a verdict and no rollout"),
        "{error}"
    );
    let answer = json!({"sql": {"mine": {"weight": 1.0, "expression": "length(answer)"}}});
    let error = run(answer.clone(), &|io| {
        io.input("prompts", &[questions().slice(0, 2)]);
    });
    assert!(
        error.contains("of prompt `a` has a verdict and no prompt"),
        "{error}"
    );
    let twice =
        concat_batches(&rollouts().schema(), &[rollouts(), rollouts().slice(6, 1)]).unwrap();
    let error = run(overlong, &|io| {
        io.input("rollouts", std::slice::from_ref(&twice));
    });
    assert!(
        error.contains("sample 0 of prompt `b` has more than one"),
        "{error}"
    );
    let again = [VERDICTS[0], VERDICTS[0]];
    let error = run(json!({"accuracy": 1.0, "advantages": ["grpo"]}), &|io| {
        io.input("verdicts", &[verdicts(&again)]);
    });
    assert!(
        error.contains("sample 0 of prompt `b` has more than one"),
        "{error}"
    );
    let null = json!({"sql": {"mine": {"weight": 1.0, "expression": "length(category)"}}});
    let error = run(null, &nothing);
    assert!(
        error.contains("of prompt `b`: part `mine` of the reward is null"),
        "{error}"
    );
    assert!(error.contains("coalesce"), "{error}");
    let division =
        json!({"sql": {"mine": {"weight": 1.0, "expression": "1.0 / CAST(sample AS DOUBLE)"}}});
    let error = run(division, &nothing);
    assert!(
        error.contains("part `mine` of the reward is inf"),
        "{error}"
    );
}

#[test]
fn what_is_masked_may_be_anything() {
    // Only the samples without a judgement lack a rollout, and give null.
    let mut io = io(7);
    let judged = concat_batches(
        &rollouts().schema(),
        &[
            rollouts().slice(0, 3),
            rollouts().slice(4, 1),
            rollouts().slice(6, 1),
        ],
    );
    io.input("rollouts", &[judged.unwrap()]);
    let config = score(json!({"sql": {"mine": {"weight": 1.0, "expression": "length(text)"}}}));
    io.run(&config, 0).unwrap();
    assert_eq!(
        floats(&io.output("scores"), "reward"),
        [8.0, 6.0, 4.0, 2.0, 0.0]
    );
}

#[test]
fn nothing_in_gives_nothing_out() {
    for config in [
        json!({"accuracy": 1.0, "advantages": ["reinforce-plus-plus"]}),
        all_parts(),
    ] {
        let config = score(config);
        let mut io = io(7);
        io.input("verdicts", &[verdicts(&[])]);
        io.run(&config, 0).unwrap();
        let out = io.output("scores");
        assert_eq!((out.num_rows(), out.schema()), (0, config.schema()));
    }
}

#[test]
fn the_key_of_old_stages_is_as_it_was() {
    let canonical = engine_core::registry::canonical(&score(json!({"accuracy": 1, "format": 0.5})));
    assert_eq!(canonical, json!({"accuracy": 1.0, "format": 0.5}));
    let plain = score(json!({"accuracy": 1.0}));
    assert_eq!(plain.key_config(&canonical, &PortTypes::new()), canonical);
}
