"""Convolutions of small maps as products of patches beside oneDNN's, in turns: single layers, and whole APART steps.

    python benchmarks/patch_products.py --out patches.json     # needs a CPU with AMX

Batch 128, bfloat16, PreActResNet-18 at full width, not compiled. Nothing is timed before both have given the same
numbers. `speedup`: seconds of oneDNN's over seconds of the products' within a round; of layers for the forward alone,
with the gradient of the data, and with those of data and weights.
"""

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
import tyro
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # a script finds only the files beside it
from apart_fast.cli import guarded
from apart_fast.device import keep_freed_memory
from apart_fast.errors import UserError
from apart_fast.files import atomic_write, expand_paths, to_json
from apart_fast.measure.interleave import interleave
from apart_fast.models.patches import patch_conv2d
from apart_fast.runs.environment import environment
from apart_fast.step import apart
from benchmarks.steps import Setting, engine_step, make_problem

BATCH = 128
LAYERS = ((512, 512, 4, 1), (256, 512, 8, 2), (256, 256, 8, 1))  # channels in, out, pixels on a side, stride


@dataclass(frozen=True)
class Options:
    out: Path
    """JSON file to write."""
    rounds: int = 15
    """Timed rounds."""


def layer_speeds(channels: int, out: int, size: int, stride: int, rounds: int) -> dict:
    """Of one layer."""
    torch.manual_seed(0)
    layout = torch.channels_last
    x = torch.randn(BATCH, channels, size, size).bfloat16().contiguous(memory_format=layout).requires_grad_()
    weight = torch.randn(out, channels, 3, 3).mul(0.02).bfloat16().contiguous(memory_format=layout).requires_grad_()
    gradient = torch.ones_like(F.conv2d(x, weight, None, stride, 1))
    ways: dict[str, Callable] = {
        "oneDNN": lambda x, w: F.conv2d(x, w, None, stride, 1),
        "products": lambda x, w: patch_conv2d(x, w, None, (stride, stride), (1, 1)),
    }
    parts: dict[str, Callable] = {
        "forward": lambda way: way(x.detach(), weight.detach()),
        "with data": lambda way: torch.autograd.grad(way(x, weight.detach()), x, gradient),
        "with both": lambda way: torch.autograd.grad(way(x, weight), (x, weight), gradient),
    }
    found = {}
    for name, part in parts.items():
        results = [part(way) for way in ways.values()]
        for theirs, mine in zip(*(r if isinstance(r, tuple) else (r,) for r in results), strict=True):
            gap = (mine.float() - theirs.float()).norm() / theirs.float().norm()
            assert gap < 1e-3, f"{name}: relative difference {gap:.1g}"
        timings = interleave({n: partial(part, way) for n, way in ways.items()}, rounds=rounds, calls=3)
        found[name] = {
            "milliseconds": {n: 1e3 * timings.median(n) for n in ways},
            "speedup": asdict(timings.ratio("oneDNN", "products")),
        }
    return found


def step_speeds(rounds: int) -> dict:
    """Of a whole APART step without the update of the weights."""
    problem = make_problem(Setting(batch=BATCH, examples=4 * BATCH))
    steps = {"products": engine_step(problem, "apart")}
    multiply, apart.multiply_patches = apart.multiply_patches, lambda *_: []
    try:
        steps["oneDNN"] = engine_step(problem, "apart")
    finally:
        apart.multiply_patches = multiply
    timings = interleave(steps, rounds=rounds, warm_up=2)
    return {
        "seconds": {n: timings.median(n) for n in steps},
        "speedup": asdict(timings.ratio("oneDNN", "products")),
        "rounds": timings.seconds,
    }


def main(options: Options) -> None:
    """Measure and write."""
    if not torch.cpu._is_amx_tile_supported():
        raise UserError("this CPU has no AMX: there patches are not multiplied")
    keep_freed_memory()  # as in training
    found: dict = {"layers": {}, "step": step_speeds(options.rounds)}
    for channels, out, size, stride in LAYERS:
        name = f"{channels} to {out} channels, {size} x {size} pixels, stride {stride}"
        found["layers"][name] = layer_speeds(channels, out, size, stride, options.rounds)
        print(name, {part: speeds["speedup"] for part, speeds in found["layers"][name].items()})
    print("step", found["step"]["speedup"])
    atomic_write(options.out, to_json({"options": asdict(options), "environment": environment(), **found}))


if __name__ == "__main__":
    sys.exit(guarded(lambda: main(expand_paths(tyro.cli(Options, description=__doc__)))))
