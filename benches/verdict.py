"""Verdicts per second of `metis-flow verify --jsonl`, on one core and on two, beside math-verify on the same pairs.

    pip install math-verify==0.9.0 latex2sympy2-extended==1.11.0
    python benches/verdict.py [--pairs 20000] [--rivals 2000]

The pairs are those of tests/verdict/pairs.py: every class of answers, half of them unequal. math-verify judges a sample of
them, evenly over the classes, on one core; its import is not counted, nor is the start of our process: it is measured
with one pair and taken off.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from measure import BINARY, ROOT, call, median, table

sys.path.insert(0, str(ROOT / "tests/verdict"))
from pairs import CLASSES, pairs


def ours(pairs, threads, folder, repeats):
    """Verdicts per second: the file is made long enough to drown the start."""
    path = folder / "pairs.jsonl"
    with open(path, "w") as out:
        for _ in range(repeats):
            for pair in pairs:
                out.write(json.dumps({"gold": pair["gold"], "answer": pair["answer"]}) + "\n")
    env = dict(os.environ, RAYON_NUM_THREADS=str(threads))
    command = [str(BINARY), "verify", "--jsonl", str(path)]
    one = folder / "one.jsonl"
    one.write_text(json.dumps({"gold": "1", "answer": "1"}) + "\n")
    start, _, _ = median(lambda: call([str(BINARY), "verify", "--jsonl", str(one)], folder, env).seconds, 5)
    peak = []

    def timed():
        done = call(command, folder, env)
        peak.append(done.peak_mib)
        return done.seconds - start

    seconds, least, largest = median(timed, 3)
    count = repeats * len(pairs)
    return count / seconds, count / largest, count / least, max(peak)


def rival(pairs):
    """Verdicts per second of math-verify, and the verdicts."""
    import logging

    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    verify(parse("\\boxed{1}"), parse("\\boxed{\\frac{1}{2}}"))
    start = time.perf_counter()
    for pair in pairs:
        verify(parse("\\boxed{%s}" % pair["gold"]), parse("\\boxed{%s}" % pair["answer"]))
    return len(pairs) / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=20000)
    parser.add_argument("--rivals", type=int, default=2000, help="pairs that math-verify judges; 0 leaves it out")
    parser.add_argument("--repeats", type=int, default=20)
    arguments = parser.parse_args()
    all_pairs = list(pairs(arguments.pairs, 1))
    rows = [["what", "verdicts/s", "slowest", "fastest", "peak MiB", "times math-verify"]]
    theirs = rival(all_pairs[: arguments.rivals]) if arguments.rivals else None
    with tempfile.TemporaryDirectory() as folder:
        for threads in [1, 2]:
            middle, slowest, fastest, peak = ours(all_pairs, threads, Path(folder), arguments.repeats)
            ratio = f"{middle / theirs:.0f}" if theirs else "-"
            rows.append([f"metis-flow, {threads} core(s)", f"{middle:,.0f}", f"{slowest:,.0f}", f"{fastest:,.0f}", f"{peak:.0f}", ratio])
    if theirs:
        rows.append(["math-verify 0.9.0, 1 core", f"{theirs:,.0f}", "", "", "", "1"])
    print(f"{len(all_pairs):,} pairs of {len(CLASSES)} classes, {arguments.repeats} times; math-verify: {arguments.rivals:,} of them\n")
    table(rows)


if __name__ == "__main__":
    main()
