"""What the scripts here share: a program run to its end, with its wall-clock time and its largest resident memory."""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BINARY = ROOT / "target/release/metis-flow"


class Finished:
    def __init__(self, seconds, cpu_seconds, peak_mib, stdout):
        self.seconds, self.cpu_seconds, self.peak_mib, self.stdout = seconds, cpu_seconds, peak_mib, stdout


def call(command, folder, env=None):
    """Runs a command that must succeed. The peak is that of the largest of its processes."""
    with open(folder / "stdout", "w+") as out, open(folder / "stderr", "w+") as log:
        start = time.perf_counter()
        child = subprocess.Popen(command, cwd=folder, stdout=out, stderr=log, stdin=subprocess.DEVNULL, env=env)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        log.seek(0)
        if child.returncode != 0:
            sys.exit(f"{' '.join(map(str, command))} ended with {child.returncode}\n{log.read()[-4000:]}")
        return Finished(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, out.read())


def median(call_once, times):
    """Median, least and largest of some timings in seconds."""
    seconds = [call_once() for _ in range(times)]
    return statistics.median(seconds), min(seconds), max(seconds)


def table(rows):
    """Prints rows of text as a table in Markdown; the first is the head."""
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    for index, row in enumerate(rows):
        print("| " + " | ".join(str(cell).ljust(width) for cell, width in zip(row, widths)) + " |")
        if index == 0:
            print("| " + " | ".join("-" * width for width in widths) + " |")
