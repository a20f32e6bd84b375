"""The command line: `apart-fast check | plan | train | evaluate | export | predict | ...`, and `python train.py`.

A signal finds its handler before anything that takes time is imported. The words are read without waiting for torch;
a command is imported after that (`apart_fast/commands/table.py`).
"""

import os
import sys
from collections.abc import Callable

from apart_fast.errors import NO_ROOM, Interrupted, RankLost, SaidElsewhere, Stopped, UserError
from apart_fast.process.output import lasting_output, short_warnings
from apart_fast.process.stopping import EXIT, StopSignals, end_now, end_with, ignore_at_the_end


def guarded(command: Callable[[], object]) -> int:
    """Run a command; bad input becomes one line on stderr and exit code 2, a signal one line and 128 + its number."""
    with lasting_output(), short_warnings(), StopSignals():
        try:
            command()
        except UserError as error:
            return _end(f"error: {error}", 2)
        except (Stopped, Interrupted) as stop:
            return _end(str(stop), stop.code)
        except KeyboardInterrupt:
            return _end("stopped by SIGINT", 130)
        except RankLost as lost:
            return _end(f"error: {lost}", lost.code)
        except SaidElsewhere as elsewhere:
            return elsewhere.code
        except OSError as error:
            if error.errno in NO_ROOM:
                return _end(f"error: no space left ({error}): free some space or choose another --out", 2)
            if error.filename is None or error.strerror is None:
                raise
            return _end(f"error: {os.fsdecode(error.filename)}: {error.strerror}", 2)
        except (RuntimeError, MemoryError) as error:
            torch = sys.modules.get("torch")  # where it is not imported, nothing was allocated on a GPU
            on_gpu = torch is not None and isinstance(error, torch.OutOfMemoryError)
            if not (on_gpu or isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)):
                raise
            reason = (str(error).splitlines() or ["nothing is left"])[0]
            return _end(f"error: out of {'GPU ' * on_gpu}memory ({reason}): lower the batch size", 2)
    return 0


def train_command(args: list[str] | None = None) -> None:
    """`python train.py`."""
    _run(_train, args)


def main(args: list[str] | None = None) -> None:
    """`apart-fast`."""
    _run(_any, args)


def _any(args: list[str] | None) -> None:
    with StopSignals(EXIT):
        from apart_fast.commands.table import read_words
    read_words(args)()


def _train(args: list[str] | None) -> None:
    with StopSignals(EXIT):
        from apart_fast.commands.table import read_train_words
    read_train_words(args)()


def _run(command: Callable[[list[str] | None], None], args: list[str] | None) -> None:
    """Run it and end the process, or raise SystemExit where it was called with words of its own."""
    if args is not None:
        sys.exit(guarded(lambda: command(args)))
    ignore_at_the_end()
    with StopSignals(EXIT):
        code = guarded(lambda: command(None))
    if code > 128:  # threads of libraries may be in the middle of something: nothing to tear down in an order
        end_now("", code)
    end_with(code)
    sys.exit(code)


def _end(line: str, code: int) -> int:
    print(" ".join(line.splitlines()), file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
