"""A compiled training step beside the eager one: seconds to compile, and seconds a step, in turns.

    python benchmarks/compile_speed.py --out compile.json                  # PreActResNet-18, width 0.25, batch 128
    python benchmarks/compile_speed.py --out compile.json --width 1 --device cuda

Nothing is timed before both have given the same losses. `speedup`: seconds eager over seconds compiled within a round.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path

import torch
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script finds only the files beside it
from apart_fast import Apart
from apart_fast.device import pick_device
from apart_fast.files import atomic_write, expand_paths, to_json
from apart_fast.loaders import Batch
from apart_fast.measure.interleave import interleave
from apart_fast.runs.environment import environment
from apart_fast.step.optimizer import SGD
from apart_fast.training.execution import PLAIN_STEPS, CompiledStep, GraphedStep
from benchmarks.steps import EPS, PADDING, C, H, Problem, Setting, W, make_problem

TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}  # of the losses, relative: low precision turns some signs


@dataclass(frozen=True)
class Options:
    out: Path
    """JSON file to write."""
    width: float = 0.25
    """Factor on the channels of PreActResNet-18."""
    batch: int = 128
    """Images in a step."""
    rounds: int = 7
    """Timed rounds, of one step of each."""
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    """What is timed."""
    device: str | None = None
    """cuda, cpu, ... None: a GPU if there is one."""


def make_step(problem: Problem, compiled: bool) -> tuple[Callable[[], object], list[torch.Tensor]]:
    """A step with the update of the weights, on a GPU as a CUDA graph, and the list that takes the loss of the last."""
    setting, model = problem.setting, problem.model()
    apart = Apart(model, setting.examples, (H, W, C), padding=PADDING, eps=EPS, amp=setting.amp)
    optimizer = SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=2e-4)
    loss: list[torch.Tensor] = [torch.empty(0)]

    def device_step(batch: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss[0] = apart.step_crops(batch.images, batch.labels, batch.crops).loss
        optimizer.step()

    step: Callable[[Batch], None] = device_step
    if setting.device.startswith("cuda"):
        step = GraphedStep(device_step, setting.batch, [apart.generator])
    if compiled:
        step = made = CompiledStep(step, apart, setting.batch)
        assert made.fault is None, made.fault
    turn = cycle(problem.batches)
    return lambda: step(next(turn)), loss


def measure(setting: Setting, precision: str, rounds: int) -> dict:
    """Compile time and step times of one precision; AssertionError where the losses differ."""
    problem = make_problem(setting)
    steps = {name: make_step(problem, name == "compiled") for name in ("eager", "compiled")}
    began = 0.0
    for _ in range(PLAIN_STEPS + 1):
        for step, _ in steps.values():
            began = time.perf_counter()
            step()
    seconds = time.perf_counter() - began  # of the step that compiled
    eager, compiled = (float(loss[0]) for _, loss in steps.values())
    assert abs(compiled / eager - 1) < TOLERANCE[precision], f"losses differ: {eager}, {compiled}"
    timings = interleave(
        {name: step for name, (step, _) in steps.items()}, rounds=rounds, warm_up=4, device=setting.device
    )
    return {
        "loss": {"eager": eager, "compiled": compiled},
        "compile_seconds": seconds,
        "step_seconds": {name: timings.median(name) for name in steps},
        "speedup": asdict(timings.ratio("eager", "compiled")),
        "rounds": timings.seconds,
    }


def main(options: Options) -> None:
    """Measure and write."""
    device = pick_device(options.device)
    found = {}
    for precision in options.precisions:
        amp = None if precision == "float32" else getattr(torch, precision)
        setting = Setting(options.batch, options.width, str(device), amp)
        with tempfile.TemporaryDirectory() as cache:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # what an earlier run compiled is not used
            found[precision] = measure(setting, precision, options.rounds)
        print(setting, {name: found[precision][name] for name in ("compile_seconds", "step_seconds", "speedup")})
    report = {"options": asdict(options), "environment": environment(), "found": found}
    atomic_write(options.out, to_json(report))


if __name__ == "__main__":
    main(expand_paths(tyro.cli(Options, description=__doc__)))
