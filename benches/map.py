"""A map stage beside pyarrow that reads and writes the same Parquet.

    python3 -m venv venv && venv/bin/pip install pyarrow
    venv/bin/python benches/map.py [--rows 1000000] [--times 3]

`source` reads prompts from Parquet and `verify` judges one rollout of each. The wall-clock time of a stage is the one that
the run records, its processor time that of the whole process less that of a rerun in which nothing is to be done. pyarrow
reads what the stage reads and writes the rows that the stage wrote, with the compression that the store uses; it computes
nothing. So the difference is what the engine adds and what the operator computes.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from measure import BINARY, call, table

PIPELINE = """
version: 1
name: map
seed: 1
stages:
  prompts: { source: { path: prompts.parquet, columns: { id: id, solution: solution, category: kind } } }
  rollouts:
    inputs: { prompts: prompts }
    sql: { query: "select prompt_id, arrow_cast(0, 'UInt32') as sample, solution as text from prompts" }
  verdicts: { inputs: { rollouts: rollouts, prompts: prompts }, verify: { math: {} } }
"""


def prompts(path, rows):
    """Sums with worked solutions, a third of them wrong."""
    rng = random.Random(17)
    with pq.ParquetWriter(path, prompts_schema(), compression="zstd") as writer:
        for start in range(0, rows, 100_000):
            made = [prompt(rng, number) for number in range(start, min(start + 100_000, rows))]
            writer.write_table(pa.Table.from_pylist(made, schema=prompts_schema()))


def prompts_schema():
    return pa.schema([(name, pa.string()) for name in ("id", "problem", "answer", "solution", "kind")])


def prompt(rng, number):
    a, b = rng.randrange(1000), rng.randrange(1000)
    found = a + b + (1 if rng.random() < 1 / 3 else 0)
    thought = f"{a} plus {b}: first the tens, then the units, and one to carry where they are ten or more. "
    return {
        "id": f"p{number}",
        "problem": f"What is {a} + {b}? Question {number}.",
        "answer": str(a + b),
        "solution": f"<think>{thought * 3}</think><answer>\\boxed{{{found}}}</answer>",
        "kind": "sum" if a < b else "other",
    }


def parts(store, stage):
    """Files of the first output of a stage of the latest run."""
    shown = json.loads(call([BINARY, "show", stage, "--json", "--store", store], store.parent).stdout)
    found = []

    def walk(value):
        if isinstance(value, dict):
            path = value.get("path")
            if isinstance(path, str) and path.endswith(".parquet"):
                found.append(store / path)
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                walk(item)

    walk(shown)
    return found


def read(paths):
    return pa.concat_tables([pq.read_table(path) for path in paths])


def timed(action, times=5):
    """Medians of wall-clock and processor seconds."""
    seconds = []
    for _ in range(times):
        start, cpu = time.perf_counter(), time.process_time()
        action()
        seconds.append((time.perf_counter() - start, time.process_time() - cpu))
    return [statistics.median(column) for column in zip(*seconds)]


def ran(folder, store):
    """Wall-clock and processor seconds of the two stages, each run by itself on what is there."""
    seconds = {}
    for stage in ("prompts", "rollouts", "verdicts"):
        run = [BINARY, "run", "map.yaml", "--json", "--store", store, "--to", stage]
        done = call(run, folder)
        nothing = call(run, folder)
        stages = {each["stage"]: each["seconds"] for each in json.loads(done.stdout)["stages"]}
        seconds[stage] = (stages[stage], done.cpu_seconds - nothing.cpu_seconds)
    return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default=1_000_000, type=int)
    parser.add_argument("--times", default=3, type=int)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as path:
        folder = Path(path)
        (folder / "map.yaml").write_text(PIPELINE)
        prompts(folder / "prompts.parquet", args.rows)
        runs = [ran(folder, folder / f"store{number}") for number in range(args.times)]
        store = folder / "store0"
        rows = [("stage", "", "engine", "rows/s", "MB/s", "pyarrow reads", "pyarrow writes", "engine beside pyarrow")]
        for stage, paths in [("prompts", [folder / "prompts.parquet"]), ("verdicts", parts(store, "rollouts"))]:
            size = read(paths).nbytes
            written = read(parts(store, stage))
            out = folder / "out.parquet"
            reading = timed(lambda: read(paths))
            writing = timed(lambda: pq.write_table(written, out, compression="zstd"))
            for index, kind in enumerate(("wall clock", "processor")):
                seconds = statistics.median(run[stage][index] for run in runs)
                rows.append((
                    stage, kind, f"{seconds:.2f} s", f"{args.rows / seconds:,.0f}", f"{size / seconds / 1e6:.0f}",
                    f"{reading[index]:.2f} s", f"{writing[index]:.2f} s",
                    f"{seconds / (reading[index] + writing[index]):.2f} x",
                ))
    print(f"{args.rows} rows, median of {args.times} runs; MB are bytes in memory of the rows that the stage reads:\n")
    table(rows)


if __name__ == "__main__":
    main()
