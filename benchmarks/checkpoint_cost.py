"""What a checkpoint takes from the training: written in the loop, as before, and beside the steps.

    python benchmarks/checkpoint_cost.py --out benchmarks/results/checkpoint/cpu.json

PreActResNet-18 at full width, its velocities and 50,000 rows of omega in float16 (570 MB), as in `last.pt`. Two
figures: for how long the call holds up the loop, and how much longer a few steps take with a checkpoint at their start
than without (on a CPU the writing thread takes its share of the cores from them). In turns
(`apart_fast/measure/interleave.py`).
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import tyro

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # a script finds only the files beside it

from apart_fast import Apart, build_model  # noqa: E402
from apart_fast.device import keep_freed_memory  # noqa: E402
from apart_fast.files import atomic_write, expand_paths, to_json  # noqa: E402
from apart_fast.measure.interleave import interleave, spread  # noqa: E402
from apart_fast.precision import has_bfloat16  # noqa: E402
from apart_fast.runs import checkpoint  # noqa: E402
from apart_fast.runs.environment import environment  # noqa: E402
from apart_fast.step.optimizer import SGD  # noqa: E402
from apart_fast.training.saver import Saver  # noqa: E402

STEPS, IN_LOOP, BESIDE = "steps", "in the loop", "beside the steps"


@dataclass
class Config:
    """Time checkpoints that are written in the loop and beside it."""

    out: Path
    """JSON file for the figures."""
    width: float = 1.0
    """Factor on the channels."""
    examples: int = 50_000
    """Rows of omega."""
    batch: int = 16
    """Images in a step."""
    steps: int = 4
    """Steps after each checkpoint: longer than writing it takes."""
    rounds: int = 5
    """Timed rounds."""


class Training:
    """Steps of APART and an optimizer on random images, and the state that a checkpoint of them has."""

    def __init__(self, config: Config, device: str):
        amp = torch.bfloat16 if has_bfloat16(device) else None
        self._device, self._steps = device, 0
        torch.manual_seed(0)
        self.model = build_model("preact_resnet18", 10, width=config.width).to(device)
        self.apart = Apart(self.model, config.examples, (32, 32, 3), padding=4, eps=0.031, amp=amp)
        self.optimizer = SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self.images = torch.randint(0, 256, (config.batch, 32, 32, 3), dtype=torch.uint8, device=device)
        self.labels = torch.randint(0, 10, (config.batch,), device=device)
        self.rows = torch.arange(config.batch, device=device)

    def step(self) -> None:
        """One step on the same images."""
        self.optimizer.zero_grad(set_to_none=True)
        self.apart.step(self.images, self.labels, self.rows)
        self.optimizer.step()

    def state(self) -> dict:
        """What of `last.pt` has a size worth mentioning."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.velocities(),
            "apart": self.apart.state_dict(),
            "description": {},
            "dataset": "none",
        }


def main(config: Config) -> dict:
    """Measure, write and return the figures."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        keep_freed_memory()  # as a training does
    training, saver = Training(config, device), Saver()
    state = training.state
    tensors = [*training.model.state_dict().values(), *training.optimizer.velocities(), training.apart.memory.store]
    size = sum(tensor.nbytes for tensor in tensors)
    held: dict[str, list[float]] = {IN_LOOP: [], BESIDE: []}
    cost: list[float] = []

    def timed(name: str, save: Callable[[], object]) -> None:
        began = time.perf_counter()
        save()
        held[name].append(time.perf_counter() - began)

    config.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=config.out.parent) as folder:
        path = Path(folder, "last.pt")

        def steps() -> None:
            for _ in range(config.steps):
                training.step()

        def in_loop() -> None:
            timed(IN_LOOP, lambda: checkpoint.save(path, state()))
            steps()

        def beside() -> None:
            timed(BESIDE, lambda: saver.save("last", path, state))
            steps()
            saver.wait()  # written within the time of this turn
            cost.append(saver.cost("last"))

        runs = {STEPS: steps, IN_LOOP: in_loop, BESIDE: beside}
        timings = interleave(runs, rounds=config.rounds, device=device)
        saver.close()
    seconds = timings.seconds
    found = {
        "state_bytes": size,
        "settings": asdict(config),
        "held_seconds": {name: asdict(spread(values[1:])) for name, values in held.items()},  # less the warm-up
        "cost_seconds": asdict(spread(cost[1:])),  # what `Keeper` reckons with: held, and the thread's own work
        "longer_seconds": {
            name: asdict(spread([a - b for a, b in zip(seconds[name], seconds[STEPS], strict=True)]))
            for name in (IN_LOOP, BESIDE)
        },
        "steps_seconds": asdict(spread(seconds[STEPS])),
        "environment": environment(),
    }
    atomic_write(config.out, to_json(found))
    return found


if __name__ == "__main__":
    print(to_json(main(expand_paths(tyro.cli(Config, description=__doc__)))))
