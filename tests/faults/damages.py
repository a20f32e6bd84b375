"""Files with flipped, lost or added bytes: noticed in a line, replaced with a line, or provably of the same content."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from faults.contents import difference, leftovers, rows, snapshot, written
from faults.running import Ended
from faults.workshop import (
    ENDLESS,
    HALF,
    OTHER,
    TRACEBACK,
    UNNOTICED,
    WRONG,
    Result,
    Workshop,
    expect,
    last_report,
)

Random = random.Random
WAYS: dict[str, Callable[[bytearray, Random], None]] = {}  # of damage, in place


def way(function: Callable[[bytearray, Random], None]) -> Callable[[bytearray, Random], None]:
    WAYS[function.__name__.replace("_", " ")] = function
    return function


@way
def one_bit(data: bytearray, r: Random) -> None:
    data[r.randrange(len(data))] ^= 1 << r.randrange(8)


@way
def one_bit_at_an_end(data: bytearray, r: Random) -> None:
    """In the zip's first header and pickle, or in its directory."""
    place = r.randrange(min(4096, len(data)))
    data[place if r.random() < 0.5 else -1 - place] ^= 1 << r.randrange(8)


@way
def some_bytes(data: bytearray, r: Random) -> None:
    for _ in range(r.randint(2, 20)):
        data[r.randrange(len(data))] = r.randrange(256)


@way
def a_lost_page(data: bytearray, r: Random) -> None:
    """A block that the disk has not written."""
    begin = r.randrange(len(data)) // 4096 * 4096
    data[begin : begin + 4096] = bytes(len(data[begin : begin + 4096]))


@way
def cut(data: bytearray, r: Random) -> None:
    del data[r.randrange(len(data)) :]


@way
def cut_shortly_before_the_end(data: bytearray, r: Random) -> None:
    del data[-r.randint(1, 64) :]


@way
def empty(data: bytearray, r: Random) -> None:
    data.clear()


@way
def bytes_added(data: bytearray, r: Random) -> None:
    data += r.randbytes(r.randint(1, 5000))


@way
def pages_exchanged(data: bytearray, r: Random) -> None:
    pages = max(len(data) // 4096, 1)
    one, other = (4096 * r.randrange(pages) for _ in range(2))
    data[one : one + 4096], data[other : other + 4096] = data[other : other + 4096], data[one : one + 4096]


WEIGHTS = {"one bit": 30, "one bit at an end": 10, "some bytes": 10, "a lost page": 10, "cut": 10,
           "cut shortly before the end": 5, "empty": 2, "bytes added": 3, "pages exchanged": 5}  # fmt: skip
TARGETS = {  # what is damaged and what then reads it
    "last.pt, resumed": 30,
    "last.pt, judged": 8,
    "best.pt, judged": 22,
    "best.pt, resumed": 8,
    "best.pt, analysed": 4,
    "kept weights, analysed": 8,
    "decoded images": 9,
    "note of the images": 2,
    "beton": 7,
    "note of the beton": 3,
}
DERIVED = {  # from the data, by the name of the target
    "decoded images": "images-*[!n]",
    "note of the images": "images-*.json",
    "beton": "*.beton",
    "note of the beton": "*.beton.json",
}


@dataclass(frozen=True)
class Damage:
    """One case, drawn from the seed and its number alone."""

    name: str
    target: str
    way: str
    random: str


def cases(seed: int, count: int) -> Iterator[Damage]:
    for number in range(count):
        r = random.Random(f"{seed} damage {number}")
        target = r.choices(list(TARGETS), list(TARGETS.values()))[0]
        kind = r.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        yield Damage(f"damage-{number}", target, kind, f"{seed} damage {number} bytes")


def run(case: Damage, shop: Workshop, folder: Path) -> Result:
    target, _, reader = case.target.partition(", ")
    counted = {"target": case.target, "way": case.way}
    if target in DERIVED:
        said = _derived(case, target, shop, folder)
    elif reader == "resumed":
        said = _resumed(case, target, shop, folder)
    else:
        said = _read(case, target, reader, shop, folder)
    return Result("ok", counted={**counted, "said": said})


def damage(case: Damage, file: Path) -> Path:
    """Damage `file`; returns a copy of it as it was."""
    before = file.with_name(f"before-{file.name}")
    data = bytearray(file.read_bytes())
    before.write_bytes(data)
    shutil.move(before, before.parent.parent / before.name)  # beside the run, not in it
    r = random.Random(case.random)
    WAYS[case.way](data, r)
    file.write_bytes(data)
    return before.parent.parent / before.name


def refused(ended: Ended, folder: Path, before: dict[str, str]) -> bool:
    """Whether it ended with a line and nothing else; Failure for other ends than that and success."""
    say = ended.tail()
    expect(not ended.late, ENDLESS, say)
    expect(not ended.traceback, TRACEBACK, say)
    expect(ended.code in (0, 2), OTHER, say)
    if ended.code == 0:
        return False
    errors = [line for line in ended.lines if line.startswith("error: ")]
    expect(len(errors) == 1 and ended.lines[-1] == errors[0], OTHER, f"not one line: {say}")
    changed = written(before, snapshot(folder))
    expect(not changed, HALF, f"refused, but altered {changed[:3]}: {say}")
    return True


def mentioned(ended: Ended) -> bool:
    """Whether something was said about damage, or about an older file in its place."""
    text = (ended.out + ended.err).lower()
    return any(word in text for word in ("damaged", "does not fit", "checksum", "the one before", "older", "earlier"))


def _resumed(case: Damage, target: str, shop: Workshop, folder: Path) -> str:
    out = folder / "run"
    shutil.copytree(shop.stopped, out)
    _own(out)
    unbroken = shop.unbroken("plain")
    before = damage(case, out / target)
    there = snapshot(out)
    same = difference(shop.digest(before), shop.digest(out / target)) is None
    ended = shop.launcher.run("train.py", ["--resume", out], folder)
    if refused(ended, out, there):
        return "refused in a line"
    for name in ("last", "best"):
        differs = difference(getattr(unbroken, name), shop.digest(out / f"{name}.pt"))
        expect(differs is None, WRONG, f"{name}.pt: {differs}: {ended.tail()}")
    epochs = [row["epoch"] for row in rows(out / "metrics.jsonl")]
    expect(epochs == [row["epoch"] for row in unbroken.rows], WRONG, f"rows of the epochs {epochs}")
    expect(not (left := leftovers(out)), HALF, f"left at the end: {left[:3]}")
    if mentioned(ended):
        return "said, and the same bits"
    if target == "best.pt" and not same:  # replaced before it was read: it was checked above
        return "replaced, the same bits"
    expect(same, UNNOTICED, f"{target} has other content, and nothing was said: {ended.tail()}")
    return "the same content"


def _own(out: Path) -> None:
    """A copied run knows its own folder."""
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps({**config, "out": str(out)}))


def _read(case: Damage, target: str, reader: str, shop: Workshop, folder: Path) -> str:
    """What judges or analyses a checkpoint."""
    out = folder / "run"
    shutil.copytree(shop.judged, out)
    (out / "evaluation.json").unlink()
    file = out / target if target.endswith(".pt") else sorted(out.glob("weights/*.pt"))[0]
    before = damage(case, file)
    there = snapshot(folder)
    same = difference(shop.digest(before), shop.digest(file)) is None
    if reader == "judged":
        ended = shop.evaluate(file)
    else:
        data = ["--data-dir", shop.data("small"), "--device", "cpu", "--images", "8", "--out", folder / "analysis"]
        words = {
            "kept weights": ["analyze", "curves", out, "--judge"],
            "best.pt": ["analyze", "perturbations", out, "--epochs", "4", "--reference", shop.unbroken("disk").folder],
        }[target]
        if target == "best.pt":  # of the reference, which has kept no weights
            shutil.copytree(shop.unbroken("disk").folder, folder / "reference")
            shutil.copy(file, folder / "reference" / "best.pt")
            words[-1] = folder / "reference"
            there = snapshot(folder)
        ended = shop.launcher.run("apart-fast", [*words, *data], folder)
    if refused(ended, folder, there):
        return "refused in a line"
    expect(same, UNNOTICED, f"{target} has other content, and was used: {ended.tail()}")
    if reader == "judged" and target == "best.pt":
        expect(last_report(out) == last_report(shop.judged), WRONG, "other figures than of the file as it was")
    return "the same content"


def _derived(case: Damage, target: str, shop: Workshop, folder: Path) -> str:
    """Files that the program keeps beside the data."""
    kind, name = ("ffcv", "many") if "beton" in target else ("plain", "small")
    unbroken, data = shop.unbroken(kind), folder / "data"
    shutil.copytree(shop.data(name), data, copy_function=os.link, ignore=shutil.ignore_patterns(".apart_fast"))
    shutil.copytree(shop.data(name) / ".apart_fast", data / ".apart_fast")
    file = sorted((data / ".apart_fast").glob(DERIVED[target]))[0]
    kept = hashlib.sha256(file.read_bytes()).hexdigest()
    damage(case, file)
    same = hashlib.sha256(file.read_bytes()).hexdigest() == kept
    there, out = snapshot(folder), folder / "run"
    ended = shop.launcher.run("train.py", shop.words(kind, data, out), folder)
    if refused(ended, folder, there):
        return "refused in a line"
    differs = difference(unbroken.last, shop.digest(out / "last.pt"))
    expect(differs is None, WRONG, f"last.pt: {differs}: {ended.tail()}")
    expect(not (left := leftovers(out, data)), HALF, f"left at the end: {left[:3]}")
    return "the same content" if same else "said, and the same bits" if mentioned(ended) else "made anew, the same bits"
