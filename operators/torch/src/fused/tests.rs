//! Each kernel against the same by plain operations in 64 bits, from the same 16-bit inputs. They need a GPU.

use std::f64::consts::TAU;

use tch::{Device, Kind, Tensor};

use super::{Fused, HeadScales, Places, Sizes};
use crate::device::DeviceChoice;
use crate::distribution::Distribution;
use crate::model::flash;
use crate::model::norm::{self, Norm};

const EPS: f64 = 1e-6;
/// Half the distance of two 16-bit numbers, and some for sums of what was rounded.
const TOLERANCE: f64 = 0.004;

/// Sizes of published models, and small odd ones.
const MODELS: [[i64; 6]; 3] = [
    [2048, 11008, 16, 2, 128, 151_936],
    [576, 1536, 9, 3, 64, 49_152],
    [1024, 3072, 16, 8, 128, 1000],
];

fn kernels() -> Vec<Fused> {
    let Device::Cuda(device) = DeviceChoice::Cuda(0).resolve().unwrap() else {
        unreachable!("a GPU was asked for")
    };
    MODELS
        .map(
            |[hidden, intermediate, heads, key_heads, head_dim, vocab]| {
                Fused::compile(Sizes {
                    hidden,
                    intermediate,
                    heads,
                    key_heads,
                    head_dim,
                    vocab,
                    device,
                })
                .unwrap()
            },
        )
        .into()
}

/// Normal numbers with 16 bits on the GPU, and the same in 64 bits on the CPU.
fn normal(stream: u64, size: &[i64]) -> (Tensor, Tensor) {
    let count = usize::try_from(size.iter().product::<i64>()).unwrap();
    let mut values = vec![0.0_f32; count];
    crate::philox::fill_normal(stream, 1.0, &mut values);
    let narrow = Tensor::from_slice(&values)
        .view(size)
        .to_kind(Kind::BFloat16);
    (
        narrow.to_device(Device::Cuda(0)),
        narrow.to_kind(Kind::Double),
    )
}

fn assert_near(found: &Tensor, exact: &Tensor, what: &str) {
    let found = found.to_device(Device::Cpu).to_kind(Kind::Double);
    assert_eq!(found.size(), exact.size(), "{what}");
    let length = |x: &Tensor| x.norm().double_value(&[]);
    let error = length(&(found - exact)) / length(exact);
    assert!(error < TOLERANCE, "{what}: {error}");
}

#[test]
#[ignore = "needs a GPU"]
fn gradients_of_norms() {
    for fused in kernels() {
        let width = fused.sizes.hidden;
        let size = [1500, width];
        let (x, exact_x) = normal(1, &size);
        let (scale, exact_scale) = normal(2, &[width]);
        let (flow, exact_flow) = normal(3, &size);
        let (residual, exact_residual) = normal(4, &size);
        for with in [true, false] {
            let (residual, exact_residual) =
                (with.then_some(&residual), with.then_some(&exact_residual));
            let (d_x, d_scale) = fused
                .norm_backward(&x, (&scale, EPS), &flow, residual)
                .unwrap();
            let (exact_d_x, exact_d_scale) = Norm::again(&exact_x, &exact_scale, EPS, None)
                .backward(&exact_flow, exact_residual)
                .unwrap();
            assert_near(&d_x, &exact_d_x, "input of a norm");
            assert_near(&d_scale, &exact_d_scale, "scale of a norm");
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn the_gated_unit() {
    for fused in kernels() {
        let inner = fused.sizes.intermediate;
        let (gate_up, exact) = normal(1, &[700, 2 * inner]);
        let (flow, exact_flow) = normal(2, &[700, inner]);
        let leaf = exact.set_requires_grad(true);
        let parts = leaf.chunk(2, 1);
        let out = parts[0].silu() * &parts[1];
        let value = (&out * exact_flow).sum(None::<Kind>);
        let exact_flow = Tensor::run_backward(&[value], &[&leaf], false, false).remove(0);
        assert_near(&fused.gated(&gate_up).unwrap(), &out.detach(), "gated unit");
        fused.gated_backward(&gate_up, &flow).unwrap();
        assert_near(&flow, &out.detach(), "gated unit, again");
        assert_near(&gate_up, &exact_flow, "gradient of a gated unit");
    }
}

/// Norms and rotation by plain operations with a graph: queries and keys of `[t, h + 2 k, d]`.
fn turned(qkv: &Tensor, turned: i64, scales: Option<&Tensor>, angles: &Tensor) -> Tensor {
    let heads = qkv.size()[1];
    let mut qk = qkv.narrow(1, 0, turned);
    if let Some(scales) = scales {
        qk = norm::forward(&qk, scales, EPS);
    }
    let (halves, angles) = (qk.chunk(2, -1), angles.unsqueeze(1));
    let (cos, sin) = (angles.cos(), angles.sin());
    let qk = Tensor::cat(
        &[
            &halves[0] * &cos - &halves[1] * &sin,
            &halves[1] * &cos + &halves[0] * &sin,
        ],
        -1,
    );
    Tensor::cat(&[qk, qkv.narrow(1, turned, heads - turned)], 1)
}

#[test]
#[ignore = "needs a GPU"]
fn rotation_with_and_without_norms() {
    for fused in kernels() {
        let Sizes {
            heads,
            key_heads,
            head_dim,
            ..
        } = fused.sizes;
        let size = [900, heads + 2 * key_heads, head_dim];
        let [(query, exact_query), (key, exact_key)] = [3, 4].map(|seed| normal(seed, &[head_dim]));
        let (_, angles) = normal(5, &[900, head_dim / 2]);
        let angles = (angles * TAU).to_kind(Kind::Float).to_kind(Kind::Double);
        let table = Tensor::stack(&[angles.cos(), angles.sin()], -1)
            .to_kind(Kind::Float)
            .to_device(Device::Cuda(0));
        // Ten rows of padding after each hundred; then three copies of the first hundred, and a further one of some of these.
        let padding = |row: i64| (row % 110 < 100).then_some(row / 110 * 100 + row % 110);
        let padded: Vec<Option<i64>> = (0..990).map(padding).collect();
        let mut copied = padded.clone();
        for last in [110, 110, 37] {
            copied.extend_from_slice(&padded[..last]);
        }
        for (with, standing) in [
            (true, None),
            (false, None),
            (true, Some(&padded)),
            (false, Some(&padded)),
            (true, Some(&copied)),
            (false, Some(&copied)),
        ] {
            let places = standing.map(|standing| Places::new(standing, 900, Device::Cuda(0)));
            let on_cpu = standing.map(|standing| Places::new(standing, 900, Device::Cpu));
            let (qkv, exact) = normal(1, &size);
            let scales: Option<HeadScales<'_>> = with.then_some([&query, &key]);
            let exact_scales = Tensor::cat(
                &[
                    exact_query.expand([heads, head_dim], false),
                    exact_key.expand([key_heads, head_dim], false),
                ],
                0,
            )
            .set_requires_grad(true);
            let leaf = exact.set_requires_grad(true);
            let (all, scale) = (heads + key_heads, with.then_some(&exact_scales));
            let out = turned(&leaf, all, scale, &angles);
            let mut inputs = vec![&leaf];
            inputs.extend(scale);
            let rows = on_cpu
                .as_ref()
                .map_or(out.shallow_clone(), |places| places.spread(&out));
            // A gradient for each row; of queries in the first alone.
            let (flow, exact_flow) = normal(2, &rows.size());
            let [flow, exact_flow] =
                [(flow, &places), (exact_flow, &on_cpu)].map(|(flow, places)| {
                    let Some(places) = places else { return flow };
                    let queries = flow.narrow(1, 0, heads);
                    let rest = flow.narrow(1, heads, 2 * key_heads);
                    Tensor::cat(&[places.placed(&places.lifted(&queries)), rest], 1)
                });
            let value = (&rows * &exact_flow).sum(None::<Kind>);
            let exact_gradients = Tensor::run_backward(&[value], &inputs, false, false);
            let (attended, raw) = fused
                .turn(&qkv, scales, EPS, &table, places.as_ref())
                .unwrap();
            assert_near(&attended, &rows.detach(), "rotation");
            let parts = flow.split_with_sizes([heads, key_heads, key_heads], 1);
            let [queries, keys, values] = [0, 1, 2].map(|part: usize| parts[part].contiguous());
            let (back, sums) = fused
                .turn_back(
                    &[queries, keys, values],
                    raw.as_ref().zip(scales),
                    EPS,
                    &table,
                    places.as_ref(),
                )
                .unwrap();
            assert_near(&back, &exact_gradients[0], "rotation back");
            if let Some(sums) = sums {
                let of = |start, length| {
                    let rows = exact_gradients[1].narrow(0, start, length);
                    rows.sum_dim_intlist(0, false, None::<Kind>)
                };
                let exact = Tensor::stack(&[of(0, heads), of(heads, key_heads)], 0);
                assert_near(&sums, &exact, "scales of heads");
            }
        }
    }
}

#[test]
#[ignore = "needs a GPU"]
fn tokens_among_rows_of_the_attention() {
    for fused in kernels() {
        let Sizes {
            heads, head_dim, ..
        } = fused.sizes;
        // Two rows of tokens 0 to 36, padding after each row.
        let standing: Vec<Option<i64>> = (0..200)
            .map(|row| (row % 2 == 0).then_some(row / 2 % 63))
            .collect();
        let places = Places::new(&standing, 63, Device::Cuda(0));
        let (x, _) = normal(1, &[63, heads, head_dim]);
        let placed = fused.place(&x, &places.sources).unwrap();
        assert!(placed.equal(&places.placed(&x)), "placed");
        let (rows, _) = normal(2, &[200, heads, head_dim]);
        let out = x.empty_like();
        for (start, length) in [(0, 90), (90, 110)] {
            let sources = places.sources.narrow(0, start, length);
            fused
                .lift(&rows.narrow(0, start, length), &sources, &out)
                .unwrap();
        }
        assert!(out.equal(&places.lifted(&rows)), "lifted");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn distributions() {
    for fused in kernels() {
        let vocab = fused.sizes.vocab;
        let (logits, exact) = normal(1, &[60, vocab]);
        let (logits, exact) = (logits * 4.0, exact * 4.0);
        let rows = Tensor::arange(60, (Kind::Int64, Device::Cpu));
        let tokens = (rows * 7919).remainder(vocab);
        let found =
            Distribution::new(logits, &tokens.to_device(Device::Cuda(0)), Some(&fused)).unwrap();
        let reference = Distribution::new(exact, &tokens, None).unwrap();
        assert_near(&found.logprobs, &reference.logprobs, "log-probabilities");
        assert_near(&found.entropies, &reference.entropies, "entropies");
        let ((g, exact_g), (h, exact_h)) = (normal(2, &[60]), normal(3, &[60]));
        let (g, h) = (g.to_kind(Kind::Float), h.to_kind(Kind::Float));
        assert_near(
            &found.backward(&g, Some(&h)).unwrap(),
            &reference.backward(&exact_g, Some(&exact_h)).unwrap(),
            "gradient of logits",
        );
    }
}

#[test]
#[ignore = "needs a GPU"]
fn attention_to_two_sets_of_keys() {
    for fused in kernels() {
        let Sizes {
            heads, head_dim, ..
        } = fused.sizes;
        let size = [70, heads, head_dim];
        let [(out, exact_out), (part, exact_part)] = [1, 2].map(|stream| normal(stream, &size));
        let [(old, exact_old), (sums, exact_sums)] =
            [(3, 90), (4, 70)].map(|(stream, rows)| normal(stream, &[heads, rows]));
        let (old, sums) = (old.to_kind(Kind::Float), sums.to_kind(Kind::Float));
        fused
            .join([&out, &part], [&old.narrow(1, 20, 70), &sums])
            .unwrap();
        let exact_rows = exact_old.narrow(1, 20, 70);
        flash::join(
            [exact_out.shallow_clone(), exact_part],
            [exact_rows, exact_sums],
        );
        assert_near(&out, &exact_out, "joined attention");
        assert_near(&old, &exact_old, "joined sums");
    }
}
