"""`apart-fast predict`: what a network takes pictures for."""

import contextlib
import sys

from apart_fast.device import pick_device
from apart_fast.export.pictures import read_pictures
from apart_fast.export.predicting import Attack, Prediction, predictions
from apart_fast.export.settings import PredictConfig
from apart_fast.export.stored import read_network
from apart_fast.files import to_json
from apart_fast.loaders.datasets.listing import shown
from apart_fast.units import parse_eps


def run(config: PredictConfig) -> None:
    """Print a line for each picture, or JSON.

    Raises:
        UserError: no such network, a picture that is none or does not fit, or a package that is not installed.
    """
    config.check()
    stored = read_network(config.run)
    images = read_pictures(config.pictures, stored)
    attack = None
    if config.attack is not None:
        name, steps = config.parsed
        attack = Attack(name, steps, parse_eps(config.eps), config.restarts, config.seed)
    network = stored.network(pick_device(config.device))
    with contextlib.redirect_stdout(sys.stderr):  # AutoAttack talks
        found = predictions(network, images, attack, config.batch_size)
    if config.json:
        print(to_json(_as_data(config, stored.classes, found)), end="")
        return
    for path, prediction in zip(config.pictures, found, strict=True):
        print(f"{shown(path)}: {_words(config, stored.classes, prediction)}")


def _words(config: PredictConfig, classes: list[str], prediction: Prediction) -> str:
    words = _class(classes, prediction.label, prediction.probabilities)
    if prediction.holds is None:
        return words
    if prediction.holds:
        return f"{words}, holds within {config.eps} under {config.attack}"
    after = prediction.attacked
    other = "" if after is None else f": {_class(classes, _top(after), after)}"
    return f"{words}, does not hold within {config.eps} under {config.attack}{other}"


def _class(classes: list[str], label: int, probabilities: list[float]) -> str:
    return f"{shown(classes[label])} {probabilities[label]:.1%}"


def _top(probabilities: list[float]) -> int:
    return probabilities.index(max(probabilities))


def _as_data(config: PredictConfig, classes: list[str], found: list[Prediction]) -> dict:
    pictures = []
    for path, prediction in zip(config.pictures, found, strict=True):
        one = {
            "picture": shown(path),
            "class": classes[prediction.label],
            "probability": prediction.probabilities[prediction.label],
            "probabilities": prediction.probabilities,
        }
        if prediction.holds is not None:
            one["holds"] = prediction.holds
        if (after := prediction.attacked) is not None:
            one["attacked"] = {"class": classes[_top(after)], "probability": max(after), "probabilities": after}
        pictures.append(one)
    attack = None
    if config.attack is not None:
        attack = {"name": config.attack, "eps": parse_eps(config.eps), "restarts": config.restarts, "seed": config.seed}
    return {"network": str(config.run), "classes": classes, "attack": attack, "pictures": pictures}
