"""One whole adversarial training step, from raw images to weight gradients, for every method of the family.

The way of the data is `Apart.step`: start -> (pass 1 -> move) x steps -> pass 2 -> remember.
"""

import hashlib
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apart_fast import kernels
from apart_fast.errors import UserError
from apart_fast.kernels.codec import encode
from apart_fast.models.channels_last import any_layout
from apart_fast.models.default_points import default_points
from apart_fast.models.modes import frozen
from apart_fast.models.stem import keep_stem_precise
from apart_fast.step.checks import check_inside
from apart_fast.step.methods import Method, get_method
from apart_fast.step.optimizer import SGD
from apart_fast.step.points import BlockPoints
from apart_fast.step.staging import make_memory
from apart_fast.units import parse_eps

STEP_SIZE_START = 1e-4  # alpha and alpha_omega of the released run; alpha_b start at 0


@dataclass(frozen=True)
class StepResult:
    """What a step leaves, as 0-dim tensors on the device (reading one waits for the device).

    loss: mean cross-entropy under the training perturbation (pass 2).
    start_loss: mean cross-entropy at the start of the perturbation (first pass 1); equals `loss` for `standard`.
    correct: number of images classified rightly under the training perturbation.
    """

    loss: Tensor
    start_loss: Tensor
    correct: Tensor


@dataclass(frozen=True)
class Placement:
    """Where a batch lies: rows of `images`, rows of the memory's store, crop offsets and flips."""

    images: Tensor
    rows: Tensor
    indices: Tensor | None
    offsets: Tensor
    flips: Tensor


class Apart:
    """Adversarial training steps for any model in anyone's loop (arXiv 2010.08034).

    ```
    apart = Apart(model, num_examples=50_000, image_shape=(32, 32, 3), padding=4, eps="8/255")
    for images, labels, indices in loader:  # uint8 [B, H, W, C], int64 [B], int64 [B]
        optimizer.zero_grad()
        result = apart.step(images, labels, indices)  # weight gradients, step sizes, omega
        optimizer.step()
    ```

    Args:
        model: in training mode, on its device; pixels in [0, 1] enter it as float [B, C, H, W], channels-last.
        num_examples: size of the training set (of this rank's share of it): the memory has a row for each.
        image_shape: (H, W, C) of the raw images.
        padding: grey (0.5) pixels on each side before the random crop.
        eps: radius of the L-inf ball as a fraction of the pixel range, a number or text such as "8/255".
        method: a name of `apart_fast.step.methods.METHODS` or a `Method`.
        points: patterns of the block points (see `apart_fast.step.points`); None: the model's own
            (`apart_fast.models.default_points.default_points`). Without block steps in the method they are not used.
        amp: torch.bfloat16 or torch.float16 for autocast; None: no autocast. The first layer stays in full precision.
        scaler: a `torch.amp.GradScaler` for float16. Call `scaler.step(optimizer)` and `scaler.update()` after every
            `step`: gradients of several steps can be summed up in bfloat16 or float32 only.
        label_smoothing: of the cross-entropy in both passes.
        eta: learning rate of the step sizes, for the released run of 11,730 steps 5e-8 (see `scaled_eta`).
        decay: lambda, their weight decay: 1200 as in the published curves, 400 as the released script on torch >= 2.
        omega_dtype: torch.float16, float32, float64 or int8 (x 127); None: float16, or float64 when `dtype` is.
        omega_device: where the memory lies: "device" (the model's), or where it is too large for that, "host" or
            "disk". The results are the same. See `omega_at_hand`.
        omega_folder: for "disk", where the file lies; it has no name and ends with the process.
        dtype: of pixels, perturbations and step sizes: torch.float32, or float64 with a float64 model.
        flip: draw horizontal flips where the caller gives none.
        seed: of the memory's start, random starts, and crops and flips that the caller does not give.

    Raises:
        UserError: eps, method, points or omega_device that make no sense, or no room for the memory on the host or
            the disk (one line says which).
    """

    def __init__(
        self,
        model: nn.Module,
        num_examples: int,
        image_shape: Sequence[int],
        *,
        padding: int = 4,
        eps: float | str = "8/255",
        method: str | Method = "apart",
        points: Sequence[str] | None = None,
        amp: torch.dtype | None = None,
        scaler: torch.amp.GradScaler | None = None,
        label_smoothing: float = 0.0,
        eta: float = 5e-8,
        decay: float = 1200.0,
        omega_dtype: torch.dtype | None = None,
        omega_device: str = "device",
        omega_folder: str | os.PathLike | None = None,
        dtype: torch.dtype = torch.float32,
        flip: bool = True,
        seed: int = 0,
    ):
        self.model, self.amp, self.scaler = model, amp, scaler
        self.method = get_method(method)
        self.eps = parse_eps(eps)
        if amp == torch.float16 and scaler is None:
            raise UserError("float16 needs a torch.amp.GradScaler (scaler=...), or gradients vanish: or use bfloat16")
        self.padding, self.flip, self.dtype = padding, flip, dtype
        self.image_shape = tuple(image_shape)
        self.label_smoothing = label_smoothing
        self.device = next(model.parameters()).device
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.last: StepResult | None = None

        self.points = None
        if self.method.blocks:
            self.points = BlockPoints(model, default_points(model) if points is None else points)
        self.memory = None
        if self.method.start == "memory":
            if omega_dtype is None:
                omega_dtype = torch.float64 if dtype == torch.float64 else torch.float16
            self.memory = make_memory(
                omega_device, num_examples, self.image_shape, padding, omega_dtype, self.device, omega_folder
            )
            self.memory.reset(self.generator)
        elif omega_device != "device":
            raise UserError(
                f"omega_device {omega_device}: the method {self.method.name} remembers nothing; leave it out, "
                "or choose apart, fgsm+ or atta-k"
            )
        n = 2 + (len(self.points) if self.points else 0)
        self.step_sizes = torch.zeros(n, dtype=dtype, device=self.device)
        if self.method.learned:
            self.step_sizes[:2] = STEP_SIZE_START
        self.step_optimizer = SGD([self.step_sizes], lr=eta, momentum=0.9, weight_decay=decay, maximize=True)
        self._memory_scale = None  # of a memory whose scale is not learned
        if self.method.start_size is not None:
            size = max(self.method.start_size * self.eps, torch.finfo(dtype).tiny)  # eps 0: no 0 / 0
            self._memory_scale = torch.tensor(size, dtype=dtype, device=self.device)
        sample = torch.zeros(2, *self.image_shape, dtype=dtype, device=self.device).permute(0, 3, 1, 2)
        self._network = any_layout(model, sample)
        if amp is not None:
            keep_stem_precise(self._network, sample)

    # ---- the step

    def step(
        self,
        images: Tensor,
        labels: Tensor,
        indices: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        offsets: Tensor | None = None,
        flips: Tensor | None = None,
    ) -> StepResult:
        """A whole step: perturbs, adds the weight gradients to `p.grad`, updates step sizes and memory.

        Args:
            images: uint8 [M, H, W, C] on the model's device: the batch, or with `rows` any tensor that holds it.
            labels: int64 [B].
            indices: int64 [B], rows of the memory, each at most once; needed by methods that remember.
            rows: int64 [B], rows of `images`; None: 0..B-1.
            offsets: int64 [B, 2], (top, left) of the crop in the padded image, 0..2*padding; None: drawn.
            flips: bool [B], horizontal flip after the crop; None: drawn.

        Nothing waits for the device (but see `omega_at_hand`). Raises ValueError when the model is in eval mode,
        `indices` is missing or a tensor has another shape or dtype, IndexError for an example, row or offset out of
        range (on a GPU a device-side assertion).
        """
        if not self.model.training:
            raise ValueError("the model is in eval mode: call model.train() before a training step")
        if self.memory is not None and indices is None:
            raise ValueError(f"method {self.method.name} remembers: give the indices of the examples")
        self._check_batch(images, labels, indices=indices, rows=rows, offsets=offsets, flips=flips)
        with self.omega_at_hand(indices):
            place = self._place(images, labels, indices, rows, offsets, flips)
            x, d0, adversarial = _STARTS[self.method.start](self, place)
            start_loss, signs, code = None, None, None
            for _ in range(self.method.steps):
                loss, g, signs = self._pass1(adversarial, labels)
                start_loss = loss if start_loss is None else start_loss
                adversarial, code = _MOVES[self.method.learned](self, x, d0, adversarial, g)
            loss, correct, g1, block_grads = self._pass2(adversarial, labels, signs)
            _MEMORIES[self.method.remembers](self, place, x, adversarial, g1, code, block_grads)

        self.last = StepResult(loss, loss if start_loss is None else start_loss, correct)
        return self.last

    def omega_at_hand(self, indices: Tensor | None, upcoming: Tensor | None = None) -> AbstractContextManager:
        """Within: what is remembered of the examples `indices` is on the device; a `step` with them belongs in here.

        `step` does this by itself. Where omega lies on the host or on disk, it is quicker to do it around the step:

        ```
        with apart.omega_at_hand(indices, upcoming):  # both on the CPU, so that nothing waits for the device
            apart.step(images, labels, indices)
        ```

        Args:
            indices: int64 [B].
            upcoming: int64, `indices` of the next step: theirs is fetched while this step runs.
        """
        return nullcontext() if self.memory is None else self.memory.at_hand(indices, upcoming)

    def _check_batch(self, images: Tensor, labels: Tensor, **of_each: Tensor | None) -> None:
        """Refuse shapes, dtypes, offsets and rows with which a kernel would read beside the tensors."""
        n = len(labels)
        if labels.shape != (n,) or labels.dtype != torch.int64:
            raise ValueError(f"labels are {labels.dtype} {tuple(labels.shape)}: give int64 [B]")
        if images.shape[1:] != self.image_shape:
            raise ValueError(f"images are {tuple(images.shape)}: give [B, {', '.join(map(str, self.image_shape))}]")
        if of_each["rows"] is None and len(images) != n:
            raise ValueError(f"{len(images)} images and {n} labels: give as many, or rows")
        for name, tensor in of_each.items():
            shape = (n, 2) if name == "offsets" else (n,)
            dtype = torch.bool if name == "flips" else torch.int64
            if tensor is not None and (tensor.shape != shape or tensor.dtype != dtype):
                raise ValueError(f"{name} are {tensor.dtype} {tuple(tensor.shape)}: give {dtype} {shape}")
        if (offsets := of_each["offsets"]) is not None:
            check_inside(offsets, 2 * self.padding + 1, f"an offset is outside of 0..{2 * self.padding}")
        if (rows := of_each["rows"]) is not None:
            check_inside(rows, len(images), f"a row is outside of 0..{len(images) - 1}, those of images")

    def _place(self, images, labels, indices, rows, offsets, flips) -> Placement:
        n, device = len(labels), self.device
        if rows is None:
            rows = torch.arange(n, device=device)
        if offsets is None:
            offsets = torch.randint(0, 2 * self.padding + 1, (n, 2), device=device, generator=self.generator)
        if flips is None:
            flips = torch.rand(n, device=device, generator=self.generator) < (0.5 if self.flip else 0.0)
        mine = indices if self.memory is None else self.memory.rows(indices)
        return Placement(images, rows, mine, offsets, flips)

    def _pass1(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, list[Tensor] | None]:
        """Loss, input gradient (times a positive scale) and the signs at the block points; no weight gradients."""
        x = x.detach().requires_grad_()
        with frozen(self.model), self.points.capturing() if self.points else nullcontext() as signs:
            loss, _ = self._loss(x, labels)
            (g,) = torch.autograd.grad(self._scaled(loss), x)
        return loss.detach(), g, signs

    def _pass2(self, x: Tensor, labels: Tensor, signs: list[Tensor] | None):
        """Loss, right answers, input gradient and gradients of the block steps; weight gradients go to `p.grad`."""
        x = x.detach().requires_grad_(self.method.learned)
        alphas = self.step_sizes[2:].detach().requires_grad_() if self.points else None
        with self.points.perturbing(signs, alphas.unbind()) if self.points else nullcontext():
            loss, logits = self._loss(x, labels)
        self._scaled(loss).backward()
        correct = (logits.detach().argmax(1) == labels).sum()
        return loss.detach(), correct, x.grad, None if alphas is None else alphas.grad

    def _loss(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None):
            logits = self._network(x.permute(0, 3, 1, 2))
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing), logits

    def _scaled(self, loss: Tensor) -> Tensor:
        return self.scaler.scale(loss) if self.scaler is not None else loss

    def _update_step_sizes(self, grads: Tensor) -> None:
        self.step_sizes.grad = grads
        if self.scaler is None:
            self.step_optimizer.step()
        else:
            self.scaler.step(self.step_optimizer)

    # ---- what can be read and set

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
        self.step_sizes[2:] = torch.as_tensor(value, dtype=self.dtype)

    def set_rates(self, eta: float | None = None, momentum: float | None = None) -> None:
        """Learning rate and momentum of the step sizes for the next steps (a schedule calls it)."""
        self.step_optimizer.set(eta, momentum)

    def start_epoch(self, epoch: int) -> None:
        """Say that epoch `epoch` (from 0) begins: a method with `reset_every` draws its memory anew there."""
        every = self.method.reset_every
        if self.memory is not None and every and epoch and epoch % every == 0:
            self.memory.reset(self.generator)

    def state_dict(self) -> dict[str, Tensor]:
        """All that a later step depends on, apart from the model."""
        state = {
            "step_sizes": self.step_sizes,
            "velocity": self.step_optimizer.velocities()[0],
            "generator": self.generator.get_state(),
        }
        return state | ({"memory": self.memory.contents()} if self.memory is not None else {})

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over the state of an `Apart` made with the same arguments.

        Raises:
            UserError: another method, number of examples, image shape, omega dtype or number of block points.

        The generator's state goes from device to device of one kind only; for another kind it is drawn anew from it.
        """
        mine = self.state_dict()
        for name in mine.keys() | state.keys():
            there = name in mine and name in state
            if not there or (mine[name].shape != state[name].shape and name != "generator"):
                shapes = [tuple(s[name].shape) if name in s else "nothing" for s in (state, mine)]
                raise UserError(
                    f"saved training state does not fit: {name} is {shapes[0]} there and {shapes[1]} here; "
                    "resume with the same method, data and model"
                )
            if mine[name].dtype != state[name].dtype:
                raise UserError(
                    f"saved training state does not fit: {name} is {state[name].dtype} there, {mine[name].dtype} here"
                )
        for name, tensor in mine.items():
            if name != "generator":
                tensor.copy_(state[name])
        saved = state["generator"].cpu()
        if saved.shape == self.generator.get_state().shape:
            self.generator.set_state(saved)
        else:  # of another kind of device: new numbers, but the same ones each time
            digest = hashlib.sha256(saved.numpy().tobytes()).digest()
            self.generator.manual_seed(int.from_bytes(digest[:8], "little", signed=True))

    def remove(self) -> None:
        """Take the block points' hooks off the model (torch.save takes no whole model with hooks)."""
        if self.points:
            self.points.remove()


# ---- starts: (x, d0, x0), each [B, H, W, C]


def _crop(apart: Apart, place: Placement, **start) -> tuple[Tensor, Tensor | None, Tensor]:
    return kernels.start(
        place.images, place.rows, place.offsets, place.flips, apart.padding, dtype=apart.dtype, **start
    )


def _start_zero(apart: Apart, place: Placement):
    return _crop(apart, place)


def _start_uniform(apart: Apart, place: Placement):
    half = apart.method.start_size * apart.eps
    noise = torch.empty(len(place.rows), *apart.image_shape, dtype=apart.dtype, device=apart.device)
    return _crop(apart, place, noise=noise.uniform_(-half, half, generator=apart.generator))


def _start_memory(apart: Apart, place: Placement):
    scale = apart.alpha_omega if apart._memory_scale is None else apart._memory_scale
    return _crop(apart, place, store=apart.memory.store, indices=place.indices, scale=scale, eps=apart.eps)


_STARTS: dict[str, Callable] = {
    "none": _start_zero,
    "zero": _start_zero,
    "uniform": _start_uniform,
    "memory": _start_memory,
}


# ---- moves: (next adversarial image, code of signs and masks)


def _move_fixed(apart: Apart, x: Tensor, _d0, adversarial: Tensor, g: Tensor):
    bound = apart.eps if apart.method.project else float("inf")
    return kernels.projected_step(x, adversarial, g, apart.method.step_size * apart.eps, bound), None


def _move_learned(apart: Apart, x: Tensor, d0: Tensor, _adversarial, g: Tensor):
    return kernels.step(x, d0, g, apart.alpha, apart.eps)


_MOVES: dict[bool, Callable] = {False: _move_fixed, True: _move_learned}


# ---- memories: what the step leaves for the example's next visit


def _remember_nothing(*_):
    return


def _remember_perturbation(apart: Apart, place: Placement, x: Tensor, adversarial: Tensor, *_):
    store = apart.memory.store
    values = encode(((adversarial - x) / apart._memory_scale).clamp_(-1, 1), store.dtype)
    kernels.scatter_crop(store, values, place.indices, place.offsets, place.flips)


def _remember_direction(apart: Apart, place: Placement, _x, _adversarial, g1: Tensor, code: Tensor, block_grads):
    grads = kernels.finish(
        g1,
        code,
        apart.memory.store,
        place.indices,
        place.offsets,
        place.flips,
        apart.padding,
        apart.alpha,
        apart.alpha_omega,
        apart.eps,
    )
    apart._update_step_sizes(grads if block_grads is None else torch.cat([grads, block_grads.to(grads.dtype)]))


_MEMORIES: dict[str, Callable] = {
    "nothing": _remember_nothing,
    "perturbation": _remember_perturbation,
    "direction": _remember_direction,
}
