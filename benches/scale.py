"""Datasets that do not fit: more than 2 GiB in one text column, and ten million rows.

    python3 -m venv venv && venv/bin/pip install pyarrow
    venv/bin/python benches/scale.py [--only text|rows] [--folder FOLDER]

Each goes through source, verify, filter-by-pass-rate and sql in one process, whose largest resident memory should stay below
1.5 GiB. Needs 10 GB of disk.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from measure import BINARY, call, table

PIPELINE = """
version: 1
name: scale
seed: 1
stages:
  prompts: { source: { path: prompts.parquet, columns: { id: id, solution: solution } } }
  rollouts:
    inputs: { prompts: prompts }
    sql: { query: "select prompt_id, arrow_cast(0, 'UInt32') as sample, solution as text from prompts" }
  verdicts: { inputs: { rollouts: rollouts, prompts: prompts }, verify: { math: {} } }
  split: { inputs: { verdicts: verdicts, prompts: prompts }, filter-by-pass-rate: {} }
  summary:
    inputs: { rates: split.pass_rates, prompts: prompts }
    sql:
      query: >-
        select r.correct, count(*) as prompts, sum(length(p.solution)) as characters
        from rates r join prompts p on p.prompt_id = r.prompt_id group by r.correct order by r.correct
"""
SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "problem", "answer", "solution")])
LIMIT_MIB = 1536


def write(path, rows, words):
    """Prompts with solutions of about this many words; returns the bytes of the solutions."""
    rng = random.Random(17)
    vocabulary = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randrange(2, 9))) for _ in range(5000)]
    total = 0
    step = max(1, min(100_000, 20_000_000 // (words * 6 + 60)))
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        for start in range(0, rows, step):
            made = []
            for number in range(start, min(start + step, rows)):
                thought = " ".join(rng.choices(vocabulary, k=words))
                answer = number % 1000
                solution = f"<think>{thought}</think><answer>\\boxed{{{answer + (number % 3 == 0)}}}</answer>"
                total += len(solution)
                made.append({"id": f"p{number}", "problem": f"Question {number}?", "answer": str(answer), "solution": solution})
            writer.write_table(pa.Table.from_pylist(made, schema=SCHEMA))
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["text", "rows"])
    parser.add_argument("--folder", type=Path, help="keeps data and store there")
    args = parser.parse_args()
    head = ("dataset", "rows", "text", "wall clock", "peak memory", "slowest stages")
    rows = [head]
    for name, count, words in [("text", 350_000, 1_100), ("rows", 10_000_000, 3)]:
        if args.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as path:
            folder = (args.folder or Path(path)) / name
            folder.mkdir(parents=True, exist_ok=True)
            data = folder / "prompts.parquet"
            size = folder / "size"
            if not size.exists():
                size.write_text(str(write(data, count, words)))
            (folder / "scale.yaml").write_text(PIPELINE)
            done = call([BINARY, "run", "scale.yaml", "--json", "--store", folder / "store"], folder)
            stages = sorted(json.loads(done.stdout)["stages"], key=lambda stage: -stage["seconds"])
            slow = ", ".join(f"{stage['stage']} {stage['seconds']:.0f} s" for stage in stages[:3])
            peak = f"{done.peak_mib:.0f} MiB" + ("" if done.peak_mib < LIMIT_MIB else " (too much)")
            rows.append((name, f"{count:,}", f"{int(size.read_text()) / 2**30:.2f} GiB", f"{done.seconds:.0f} s", peak, slow))
    table(rows)


if __name__ == "__main__":
    main()
