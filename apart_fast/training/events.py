"""TensorBoard's events of a run, written by the process itself.

TensorBoard's own writer opens the file again for each event, in a thread that ends in a traceback when it cannot be
written. This one keeps it open: events are for looking at, and losing them must not lose the run.
"""

import os
import socket
import time
from contextlib import suppress
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from tqdm import tqdm

WITHIN = 10.0  # seconds, until what was added lies in the file


class Events:
    """Adds scalars to a new file of events.

    Args:
        folder: where it lies, made if need be; None: there is no file.
        purge_step: events of earlier files are forgotten from this step on.
    """

    def __init__(self, folder: Path | None, purge_step: int):
        self._records: RecordWriter | None = None
        self._flushed = time.monotonic()
        if folder is None:
            return
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.{time.time_ns() % 10**9}"
        try:
            folder.mkdir(exist_ok=True)
            self._records = RecordWriter(open(folder / name, "xb"))
        except OSError as error:
            self._give_up(error)
        self._add(Event(wall_time=time.time(), file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._add(Event(wall_time=time.time(), step=purge_step, session_log=start))
        self._flush()

    def scalar(self, name: str, value: float, step: int) -> None:
        """Add the value that `name` has after `step` steps."""
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
        self._add(Event(wall_time=time.time(), step=step, summary=summary))
        if time.monotonic() - self._flushed > WITHIN:
            self._flush()

    def close(self) -> None:
        """Write what is left, and close the file."""
        self._flush()
        self._close()

    def _add(self, event: Event) -> None:
        if self._records is not None:
            try:
                self._records.write(event.SerializeToString())
            except OSError as error:
                self._give_up(error)

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        if self._records is not None:
            try:
                self._records.flush()
            except OSError as error:
                self._give_up(error)

    def _close(self) -> None:
        if self._records is not None:
            with suppress(OSError):  # what could not be written is tried again
                self._records.close()
            self._records = None

    def _give_up(self, error: OSError) -> None:
        self._close()
        tqdm.write(f"note: TensorBoard's events cannot be written ({error.strerror}): going on without them")
