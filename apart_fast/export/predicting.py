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


def predictions(network: nn.Module, images: Tensor, attack: Attack | None, batch_size: int) -> list[Prediction]:
    """What the network, in eval mode, takes images uint8 [N, H, W, C] for, and whether that holds.

    Raises:
        UserError: the logits are not finite, or pyautoattack is not installed.
    """
    device = next(network.parameters()).device
    noise = torch.Generator().manual_seed(0 if attack is None else attack.seed)  # goes on from batch to batch
    found: list[Prediction] = []
    with reproducible():
        for part in images.split(batch_size):
            x = part.to(device).float().div(255)
            probabilities = _probabilities(network, x)
            labels = probabilities.argmax(1)
            holds, after = [None] * len(x), [None] * len(x)
            if attack is not None:
                held, points = ATTACKS[attack.name](network, x, labels.to(device), attack, noise)
                holds = held.tolist()
                after = after if points is None else _probabilities(network, points).tolist()
            rows = zip(labels.tolist(), probabilities.tolist(), holds, after, strict=True)
            found += [Prediction(*row) for row in rows]
    return found


@torch.no_grad()
def _probabilities(network: nn.Module, x: Tensor) -> Tensor:
    """[N, classes] on the CPU, float64, of NHWC images."""
    logits = predict(network, x)
    if not logits.isfinite().all():
        raise UserError("the network gives logits that are not finite: it is damaged, use another checkpoint")
    return logits.cpu().double().softmax(1)


Attacked = tuple[Tensor, Tensor | None]  # bool [N] whether the decisions hold, and the points found [N, H, W, C]


def _search(network: nn.Module, x: Tensor, labels: Tensor, eps: float, **how: Any) -> Attacked:
    points = pgd(network, x, labels, eps=eps, **how)
    with torch.no_grad():
        return is_correct(predict(network, points), labels), points


def _fgsm(network: nn.Module, x: Tensor, labels: Tensor, attack: Attack, noise: torch.Generator) -> Attacked:
    return _search(network, x, labels, attack.eps, step=attack.eps, steps=1, random_start=False)


def _pgd(network: nn.Module, x: Tensor, labels: Tensor, attack: Attack, noise: torch.Generator) -> Attacked:
    how = dict(step=attack.eps / 4, steps=attack.steps, restarts=attack.restarts, generator=noise)
    return _search(network, x, labels, attack.eps, **how)


def _autoattack(network: nn.Module, x: Tensor, labels: Tensor, attack: Attack, noise: torch.Generator) -> Attacked:
    with torch.no_grad():
        classes = predict(network, x[:1]).shape[1]
    how: dict[str, Any] = dict(num_classes=classes, batch_size=len(x), seed=attack.seed, device=x.device)
    return autoattack(network, x, labels, eps=attack.eps, **how), None


ATTACKS: dict[str, Callable[[nn.Module, Tensor, Tensor, Attack, torch.Generator], Attacked]] = {
    "fgsm": _fgsm,
    "pgd": _pgd,
    "autoattack": _autoattack,
}
