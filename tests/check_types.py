"""mypy over the package as it is installed: `python tests/check_types.py [arguments of mypy]`.

`kernels` and `loaders` are parts of `apart_fast` by setup.py alone, which mypy does not read: it is shown a folder of
links in which all lies where a wheel has it. Its settings are those of pyproject.toml.
"""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHOWN = ROOT / "build" / "types"  # always the same, or mypy's cache would be of no use
PARTS = ("kernels", "loaders")


def lay_out() -> None:
    """Links to every module and folder of the package, under `SHOWN`."""
    package = SHOWN / "apart_fast"
    package.mkdir(parents=True, exist_ok=True)
    for old in package.iterdir():
        old.unlink()
    for path in [*(ROOT / "apart_fast").iterdir(), *(ROOT / part for part in PARTS)]:
        if path.name != "__pycache__":
            (package / path.name).symlink_to(path)


def main(words: list[str]) -> int:
    """Exit code of mypy; what it says names the files of the checkout."""
    lay_out()
    settings = ["--config-file", ROOT / "pyproject.toml", "--cache-dir", ROOT / ".mypy_cache"]
    command = [sys.executable, "-m", "mypy", *settings, *words, "-p", "apart_fast"]
    done = subprocess.run(list(map(str, command)), cwd=SHOWN, stdout=subprocess.PIPE, text=True)
    print(re.sub(rf"^apart_fast/({'|'.join(PARTS)})/", r"\1/", done.stdout, flags=re.M), end="")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
