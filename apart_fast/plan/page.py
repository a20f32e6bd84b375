"""A plan as a page for people and as data."""

import textwrap
from dataclasses import asdict, fields
from typing import Any

from apart_fast.check.page import columns, page_width
from apart_fast.plan.hardware import Hardware
from apart_fast.plan.make import Plan
from apart_fast.plan.memory import CHECKPOINTS
from apart_fast.plan.step import Step
from apart_fast.report.text import duration, scaled
from apart_fast.step.methods import get_method

PREDICTION = "A prediction: counted, and divided by assumed figures of the hardware. Nothing here was measured."

Row = tuple[str, str, str]


def page(plan: Plan) -> str:
    """Aligned text."""
    sections = {
        "Assumed of the hardware": _assumed(plan),
        "The network": _network(plan),
        "omega": _omega(plan),
        "Where it lies": _places(plan),
        "A step of the rank with most images": _step(plan),
        "Predicted": _predicted(plan),
    }
    lines = [*textwrap.wrap(PREDICTION, page_width()), "", *columns(sections), "Flags", f"  {plan.command}"]
    for note in plan.notes:
        lines += textwrap.wrap(note, page_width(), initial_indent="  ", subsequent_indent="  ")
    return "\n".join(lines)


def as_data(plan: Plan) -> dict[str, Any]:
    """The same for programs; bytes, operations, seconds."""
    found = asdict(plan)
    settings = found.pop("config")
    overridden = {field.name for field in fields(Hardware)}
    return {
        "prediction": PREDICTION,
        "settings": {name: value for name, value in settings.items() if name not in {*overridden, "json"}},
        "hosts": plan.config.hosts,
        "ranks_on_a_host": plan.config.on_a_host,
        "rank_batch": plan.config.rank_batch,
        "hardware": asdict(plan.config.hardware),
        **found,
        "steps_in_an_epoch": plan.steps,
        "images_per_second": plan.images_per_second,
        "epoch_seconds": plan.steps * plan.step.total,
        "training_seconds": plan.steps * plan.step.total * plan.config.epochs,
        "speed_up": plan.speed_up,
        "bound": plan.step.bound,
    }


def _assumed(plan: Plan) -> list[Row]:
    config, has = plan.config, plan.config.hardware
    units = {"flops": "FLOP/s", "memory": "B", "host_memory": "B"}
    rows = []
    for name, value in vars(has).items():
        mine = "given" if getattr(config, name) is not None else config.device_kind
        text = "none: the device is the host" if name == "pcie" and has.on_host else mine
        rows.append((f"--{name.replace('_', '-')}", scaled(value, units.get(name, "B/s")), text))
    return rows


def _network(plan: Plan) -> list[Row]:
    config, network, method = plan.config, plan.network, get_method(plan.config.method)
    size = f"{config.image_size}x{config.image_size}x{config.channels}"
    return [
        (config.model, f"{network.parameters / 1e6:.2f} M", f"parameters, width {config.width:g}, images of {size}"),
        ("a forward (F)", scaled(network.forward_flops, "FLOP"), "of an image; a multiply-add is two"),
        (f"a step of {method.name}", scaled(network.step_flops, "FLOP"), f"of an image: {method.passes} F"),
    ]


def _omega(plan: Plan) -> list[Row]:
    if not plan.memory.omega:
        return [("none", "0 B", f"{get_method(plan.config.method).name} remembers nothing of each example")]
    rows = []
    for row in plan.memory.omega:
        places = [place for place, room in plan.rooms[row.dtype].items() if room]
        text = f"a rank; {_size(row.host)} a host, {_size(row.all)} in all; room: {', '.join(places) or 'nowhere'}"
        if not plan.config.hardware.on_host:
            text += f"; {_size(row.step)} each way on PCIe in a step unless on the device"
        rows.append((row.dtype, _size(row.rank), text))
    return rows


def _places(plan: Plan) -> list[Row]:
    config, memory, choice = plan.config, plan.memory, plan.choice
    held = [f"weights, gradients, momentum {_size(memory.weights)}", f"activations {_size(memory.activations)}"]
    if memory.omega and choice.place == "device":
        held.append(f"omega {_size(memory.of(config.omega_dtype).rank)}")
    if choice.loader == "resident":
        held.append(f"images {_size(memory.rank_images)}")
    cached = "fit into it" if choice.cached else "do not fit into it: they are read again in each epoch"
    on_host = "omega of its ranks" if choice.place == "host" else "of the training itself"
    rows = [
        ("device", _size(choice.device), ", ".join(held)),
        ("host", _size(choice.host), on_host),
        ("", _size(choice.copy), "at most: the copies of its ranks while a checkpoint is written"),
    ]
    if choice.loader != "resident":
        rows.append(("", _size(memory.host_images), f"images that its ranks read: they {cached}"))
    rows += [
        ("disk, data", _size(memory.image_map), "decoded images, one mapped file"),
        ("", _size(memory.beton), "FFCV's file, with --ffcv"),
        ("disk, run", _size(memory.checkpoint), f"a checkpoint; {CHECKPOINTS} while the last is being written"),
    ]
    if choice.place == "disk":
        rows.append(("", _size(memory.of(config.omega_dtype).host), "omega of a host's ranks"))
    return rows


def _step(plan: Plan) -> list[Row]:
    step, has, config = plan.step, plan.config.hardware, plan.config
    sent = f"{_size(step.network)} sent in an all-reduce over {config.gpus} ranks"
    within = "on one host" if config.hosts == 1 else f"over {config.hosts} hosts"
    texts = {
        "compute": f"{scaled(step.flops, 'FLOP')}: {config.rank_batch} images",
        "memory": f"{_size(step.memory)} of all else that is read and written",
        "network": f"{sent}, {within} {scaled(step.network_rate, 'B/s')}" if config.gpus > 1 else "one rank",
        "PCIe": f"{_size(step.pcie_in)} in, {_size(step.pcie_out)} out, each way {scaled(has.pcie, 'B/s')}",
        "loader": f"{_size(step.loader)} of images",
        "disk": f"{_size(step.disk)} of a host",
    }
    if has.on_host:
        texts["PCIe"] = "none: the device is the host"
    return [(name, _time(step.seconds[name]), text) for name, text in texts.items()]


def _predicted(plan: Plan) -> list[Row]:
    step, config = plan.step, plan.config
    epoch = plan.steps * step.total
    all_epochs = f"{config.epochs} epochs {duration(epoch * config.epochs)}, without judging"
    rows = [
        ("bound", step.bound, _how(step)),
        ("a step", _time(step.total), f"{plan.images_per_second:,.0f} images/s over all ranks"),
        ("an epoch", duration(epoch), f"{plan.steps} steps; {all_epochs}"),
    ]
    if config.gpus > 1:
        text = f"over one that holds all data, at the same --batch-size: {plan.speed_up / config.gpus:.0%} of linear"
        rows.append((f"{config.gpus} GPUs", f"{plan.speed_up:.1f} times", text))
    return rows


def _how(step: Step) -> str:
    return f"{step.seconds[step.bound] / step.total:.0%} of a step"


def _size(count: float) -> str:
    return scaled(count, "B")


def _time(seconds: float) -> str:
    for unit in ("s", "ms"):
        if seconds >= 1:
            return f"{seconds:.3g} {unit}"
        seconds *= 1000
    return f"{seconds:.3g} us" if seconds else "0"
