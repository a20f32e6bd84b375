"""Kills, damage and bad input, by the hundred: is anything lost, does damage pass, does anything end in a traceback?

    python tests/campaign.py --seed 0 --out figures.json
    python tests/campaign.py --kills 20 --damages 10 --inputs 30          # a small one
    python tests/campaign.py --only kill-17 --keep                        # a failure again, and its folder stays

No part of the tests that pytest collects: it takes half an hour. The figures are written as JSON, whole or not at all.
With `--minutes` it stops after so long; the same command goes on.
"""

import argparse
import collections
import json
import os
import platform
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

from faults import damages, inputs, kills
from faults.running import Launcher
from faults.workshop import OK, OTHER, OUTCOMES, Failure, Result, Workshop

PACKAGES = ("torch", "torchvision", "numpy", "pillow", "ffcv", "tyro", "tensorboard", "matplotlib", "timm")


class Part(NamedTuple):
    """A part of the campaign: how many cases it has unless told, which, and how one is run in a folder of its own."""

    count: int
    cases: Callable[[int, int], Iterable[Any]]
    run: Callable[[Any, Workshop, Path], Result]


PARTS = {
    "kills": Part(200, kills.cases, kills.run),
    "damages": Part(100, damages.cases, damages.run),
    "inputs": Part(300, inputs.cases, inputs.run),
}


def main() -> int:
    """Run what is asked for; exit code 1 where anything failed."""
    args = read_words()
    begun = time.time()
    counts = {name: getattr(args, name) for name in PARTS}
    asked = {"seed": args.seed, "only": args.only, **counts}
    part_file = args.out and args.out.with_name(args.out.name + ".part")
    done: dict[str, dict] = {}
    if part_file and part_file.exists():
        kept = json.loads(part_file.read_text())
        if kept["asked"] == asked:
            done, begun = kept["done"], begun - kept["seconds"]
    folder = Path(args.work or tempfile.mkdtemp(prefix="campaign-")).resolve()
    deadline = time.monotonic() + 60 * args.minutes
    with Launcher(folder / "outputs") as launcher:
        shop = Workshop(folder, launcher, again=bool(done))
        for name, part in PARTS.items():
            for case in part.cases(args.seed, 10**4 if args.only else counts[name]):
                if case.name in done or (args.only and case.name not in args.only):
                    continue
                if time.monotonic() > deadline:
                    print(f"{len(done)} cases done: the same command goes on", flush=True)
                    return 0
                done[case.name] = {"part": name, **tried(part, case, shop, folder / "case", keep=args.keep)}
                say(case, done[case.name], args.seed)
                if part_file:
                    write(part_file, {"asked": asked, "seconds": time.time() - begun, "done": done})
                if args.only and len(done) == len(args.only):
                    break
    figures = summed_up(done, args, time.time() - begun)
    print(json.dumps(figures["outcomes"], indent=2))
    if args.out:
        write(args.out, figures)
        assert part_file
        part_file.unlink(missing_ok=True)
    if not args.work and not args.keep:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if figures["failures"] else 0


def tried(part: Part, case: Any, shop: Workshop, folder: Path, *, keep: bool) -> dict:
    """How a case ended."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.monotonic()
    try:
        result = part.run(case, shop, folder)
    except Failure as failure:
        result = Result(*failure.args)
    except Exception as error:  # of the campaign itself, or of a file that it could not read
        result = Result(OTHER, f"the campaign: {type(error).__name__}: {error}")
    if keep and result.outcome != OK:
        shutil.copytree(
            folder, folder.with_name(re.sub(r"[^\w.-]+", "_", case.name)), symlinks=True, dirs_exist_ok=True
        )
    return {"outcome": result.outcome, "detail": result.detail, "case": str(case), "counted": result.counted,
            "seconds": round(time.monotonic() - began, 2)}  # fmt: skip


def reproduce(name: str, seed: int) -> str:
    return f"python tests/campaign.py --seed {seed} --keep --only {shlex.quote(name)}"


def say(case: Any, found: dict, seed: int) -> None:
    print(f"{found['seconds']:6.1f} s  {case.name}: {found['outcome']}", flush=True)
    if found["outcome"] != OK:
        print(f"    {found['detail']}\n    {case}\n    {reproduce(case.name, seed)}", flush=True)


def summed_up(done: dict[str, dict], args: argparse.Namespace, seconds: float) -> dict:
    """The figures: outcomes of each part, what they are counted under besides, and every failure."""
    outcomes = {
        name: {"cases": len(of), **{outcome: sum(found["outcome"] == outcome for found in of) for outcome in OUTCOMES}}
        for name in PARTS
        if (of := [found for found in done.values() if found["part"] == name])
    }
    counted: dict[str, dict[str, collections.Counter]] = {name: {} for name in outcomes}
    for found in done.values():
        for key, value in found["counted"].items():
            counted[found["part"]].setdefault(key, collections.Counter())[value] += 1
    chosen = [word for name in PARTS for word in (f"--{name}", str(getattr(args, name)))]
    chosen += ["--only", *args.only] if args.only else []
    return {
        "command": shlex.join(["python", "tests/campaign.py", "--seed", str(args.seed), *chosen]),
        "seed": args.seed,
        "outcomes": outcomes,
        "counted": counted,
        "failures": [
            {"name": name, "reproduce": reproduce(name, args.seed), **found}
            for name, found in done.items()
            if found["outcome"] != OK
        ],
        "seconds": round(seconds),
        "environment": environment(),
    }


def environment() -> dict:
    found: dict[str, object] = {
        "python": platform.python_version(),
        "system": platform.system(),
        "cores": os.cpu_count(),
    }
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    from apart_fast.runs.environment import PACKAGE, commit_of

    return {**found, "commit": commit_of(PACKAGE), "date": time.strftime("%Y-%m-%dT%H:%M:%S%z")}


def write(path: Path, value: object) -> None:
    """JSON, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(aside, path)


def read_words(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn")
    for name, part in PARTS.items():
        parser.add_argument(f"--{name}", type=int, default=part.count, help=f"default {part.count}")
    parser.add_argument("--only", nargs="+", default=[], help="names of cases, as failures show them")
    parser.add_argument("--minutes", type=float, default=1e9, help="stop after so many; the same command goes on")
    parser.add_argument("--out", type=Path, help="file for the figures")
    parser.add_argument("--work", type=Path, help="folder to work in; default: a temporary one")
    parser.add_argument("--keep", action="store_true", help="the folders of failed cases stay")
    return parser.parse_args(words)


if __name__ == "__main__":
    sys.exit(main())
