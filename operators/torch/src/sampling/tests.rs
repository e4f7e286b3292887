use std::path::PathBuf;

use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Golden {
    logits: Vec<f32>,
    prompt: Vec<u32>,
    completion: Vec<u32>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    params: CaseParams,
    logprobs: Vec<Option<f64>>,
    truncated_logprobs: Vec<Option<f64>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CaseParams {
    temperature: Option<f64>,
    top_k: Option<usize>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    repetition_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
    min_new_tokens: Option<usize>,
    stop_token_ids: Option<Vec<u32>>,
    allowed_token_ids: Option<Vec<u32>>,
}

impl CaseParams {
    fn params(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature.unwrap_or(1.0),
            top_k: self.top_k.unwrap_or(0),
            top_p: self.top_p.unwrap_or(1.0),
            min_p: self.min_p.unwrap_or(0.0),
            repetition_penalty: self.repetition_penalty.unwrap_or(1.0),
            presence_penalty: self.presence_penalty.unwrap_or(0.0),
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0),
            max_new_tokens: 100,
            min_new_tokens: self.min_new_tokens.unwrap_or(0),
            stop_token_ids: self.stop_token_ids.clone().unwrap_or_default(),
            allowed_token_ids: self.allowed_token_ids.clone().unwrap_or_default(),
            ..SamplingParams::default()
        }
    }
}

fn choice(params: &SamplingParams, uniform: f64) -> Choice<'_> {
    Choice {
        params,
        counts: None,
        position: 0,
        uniform,
        top: 0,
    }
}

fn rows(row: &[f32], count: usize) -> Tensor {
    Tensor::from_slice(row)
        .view([1, row.len() as i64])
        .repeat([count as i64, 1])
}

fn draw_all(row: &[f32], params: &SamplingParams, uniforms: &[f64]) -> Vec<Draw> {
    let choices: Vec<Choice<'_>> = uniforms.iter().map(|u| choice(params, *u)).collect();
    draw(&rows(row, uniforms.len()), &choices).unwrap()
}

fn tokens(draws: &[Draw]) -> Vec<u32> {
    draws.iter().map(|draw| draw.token).collect()
}

fn at_temperature(temperature: f64) -> SamplingParams {
    SamplingParams {
        temperature,
        ..SamplingParams::default()
    }
}

#[test]
fn distributions_are_those_of_other_peoples_code() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/golden/sampling/distributions.json");
    let golden: Golden = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    for case in &golden.cases {
        let params = case.params.params();
        check(&params, golden.logits.len() as i64).unwrap();
        let mut counts = Counts::new(&params, &golden.prompt);
        for token in &golden.completion {
            if let Some(counts) = &mut counts {
                counts.add(*token);
            }
        }
        let entropy: f64 = -(case.logprobs.iter().flatten())
            .map(|logprob| logprob.exp() * logprob)
            .sum::<f64>();
        // A number in the middle of each token's share of the line: it must give that token.
        let (mut expected, mut choices, mut start) = (Vec::new(), Vec::new(), 0.0);
        for (token, logprob) in case.truncated_logprobs.iter().enumerate() {
            let Some(logprob) = logprob else { continue };
            expected.push((token, *logprob));
            choices.push(Choice {
                counts: counts.as_ref(),
                position: golden.completion.len(),
                ..choice(&params, start + logprob.exp() / 2.0)
            });
            start += logprob.exp();
        }
        let draws = draw(&rows(&golden.logits, choices.len()), &choices).unwrap();
        for ((token, truncated), draw) in expected.into_iter().zip(draws) {
            let close = |found: f32, wanted: f64| (f64::from(found) - wanted).abs() < 2e-5;
            assert_eq!(draw.token as usize, token, "{:?}", case.params);
            assert!(
                close(draw.truncated_logprob, truncated)
                    && close(draw.logprob, case.logprobs[token].unwrap())
                    && close(draw.entropy, entropy),
                "{:?}: {draw:?}, not {truncated} and {entropy}",
                case.params
            );
        }
    }
}

#[test]
fn a_draw_inverts_the_distribution_and_skips_impossible_tokens() {
    let row = [
        f32::NEG_INFINITY,
        0.25_f32.ln(),
        f32::NEG_INFINITY,
        0.75_f32.ln(),
    ];
    let uniforms = [0.0, 0.2499, 0.2501, 0.5, 1.0 - 1e-14];
    let draws = draw_all(&row, &at_temperature(1.0), &uniforms);
    assert_eq!(tokens(&draws), [1, 1, 3, 3, 3]);
    assert!((draws[0].logprob - 0.25_f32.ln()).abs() < 1e-6);
    let greedy = draw_all(&row, &at_temperature(0.0), &[0.0; 5]);
    assert_eq!(tokens(&greedy), [3; 5]);
    assert!((greedy[0].logprob - 0.75_f32.ln()).abs() < 1e-6);
    assert_eq!(greedy[0].truncated_logprob, 0.0);
    // Everything that truncation can keep is the same as nothing that truncates, to the last bit.
    let wide = SamplingParams {
        top_k: 4,
        ..at_temperature(1.0)
    };
    assert_eq!(draw_all(&row, &wide, &uniforms), draws);
}

#[test]
fn draws_of_a_large_vocabulary_are_those_of_one_sum_over_it() {
    let vocab = 5000;
    let mut row = vec![0.0_f32; vocab];
    crate::philox::fill_normal(3, 3.0, &mut row);
    let uniforms: Vec<f64> = (0..97)
        .map(|index| (f64::from(index) + 0.3) / 97.0)
        .collect();
    let logits = rows(&row, uniforms.len());
    let probs = logits.log_softmax(-1, None).to_kind(Kind::Float).exp();
    let cumulative = probs.cumsum(-1, Kind::Double);
    let targets =
        Tensor::from_slice(&uniforms).unsqueeze(1) * cumulative.narrow(1, vocab as i64 - 1, 1);
    let expected = targets.searchsorted(&cumulative, false, true, "right", None::<&Tensor>);
    let expected: Vec<i64> = Vec::try_from(expected.view(-1)).unwrap();
    let drawn = tokens(&draw_all(&row, &at_temperature(1.0), &uniforms));
    let drawn: Vec<i64> = drawn.into_iter().map(i64::from).collect();
    assert_eq!(drawn, expected);

    // More tokens than are put in order at first.
    let mut ranked: Vec<usize> = (0..vocab).collect();
    ranked.sort_by(|left, right| row[*right].total_cmp(&row[*left]));
    let probs: Vec<f32> = Vec::try_from(probs.get(0)).unwrap();
    let mass: Vec<f64> = ranked
        .iter()
        .scan(0.0, |sum, token| {
            *sum += f64::from(probs[*token]);
            Some(*sum)
        })
        .collect();
    let kept = mass.iter().position(|sum| *sum >= 0.99).unwrap() + 1;
    assert!(kept > 300, "{kept}");
    let nucleus = SamplingParams {
        top_p: 0.99,
        ..at_temperature(1.0)
    };
    let many: Vec<f64> = (0..20_000)
        .map(|index| f64::from(index) / 20_000.0)
        .collect();
    let draws = draw_all(&row, &nucleus, &many);
    for draw in &draws {
        assert!(ranked[..kept].contains(&(draw.token as usize)));
        let gain = f64::from(draw.truncated_logprob - draw.logprob);
        assert!((gain + mass[kept - 1].ln()).abs() < 1e-5, "{gain}");
    }
    let least_likely = ranked[kept - 1];
    assert!(
        draws.iter().any(|draw| draw.token as usize == least_likely) || probs[least_likely] < 1e-4
    );
}

#[test]
fn equally_likely_tokens_go_to_the_lower_one() {
    let row = [1.0_f32, 3.0, 3.0, 3.0, 0.0];
    assert_eq!(tokens(&draw_all(&row, &at_temperature(0.0), &[0.5])), [1]);
    let two = SamplingParams {
        top_k: 2,
        ..at_temperature(1.0)
    };
    assert_eq!(
        tokens(&draw_all(&row, &two, &[0.0, 0.49, 0.51, 0.99])),
        [1, 1, 2, 2]
    );
    let first = SamplingParams {
        top_p: 0.0,
        ..at_temperature(1.0)
    };
    assert_eq!(tokens(&draw_all(&row, &first, &[0.99])), [1]);
}

#[test]
fn rows_of_a_batch_have_parameters_of_their_own() {
    let row = [0.5_f32, 2.0, 1.0, -1.0];
    let greedy = at_temperature(0.0);
    let cold = at_temperature(0.5);
    let cut = SamplingParams {
        top_k: 1,
        allowed_token_ids: vec![0, 3],
        ..at_temperature(1.0)
    };
    let all = [&greedy, &cold, &cut];
    let alone: Vec<Draw> = all
        .iter()
        .flat_map(|params| draw_all(&row, params, &[0.97]))
        .collect();
    let choices: Vec<Choice<'_>> = all.iter().map(|params| choice(params, 0.97)).collect();
    let together = draw(&rows(&row, 3), &choices).unwrap();
    assert_eq!(together, alone);
    assert_eq!(tokens(&together), [1, 2, 0]);
    let plans: Vec<Plan> = choices[..2].iter().map(Plan::new).collect();
    assert_eq!(draw_plain(&rows(&row, 2), &plans), alone[..2]);
}

#[test]
fn the_most_likely_tokens_are_reported_before_truncation() {
    let row = [0.0_f32, 3.0, 1.0, 2.0];
    let params = SamplingParams {
        top_k: 1,
        ..at_temperature(1.0)
    };
    let choices = [Choice {
        top: 3,
        ..choice(&params, 0.9)
    }];
    let draws = draw(&rows(&row, 1), &choices).unwrap();
    let top: Vec<u32> = draws[0].top.iter().map(|(token, _)| *token).collect();
    assert_eq!(top, [1, 3, 2]);
    assert_eq!(draws[0].top[0], (1, draws[0].logprob));
    assert_eq!(draws[0].truncated_logprob, 0.0);
}

#[test]
fn what_cannot_be_used_is_named() {
    let refused = |change: fn(&mut SamplingParams)| {
        let mut params = SamplingParams {
            max_new_tokens: 4,
            stop_token_ids: vec![1],
            ..SamplingParams::default()
        };
        change(&mut params);
        check(&params, 10).unwrap_err().to_string()
    };
    assert!(refused(|params| params.top_p = 1.5).contains("top_p is 1.5"));
    assert!(refused(|params| params.min_p = f64::NAN).contains("min_p is NaN"));
    assert!(refused(|params| params.temperature = -1.0).contains("temperature is -1"));
    assert!(refused(|params| params.repetition_penalty = 0.0).contains("repetition_penalty"));
    assert!(refused(|params| params.min_new_tokens = 5).contains("above max_new_tokens 4"));
    assert!(refused(|params| params.allowed_token_ids = vec![3, 10]).contains("token 10"));
    let nothing = |params: &mut SamplingParams| {
        params.allowed_token_ids = vec![1];
        params.min_new_tokens = 1;
    };
    assert!(refused(nothing).contains("end the completion"));
    let not_numbers = draw(
        &rows(&[f32::NAN, 0.0], 1),
        &[choice(&at_temperature(1.0), 0.5)],
    );
    assert!(matches!(not_numbers, Err(ModelError::NonFinite(_))));
}
