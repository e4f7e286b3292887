"""A DAG of 1,000 small stages, run and run again, beside Snakemake and DVC on the same DAG on this machine.

    python3 -m venv venv && venv/bin/pip install snakemake dvc
    venv/bin/python benches/dag.py [--layers 10] [--width 100]

Each stage takes the outputs of two stages of the layer before and adds them up with a number of its own: a query over two
tables for metis-flow, `awk` over two files for the others. The others are left out where they are not installed. Times are whole processes,
divided by the number of stages.
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from measure import BINARY, call, median, table

CORES = os.cpu_count()


def inputs(layer, index, width):
    """The two stages that a stage reads."""
    return [(layer - 1, index), (layer - 1, (index + 1) % width)]


def stages(layers, width):
    return [(layer, index) for layer in range(layers) for index in range(width)]


def name(stage):
    return f"s{stage[0]}-{stage[1]}"


def metis(folder, layers, width):
    text = ["version: 1", "name: dag", "seed: 1", "stages:"]
    for layer, index in stages(layers, width):
        if layer == 0:
            text.append(f"  {name((layer, index))}: {{ sql: {{ query: select {index} as x }} }}")
        else:
            a, b = map(name, inputs(layer, index, width))
            query = f"select a.x + b.x + {index} as x from a cross join b"
            text.append(f"  {name((layer, index))}: {{ inputs: {{ a: {a}, b: {b} }}, sql: {{ query: {query} }} }}")
    (folder / "dag.yaml").write_text("\n".join(text) + "\n")
    return [BINARY, "run", "dag.yaml", "--store", folder / "store"]


def snakemake(folder, layers, width):
    last = [f"out/{name((layers - 1, index))}" for index in range(width)]
    text = [f"rule all:\n    input: {last!r}\n"]
    for layer, index in stages(layers, width):
        out = f"out/{name((layer, index))}"
        rule = f"rule s{layer}_{index}:\n    output: {out!r}\n"
        if layer == 0:
            rule += f"    shell: 'echo {index} > {{output}}'\n"
        else:
            sources = [f"out/{name(stage)}" for stage in inputs(layer, index, width)]
            rule += f"    input: {sources!r}\n    shell: \"awk '{{{{x += $1}}}} END {{{{print x + {index}}}}}' {{input}} > {{output}}\"\n"
        text.append(rule)
    (folder / "Snakefile").write_text("\n".join(text))
    return [tool("snakemake"), "--cores", str(CORES), "--quiet", "all"]


def dvc(folder, layers, width):
    text = ["stages:"]
    for layer, index in stages(layers, width):
        out = f"out/{name((layer, index))}"
        if layer == 0:
            command, sources = f"echo {index} > {out}", []
        else:
            sources = [f"out/{name(stage)}" for stage in inputs(layer, index, width)]
            command = f"awk '{{x += $1}} END {{print x + {index}}}' {' '.join(sources)} > {out}"
        text += [f"  {name((layer, index))}:", f"    cmd: {command}", f"    outs: [{out}]"]
        if sources:
            text.append(f"    deps: [{', '.join(sources)}]")
    (folder / "dvc.yaml").write_text("\n".join(text) + "\n")
    (folder / "out").mkdir()
    call([tool("dvc"), "init", "--no-scm", "--quiet"], folder)
    return [tool("dvc"), "repro", "--quiet"]


def tool(program):
    """The program beside this Python, or in PATH."""
    beside = Path(sys.executable).with_name(program)
    return str(beside) if beside.exists() else shutil.which(program)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", default=10, type=int)
    parser.add_argument("--width", default=100, type=int)
    parser.add_argument("--only", choices=["metis-flow", "snakemake", "dvc"])
    args = parser.parse_args()
    count = args.layers * args.width
    rows = [("program", "first run", "per stage", "run again (median of 5)", "per stage", "memory")]
    for program, make in [("metis-flow", metis), ("snakemake", snakemake), ("dvc", dvc)]:
        if args.only not in (None, program) or (program != "metis-flow" and not tool(program)):
            continue
        with tempfile.TemporaryDirectory() as path:
            folder = Path(path)
            command = make(folder, args.layers, args.width)
            first = call(command, folder)
            again, _, _ = median(lambda: call(command, folder).seconds, 5)
        each = [f"{seconds / count * 1000:.2f} ms" for seconds in (first.seconds, again)]
        rows.append((program, f"{first.seconds:.1f} s", each[0], f"{again:.2f} s", each[1], f"{first.peak_mib:.0f} MiB"))
    print(f"{count} stages in {args.layers} layers, {CORES} cores:\n")
    table(rows)


if __name__ == "__main__":
    main()
