"""A network as it is stored: what it is, its weights, what its classes are called, and its card."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

import torch
from torch import Tensor, nn

from apart_fast.errors import UserError
from apart_fast.export.figures import given_away, public_name
from apart_fast.export.find import find_network
from apart_fast.export.formats import FORMATS, check_installed
from apart_fast.files import expanded
from apart_fast.loaders.datasets.reading import Reading, reading_of
from apart_fast.loaders.datasets.table import KNOWN
from apart_fast.models import build_model
from apart_fast.runs import checkpoint
from apart_fast.runs.checkpoint import Damaged
from apart_fast.runs.folder import RunFolder
from apart_fast.runs.json_files import Object, parse, read_if_there, reading, short
from apart_fast.runs.judged import digest, fitting
from apart_fast.runs.states import EXPORTED, Count, Description, unsound


class About(TypedDict):
    """What an exported file says of its network."""

    format: Literal[1]
    description: Description
    classes: list[str]
    dataset: str
    method: NotRequired[str | None]
    epoch: Count
    weights: str
    reading: NotRequired[Reading | None]
    digest: str
    license: NotRequired[str]
    card: dict[str, Any]


@dataclass(frozen=True)
class Stored:
    """A network, read.

    Attributes:
        file: where it was read from.
        description: arguments of `build_model`.
        weights: tensors by the names of the architecture's own state_dict.
        classes: names, in the order of the logits.
        dataset: name of the data set that it was trained on.
        method: name of the training method, if it is known.
        epoch: after which the weights were kept.
        what: which weights these are, in words: "best weights", "averaged weights", ...
        reading: how the pictures were read that it was trained on.
        card: the model card; empty where the run has not written one.
    """

    file: Path
    description: dict[str, Any]
    weights: dict[str, Tensor]
    classes: list[str]
    dataset: str
    method: str | None
    epoch: int
    what: str
    reading: Reading
    card: dict[str, Any]

    def plain(self) -> nn.Module:
        """The network as a module of its own in eval mode, float32 on the CPU, weights in torch's plain layout.

        Raises:
            UserError: the weights are not those of the architecture, or of another dtype.
        """
        with torch.random.fork_rng(devices=[]):  # weights are drawn, and replaced
            model = build_model(**self.description).to(memory_format=torch.contiguous_format)
        checkpoint.load_model(model, self.weights, self.file)
        return model.eval()

    def network(self, device: torch.device) -> nn.Module:
        """The network in eval mode on `device`, as `evaluate` judges it; it takes pixels of any layout.

        Raises:
            UserError: see `plain`.
        """
        with torch.random.fork_rng(devices=[]):
            state = {"description": self.description, "model": self.weights}
            return checkpoint.load_network(state, device, name=self.file)

    def about(self, licence: str) -> str:
        """JSON of what an exported file says of it (`About`); `licence`: of the weights."""
        about: About = {
            "format": 1,
            "description": self.description,  # type: ignore[typeddict-item]
            "classes": self.classes,
            "dataset": self.public_dataset,
            "method": self.method,
            "epoch": self.epoch,
            "weights": self.what,
            "reading": asdict(self.reading),  # type: ignore[typeddict-item]
            "digest": digest(self.weights),
            "license": licence,
            "card": self.public_card,
        }
        return json.dumps(about)

    @property
    def title(self) -> str:
        """What it is, in a few words."""
        return f"{self.description['name']}, {self.method or 'trained'} on {self.public_dataset}"

    @property
    def public_dataset(self) -> str:
        """The name of its data set, without the folders in which that lies."""
        return public_name(self.dataset)

    @property
    def public_card(self) -> dict[str, Any]:
        """The card with its own figures alone, and without machines, commands and paths of who made it."""
        return given_away(self.card, self.file.name)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of the pictures that it takes."""
        height, width = self.description["image_size"]
        return height, width, self.description["in_channels"]


def read_network(path: Path) -> Stored:
    """The network in the folder of a run, in a checkpoint, or in an exported safetensors file or folder.

    Raises:
        UserError: nothing there, damaged, not of this program, in half precision or quantised, or safetensors is not
            installed.
    """
    file = find_network(path)
    if file.suffix == ".safetensors":
        return _exported(file)
    return _of_run(file, in_folder=expanded(path).is_dir())


def _of_run(file: Path, in_folder: bool) -> Stored:
    folder = RunFolder(file.parent)
    if in_folder and file in (folder.last, folder.previous):  # a damaged last.pt has one before it
        state, file = checkpoint.load_last(folder)
        assert state is not None
    else:
        state = checkpoint.load(file)
    description = dict(state["description"])
    description["image_size"] = tuple(description["image_size"])
    weights = dict(checkpoint.weights_of(state))
    card = _card(file, weights, state["dataset"])
    return Stored(
        file,
        description,
        weights,
        list(state.get("classes") or _names(state["dataset"], description["num_classes"])),
        state["dataset"],
        state.get("method"),
        state["epoch"],
        _what(file.name, state, card),
        reading_of(state),
        card,
    )


def _what(name: str, state: dict[str, Any], card: dict[str, Any]) -> str:
    """Which weights these are, in words."""
    training = card.get("training")
    ema = training.get("ema") if isinstance(training, dict) else None
    best = "best " if name == "best.pt" else ""
    averaged = state.get("average") or state.get("averaged", best and ema)  # older files do not say
    return f"{best}averaged weights" if averaged else f"{best}weights"


def _names(dataset: str, count: int) -> list[str]:
    """Of the classes of a checkpoint that does not say them."""
    known = KNOWN[dataset].names if dataset in KNOWN else ()
    return list(known) if len(known) == count else [str(label) for label in range(count)]


def _card(file: Path, weights: dict[str, Tensor], dataset: str) -> dict[str, Any]:
    """card.json beside the file; empty where there is none, or it is of another file. With evaluation.json, or what the
    card has of it, if that is of these weights and this data set."""
    advice = "make it again, or remove it"
    card: dict[str, Any] = read_if_there(file.parent / "card.json", Object, advice) or {}
    model = card.get("model")
    known = model.get("files") if isinstance(model, dict) else None
    if isinstance(known, dict) and file.name in known:
        with reading(file), open(file, "rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != known[file.name]:
                return {}  # the run went on since
    evaluation = card.get("evaluation")
    if isinstance(evaluation, dict):
        further = fitting(RunFolder(file.parent), [weights], dataset, evaluation.get("further"), of=file.name)
        return {**card, "evaluation": {**evaluation, "further": further}}
    return card


def _exported(file: Path) -> Stored:
    check_installed(FORMATS["safetensors"])
    from safetensors import SafetensorError, safe_open

    advice = "export it again"
    try:
        with reading(file), safe_open(file, framework="pt") as opened:
            said = (opened.metadata() or {}).get(EXPORTED)
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  (it is no dictionary)
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise Damaged(f"{file} is damaged or no safetensors file ({short(ValueError(error))}): {advice}") from error
    if said is None:
        raise UserError(f"{file} does not say what network it is: name one that apart-fast export has written")
    try:
        about = parse(said.encode(), About)
    except ValueError as error:
        raise Damaged(f"{file} is damaged or of another version ({short(error)}): {advice}") from error
    description = {**about["description"], "image_size": tuple(about["description"]["image_size"])}
    if (wrong := unsound(weights)) is not None:
        raise Damaged(f"{file} is damaged ({wrong}): {advice}")
    if len(about["classes"]) != description["num_classes"]:
        names = f"{len(about['classes'])} names for {description['num_classes']} classes"
        raise Damaged(f"{file} is damaged ({names}): {advice}")
    if digest(weights) != about["digest"]:
        raise Damaged(f"{file} is damaged, or its weights were changed: {advice}")
    return Stored(
        file,
        description,
        weights,
        about["classes"],
        about["dataset"],
        about.get("method"),
        about["epoch"],
        about["weights"],
        reading_of(about),
        about["card"],
    )
