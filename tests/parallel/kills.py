"""SIGKILL of a random rank at random moments, and `--resume auto` on as many ranks, on fewer and on more.

    python tests/parallel/kills.py --kills 20 --out benchmarks/results/campaign/ranks.json

Not a part of the suite: it takes some 20 minutes on two cores. Of each kill it is seen that the other ranks end, leave
no process and nothing half-written, that the run then goes on to its end, and on two ranks to the bits of a run that
nobody killed.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from starting import same

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from apart_fast.files import atomic_write, to_json  # noqa: E402
from apart_fast.runs import shards  # noqa: E402
from apart_fast.runs.environment import environment  # noqa: E402
from tests.conftest import draw_folder  # noqa: E402

# wider than in other tests: oneDNN of torch 2.14 now and then breaks memory with 4 channels (tests/conftest.py)
FLAGS = """--dataset folder --width 0.25 --batch-size 12 --val-images 12 --probe-images 6 --epochs 8 --lr 0.05
    --device cpu --no-progress --checkpoint-every 1 --resume auto""".split()
PATIENCE = 300.0  # seconds, until something counts as without end


def launch(ranks: int, images: Path, out: Path) -> subprocess.Popen:
    """torchrun in a session of its own, so that its processes can be counted."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks), "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", str(ROOT / "train.py"), *FLAGS]
    command += ["--data-dir", str(images), "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)


def processes(out: Path) -> list[int]:
    """Of the ranks of a run, but torchrun itself."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(out).encode() in words and b"torch.distributed.run" not in words:
            found.append(int(folder.name))
    return found


def end_of(run: subprocess.Popen) -> tuple[int | None, str]:
    """(exit code, None when it had no end; what it said on stderr)."""
    try:
        said = run.communicate(timeout=PATIENCE)[1]
        return run.returncode, said
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        return None, run.communicate()[1]


def bits(out: Path) -> list:
    """All tensors of the last checkpoint, those of the ranks too."""
    state = torch.load(out / "last.pt")
    parts = [shards.read_rank(out, state["ranks"], rank) for rank in range(state["ranks"]["size"])]
    return [state["model"], state["optimizer"], state["apart"], state["totals"], parts]


def faults(out: Path, whole: list | None) -> list[str]:
    """What is wrong with a run that has ended."""
    found = [f"left {path.relative_to(out)}" for path in out.rglob("*") if ".tmp" in path.name]
    epochs = [json.loads(line)["epoch"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    if epochs != list(range(1, 9)):
        found.append(f"epochs {epochs}")
    if whole is not None and not same(whole, bits(out)):
        found.append("other bits")
    if not (out / "report.html").is_file():
        found.append("no report")
    return found


def kill(number: int, seed: int, seconds: float, images: Path, work: Path, whole: list) -> dict:
    """One case: `seconds` is how long a whole run takes."""
    chance = random.Random(seed * 1000 + number)
    out, goes_on = work / f"run-{number}", (2, 1, 3)[number % 3]
    run, began, wrong = launch(2, images, out), time.monotonic(), []
    at = chance.uniform(0.2, 1.05) * seconds
    while time.monotonic() - began < at and run.poll() is None:
        time.sleep(0.02)
    ranks = sorted(processes(out))
    victim = chance.choice(ranks) if ranks else None
    if victim is not None:
        os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    code, said = end_of(run)
    case = {"kill": number, "after": round(at, 2), "killed": victim is not None, "code": code}
    case |= {"others_ended_after": round(time.monotonic() - killed, 1), "goes_on_with": goes_on}
    case["lines"] = [line for line in said.splitlines() if line.startswith("error: ")]
    time.sleep(0.2)
    if processes(out):
        wrong.append(f"left processes {processes(out)}")
    if code is None:
        wrong.append("without end")
    code, said = end_of(launch(goes_on, images, out))
    if code != 0:
        wrong.append(f"resumed on {goes_on}: exit code {code}: {said[-500:]}")
    else:
        wrong += faults(out, whole if goes_on == 2 else None)
    shutil.rmtree(out, ignore_errors=True)
    return case | {"wrong": wrong}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        images = draw_folder(work / "images", train=123, test=24)
        began = time.monotonic()
        code, said = end_of(launch(2, images, work / "whole"))
        assert code == 0, said
        seconds, whole, cases = time.monotonic() - began, bits(work / "whole"), []
        for number in range(wanted.kills):
            case = kill(number, wanted.seed, seconds, images, work, whole)
            cases.append(case)
            print(json.dumps(case), flush=True)
    wrong = [case for case in cases if case["wrong"]]
    print(f"{len(cases)} kills, {sum(case['killed'] for case in cases)} of a running rank, {len(wrong)} with faults")
    if wanted.out is not None:
        found = {"command": f"python tests/parallel/kills.py --kills {wanted.kills} --seed {wanted.seed}"}
        atomic_write(wanted.out, to_json(found | {"cases": cases, "wrong": len(wrong), "environment": environment()}))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
