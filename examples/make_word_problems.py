#!/usr/bin/env python3
"""Makes arithmetic word problems with known answers, for real language models: `pipelines/word-problems.yaml` reads them.

    python examples/make_word_problems.py [--train 2000] [--test 300] [--seed 17] [--out examples/data]

Writes `word-problems-train.jsonl` and `word-problems-test.jsonl` with `id`, `problem`, `answer`, `kind`. The same command writes
the same bytes. No problem of the test set has the same wording and numbers as one of the training set. Needs only Python.
"""

import argparse
import json
import random
from pathlib import Path

NAMES = ["Ana", "Ben", "Carla", "David", "Emma", "Finn", "Grace", "Hugo", "Iris", "Jonas", "Kira", "Liam", "Mia", "Noah"]
THINGS = ["apples", "pencils", "stickers", "marbles", "books", "cookies", "coins", "cards", "shells", "stamps"]
BOXES = ["box", "bag", "basket", "drawer", "packet"]


def gain(draw):
    a, b = draw.randint(3, 60), draw.randint(2, 40)
    who, what = draw.choice(NAMES), draw.choice(THINGS)
    return f"{who} has {a} {what} and gets {b} more. How many {what} does {who} have now?", a + b


def loss(draw):
    a = draw.randint(10, 90)
    b = draw.randint(2, a - 1)
    who, other = draw.sample(NAMES, 2)
    what = draw.choice(THINGS)
    return f"{who} has {a} {what} and gives {b} of them to {other}. How many {what} does {who} have left?", a - b


def groups(draw):
    a, b = draw.randint(2, 12), draw.randint(2, 12)
    box, what = draw.choice(BOXES), draw.choice(THINGS)
    return f"There are {a} {what} in each {box}. How many {what} are there in {b} of them?", a * b


def share(draw):
    a, b = draw.randint(2, 10), draw.randint(2, 9)
    who, what = draw.choice(NAMES), draw.choice(THINGS)
    return f"{who} shares {a * b} {what} equally among {b} friends. How many {what} does each friend get?", a


def gain_and_loss(draw):
    a, b = draw.randint(10, 60), draw.randint(5, 30)
    c = draw.randint(2, a + b - 1)
    who, what = draw.choice(NAMES), draw.choice(THINGS)
    return f"{who} has {a} {what}, buys {b} more and then loses {c}. How many {what} does {who} have now?", a + b - c


def groups_and_gain(draw):
    a, b, c = draw.randint(2, 9), draw.randint(2, 9), draw.randint(2, 30)
    who, what, box = draw.choice(NAMES), draw.choice(THINGS), draw.choice(BOXES)
    question = f"{who} has {a} {what} in each {box}. {who} fills {b} and has {c} {what} beside them. How many {what} are there in all?"
    return question, a * b + c


KINDS = [gain, loss, groups, share, gain_and_loss, groups_and_gain]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=2000)
    parser.add_argument("--test", type=int, default=300)
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("data"))
    args = parser.parse_args()
    draw, seen = random.Random(args.seed), set()
    for split, count in [("test", args.test), ("train", args.train)]:
        lines = []
        while len(lines) < count:
            kind = KINDS[len(lines) % len(KINDS)]
            problem, answer = kind(draw)
            if problem in seen:
                continue
            seen.add(problem)
            row = {"id": f"{split}-{len(lines):05}", "problem": problem, "answer": str(answer), "kind": kind.__name__}
            lines.append(json.dumps(row) + "\n")
        (args.out / f"word-problems-{split}.jsonl").write_text("".join(lines))


if __name__ == "__main__":
    main()
