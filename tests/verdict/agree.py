"""Judges generated pairs with us and with math-verify, and lists every class in which the two disagree.

    pip install math-verify==0.9.0 latex2sympy2-extended==1.11.0
    python tests/verdict/agree.py [--count 24000] [--seed 1] [--binary target/release/metis-flow]

How each pair was made says who is right (pairs.py). Prints a table in Markdown; disagreements.md has it with remarks.
"""

import argparse
import collections
import functools
import json
import logging
import subprocess
import tempfile
from pathlib import Path

from pairs import pairs

ROOT = Path(__file__).resolve().parent.parent.parent


def our_verdicts(all_pairs, binary):
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl") as file:
        for pair in all_pairs:
            file.write(json.dumps({"gold": pair["gold"], "answer": pair["answer"]}) + "\n")
        file.flush()
        done = subprocess.run([binary, "verify", "--jsonl", file.name], check=True, capture_output=True, text=True)
    return [json.loads(line)["verdict"] for line in done.stdout.splitlines()]


def their_verdicts(all_pairs):
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    read = functools.lru_cache(None)(lambda text: parse("\\boxed{%s}" % text))
    judge = functools.lru_cache(None)(lambda gold, answer: verify(read(gold), read(answer)))
    for pair in all_pairs:
        try:
            yield "correct" if judge(pair["gold"], pair["answer"]) else "wrong"
        except Exception as error:
            yield f"failed: {type(error).__name__}"


def table(all_pairs, ours, theirs):
    """Rows: class, truth, ours, theirs, how many, an example."""
    groups = collections.defaultdict(list)
    for pair, our, their in zip(all_pairs, ours, theirs):
        if our != their:
            truth = "correct" if pair["equal"] else "wrong"
            groups[pair["class"], truth, our, their].append(pair)
    print("| class | truth | metis-flow | math-verify | pairs | an example: gold, answer |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (name, truth, our, their), found in sorted(groups.items()):
        example = min(found, key=lambda pair: len(pair["gold"]) + len(pair["answer"]))
        shown = ", ".join("`" + example[side].replace("|", "\\|") + "`" for side in ["gold", "answer"])
        print(f"| {name} | {truth} | {our} | {their} | {len(found)} | {shown} |")
    for name, verdicts in [("metis-flow", ours), ("math-verify", theirs)]:
        right = sum(verdict == ("correct" if pair["equal"] else "wrong") for pair, verdict in zip(all_pairs, verdicts))
        rewarded = sum(verdict == "correct" and not pair["equal"] for pair, verdict in zip(all_pairs, verdicts))
        print(f"\n{name}: right on {right} of {len(all_pairs)} pairs; {rewarded} wrong answers taken as correct.")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=24000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--binary", default=str(ROOT / "target/release/metis-flow"))
    arguments = parser.parse_args()
    all_pairs = list(pairs(arguments.count, arguments.seed))
    table(all_pairs, our_verdicts(all_pairs, arguments.binary), list(their_verdicts(all_pairs)))


if __name__ == "__main__":
    main()
