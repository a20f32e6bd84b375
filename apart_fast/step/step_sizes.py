"""alpha, alpha_omega and alpha_b: the learned step sizes, and the ascent that learns them (APART step 6)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from apart_fast.step.optimizer import SGD

START = 1e-4  # of alpha and alpha_omega in the released run; alpha_b start at 0


class StepSizes:
    """`v <- mu v - dL/dalpha + lambda alpha; alpha <- alpha - eta v`, without the host knowing a number.

    Args:
        points: number of block points.
        learned: whether alpha and alpha_omega are; else everything is 0 and stays so.
        eta: learning rate; decay: lambda, the weight decay.

    Attributes:
        values: [2 + points] on the device: alpha, alpha_omega, and alpha_b of each block point.
        optimizer: what updates them.
        waits: `update` leaves the gradients in `values.grad`, for a `step` later.
    """

    def __init__(
        self,
        points: int,
        *,
        learned: bool,
        eta: float,
        decay: float,
        dtype: torch.dtype,
        device: torch.device,
    ):
        self.values = torch.zeros(2 + points, dtype=dtype, device=device)
        if learned:
            self.values[:2] = START
        self.optimizer = SGD([self.values], lr=eta, momentum=0.9, weight_decay=decay, maximize=True)
        self.waits = False

    @property
    def alpha(self) -> Tensor:
        """Step size at the input, 0-dim view."""
        return self.values[0]

    @property
    def alpha_omega(self) -> Tensor:
        """Size of the remembered start, 0-dim view."""
        return self.values[1]

    @property
    def blocks(self) -> Tensor:
        """Step sizes of the block points, [points], a view."""
        return self.values[2:]

    def tensors(self) -> dict[str, Tensor]:
        """All that a later step depends on."""
        (group,) = self.optimizer.param_groups
        (velocity,) = self.optimizer.velocities()
        return {"step_sizes": self.values, "velocity": velocity, "eta": group["lr"], "momentum": group["momentum"]}

    def update(self, grads: Tensor, scaler: torch.amp.GradScaler | None) -> None:
        """Ascend along `grads` [2 + points], the gradients of the loss, times the scale of `scaler` if there is one."""
        self.values.grad = grads
        if not self.waits:
            self.step(scaler)

    def step(self, scaler: torch.amp.GradScaler | None) -> None:
        """Ascend along the gradients that are in `values.grad`."""
        if scaler is None:
            self.optimizer.step()
        else:
            scaler.step(self.optimizer)


class StepSizesAtHand:
    """What can be read and set of the step sizes of an object that has them as `sizes`."""

    sizes: StepSizes

    @property
    def step_sizes(self) -> Tensor:
        """alpha, alpha_omega and the alpha_b of the block points, [2 + points], on the device."""
        return self.sizes.values

    @property
    def alpha(self) -> Tensor:
        """Step size at the input, 0-dim view on the device; assign a number or use `fill_`."""
        return self.step_sizes[0]

    @alpha.setter
    def alpha(self, value: float | Tensor) -> None:
        self.step_sizes[0] = value

    @property
    def alpha_omega(self) -> Tensor:
        """Size of the remembered start, 0-dim view on the device."""
        return self.step_sizes[1]

    @alpha_omega.setter
    def alpha_omega(self, value: float | Tensor) -> None:
        self.step_sizes[1] = value

    @property
    def alpha_blocks(self) -> Tensor:
        """Step sizes of the block points, [number of points], a view on the device."""
        return self.step_sizes[2:]

    @alpha_blocks.setter
    def alpha_blocks(self, value: Sequence[float] | Tensor) -> None:
        self.step_sizes[2:] = torch.as_tensor(value, dtype=self.step_sizes.dtype)

    def set_rates(self, eta: float | None = None, momentum: float | None = None) -> None:
        """Learning rate and momentum of the step sizes for the next steps (a schedule calls it)."""
        self.sizes.optimizer.set(eta, momentum)
