//! Rewards of several parts, from a file to the table, as a user runs them.

use serde_json::{Value, json};

use crate::support::{Place, Project};
use crate::tables::{table, texts, write};

on_every_store!(
    parts_over_texts_tokens_and_sql_add_up,
    a_part_without_its_input_is_the_users_fault,
);

/// Two answers to each prompt, made by a query in place of a model: a right one, and a wrong one that repeats itself, is too
/// long and in another script.
const PIPELINE: &str = r"
version: 1
name: score
seed: 3
stages:
  prompts: { source: { path: data.parquet, columns: { id: id, category: kind } } }
  answers:
    inputs: { prompts: prompts }
    sql:
      query: >
        select prompt_id, arrow_cast(n, 'UInt32') as sample,
               arrow_cast(case when n = 0 then make_array(1, 2, 3) else make_array(7, 7, 7, 7, 7, 7, 7, 7) end, 'LargeList(UInt32)') as token_ids,
               concat(case when n = 0 then 'so' else 'так' end, ' <answer>', case when n = 0 then answer else '0' end, '</answer>') as text,
               case when n = 0 then 'stop' else 'length' end as finish_reason
        from prompts cross join (values (0), (1)) as numbers(n) order by prompt_id, n
  verdicts: { inputs: { rollouts: answers, prompts: prompts }, verify: { math: {} } }
  scores:
    inputs: { verdicts: verdicts, rollouts: answers, prompts: prompts }
    score:
      accuracy: 1.0
      overlong: { weight: 0.5, max-tokens: 10, cache-tokens: 4 }
      repetition: { weight: 0.25, ngram: 2 }
      language: { weight: 0.125, scripts: [latin] }
      sql:
        brief-sum: { weight: 1.0, expression: 'tokens < 5 and category = ''sum''' }
      advantages: [grpo, rloo]
";

fn project(place: Place) -> Project {
    let project = Project::at(place);
    let data = table(vec![
        ("id", texts(["a", "b"])),
        ("problem", texts(["1 + 1?", "Read 7."])),
        ("answer", texts(["2", "7"])),
        ("kind", texts(["sum", "read"])),
    ]);
    write(&project.path("data.parquet"), &data);
    project
}

fn sql(project: &Project, query: &str) -> Value {
    project.call(&["sql", query, "--json"]).expect(0).json()
}

fn parts_over_texts_tokens_and_sql_add_up(place: Place) {
    let project = project(place);
    project.write("score.yaml", &PIPELINE.replace("brief-sum", "brief_sum"));
    project.call(&["run", "score.yaml"]).expect(0);
    let rows = sql(
        &project,
        "select prompt_id, sample, reward, reward_accuracy, reward_overlong, round(reward_repetition * 7) as repeated, reward_language, \
                reward_brief_sum, group_mean, group_rank, advantage_rloo \
         from scores order by prompt_id, sample",
    );
    // The wrong answers: 8 tokens of 6 that are free and 4 over which punishment grows, 6 of 7 pairs repeated, no letter
    // of the expected script.
    let wrong = 0.5 * -0.5 + 0.25 * -(6.0 / 7.0);
    for (place, right) in [2.125, 1.125].into_iter().enumerate() {
        let (good, bad) = (&rows[2 * place], &rows[2 * place + 1]);
        assert_eq!(good["reward"], json!(right));
        assert!(
            (bad["reward"].as_f64().unwrap() - wrong).abs() < 1e-12,
            "{bad}"
        );
        assert_eq!(good["reward_brief_sum"], json!(right - 1.125));
        assert_eq!(
            (&good["repeated"], &bad["repeated"]),
            (&json!(0.0), &json!(-6.0))
        );
        assert_eq!(
            (&good["reward_language"], &bad["reward_language"]),
            (&json!(1.0), &json!(0.0))
        );
        assert_eq!(
            (&good["group_rank"], &bad["group_rank"]),
            (&json!(1), &json!(2))
        );
        // Of two answers, each is compared with the other.
        assert!(
            (good["advantage_rloo"].as_f64().unwrap() - (right - wrong)).abs() < 1e-12,
            "{good}"
        );
    }
    let again = project.call(&["run", "score.yaml"]).expect(0);
    assert!(again.stderr.contains("cached"), "{}", again.stderr);
}

fn a_part_without_its_input_is_the_users_fault(place: Place) {
    let project = project(place);
    let broken = PIPELINE.replace(
        ", rollouts: answers, prompts: prompts }\n    score",
        " }\n    score",
    );
    project.write("score.yaml", &broken);
    let said = project.call(&["plan", "score.yaml"]).expect(2).stderr;
    for expected in [
        "part `overlong`",
        "`brief-sum`",
        "`category`",
        "`prompts`",
        "`rollouts`",
    ] {
        assert!(said.contains(expected), "{expected}\n{said}");
    }
}
