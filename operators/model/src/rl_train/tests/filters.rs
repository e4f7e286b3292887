//! Which groups are learnt from, and when.

use engine_core::StageEvent;
use serde_json::{Value, json};

use super::*;
use crate::test_support::{Call, FakeBackend, run};

/// Step, prompt, step of sampling, policy version and fate of each group with a row.
fn groups(io: &MemoryIo) -> Vec<(i64, String, i64, i64, String)> {
    let rollouts = io.output("rollouts");
    let (steps, sampled) = (
        count_column(&rollouts, "step"),
        count_column(&rollouts, "sampled_step"),
    );
    let versions = count_column(&rollouts, "policy_version");
    let (ids, fates) = (
        text_column(&rollouts, "prompt_id"),
        text_column(&rollouts, "fate"),
    );
    let mut groups: Vec<_> = (0..rollouts.num_rows())
        .map(|row| {
            let (id, fate) = (ids[row].to_owned(), fates[row].to_owned());
            (steps[row], id, sampled[row], versions[row], fate)
        })
        .collect();
    groups.dedup();
    groups
}

fn of(groups: &[(i64, String, i64, i64, String)], step: i64, fate: &str) -> usize {
    let found = groups
        .iter()
        .filter(|group| group.0 == step && group.4 == fate);
    found.count()
}

fn run_filtered(golds: &[&str], changes: &Value) -> (MemoryIo, FakeBackend) {
    let backend = FakeBackend::in_turn(tokens(&[RIGHT, WRONG]));
    let mut io = prompts(golds);
    run(&rl_train(changes), &backend, &mut io).unwrap();
    (io, backend)
}

#[test]
fn bounds_drop_easy_and_hard_groups() {
    // Gold 7: a quarter right; gold 8: three quarters; gold 9: none.
    let backend = FakeBackend::in_turn(tokens(&[RIGHT, WRONG, WRONG, WRONG]));
    let mut io = prompts(&["7", "8", "9"]);
    let settings = json!({"prompts-per-step": 3, "filter": {"drop": {"min-accuracy": 0.1, "max-accuracy": 0.7}}});
    run(&rl_train(&settings), &backend, &mut io).unwrap();
    let mut fates: Vec<(String, String)> = groups(&io)
        .into_iter()
        .map(|group| (group.1, group.4))
        .collect();
    fates.sort();
    let expected = [("p0", "trained"), ("p1", "easy"), ("p2", "hard")];
    assert_eq!(
        fates,
        expected.map(|(id, fate)| (id.to_owned(), fate.to_owned()))
    );
    let metrics = io.output("metrics");
    for (name, value) in [
        ("prompts", 3.0),
        ("groups_kept", 1.0),
        ("groups_easy", 1.0),
        ("groups_hard", 1.0),
        ("groups_all_wrong", 1.0),
        ("groups_all_right", 0.0),
        ("pass_rate_0", 1.0),
        ("pass_rate_below_50", 1.0),
        ("pass_rate_below_100", 1.0),
        ("pass_rate_100", 0.0),
    ] {
        assert_eq!(metric(&metrics, 1, name), Some(value), "{name}");
    }
    assert_eq!(metric(&metrics, 1, "share_all_wrong"), Some(1.0 / 3.0));
}

#[test]
fn leftovers_wait_in_the_buffer_with_the_policy_that_sampled_them() {
    let settings = json!({
        "steps": 3, "prompts-per-step": 3, "learning-rate": 0.5,
        "filter": {"buffer": {"train-groups": 2, "max-staleness": 5, "stale": "drop"}},
    });
    let (io, backend) = run_filtered(&["7"; 9], &settings);
    let groups = groups(&io);
    // Step 1 keeps 3 and uses 2; step 2 has 4 and uses 2, the oldest first; step 3 has 5 and uses 2.
    for step in 1..=3 {
        assert_eq!(of(&groups, step, "trained"), 2, "{groups:?}");
    }
    let trained: Vec<(i64, i64)> = groups
        .iter()
        .filter(|group| group.4 == "trained")
        .map(|group| (group.2, group.3))
        .collect();
    assert_eq!(trained, [(1, 0), (1, 0), (1, 0), (2, 1), (2, 1), (2, 1)]);
    let waiting: Vec<usize> = (1..=3).map(|step| of(&groups, step, "buffered")).collect();
    assert_eq!(waiting, [1, 2, 3]);
    let metrics = io.output("metrics");
    assert_eq!(metric(&metrics, 2, "groups_buffered"), Some(2.0));
    assert_eq!(metric(&metrics, 2, "staleness_mean"), Some(0.5));
    assert_eq!(metric(&metrics, 3, "staleness_max"), Some(1.0));
    // Ratios of what waited are taken to the probabilities it was sampled with.
    let learnt = backend.learnt();
    assert_eq!(learnt[1][0].sampler_logprobs, learnt[0][0].sampler_logprobs);
    assert_ne!(learnt[1][4].sampler_logprobs, learnt[0][0].sampler_logprobs);
}

#[test]
fn a_buffer_that_is_not_full_makes_no_update() {
    let settings = json!({
        "steps": 4, "prompts-per-step": 1,
        "filter": {"buffer": {"train-groups": 2, "max-staleness": 0, "stale": "drop"}},
    });
    let (io, backend) = run_filtered(&["7", "7", "9", "7"], &settings);
    let updates: Vec<f64> = (1..=4)
        .map(|step| metric(&io.output("metrics"), step, "updates").unwrap())
        .collect();
    // Three of the four groups teach, so there is one full set; what waited without an update in between is not stale.
    assert_eq!(updates.iter().sum::<f64>(), 1.0);
    assert_eq!(backend.learnt().concat().len(), 8);
    assert!(groups(&io).iter().all(|group| group.4 != "stale"));
}

#[test]
fn stale_groups_are_dropped_or_get_probabilities_of_the_policy_as_it_is() {
    let settings = |stale: &str| {
        json!({
            "steps": 2, "prompts-per-step": 3, "learning-rate": 0.5,
            "filter": {"buffer": {"train-groups": 2, "max-staleness": 0, "stale": stale}},
        })
    };
    let (io, backend) = run_filtered(&["7"; 9], &settings("drop"));
    let dropped = groups(&io);
    assert_eq!(of(&dropped, 2, "stale"), 1);
    assert_eq!(metric(&io.output("metrics"), 2, "groups_stale"), Some(1.0));
    assert!(
        !backend
            .calls()
            .iter()
            .any(|call| matches!(call, Call::Logprobs(_)))
    );
    let fresh = backend.learnt()[1][0].sampler_logprobs.clone();

    let (io, backend) = run_filtered(&["7"; 9], &settings("recompute"));
    assert_eq!(of(&groups(&io), 2, "stale"), 0);
    assert!(
        backend
            .calls()
            .iter()
            .any(|call| matches!(call, Call::Logprobs(4)))
    );
    let second = &backend.learnt()[1];
    // The first group was sampled in step 1, and has the probabilities of step 2 as the fresh ones do.
    assert_eq!(second[0].sampler_logprobs, fresh);
    assert_eq!(second[4].sampler_logprobs, fresh);
    let trained: Vec<i64> = groups(&io)
        .iter()
        .filter(|group| group.0 == 2 && group.4 == "trained")
        .map(|group| group.2)
        .collect();
    assert_eq!(trained, [1, 2]);
}

#[test]
fn at_another_temperature_what_waits_keeps_the_probabilities_of_its_own_policy() {
    let settings = json!({
        "steps": 2, "prompts-per-step": 3, "learning-rate": 0.5, "temperature": 0.7,
        "filter": {"buffer": {"train-groups": 2, "max-staleness": 5, "stale": "drop"}},
    });
    let (_, backend) = run_filtered(&["7"; 9], &settings);
    let learnt = backend.learnt();
    assert_eq!(learnt[1][0].sampler_logprobs, learnt[0][0].sampler_logprobs);
    assert_ne!(learnt[1][4].sampler_logprobs, learnt[0][0].sampler_logprobs);
    // Each group is recomputed once, in the step that sampled it.
    let recomputed: Vec<usize> = backend
        .calls()
        .iter()
        .filter_map(|call| match call {
            Call::Logprobs(sequences) => Some(*sequences),
            _ => None,
        })
        .collect();
    assert_eq!(recomputed, [12, 12]);
}

#[test]
fn sampling_goes_on_until_the_set_is_full() {
    // One prompt in three teaches.
    let settings = json!({
        "prompts-per-step": 2, "filter": {"resample": {"rounds": 10, "prompts-per-round": 3, "fallback": "fail"}},
    });
    let (io, backend) = run_filtered(&["7", "9", "9", "7", "9", "9"], &settings);
    assert_eq!(backend.learnt().concat().len(), 8);
    let metrics = io.output("metrics");
    let rounds = metric(&metrics, 1, "rounds").unwrap();
    assert!((1.0..=2.0).contains(&rounds), "{rounds}");
    assert_eq!(metric(&metrics, 1, "prompts"), Some(3.0 * rounds));
    assert_eq!(metric(&metrics, 1, "groups_missing"), Some(0.0));
    let rollouts = io.output("rollouts");
    assert_eq!(rollouts.num_rows() as f64, 12.0 * rounds);
    assert_eq!(
        *count_column(&rollouts, "round").last().unwrap() as f64,
        rounds
    );
    // Every round has a random stream of its own.
    let seeds: Vec<u64> = backend
        .calls()
        .iter()
        .filter_map(|call| match call {
            Call::Generate { seed, .. } => Some(*seed),
            _ => None,
        })
        .collect();
    assert_eq!(seeds[0], engine_core::seed::derive(17, "step 1"));
    assert!(seeds.windows(2).all(|pair| pair[0] != pair[1]));
}

#[test]
fn surplus_groups_are_left_out_or_learnt_from() {
    let settings = |surplus: &str| {
        json!({
            "prompts-per-step": 2,
            "filter": {"resample": {"rounds": 2, "prompts-per-round": 5, "fallback": "fail", "surplus": surplus}},
        })
    };
    let (io, backend) = run_filtered(&["7"; 5], &settings("drop"));
    assert_eq!(backend.learnt().concat().len(), 8);
    assert_eq!(of(&groups(&io), 1, "surplus"), 3);
    assert_eq!(
        metric(&io.output("metrics"), 1, "groups_surplus"),
        Some(3.0)
    );
    let (io, backend) = run_filtered(&["7"; 5], &settings("train"));
    assert_eq!(backend.learnt().concat().len(), 20);
    assert_eq!(of(&groups(&io), 1, "trained"), 5);
}

#[test]
fn too_few_groups_are_learnt_from_with_a_warning_or_end_the_stage_with_all_that_was_recorded() {
    let settings = |fallback: &str| {
        json!({
            "steps": 2, "prompts-per-step": 2, "filter": {"resample": {"rounds": 1, "fallback": fallback}},
        })
    };
    // Two steps in an epoch: one of them has a prompt that teaches nothing.
    let golds = ["7", "7", "7", "9"];
    let (io, backend) = run_filtered(&golds, &settings("train"));
    assert_eq!(backend.learnt().concat().len(), 12);
    assert_eq!(io.warnings().len(), 1);
    let warning = &io.warnings()[0];
    assert!(
        warning.contains("1 of 2 groups") && warning.contains("1 rounds of 2"),
        "{warning}"
    );

    let backend = FakeBackend::in_turn(tokens(&[RIGHT, WRONG]));
    let mut io = prompts(&golds);
    let error = run(&rl_train(&settings("fail")), &backend, &mut io)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("1 of 2 groups") && error.contains("fallback: train"),
        "{error}"
    );
    let failed_at = if error.contains("step 1") { 1 } else { 2 };
    let saved: Vec<u64> = io.checkpoints.iter().map(|saved| saved.step).collect();
    assert_eq!(saved, (1..failed_at).collect::<Vec<u64>>());
    // With another fallback it goes on from there, and gives what a whole run gives.
    let mut second = prompts(&golds);
    second.checkpoints = io.checkpoints;
    run(&rl_train(&settings("train")), &backend, &mut second).unwrap();
    let (whole, _) = run_filtered(&golds, &settings("train"));
    assert_eq!(outcome(&second).1, outcome(&whole).1);
}

#[test]
fn every_step_tells_its_numbers_times_and_memory_and_only_the_same_ones_are_in_the_table() {
    let (io, _) = run_filtered(&["7"; 4], &json!({"steps": 2, "prompts-per-step": 2}));
    let events = io.events.lock().unwrap();
    let told: Vec<(u64, Vec<String>)> = events
        .iter()
        .filter_map(|event| match event {
            StageEvent::Metrics { step, values } => {
                Some((*step, values.iter().map(|(name, _)| name.clone()).collect()))
            }
            _ => None,
        })
        .collect();
    assert_eq!(
        told.iter().map(|(step, _)| *step).collect::<Vec<_>>(),
        [1, 2]
    );
    for name in [
        "reward",
        "entropy",
        "time/generate_s",
        "time/update_s",
        "memory_peak_gib",
    ] {
        assert!(told[0].1.iter().any(|told| told == name), "{name}");
    }
    let metrics = io.output("metrics");
    let names = text_column(&metrics, "name");
    assert!(
        names
            .iter()
            .all(|name| !name.starts_with("time/") && !name.contains("memory"))
    );
    let known = crate::rl_train::figures::names(&["accuracy".to_owned(), "format".to_owned()]);
    assert!(
        names
            .iter()
            .all(|name| known.iter().any(|known| known == name))
    );
    let notes: Vec<&String> = events
        .iter()
        .filter_map(|event| match event {
            StageEvent::Note(text) => Some(text),
            _ => None,
        })
        .collect();
    assert!(notes[0].starts_with("memory: "), "{notes:?}");
}

#[test]
fn parts_of_the_reward_have_columns_and_metrics_of_their_own() {
    let settings = json!({
        "score": {"accuracy": 1.0, "sql": {"short": {"weight": 0.25, "expression": "tokens < 5 AND answer = '7'"}}},
    });
    let backend = FakeBackend::in_turn(tokens(&[RIGHT, PLAIN]));
    let mut io = one_prompt();
    run(&rl_train(&settings), &backend, &mut io).unwrap();
    let rollouts = io.output("rollouts");
    let part = number_column(&rollouts, "reward_short");
    assert_eq!(part, [Some(0.0), Some(1.0), Some(0.0), Some(1.0)]);
    let reward = number_column(&rollouts, "reward");
    assert_eq!(reward, [Some(1.0), Some(0.25), Some(1.0), Some(0.25)]);
    assert_eq!(metric(&io.output("metrics"), 1, "reward_short"), Some(0.5));
    let names = crate::rl_train::figures::names(&rl_train(&settings).score.part_names());
    assert!(names.contains(&"reward_short".to_owned()));
}
