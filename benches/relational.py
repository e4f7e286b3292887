"""score, filter-by-pass-rate and distill on ten million rollouts, beside DuckDB and polars.

    python3 -m venv venv && venv/bin/pip install pyarrow duckdb polars
    venv/bin/python benches/relational.py [--prompts 1250000] [--folder FOLDER] [--times 3]

A query of the engine makes the rollouts and verdicts from prompts, so that all three read the same Parquet files: the parts in
the engine's store. Each writes the same columns as Parquet with the same compression, with two threads, and the rows are checked to
be equal. What a tool does by itself stays as it is: the engine digests the rows, keeps their order, and writes statistics and page
indices; polars keeps their order and writes numbers without dictionaries; DuckDB may change the order. The sizes of what they write
are told. Wall-clock and processor time are those of a whole process; peak memory is its largest resident set. Less is what a
process takes that does nothing: a run of the engine in which all is done, and a Python that imports DuckDB or polars.
Needs 3 GB of disk.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from measure import ROOT, call, table

SAMPLES = 8
THREADS = 2

PIPELINE = """
version: 1
name: relational
seed: 1
stages:
  prompts: { source: { path: prompts.parquet, columns: { id: id, category: kind } } }
  rollouts:
    inputs: { prompts: prompts }
    sql:
      query: >-
        select prompt_id, arrow_cast(n, 'UInt32') as sample,
               concat('<think>', category, ' ', (number * 7919 + n * 104729) % 99991, ' then ', (number + n * 31) % 9973, '</think><answer>', number % 1000, '</answer>') as text,
               make_array(arrow_cast(number % 1000, 'UInt32'), arrow_cast((number + n / 2) % 5000, 'UInt32'), arrow_cast(n / 2, 'UInt32'),
                          arrow_cast(number % 77, 'UInt32'), arrow_cast(number % 3, 'UInt32'), arrow_cast(2, 'UInt32')) as token_ids,
               case when (number * 31 + n * 17) % 23 = 0 then 'length' else 'stop' end as finish_reason,
               'blake3:5f2c' as model
        from (select prompt_id, category, cast(answer as bigint) as number from prompts)
        cross join (values (0), (1), (2), (3), (4), (5), (6), (7)) as samples(n)
  verdicts:
    inputs: { rollouts: rollouts }
    sql:
      query: >-
        select prompt_id, sample,
               case when kind = 0 then 'failed' when kind = 1 then 'timed-out' when kind = 2 then 'unparsed'
                    when difficulty > 8 or (difficulty > 0 and kind * 9 < difficulty * 100) then 'correct' else 'wrong' end as verdict,
               arrow_cast(null, 'LargeUtf8') as extracted, kind % 10 <> 7 as format_ok, 'math 1' as verifier
        from (select prompt_id, sample, (token_ids[1] * 37 + sample * 29 + token_ids[4] * 3) % 100 as kind, token_ids[1] % 11 as difficulty from rollouts)
  score: { inputs: { verdicts: verdicts }, score: { accuracy: 1.0, format: 0.5 } }
  filter: { inputs: { verdicts: verdicts, prompts: prompts }, filter-by-pass-rate: {} }
  distill:
    inputs: { prompts: prompts, rollouts: rollouts, verdicts: verdicts, scores: score }
    distill: { keep: { best: 2 }, require-format: true }
"""

JUDGED = "verdict in ('correct', 'wrong', 'unparsed')"

# What each stage gives, as DuckDB says it; `{name}` is the list of the files of that stage.
QUERIES = {
    "score": {
        "scores": f"""
            select prompt_id, sample, 1.0::double * reward_accuracy + 0.5::double * reward_format as reward, reward_accuracy, reward_format
            from (select prompt_id, sample, (verdict = 'correct')::int::double as reward_accuracy, format_ok::int::double as reward_format
                  from verdicts where {JUDGED})""",
    },
    "filter": {
        "pass_rates": "select prompt_id, samples, correct, correct::double / samples as pass_rate from rates",
        "solved": "select p.* from prompts p join rates r using (prompt_id) where correct = samples",
        "partial": "select p.* from prompts p join rates r using (prompt_id) where correct > 0 and correct < samples",
        "failed": "select p.* from prompts p join rates r using (prompt_id) where correct = 0",
    },
    "distill": {
        "examples": """
            with good as (
                select r.prompt_id, r.sample, r.text, r.token_ids, r.model, s.reward
                from rollouts r join verdicts v using (prompt_id, sample) join scores s using (prompt_id, sample)
                where v.verdict = 'correct' and v.format_ok and r.finish_reason = 'stop'),
            once as (select * from good qualify row_number() over (partition by prompt_id, token_ids order by sample) = 1),
            kept as (select * from once qualify row_number() over (partition by prompt_id order by reward desc, sample) <= 2)
            select k.prompt_id, p.messages, k.text, k.token_ids, 'self' as origin, k.model
            from kept k join prompts p using (prompt_id)""",
    },
}
RATES = f"""create temp table rates as
    select prompt_id, count(*)::uinteger as samples, count(*) filter (verdict = 'correct')::uinteger as correct from verdicts where {JUDGED} group by prompt_id"""
READS = {"score": ["verdicts"], "filter": ["verdicts", "prompts"], "distill": ["prompts", "rollouts", "verdicts", "scores"]}
# Rows are compared by these columns.
KEYS = {"scores": ["prompt_id", "sample", "reward"], "pass_rates": ["prompt_id", "samples", "correct", "pass_rate"]}


def run_duckdb(stage, files, out):
    import duckdb

    if stage == "nothing":
        return
    connection = duckdb.connect()
    connection.execute(f"set threads = {THREADS}; set preserve_insertion_order = false; set temp_directory = '{out}'")
    for name in READS[stage]:
        listed = ", ".join(f"'{path}'" for path in files[name])
        connection.execute(f"create view {name} as select * from read_parquet([{listed}])")
    if stage == "filter":
        connection.execute(RATES)
    for port, query in QUERIES[stage].items():
        connection.execute(f"copy ({query}) to '{out}/{port}.parquet' (format parquet, compression zstd, compression_level 1)")


def run_polars(stage, files, out):
    import polars as pl

    if stage == "nothing":
        return
    scan = {name: pl.scan_parquet(files[name]) for name in READS[stage]}
    judged = pl.col("verdict").is_in(["correct", "wrong", "unparsed"])
    correct = pl.col("verdict") == "correct"

    def write(rows, port):
        rows.sink_parquet(f"{out}/{port}.parquet", compression="zstd", compression_level=1)

    if stage == "score":
        parts = [correct.cast(pl.Float64).alias("reward_accuracy"), pl.col("format_ok").cast(pl.Float64).alias("reward_format")]
        rows = scan["verdicts"].filter(judged).select("prompt_id", "sample", *parts)
        reward = (pl.col("reward_accuracy") + 0.5 * pl.col("reward_format")).alias("reward")
        write(rows.select("prompt_id", "sample", reward, "reward_accuracy", "reward_format"), "scores")
    elif stage == "filter":
        counts = [pl.len().cast(pl.UInt32).alias("samples"), correct.sum().cast(pl.UInt32).alias("correct")]
        rates = scan["verdicts"].filter(judged).group_by("prompt_id").agg(*counts)
        rates = rates.collect(engine="streaming").lazy()
        write(rates.with_columns((pl.col("correct") / pl.col("samples")).alias("pass_rate")), "pass_rates")
        several = pl.col("correct")
        for port, condition in [
            ("solved", several == pl.col("samples")),
            ("partial", (several > 0) & (several < pl.col("samples"))),
            ("failed", several == 0),
        ]:
            write(scan["prompts"].join(rates.filter(condition), on="prompt_id", how="semi"), port)
    else:
        pair = ["prompt_id", "sample"]
        good = scan["verdicts"].filter(correct & pl.col("format_ok")).select(pair)
        good = good.join(scan["scores"].select(*pair, "reward"), on=pair)
        rollouts = scan["rollouts"].filter(pl.col("finish_reason") == "stop").select(*pair, "text", "token_ids", "model")
        rows = rollouts.join(good, on=pair)
        # Lists are no keys there; their text is.
        tokens = pl.col("token_ids").cast(pl.List(pl.String)).list.join(" ").alias("tokens")
        rows = rows.with_columns(tokens).sort("sample").unique(["prompt_id", "tokens"], keep="first", maintain_order=True)
        rows = rows.sort(["reward", "sample"], descending=[True, False]).group_by("prompt_id").head(2)
        rows = rows.join(scan["prompts"].select("prompt_id", "messages"), on="prompt_id")
        write(rows.select("prompt_id", "messages", "text", "token_ids", pl.lit("self").alias("origin"), "model"), "examples")


def prompts(path, rows):
    schema = pa.schema([(name, pa.string()) for name in ("id", "problem", "answer", "kind")])
    kinds = ["algebra", "counting", "geometry", "number theory"]
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, rows, 100_000):
            numbers = range(start, min(start + 100_000, rows))
            columns = [
                [f"prompt-{number:08d}" for number in numbers],
                [f"What is the remainder of {number} times {number * 7 % 1013} by {number % 97 + 2}?" for number in numbers],
                [str(number) for number in numbers],
                [kinds[number % 4] for number in numbers],
            ]
            writer.write_table(pa.table([pa.array(column) for column in columns], schema=schema))


def parts(binary, store, stage):
    """Files of each output of a stage of the latest run."""
    shown = json.loads(call([binary, "show", stage, "--json", "--store", store], store.parent).stdout)
    outputs = shown["manifest"]["outputs"]
    return {port: [str(store / part["path"]) for part in each["dataset"]["parts"]] for port, each in outputs.items()}


def run_digest(port, files, _out):
    """Prints how many rows there are, and a sum over their hashes, so that their order does not count."""
    import polars as pl

    rows = pl.scan_parquet(files)
    columns = KEYS.get(port)
    if port == "examples":
        rows = rows.select("prompt_id", "text", pl.col("token_ids").list.sum().alias("tokens"), "model", "origin")
    elif columns:
        rows = rows.select(columns)
    else:
        rows = rows.select("prompt_id", "answer", "category")
    numbers = [pl.col(name).hash(seed=index) for index, name in enumerate(rows.collect_schema().names())]
    folded = rows.select((pl.fold(pl.lit(0, pl.UInt64), lambda sum, each: sum * 31 + each.cast(pl.UInt64), numbers) % 2**31).alias("row"))
    print(folded.select(pl.len(), pl.col("row").sum()).collect(engine="streaming").row(0))


def engine(binary, folder, store, stage, times):
    """Figures of some runs of a stage, each in a copy of a store that does not have its result, and the files of the result."""
    runs = []
    for _ in range(times):
        # A result is found again, so that each run has a store of its own, of hard links.
        copy = folder / "copy"
        call(["rm", "-rf", copy], folder)
        call(["cp", "-rl", store, copy], folder)
        command = [binary, "run", "relational.yaml", "--json", "--store", copy, "--to", stage]
        done = call(command, folder)
        nothing = call(command, folder)
        stages = {each["stage"]: each for each in json.loads(done.stdout)["stages"]}
        if stages[stage]["status"] != "done":
            sys.exit(f"{stage} did not run")
        runs.append((done.seconds - nothing.seconds, done.cpu_seconds - nothing.cpu_seconds, done.peak_mib))
        found = parts(binary, copy, stage)
    return runs, found


def python(folder, tool, what, files, out):
    """A process of its own for each piece of work: peaks of memory are those of processes."""
    command = [sys.executable, __file__, "--run", tool, what, json.dumps(files), str(out)]
    return call(command, folder, dict(os.environ, POLARS_MAX_THREADS=str(THREADS)))


def mebibytes(paths):
    return sum(os.path.getsize(path) for path in paths) / 2**20


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", default=1_250_000, type=int)
    parser.add_argument("--times", default=3, type=int)
    parser.add_argument("--folder", type=Path, help="keeps data and store there")
    parser.add_argument("--binary", type=Path, default=ROOT / "target/release/metis-flow")
    parser.add_argument("--only", choices=list(QUERIES))
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        tool, stage, files, out = args.run
        {"duckdb": run_duckdb, "polars": run_polars, "digest": run_digest}[tool](stage, json.loads(files), out)
        return
    with tempfile.TemporaryDirectory() as path:
        compare((args.folder or Path(path)).resolve(), args)


def compare(folder, args):
    folder.mkdir(parents=True, exist_ok=True)
    data, store, scored = (folder / name for name in ("prompts.parquet", "store", "scored"))
    (folder / "relational.yaml").write_text(PIPELINE)
    if not data.exists():
        prompts(data, args.prompts)
    call([args.binary, "run", "relational.yaml", "--json", "--store", store, "--to", "verdicts"], folder)
    files = {}
    for stage, port in [("prompts", "prompts"), ("rollouts", "rows"), ("verdicts", "rows")]:
        files[stage] = [path for paths in parts(args.binary, store, stage).values() for path in paths]
    rows = [("stage", "", "wall clock", "processor", "peak memory", "written", "beside the faster")]
    for stage in QUERIES:
        if args.only not in (None, stage) and stage != "score":
            continue
        figures, written = {}, {}
        figures["metis-flow"], ours = engine(args.binary, folder, scored if stage == "distill" else store, stage, args.times)
        if stage == "score":
            # distill reads what the engine wrote.
            call(["rm", "-rf", scored], folder)
            call(["mv", folder / "copy", scored], folder)
            ours = parts(args.binary, scored, stage)
            files["scores"] = ours["scores"]
        written["metis-flow"] = mebibytes(path for port in QUERIES[stage] for path in ours[port])
        for tool in ("duckdb", "polars"):
            out = folder / f"out-{tool}"
            call(["rm", "-rf", out], folder)
            out.mkdir()
            runs = [python(folder, tool, stage, files, out) for _ in range(args.times)]
            nothing = python(folder, tool, "nothing", files, out)
            figures[tool] = [
                (run.seconds - nothing.seconds, run.cpu_seconds - nothing.cpu_seconds, run.peak_mib) for run in runs
            ]
            for port in QUERIES[stage]:
                mine, theirs = (
                    python(folder, "digest", port, paths, out).stdout for paths in (ours[port], [f"{out}/{port}.parquet"])
                )
                if mine != theirs:
                    sys.exit(f"{stage}.{port}: {tool} gives {theirs}, the engine {mine} (rows, sum of hashes)")
            written[tool] = mebibytes(out / f"{port}.parquet" for port in QUERIES[stage])
            call(["rm", "-rf", out], folder)
        medians = {tool: [statistics.median(column) for column in zip(*runs)] for tool, runs in figures.items()}
        fastest = min(medians["duckdb"][0], medians["polars"][0])
        for tool, (seconds, cpu, peak) in medians.items():
            beside = f"{seconds / fastest:.2f} x" if tool == "metis-flow" else ""
            rows.append((stage, tool, f"{seconds:.2f} s", f"{cpu:.2f} s", f"{peak:.0f} MiB", f"{written[tool]:.0f} MiB", beside))
    call(["rm", "-rf", folder / "copy", scored], folder)
    print(f"{args.prompts * SAMPLES} rollouts, {THREADS} threads, median of {args.times} runs, load {os.getloadavg()[0]:.1f}:\n")
    table(rows)


if __name__ == "__main__":
    main()
