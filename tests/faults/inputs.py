"""Bad input, several hundred kinds: one line, exit code 2, nothing written, in reasonable time."""

import random
import re
from collections.abc import Iterator
from pathlib import Path

from faults.bad import calls, files, flags, folders
from faults.bad.site import BEGUN, EITHER, WARNED, Input, Site
from faults.contents import half_written, leftovers, snapshot, written
from faults.running import Ended
from faults.workshop import ENDLESS, HALF, OTHER, TRACEBACK, UNNOTICED, Failure, Result, Workshop, expect

LIMIT = 40.0  # seconds
SHARES = {  # of a campaign; the families of `Input`
    **{"flags of train": 70, "flags of evaluate": 30, "flags of analyze": 15, "flags together": 40, "paths": 60},
    **{"entries of config.json": 25, "entries of summary.json": 15, "entries of card.json": 6, "metrics": 10},
    **{"entries of environment.json": 3, "entries of evaluation.json": 6, "entries of last.pt": 60, "whole files": 20},
    **{"kinds of files": 16, "links in a run": 8, "pictures": 33, "folders": 26, "caches": 11, "known sets": 24},
    **{"calls": 80, "calls of evaluate": 25},
}
LENGTH = re.compile(r"\b(second|minute|hour|day|week|month|year)s?\b|\d\s*(s|min|h)\b")


def everything() -> list[Input]:
    return [case for module in (flags, files, folders, calls) for case in module.inputs()]


def cases(seed: int, count: int) -> Iterator[Input]:
    """`count` of all inputs, of each family its share; which, the seed decides. A larger campaign begins as a smaller
    one."""
    families: dict[str, list[Input]] = {}
    for case in everything():
        families.setdefault(case.family, []).append(case)
    placed = []
    for name, members in families.items():
        random.Random(f"{seed} {name}").shuffle(members)
        placed += [((i + 0.5) / SHARES[name], case.name, case) for i, case in enumerate(members)]
    placed.sort(key=lambda item: item[:2])
    yield from (case for _, _, case in placed[:count])


def run(case: Input, shop: Workshop, folder: Path) -> Result:
    site = Site(folder / "site", shop)
    program, *words = case.make(site)
    before = snapshot(site.folder)
    ended = shop.launcher.run(str(program), words, site.folder, limit=8.0 if case.must == WARNED else LIMIT)
    _check(case, ended, site.folder, before)
    if ended.code == 0 and (wrong := case.taken(site)) is not None:
        raise Failure(UNNOTICED, f"{wrong}: {ended.tail()}")
    return Result("ok", counted={"family": case.family, "said": "refused" if ended.code else "taken"})


def _check(case: Input, ended: Ended, folder: Path, before: dict[str, str]) -> None:
    say = ended.tail()
    if case.must == WARNED and ended.late:
        expect(LENGTH.search(ended.err + ended.out), ENDLESS, f"no word of how long it takes: {say}")
        return
    expect(not ended.late, ENDLESS, say)
    expect(not ended.traceback, TRACEBACK, say)
    expect(not ended.left, OTHER, f"{ended.left} processes left: {say}")
    expect(not (left := leftovers(folder)), HALF, f"left: {left[:3]}: {say}")
    after = snapshot(folder)
    for name, kind in before.items():  # neither data nor what is no file is replaced
        if not kind.startswith("100") and ".apart_fast" not in Path(name).parts:
            expect(after.get(name) == kind, HALF, f"{name} was replaced: {say}")
    for path in folder.rglob("*") if case.secret else ():
        if path.is_file() and not path.is_symlink() and path.relative_to(folder).as_posix() not in before:
            expect(case.secret.encode() not in path.read_bytes(), OTHER, f"{path.name} holds what no page may hold")
    expect("SPRUNG" not in after, OTHER, f"a pickle ran: {say}")
    if ended.code == 0:
        expect(case.must in (EITHER, BEGUN), OTHER, f"taken: {say}")
        expect(not (half := half_written(folder)) or half_before(before, half), HALF, f"{half}: {say}")
        return
    expect(ended.code == 2, OTHER, f"not exit code 2: {say}")
    errors = [line for line in ended.lines if line.startswith("error: ")]
    parser = ended.lines and ended.lines[0].startswith("╭")  # the parser of the command line draws a box
    expect(parser or (len(errors) == 1 and ended.lines[-1] == errors[0]), OTHER, f"not one line: {say}")
    expect(parser or len(errors[0]) < 2000, OTHER, f"a line of {len(ended.lines[-1])} letters: {say[:300]}")
    expect(parser or errors[0].isprintable(), OTHER, f"a line that cannot be printed: {errors[:1]!r}")
    changed = written(before, after)
    expect(not changed or case.must == BEGUN, HALF, f"refused, but wrote {changed[:3]}: {say}")


def half_before(before: dict[str, str], name: str) -> bool:
    """Whether a file of this name was there before: the bad input itself."""
    return any(Path(path).name == name for path in before)
