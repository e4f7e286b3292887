"""Makes parts.json: parts of rewards as TRL's reward functions give them.

    pip download --no-deps --dest . trl==1.16.0
    python make.py trl-1.16.0-py3-none-any.whl > parts.json
"""

import json
import sys
import zipfile

LENGTHS = [0, 1, 50, 79, 80, 81, 90, 99, 100, 101, 400]
TOKENS = [
    [],
    [7],
    [1, 2, 3, 4],
    [5, 5, 5, 5, 5],
    [1, 2, 1, 2, 1, 2, 1, 2],
    [1, 2, 3, 1, 2, 3, 4, 1, 2, 3, 4, 5],
    list(range(40)) * 3,
    [9] * 200,
]


def module(wheel, path):
    """A file of a wheel, without what its package imports."""
    scope = {"__name__": path}
    text = zipfile.ZipFile(wheel).read(path).decode()
    # The judgement is given here, so that no verifier is needed.
    text = text.replace("from ..import_utils import is_math_verify_available", "is_math_verify_available = lambda: False")
    exec(compile(text, path, "exec"), scope)
    return scope


def main():
    other = module(sys.argv[1], "trl/rewards/other_rewards.py")
    accuracy = module(sys.argv[1], "trl/rewards/accuracy_rewards.py")
    accuracy["accuracy_reward"] = lambda completions, solution: solution
    punishment = other["get_soft_overlong_punishment"](max_completion_len=100, soft_punish_cache=20)
    overlong = [{"tokens": length, "value": punishment([[1] * length])[0]} for length in LENGTHS]
    repetition = []
    for ngram in [1, 2, 3, 20]:
        values = other["get_repetition_penalty_reward"](ngram_size=ngram)(TOKENS)
        repetition += [{"ngram": ngram, "tokens": ids, "value": value} for ids, value in zip(TOKENS, values)]
    cosine = accuracy["get_cosine_scaled_reward"](
        max_len=100, min_value_wrong=-10.0, max_value_wrong=0.0, min_value_correct=1.0, max_value_correct=2.0
    )
    length = []
    for correct in [True, False]:
        values = cosine([""] * len(LENGTHS), [correct] * len(LENGTHS), [[1] * length for length in LENGTHS])
        length += [{"correct": correct, "tokens": tokens, "value": value} for tokens, value in zip(LENGTHS, values)]
    print(json.dumps({"overlong": overlong, "repetition": repetition, "length": length}))


if __name__ == "__main__":
    main()
