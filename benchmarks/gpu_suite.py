"""Everything that needs a GPU, in parts of under nine minutes each, the most valuable first.

    python benchmarks/gpu_suite.py --list --budget 25m                      # parts, estimates, what fits; runs nothing
    python benchmarks/gpu_suite.py --data-dir data --budget 25m             # what fits into 25 minutes
    python benchmarks/gpu_suite.py --data-dir data                          # all of it: hours
    python benchmarks/gpu_suite.py --data-dir data --parts kernel-speed     # one, and what it needs
    python benchmarks/gpu_suite.py --dry --out /tmp/dry                     # every command once, tiny, on the CPU

A part is a command of its own, stopped after nine minutes and started again as often as its estimate wants, or as
`--slices` says. What has passed is not done again by the next call with the same `--out` (unless `--again`), and a
training goes on where it was stopped. What a part leaves, and summary.md, made anew after each part, lie in `--out`.
docs/gpu.md says more.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a script finds only the files beside it
NEEDED = "torch torchvision triton numpy tyro tqdm PIL matplotlib jinja2 tensorboard pytest pytest_benchmark hypothesis"


def _missing() -> list[str]:
    """What the parts import and this Python has not."""
    return [name for name in (*NEEDED.split(), "apart_fast.kernels", "apart_fast.loaders") if find_spec(name) is None]


if __name__ == "__main__" and (lacking := _missing()):  # before anything is imported that is not there
    print(
        f"error: this Python lacks {', '.join(lacking)}: run python -m pip install -e '.[dev]' in {ROOT} "
        "(without a network: --no-deps --no-build-isolation, and wheels of what is lacking)",
        file=sys.stderr,
    )
    sys.exit(2)

from benchmarks.gpu.parts import PARTS  # noqa: E402
from benchmarks.gpu.suite import Config, main  # noqa: E402

__all__ = ["PARTS", "Config", "main"]


def command() -> int:
    """Read the words and run; bad input is one line and exit code 2."""
    import tyro

    from apart_fast.cli import guarded

    codes: list[int] = []
    return guarded(lambda: codes.append(main(tyro.cli(Config, description=__doc__)))) or codes[0]


if __name__ == "__main__":
    sys.exit(command())
