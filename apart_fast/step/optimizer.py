"""SGD whose learning rate and momentum are device scalars, so that a schedule needs no host sync and no new graph."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim.sgd import sgd


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
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay, maximize=maximize))
        for group in self.param_groups:
            like = group["params"][0]
            for name in ("lr", "momentum"):
                group[name] = torch.tensor(float(group[name]), dtype=like.dtype, device=like.device)
            for p in group["params"]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p, memory_format=torch.preserve_format)

    def set(self, lr: float | None = None, momentum: float | None = None) -> None:
        """Write learning rate and momentum into the device scalars of every group."""
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
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            grads = [p.grad for p in params]
            velocities = [self.state[p]["momentum_buffer"] for p in params]
            sign = -1.0 if group["maximize"] else 1.0
            # the fused update takes tensors for flat memory
            alike = all(
                p.stride() == g.stride() == v.stride() for p, g, v in zip(params, grads, velocities, strict=True)
            )
            if found_inf is None and alike and params[0].device.type == "cpu":
                _update_fused(params, grads, velocities, group)
                continue
            if found_inf is None:
                _update(params, grads, velocities, group, sign)
                continue
            if scale is not None:
                grads = list(torch._foreach_mul(grads, (1 / scale).to(grads[0].dtype)))
            before = [t.clone() for t in (*params, *velocities)]
            _update(params, grads, velocities, group, sign)
            overflow = found_inf.bool()
            for old, new in zip(before, (*params, *velocities), strict=True):
                torch.where(overflow, old, new, out=new)


def _update(params: list[Tensor], grads: list[Tensor], velocities: list[Tensor], group: dict, sign: float) -> None:
    torch._foreach_mul_(velocities, group["momentum"])
    torch._foreach_add_(velocities, grads, alpha=sign)
    if group["weight_decay"]:
        torch._foreach_add_(velocities, params, alpha=group["weight_decay"])
    torch._foreach_sub_(params, torch._foreach_mul(velocities, group["lr"]))


def _update_fused(params: list[Tensor], grads: list[Tensor], velocities: list[Tensor], group: dict) -> None:
    """`_update` in one pass over memory; reading the scalars costs nothing on the CPU."""
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
