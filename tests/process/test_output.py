"""Output that is lost harms nothing: closed pipes, lost terminals, full disks, closed descriptors, narrow encodings."""

import errno
import io
import os
import sys

import pytest
from tqdm import tqdm

from apart_fast.cli import guarded
from apart_fast.errors import UserError
from apart_fast.process import output


class Failing(io.StringIO):
    """Raises `error` as long as there is one."""

    encoding = "ascii"

    def __init__(self, error=None):
        super().__init__()
        self.error = error

    def write(self, text):
        if self.error:
            raise self.error
        return super().write(text)


@pytest.fixture
def streams(monkeypatch):
    """Take the place of stdout and stderr."""

    def put(stdout, stderr):
        monkeypatch.setattr(sys, "stdout", stdout)
        monkeypatch.setattr(sys, "stderr", stderr)

    return put


def chatter():
    for i in range(3):
        print(f"line {i}")
        tqdm.write(f"epoch {i}")
        with tqdm(total=2) as bar:
            bar.update()
    sys.stderr.write("warning\n")
    sys.stdout.writelines(["a\n", "b\n"])
    sys.stdout.flush()


def test_a_reader_that_goes_away(streams):
    reader, writer = os.pipe()
    stdout, stderr = open(writer, "w"), Failing()
    streams(stdout, stderr)
    os.close(reader)
    assert guarded(chatter) == 0 and sys.stdout is stdout
    assert [line for line in stderr.getvalue().splitlines() if "note:" in line] == [
        "note: the output cannot be written (Broken pipe): going on without it"
    ]
    print("more", file=stdout, flush=True)  # as the interpreter does at its end
    stdout.close()


@pytest.mark.parametrize("error", [OSError(errno.EIO, "gone"), ValueError("I/O operation on closed file")])
def test_both_streams_are_gone(streams, error):
    streams(Failing(error), Failing(error))
    assert guarded(chatter) == 0

    def refused():
        raise UserError("no")

    assert guarded(refused) == 2


def test_a_full_disk_loses_no_later_line(streams):
    stdout, stderr = Failing(OSError(errno.ENOSPC, "No space left on device")), Failing()
    streams(stdout, stderr)

    def command():
        print("lost")
        stdout.error = None
        print("later")

    assert guarded(command) == 0
    assert "later\n" in stdout.getvalue() and stderr.getvalue().count("No space left on device") == 1


def test_there_are_no_streams(streams):
    streams(None, None)
    assert guarded(chatter) == 0 and sys.stdout is None


def test_what_an_encoding_lacks_is_escaped(streams):
    raw = io.BytesIO()
    streams(io.TextIOWrapper(raw, encoding="utf-8"), Failing())
    assert guarded(lambda: print("runs/" + os.fsdecode(b"\xff") + "/日")) == 0
    assert raw.getvalue().decode() == "runs/\\udcff/日\n"
    raw = io.BytesIO()
    streams(io.TextIOWrapper(raw, encoding="ascii"), Failing())
    assert guarded(lambda: print("日")) == 0 and raw.getvalue() == b"\\u65e5\n"


def test_a_line_goes_out_at_once(streams):
    reader, writer = os.pipe()
    heard = []
    with open(writer, "w") as stdout:
        streams(stdout, Failing())
        assert guarded(lambda: (print("epoch 1"), heard.append(os.read(reader, 100)))) == 0
    os.close(reader)
    assert heard == [b"epoch 1\n"]


def test_closed_descriptors_are_not_taken_by_files(tmp_path):
    kept = os.dup(1)
    os.close(1)
    try:
        with output.lasting_output(), open(tmp_path / "checkpoint", "w") as file:
            assert file.fileno() > 2
            os.write(1, b"what a library prints")
        assert (tmp_path / "checkpoint").read_text() == ""
    finally:
        os.dup2(kept, 1)
        os.close(kept)
