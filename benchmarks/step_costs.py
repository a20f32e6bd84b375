"""What a training step of each method costs: timed in turns in one process, and kept in cost.json.

cost.json: `steps`, name -> `seconds` (median), `over_reference` (ratio to the step of PGD-10 with its quartiles),
`settings`, `rounds` and the `environment` of the process that timed it.
"""

import functools
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, NotRequired, TypedDict

import torch

from apart_fast import Apart, build_model
from apart_fast.device import pick_device
from apart_fast.files import atomic_write, to_json
from apart_fast.kernels import Crops
from apart_fast.loaders import Batch, Dataset, load_dataset
from apart_fast.measure.interleave import interleave
from apart_fast.parallel.world import World
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.environment import environment
from apart_fast.runs.json_files import read_if_there
from apart_fast.step.optimizer import SGD
from apart_fast.training.execution import GraphedStep
from apart_fast.training.run import machine
from apart_fast.training.setup import AMP_DTYPES
from apart_fast.units import usual_padding
from benchmarks.sweep import REFERENCE, Sweep

FILE = "cost.json"
PLACE = ("device", "cores", "threads", "torch")  # of an environment: where a time was taken


class Cost(TypedDict):
    """Of a step."""

    seconds: float
    over_reference: dict[str, float] | None
    settings: NotRequired[dict[str, Any]]
    rounds: NotRequired[int]
    environment: NotRequired[dict[str, Any]]


class Costs(TypedDict):
    """cost.json."""

    steps: dict[str, Cost]
    environment: NotRequired[dict[str, Any]]  # in those of earlier versions that of all


def measure_costs(sweep: Sweep, names: tuple[str, ...], rounds: int) -> dict[str, Cost]:
    """Time a training step (with the update of the weights) of each in turns, with that of PGD-10; cost.json in `out`.

    Those of others that are there stay.
    """
    assert sweep.out is not None
    there = _there(sweep)  # a damaged file is told before anything is timed
    configs = {name: sweep.wanted(name, 0) for name in dict.fromkeys((*names, REFERENCE))}
    first = next(iter(configs.values()))
    data = load_dataset(first.dataset, sweep.data_dir)
    with machine(first, World()) as device:  # as in training
        timings = interleave(
            {name: _step(made, data, device) for name, made in configs.items()},
            rounds=rounds,
            warm_up=5 if device.type == "cuda" else 1,
            calls=5 if device.type == "cuda" else 1,  # in a row: the launch of the first one counts less
            device=str(device),
        )
        here = environment()
        rows: dict[str, Cost] = {
            name: {
                "seconds": timings.median(name),
                "over_reference": asdict(timings.ratio(name, REFERENCE)),
                "settings": _timed_settings(made, device),
                "rounds": rounds,
                "environment": here,
            }
            for name, made in configs.items()
        }
    atomic_write(sweep.out / FILE, to_json({"steps": there | rows}))
    return {name: rows[name] for name in names}


def costs(sweep: Sweep, names: tuple[str, ...]) -> dict[str, Cost]:
    """What `measure_costs` has left in `out`, as far as it was timed with the settings of now."""
    there, device = _there(sweep), pick_device(sweep.device)
    asked = [name for name in names if name in there]
    same = [name for name in asked if there[name].get("settings") == _timed_settings(sweep.wanted(name, 0), device)]
    if other := [name for name in asked if name not in same]:
        print(f"note: {sweep.out}/{FILE} is of other settings for {', '.join(other)}: not used")
    return {name: there[name] for name in same}


def where(found: dict[str, Cost]) -> str:
    """Devices, versions and dates of these times."""
    places = [cost.get("environment", {}) for cost in found.values()]
    said = [f"{e.get('device')}, torch {e.get('torch')}, {str(e.get('date'))[:10]}" for e in places]
    return "; ".join(dict.fromkeys(said)) or "none"


def together(found: dict[str, Cost]) -> bool:
    """Whether all were timed in turns in one process."""
    places = [cost.get("environment", {}) for cost in found.values()]
    return all(place == places[0] for place in places)


def taken_here(found: dict[str, Cost], rounds: int, threads: int | None = None) -> bool:
    """Whether all were timed in turns in one process on a machine like this one, in as many rounds.

    Args:
        threads: of torch in a run; None: as torch chooses here.
    """
    here = environment() | ({} if threads is None else {"threads": threads})
    return together(found) and all(
        cost.get("rounds", 0) >= rounds and all(cost.get("environment", {}).get(name) == here[name] for name in PLACE)
        for cost in found.values()
    )


def _there(sweep: Sweep) -> dict[str, Cost]:
    assert sweep.out is not None
    file = read_if_there(sweep.out / FILE, Costs, "remove it, and the steps are timed again")
    if file is None:
        return {}
    return {name: {"environment": file.get("environment", {}), **cost} for name, cost in file["steps"].items()}


def _timed_settings(made: TrainConfig, device: torch.device) -> dict:
    """What a step's time depends on, in JSON's types."""
    names = ("method", "dataset", "model", "width", "batch_size", "amp", "amp_dtype", "threads")
    return {name: getattr(made, name) for name in names} | {"device": str(device)}


def _step(made: TrainConfig, data: Dataset, device: torch.device) -> Callable[[], None]:
    n, shape = made.batch_size, tuple(data.train.images.shape[1:])
    h, w, c = shape
    model = build_model(made.model, len(data.classes), in_channels=c, image_size=(h, w), width=made.width)
    model.to(device, memory_format=torch.channels_last)
    amp = AMP_DTYPES[made.amp_dtype] if made.amp else None
    settings = dict(padding=usual_padding(h, w), eps=made.eps, method=made.method, amp=amp)
    apart = Apart(model, 4 * n, shape, label_smoothing=made.label_smoothing, **settings)
    apart.start_epoch(0, epochs=made.epochs)
    optimizer = SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=made.weight_decay)
    generator = torch.Generator().manual_seed(0)
    offsets = torch.randint(0, 2 * apart.padding + 1, (n, 2), generator=generator).to(device)
    rows = torch.arange(n, device=device)
    crops = Crops(rows, rows, offsets, torch.zeros(n, dtype=torch.bool, device=device))
    batch = Batch(data.train.images[:n].to(device), data.train.labels[:n].to(device), crops)

    def advance(b: Batch) -> None:
        optimizer.zero_grad(set_to_none=True)
        apart.step_crops(b.images, b.labels, b.crops)
        optimizer.step()

    on_gpu = device.type == "cuda"
    return functools.partial(GraphedStep(advance, n, [apart.generator]) if on_gpu else advance, batch)
