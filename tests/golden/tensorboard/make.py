"""Writes event files with TensorBoard's own classes and reads them back as TensorBoard does.

    python3 -m venv venv && venv/bin/pip install tensorboard==2.21.0
    venv/bin/python make.py            # writes first.tfevents and second.tfevents beside this file
    venv/bin/python make.py FOLDER     # prints what TensorBoard reads in FOLDER, one line per run and tag
"""

import pathlib
import sys
import tempfile

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

HERE = pathlib.Path(__file__).parent


def event_file(path, wall_time, steps):
    with open(path, "wb") as file:
        writer = RecordWriter(file)
        first = steps[0][0]
        writer.write(Event(wall_time=wall_time, file_version="brain.Event:2").SerializeToString())
        session = SessionLog(status=SessionLog.START)
        writer.write(Event(wall_time=wall_time, step=first, session_log=session).SerializeToString())
        for step, values in steps:
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values])
            writer.write(Event(wall_time=wall_time, step=step, summary=summary).SerializeToString())
        writer.flush()


def make():
    first = [(1, [("loss", 2.5), ("time/update_s", 0.125)]), (2, [("loss", 1.5)]), (300, [("loss", float("nan"))])]
    second = [(2, [("loss", 1.25)]), (3, [("loss", 1.0), ("grad_norm", 1e30)])]
    event_file(HERE / "first.tfevents", 1700000000.25, first)
    event_file(HERE / "second.tfevents", 1700000100.5, second)
    with tempfile.TemporaryDirectory() as folder:
        for name, second_of in [("first", "1700000000"), ("second", "1700000100")]:
            target = pathlib.Path(folder) / f"events.out.tfevents.{second_of}.{name}"
            target.write_bytes((HERE / f"{name}.tfevents").read_bytes())
        reader = EventAccumulator(folder)
        reader.Reload()
        loss = [(event.step, event.value) for event in reader.Scalars("loss")]
        assert loss == [(1, 2.5), (2, 1.25), (3, 1.0)], loss
        assert sorted(reader.Tags()["scalars"]) == ["grad_norm", "loss", "time/update_s"]


def show(folder):
    runs = EventMultiplexer().AddRunsFromDirectory(folder)
    runs.Reload()
    for run, tags in sorted(runs.Runs().items()):
        for tag in sorted(tags["scalars"]):
            points = [(event.step, round(event.value, 6)) for event in runs.Scalars(run, tag)]
            print(run, tag, points)


if __name__ == "__main__":
    show(sys.argv[1]) if sys.argv[1:] else make()
