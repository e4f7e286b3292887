"""Distributions that other people's code makes of fixed logits, for each sampling parameter alone and for some together.

Repetition penalty, forbidden tokens, temperature and truncation are those of transformers 5.17 (`LogitsProcessor` classes, in the
order of its `generate`); presence and frequency penalties those of mlx-lm 0.32 (`make_logits_processors`).

    pip install torch==2.11.0 transformers==5.17.0 mlx-cpu mlx mlx-lm
    python make.py > distributions.json
"""

import json
import sys

import mlx.core as mx
import torch
from mlx_lm.sample_utils import make_frequency_penalty, make_presence_penalty
from transformers.generation import logits_process as hf

VOCAB = 48
PROMPT = [3, 9, 9, 14, 27, 40]
COMPLETION = [5, 9, 5, 31, 5]
STOP = [2, 6]


def cases():
    yield {}
    yield {"temperature": 0.6}
    yield {"temperature": 1.7}
    for top_k in (1, 5, 47, 48, 1000):
        yield {"top_k": top_k}
    for top_p in (0.0, 0.3, 0.9, 0.999):
        yield {"top_p": top_p}
    for min_p in (0.01, 0.3, 1.0):
        yield {"min_p": min_p}
    for repetition in (1.3, 0.7):
        yield {"repetition_penalty": repetition}
    for penalty in (0.8, -0.5):
        yield {"presence_penalty": penalty}
        yield {"frequency_penalty": penalty}
    yield {"allowed_token_ids": [5]}
    yield {"allowed_token_ids": [1, 9, 30, 44]}
    yield {"min_new_tokens": 6, "stop_token_ids": STOP}
    yield {"min_new_tokens": 5, "stop_token_ids": STOP}
    yield {"top_k": 20, "top_p": 0.7}
    yield {"top_p": 0.95, "min_p": 0.1}
    yield {"temperature": 0.8, "top_k": 12, "top_p": 0.8, "min_p": 0.05}
    yield {
        "temperature": 1.3,
        "top_k": 30,
        "top_p": 0.95,
        "min_p": 0.02,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.3,
        "min_new_tokens": 8,
        "stop_token_ids": STOP,
    }
    yield {"repetition_penalty": 1.5, "allowed_token_ids": [9, 10, 11, 31], "top_k": 10}


def penalised(scores, case):
    """Scores after everything that comes before truncation, the temperature too."""
    tokens = torch.tensor([PROMPT + COMPLETION])
    if "repetition_penalty" in case:
        scores = hf.RepetitionPenaltyLogitsProcessor(case["repetition_penalty"])(tokens, scores)
    given = mx.array(COMPLETION)
    for name, make in (("frequency_penalty", make_frequency_penalty), ("presence_penalty", make_presence_penalty)):
        if name in case:
            # Presence counts a token once, however often it came.
            seen = mx.array(sorted(set(COMPLETION))) if name == "presence_penalty" else given
            scores = torch.tensor(make(case[name])(seen, mx.array(scores.numpy())).tolist())
    if "allowed_token_ids" in case:
        allowed = case["allowed_token_ids"]
        scores = hf.PrefixConstrainedLogitsProcessor(lambda _batch, _tokens: allowed, 1)(tokens, scores)
    if "min_new_tokens" in case:
        least = hf.MinNewTokensLengthLogitsProcessor(len(PROMPT), case["min_new_tokens"], case["stop_token_ids"], device="cpu")
        scores = least(tokens, scores)
    if "temperature" in case:
        scores = hf.TemperatureLogitsWarper(case["temperature"])(tokens, scores)
    return scores


def truncated(scores, case):
    if "top_k" in case:
        scores = hf.TopKLogitsWarper(case["top_k"])(None, scores)
    if "top_p" in case:
        scores = hf.TopPLogitsWarper(case["top_p"])(None, scores)
    if "min_p" in case:
        scores = hf.MinPLogitsWarper(case["min_p"])(None, scores)
    return scores


def finite(scores):
    logprobs = scores.double().log_softmax(-1)[0].tolist()
    return [None if value == float("-inf") else value for value in logprobs]


def main():
    generator = torch.Generator().manual_seed(11)
    logits = (torch.randn(1, VOCAB, generator=generator) * 1.2).float()
    results = []
    for case in cases():
        before = penalised(logits.clone(), case)
        after = truncated(before.clone(), case)
        results.append({"params": case, "logprobs": finite(before), "truncated_logprobs": finite(after)})
    golden = {"logits": logits[0].tolist(), "prompt": PROMPT, "completion": COMPLETION, "cases": results}
    json.dump(golden, sys.stdout)
    print()


main()
