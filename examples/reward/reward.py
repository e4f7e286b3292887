"""A reward function of your own: is the boxed answer right, and is it short?

It reads rollouts as an Arrow stream from standard input and writes their rewards as an Arrow stream to standard output, one
row for each row read, in the same order. Messages belong on standard error. Needs pyarrow, nothing else:

    metis-flow run pipelines/custom-reward.yaml
"""

import re
import sys
from fractions import Fraction

import pyarrow as pa

FREE_CHARACTERS = 60  # what a short solution needs
PENALTY = 0.005  # for each character beyond

SCHEMA = pa.schema(
    [
        ("reward", pa.float64()),
        ("reward_accuracy", pa.float64()),
        ("reward_format", pa.float64()),
        ("reward_brevity", pa.float64()),
        ("error", pa.string()),
    ]
)
BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
FORM = re.compile(r"<think>.*</think>\s*<answer>.*</answer>", re.DOTALL)


def same(found: str, gold: str) -> bool:
    """Whether two answers are one number, or else one text."""
    try:
        return Fraction(found) == Fraction(gold)
    except (ValueError, ZeroDivisionError):
        return found.split() == gold.split()


def reward(text: str, gold: str | None) -> dict:
    if gold is None:
        # This row has no reward. The others have; what becomes of this one is for the pipeline to say.
        return {"error": "the prompt has no answer to compare with"}
    boxed = BOXED.findall(text)
    accuracy = float(bool(boxed) and same(boxed[-1], gold))
    form = float(FORM.fullmatch(text.strip()) is not None)
    brevity = 0.0 - min(1.0, PENALTY * max(0, len(text) - FREE_CHARACTERS))
    return {
        "reward": accuracy + 0.5 * form + brevity,
        "reward_accuracy": accuracy,
        "reward_format": form,
        "reward_brevity": brevity,
    }


def main() -> None:
    with (
        pa.ipc.open_stream(sys.stdin.buffer) as rollouts,
        pa.ipc.new_stream(sys.stdout.buffer, SCHEMA) as rewards,
    ):
        for batch in rollouts:
            texts, golds = batch["text"].to_pylist(), batch["answer"].to_pylist()
            rows = [reward(text, gold) for text, gold in zip(texts, golds)]
            rewards.write_batch(pa.RecordBatch.from_pylist(rows, schema=SCHEMA))


if __name__ == "__main__":
    main()
