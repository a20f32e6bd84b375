"""A plan: what was counted, chosen and predicted, with the flags and what is to be said of them."""

import math
import shlex
from dataclasses import dataclass, fields

from apart_fast.plan.choice import FILL, PLACES, Choice, choose, rooms
from apart_fast.plan.counting import Network
from apart_fast.plan.memory import Memory, count_memory
from apart_fast.plan.settings import PlanConfig
from apart_fast.plan.step import SERIAL, Step, count_step
from apart_fast.runs.config import TrainConfig
from apart_fast.step.methods import get_method

NETWORK_SHARE = 0.1  # of the serial part of a step, above which a larger batch is named
FEW_IMAGES = 16  # of a rank, below which BatchNorm is warned of


@dataclass(frozen=True)
class Plan:
    """All of it.

    Attributes:
        rooms: for each dtype of omega the places that have room for it.
        flags: of train.py. command: with what starts it. notes: lines to be said.
    """

    config: PlanConfig
    network: Network
    memory: Memory
    rooms: dict[str, dict[str, bool]]
    choice: Choice
    step: Step
    flags: list[str]
    command: str
    notes: list[str]

    @property
    def steps(self) -> int:
        """In an epoch."""
        return -(-self.config.images // self.config.batch_size)

    @property
    def images_per_second(self) -> float:
        """Over all ranks."""
        return self.config.batch_size / self.step.total

    @property
    def speed_up(self) -> float:
        """Over the same batch on one GPU that holds all data."""
        return self.step.alone / self.step.total


def make_plan(config: PlanConfig, network: Network) -> Plan:
    """Choose and predict.

    Args:
        config: checked.
        network: what `count_network` has counted for it; number of GPUs, batch and hardware do not matter to that.
    """
    memory = count_memory(config, network)
    choice = choose(config, memory)
    step = count_step(config, network, memory, choice)
    flags = _flags(config, choice)
    return Plan(
        config,
        network,
        memory,
        {row.dtype: rooms(config, memory, row.dtype) for row in memory.omega},
        choice,
        step,
        flags,
        _command(config, flags),
        _notes(config, network, memory, choice, step),
    )


def _flags(config: PlanConfig, choice: Choice) -> list[str]:
    """Those that differ from the defaults of train.py, and always the ones that the plan is about."""
    wanted = {
        **{name: getattr(config, name) for name in ("model", "width", "padding", "epochs", "method", "batch_size")},
        "omega_dtype": config.omega_dtype,
        "omega_device": choice.place,
        "loader": choice.loader,
    }
    if get_method(config.method).maps == 0:
        del wanted["omega_dtype"], wanted["omega_device"]
    usual = {field.name: field.default for field in fields(TrainConfig)} | {"batch_size": None, "omega_device": None}
    words = ["--device", "cpu"] if config.hardware.on_host else ["--amp"]
    for name, value in wanted.items():
        if name == "loader" and value == "ffcv":
            words.append("--ffcv")
        elif value != usual[name] or name == "omega_dtype":
            words += [f"--{name.replace('_', '-')}", str(value)]
    return words


def _command(config: PlanConfig, flags: list[str]) -> str:
    words = ["train.py", *flags]
    if config.gpus == 1:
        return shlex.join(["python", *words])
    hosts = []
    if config.hosts > 1:
        hosts = ["--nnodes", str(config.hosts), "--rdzv-backend", "c10d"]
        hosts += ["--rdzv-id", "RUN", "--rdzv-endpoint", "HOST:29500"]
    return shlex.join(["torchrun", *hosts, "--nproc-per-node", str(config.on_a_host), *words])


def _notes(config: PlanConfig, network: Network, memory: Memory, choice: Choice, step: Step) -> list[str]:
    notes, fills = [], FILL * config.hardware.memory
    if network.pointless:
        notes.append(
            f"{config.model} has no known perturbation points: name them with --points, or take --method fgsm+."
        )
    if not choice.fits and memory.weights > fills:
        notes.append("Nothing fits, not even the weights: take a narrower network, or devices with more memory.")
    elif not choice.fits:  # omega lies on disk already
        more = ["more GPUs"] * (get_method(config.method).remembers != "grey")
        notes.append(f"Nothing fits: take {', '.join([*more, 'a smaller --batch-size'])}, or a narrower network.")
    if choice.loader == "ffcv":
        notes.append("Without FFCV --loader dataloader in place of --ffcv delivers the same batches.")
    if choice.place != PLACES[0]:
        smaller = [row.dtype for row in memory.omega if rooms(config, memory, row.dtype)[PLACES[0]]]
        if smaller:
            notes.append(f"omega as {smaller[0]} would fit on the device.")
    if not choice.copies:
        notes.append("The host has no room for a copy of the state: the training waits while a checkpoint is written.")
    serial = sum(step.seconds[name] for name in SERIAL)
    share = step.seconds["network"] / serial
    if config.gpus > 1 and config.rank_batch < FEW_IMAGES:
        few = f"the {config.rank_batch} images of a rank"
        notes.append(f"BatchNorm takes its statistics over {few}; with --sync-bn over those of all ranks.")
    if share > NETWORK_SHARE:
        has = config.hardware
        an_image = network.step_flops / has.flops + network.step_traffic / has.memory_rate
        fixed = serial - step.seconds["network"] - config.rank_batch * an_image
        enough = math.ceil((step.seconds["network"] * (1 / NETWORK_SHARE - 1) - fixed) / an_image) * config.gpus
        notes.append(f"The network takes {share:.0%} of a step; from --batch-size {enough} on less than a tenth.")
    if config.batch_size % config.gpus:
        notes.append(f"--batch-size {config.batch_size} does not divide by {config.gpus}: some ranks wait for others.")
    return notes
