"""A rerun in which nothing is to be done: the whole process, from its start to its end.

    python3 benches/noop.py [--pipeline pipelines/rise.yaml] [--times 20] [--store URL]

Runs the pipeline once, so that everything is in the store, then again and again. Compared with the shortest that the
program can do, which is to print its version.
"""

import argparse
import tempfile
from pathlib import Path

from measure import BINARY, ROOT, call, median, table


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pipeline", default=ROOT / "pipelines/rise.yaml", type=Path)
    parser.add_argument("--times", default=20, type=int)
    parser.add_argument("--store", help="a new folder if left out")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = [BINARY, "run", args.pipeline.resolve(), "--store", args.store or folder / "store"]
        first = call(run, folder)
        rows = [("command", "median", "least", "largest")]
        for title, command in [("run, nothing to do", run), ("--version", [BINARY, "--version"])]:
            call(command, folder)
            times = median(lambda: call(command, folder).seconds, args.times)
            rows.append((title, *(f"{seconds * 1000:.1f} ms" for seconds in times)))
    print(f"{args.pipeline.name}: first run {first.seconds:.1f} s, then {args.times} times each:\n")
    table(rows)


if __name__ == "__main__":
    main()
