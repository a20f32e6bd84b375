"""SGD whose learning rate and momentum are device scalars, so that a schedule needs no host sync and no new graph."""

import sys
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from apart_fast.errors import UserError
from apart_fast.kernels.update import Tables, launched, update
from apart_fast.units import BOUNDS, Bounds, check_number

_FINITE = Bounds(0, sys.float_info.max)
_NUMBERS = {"lr": _FINITE, "momentum": BOUNDS["momentum"], "weight_decay": _FINITE}


class SGD(torch.optim.Optimizer):
    """SGD with momentum and coupled weight decay: `v <- mu v + g + wd p; p <- p - lr v` (as `torch.optim.SGD`).

    `torch.optim.SGD` bakes the momentum into a CUDA graph as a number; here `lr` and `momentum` of a group are
    0-dim tensors on the parameters' device: set them with `set(lr=..., momentum=...)`.

    Args:
        params: parameters, or groups of them.
        lr: first learning rate.
        momentum: first momentum.
        weight_decay: added to the gradient as `weight_decay * p`.
        maximize: ascend: `v <- mu v - g + wd p` (APART step 6 for the step sizes).

    Attributes:
        averaged: whether the last step has moved the averages too (see `average`).

    Raises:
        UserError: a number that is negative or not finite, a momentum above 1, a group without parameters, or one
            whose parameters differ in dtype or device.
    """

    _step_supports_amp_scaling = True  # GradScaler hands over grad_scale and found_inf instead of waiting for them

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict],
        lr: float = 0.0,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
    ):
        self._averages: dict[Tensor, Tensor] = {}
        self._rate: Tensor | None = None
        self._tables: dict[int, Tables] = {}  # by number of the group
        self.averaged = False
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, maximize=maximize))
        for number, group in enumerate(self.param_groups):
            _check_group(number, group)
            like = group["params"][0]
            for name in ("lr", "momentum"):
                group[name] = torch.tensor(float(group[name]), dtype=like.dtype, device=like.device)
            for p in group["params"]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        # torch copies and pickles an optimizer without attributes of its own
        for name, value in (("_averages", {}), ("_rate", None), ("_tables", {}), ("averaged", False)):
            vars(self).setdefault(name, value)

    def set(self, lr: float | None = None, momentum: float | None = None) -> None:
        """Write learning rate and momentum into the device scalars of every group.

        Raises:
            UserError: a Python number that is negative or not finite, or a momentum above 1; nothing is written.
        """
        for name, value in (("lr", lr), ("momentum", momentum)):
            if value is not None and not isinstance(value, Tensor):  # reading a tensor would wait for the device
                check_number(name, value, _NUMBERS[name])
        for group in self.param_groups:
            for name, value in (("lr", lr), ("momentum", momentum)):
                if value is not None:
                    group[name].fill_(value)

    def velocities(self) -> list[Tensor]:
        """The momentum buffers in the order of the parameters: all the state there is besides the schedule."""
        return [self.state[p]["momentum_buffer"] for group in self.param_groups for p in group["params"]]

    def load_velocities(self, velocities: list[Tensor]) -> None:
        """Copy saved momentum buffers in; ValueError when number or shapes differ, and then none is copied."""
        pairs = list(zip(self.velocities(), velocities, strict=True))
        for mine, saved in pairs:
            if mine.shape != saved.shape:
                raise ValueError(f"momentum buffer of shape {tuple(saved.shape)}, expected {tuple(mine.shape)}")
        for mine, saved in pairs:
            mine.copy_(saved)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update from `p.grad`; a parameter without gradient is left alone.

        With `grad_scale` / `found_inf` set by `torch.amp.GradScaler`, gradients are divided by the scale, and an
        overflow leaves everything as it was, without the host knowing.
        """
        if closure is not None:
            raise ValueError("SGD takes no closure")
        scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        self.averaged = self._moves_averages()
        for number, group in enumerate(self.param_groups):
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params]
            velocities = [self.state[p]["momentum_buffer"] for p in params]
            # the fused update takes tensors for flat memory
            alike = all(
                p.stride() == g.stride() == v.stride() for p, g, v in zip(params, grads, velocities, strict=True)
            )
            if found_inf is None and alike and params[0].device.type == "cpu":
                _update_fused(params, grads, velocities, group)
                continue
            update(
                params,
                grads,
                velocities,
                [self._averages[p] for p in params] if self.averaged else None,
                lr=group["lr"],
                momentum=group["momentum"],
                weight_decay=group["weight_decay"],
                maximize=group["maximize"],
                scale=scale,
                found_inf=found_inf,
                rate=self._rate,
                tables=self._tables.setdefault(number, Tables()),
            )

    def average(self, averages: Mapping[Tensor, Tensor], rate: Tensor) -> None:
        """Let steps on a GPU move averages too, `average <- average + rate (p - average)`, while the weights are read.

        Whether a step did is in `averaged`: where it did not (on a CPU; a parameter without gradient), it is left to
        the caller.

        Args:
            averages: the average of each parameter.
            rate: 0-dim, on the device.
        """
        self._averages, self._rate = dict(averages), rate

    def _moves_averages(self) -> bool:
        mine = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        return bool(mine) and self._averages.keys() == set(mine) and launched(mine)


def _check_group(number: int, group: dict) -> None:
    for name, bounds in _NUMBERS.items():
        value = group[name]
        check_number(f"{name} of the optimizer", float(value) if isinstance(value, Tensor) else value, bounds)
    params = group["params"]
    if not params:
        raise UserError(f"group {number} of the optimizer has no parameters: leave it out")
    if len({(p.dtype, p.device) for p in params}) > 1:
        raise UserError(f"parameters of group {number} differ in dtype or device: make a group of each kind")


def _update_fused(params: list[Tensor], grads: list[Tensor], velocities: list[Tensor], group: dict) -> None:
    """`update` in one pass over memory; reading the scalars costs nothing on the CPU."""
    sgd(
        params,
        grads,
        [*velocities],  # a list of its own type: sgd's may hold None
        fused=True,
        lr=group["lr"].item(),
        momentum=group["momentum"].item(),
        weight_decay=group["weight_decay"],
        dampening=0.0,
        nesterov=False,
        maximize=group["maximize"],
    )
