"""The figures of one network in a card, and a card that may be given away."""

import re
from pathlib import Path
from typing import Any, NamedTuple

from apart_fast.evaluation.caution import mark
from apart_fast.runs.json_files import Evaluation, Judged
from apart_fast.runs.schema import misfit
from apart_fast.units import eps_words

_PRIVATE = {"environment", "checkpoint", "files"}  # machines, commands and paths of who made it
_NAMES = {"best.pt": "best", "last.pt": "last"}  # file -> its entry among the figures of a card


class Figure(NamedTuple):
    """Accuracy under an attack, its 95 % interval, the number of images, eps, random starts of PGD for each image, and
    words where it is no measure."""

    attack: str
    accuracy: float
    low: float
    high: float
    n: int
    eps: float
    restarts: int
    caution: str

    @property
    def words(self) -> str:
        """What the accuracy is of, in words: "clean", "pgd-20 at 8/255", "pgd-50 at 8/255, 10 restarts"."""
        if self.attack == "clean":
            return self.attack
        starts = f", {self.restarts} restarts" if self.restarts > 1 else ""
        return f"{self.attack} at {eps_words(self.eps)}{starts}"


def public_name(dataset: str) -> str:
    """The name of a data set, without the folders in which it lies: hf:/home/me/birds is hf:birds."""
    source, colon, address = dataset.partition(":")
    if not colon or re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?(:[\w.-]+)?", address):  # a name on the hub
        return dataset
    return f"{source}:{Path(address).name}"


def given_away(card: dict[str, Any], file: str) -> dict[str, Any]:
    """A card for one network alone: its own figures, and nothing that says where and by whom it was made.

    Args:
        file: name of the checkpoint.
    """
    evaluation = card.get("evaluation")
    if file in _NAMES or file.endswith(".pt"):  # else it was given away before
        evaluation = dict(evaluation) if isinstance(evaluation, dict) else {}
        test = evaluation.get("test")  # the further ones are of these weights (see `fitting`), whatever file had them
        name = _NAMES.get(file, "")
        evaluation["test"] = {name: test[name]} if isinstance(test, dict) and name in test else {}
    training = card.get("training")
    if isinstance(training, dict) and isinstance(training.get("dataset"), str):
        training = {**training, "dataset": public_name(training["dataset"])}
    return _public({**card, "training": training, "evaluation": evaluation}) if card else {}


def _public(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _public(inner) for key, inner in value.items() if key not in _PRIVATE}
    return [_public(inner) for inner in value] if isinstance(value, list) else value


def figures(card: dict[str, Any]) -> list[Figure]:
    """The figures in a card that `given_away` has made; of two of the same kind the one on more images."""
    evaluation = card.get("evaluation")
    if not isinstance(evaluation, dict):
        return []
    test = evaluation.get("test")
    found: dict[str, Figure] = {}
    for judged, kind in (*((one, Judged) for one in (test.values() if isinstance(test, dict) else ())),
                         (evaluation.get("further"), Evaluation)):  # fmt: skip
        if isinstance(judged, dict) and misfit(judged, kind) is None and "eps" in judged:
            for figure in _of(judged):
                if figure.words not in found or figure.n >= found[figure.words].n:
                    found[figure.words] = figure
    return list(found.values())


def _of(judged: dict[str, Any]) -> list[Figure]:
    made = []
    for attack, result in judged.get("attacks", {}).items():
        accuracy, low, high = (result.get(name) for name in ("accuracy", "low", "high"))
        if accuracy is not None and low is not None and high is not None and "n" in result:
            starts = judged.get("restarts", 1) if attack.startswith("pgd") else 1  # the others have none
            made.append(Figure(attack, accuracy, low, high, result["n"], judged["eps"], starts, mark(result)))
    return made
