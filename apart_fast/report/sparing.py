"""Pictures and pages that may fail alone: what was trained or measured stays."""

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from apart_fast.errors import Stopped


@contextmanager
def sparing(what: str) -> Iterator[None]:
    """Within, an error costs `what` alone, such as "curves.png": a line says so."""
    try:
        yield
    except Stopped:
        raise
    except Exception as error:  # matplotlib, jinja, the network at hand, the disk: each has its own
        reason = " ".join(str(error).split()) or type(error).__name__
        tqdm.write(f"warning: no {what}: {reason if len(reason) <= 300 else reason[:300] + '...'}")
