"""What a network takes pictures for, and whether that holds when they are attacked."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from apart_fast.errors import UserError
from apart_fast.evaluation.attacks import is_correct, pgd, predict
from apart_fast.evaluation.autoattack import autoattack
from apart_fast.evaluation.judge import reproducible


@dataclass(frozen=True)
class Prediction:
    """Of one picture.

    Attributes:
        probabilities: softmax of the logits, in the order of the classes; `label`: the largest one's place.
        holds: whether the decision is the same for all that the attack visited; None: it was not attacked.
        attacked: of what the attack found, like `probabilities`; None: not attacked, or the attack does not say.
    """

    label: int
    probabilities: list[float]
    holds: bool | None = None
    attacked: list[float] | None = None


@dataclass(frozen=True)
class Attack:
    """How decisions are attacked.

    Attributes:
        name: fgsm, pgd or autoattack; `steps`: of pgd.
        eps: radius of the L-inf ball, a fraction of the pixel range.
    """

    name: str
    steps: int | None
    eps: float
    restarts: int
    seed: int
    batch_size: int


def predictions(network: nn.Module, images: Tensor, attack: Attack | None, batch_size: int) -> list[Prediction]:
    """What the network, in eval mode, takes images uint8 [N, H, W, C] for, and whether that holds.

    Raises:
        UserError: the logits are not finite, or pyautoattack is not installed.
    """
    device = next(network.parameters()).device
    x = images.to(device).float().div(255)
    with reproducible():
        probabilities = _probabilities(network, x, batch_size)
        labels = probabilities.argmax(1)
        if attack is None:
            return [Prediction(int(label), row) for label, row in zip(labels, probabilities.tolist(), strict=True)]
        holds, points = ATTACKS[attack.name](network, x, labels, attack)
        after = [None] * len(x) if points is None else _probabilities(network, points, batch_size).tolist()
    rows = zip(labels.tolist(), probabilities.tolist(), holds.tolist(), after, strict=True)
    return [Prediction(*row) for row in rows]


@torch.no_grad()
def _probabilities(network: nn.Module, x: Tensor, batch_size: int) -> Tensor:
    """[N, classes] on the CPU, float64, of NHWC images."""
    logits = torch.cat([predict(network, part) for part in x.split(batch_size)])
    if not logits.isfinite().all():
        raise UserError("the network gives logits that are not finite: it is damaged, use another checkpoint")
    return logits.cpu().double().softmax(1)


Attacked = tuple[Tensor, Tensor | None]  # bool [N] whether the decisions hold, and the points found [N, H, W, C]


def _search(network: nn.Module, x: Tensor, labels: Tensor, attack: Attack, **how: Any) -> Attacked:
    labels = labels.to(x.device)
    points = pgd(network, x, labels, eps=attack.eps, batch_size=attack.batch_size, **how)
    with torch.no_grad():
        parts = zip(points.split(attack.batch_size), labels.split(attack.batch_size), strict=True)
        return torch.cat([is_correct(predict(network, p), y) for p, y in parts]), points


def _fgsm(network: nn.Module, x: Tensor, labels: Tensor, attack: Attack) -> Attacked:
    return _search(network, x, labels, attack, step=attack.eps, steps=1, random_start=False)


def _pgd(network: nn.Module, x: Tensor, labels: Tensor, attack: Attack) -> Attacked:
    generator = torch.Generator().manual_seed(attack.seed)
    how = dict(step=attack.eps / 4, steps=attack.steps, restarts=attack.restarts, generator=generator)
    return _search(network, x, labels, attack, **how)


def _autoattack(network: nn.Module, x: Tensor, labels: Tensor, attack: Attack) -> Attacked:
    classes = predict(network, x[:1]).shape[1]
    settings: dict[str, Any] = dict(eps=attack.eps, batch_size=attack.batch_size, seed=attack.seed, device=x.device)
    return autoattack(network, x, labels.to(x.device), num_classes=classes, **settings), None


ATTACKS: dict[str, Callable[[nn.Module, Tensor, Tensor, Attack], Attacked]] = {
    "fgsm": _fgsm,
    "pgd": _pgd,
    "autoattack": _autoattack,
}
