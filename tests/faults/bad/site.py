"""Where a bad input is tried: a folder of its own, with what the input needs in it."""

import json
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from faults.workshop import FLAGS, Workshop

REFUSED, EITHER, BEGUN, WARNED = "refused", "either", "begun", "warned"
SHORT = "--epochs 1 --cycle 1 --val-every 1 --no-test --method fgsm".split()
Words = Sequence[object]


class Site:
    """The folder in which a command is started; what belongs to the case lies in it, and nothing else is looked at."""

    def __init__(self, folder: Path, shop: Workshop):
        self.folder, self.shop = folder, shop
        folder.mkdir()

    @property
    def data(self) -> Path:
        """Images that no case alters."""
        return self.shop.data("small")

    def pictures(self) -> Path:
        """The images, for a case that alters them; nothing is derived from them yet."""
        target = self.folder / "data"
        if not target.exists():
            shutil.copytree(self.data, target, ignore=shutil.ignore_patterns(".apart_fast"))
        return target

    def finished(self, name: str = "run") -> Path:
        """A finished run, judged once more."""
        return self._copy(self.shop.judged, name)

    def stopped(self, name: str = "run") -> Path:
        """A run that was stopped after three epochs."""
        return self._copy(self.shop.stopped, name)

    def _copy(self, run: Path, name: str) -> Path:
        target = self.folder / name
        shutil.copytree(run, target, copy_function=_copied)
        config = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps({**config, "out": str(target)}))
        return target

    def file(self, name: str, content: bytes | str) -> Path:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def train(self, *words: object, data: Path | None = None, out: object = "new") -> Words:
        """Of a training of a second, on good data unless told."""
        return ["train.py", *FLAGS, *SHORT, "--data-dir", data or self.data, "--out", out, *words]

    def judge(self, *words: object, file: object = None, data: Path | None = None) -> Words:
        file = self.finished() / "best.pt" if file is None else file
        base = ["--data-dir", data or self.data, "--device", "cpu", "--attacks", "clean", "--no-progress"]
        return ["apart-fast", "evaluate", file, *base, *words]

    def analyse(self, what: str, *words: object, run: object = None, data: Path | None = None) -> Words:
        run = self.finished() if run is None else run
        base = ["--data-dir", data or self.data, "--device", "cpu", "--images", "4", "--out", "analysis"]
        further = ["--reference", run] if what == "collapse" and "--reference" not in words else []
        return ["apart-fast", "analyze", what, run, *base, *further, *words]


def _copied(source: str, target: str) -> None:
    """Checkpoints as links: who alters one puts another file in its place."""
    if source.endswith(".pt"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


@dataclass(frozen=True)
class Input:
    """One bad input.

    Attributes:
        family: what it stands among; a small campaign takes some of each.
        make: prepares the folder and says the words.
        must: REFUSED: a line and exit code 2; EITHER: that or success; BEGUN: so too, and
            what the command has begun may stay; WARNED: that, or a line that says how long.
        secret: text that nothing which is written may hold.
        taken: looks at what was made of it where it was not refused; says what is wrong, or None.
    """

    name: str
    family: str
    make: Callable[[Site], Words]
    must: str = REFUSED
    secret: str = ""
    taken: Callable[[Site], str | None] = lambda site: None

    def __str__(self) -> str:
        return f"{self.name} ({self.family}; {self.must})"


def loop(path: Path) -> Path:
    """A symbolic link to itself."""
    os.symlink(path.name, path)
    return path


def pipe(path: Path) -> Path:
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def device(path: Path) -> Path:
    """Another /dev/null."""
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    return path
