"""Attacks for evaluation: PGD. Images are NHWC, pixels in [0, 1]."""

import math
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from apart_fast.errors import UserError
from apart_fast.evaluation.checks import check_classes, check_counts, check_labels
from apart_fast.evaluation.gradient import FOOLED, NOT_FINITE, ZERO, ascent_loss, gradient_marks
from apart_fast.graphs import capture
from apart_fast.kernels import projected_step
from apart_fast.models.channels_last import any_layout
from apart_fast.models.logits import check_logits, count_classes
from apart_fast.models.modes import differentiable, frozen

_GRAPH_FROM = 40  # batches: for fewer a capture (a few batches' time) does not pay
_ROUNDED = 8  # images: a captured step has room for a multiple, so that it need not be captured again for one more


def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Logits [B, classes] (at least float32) of NHWC images [B, H, W, C].

    Raises:
        UserError: the model gives something else.
    """
    return check_logits(model(images.permute(0, 3, 1, 2)), len(images))


def is_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """[B] bool: the largest of [B, classes] logits is the label's; a NaN among them counts as wrong."""
    top, index = logits.max(1)  # max hands on NaN
    return (index == labels) & ~top.isnan()


def _noise(seeds: Tensor, restart: int, shape: tuple[int, ...], eps: float) -> Tensor:
    """uniform(-eps, eps) float32 on the CPU, [len(seeds), *shape]; each image draws from its own seed."""
    generator = torch.Generator()
    noise = torch.empty(len(seeds), *shape, dtype=torch.float32, device="cpu")  # whatever the caller's defaults are
    for row, seed in zip(noise, seeds.tolist(), strict=True):
        row.uniform_(-eps, eps, generator=generator.manual_seed(seed + restart))
    return noise


def refuse_training(model: nn.Module) -> None:
    """Attacks are made on a model that is in eval mode, all of it.

    Raises:
        UserError: a module of the model is in training mode.
    """
    if any(module.training for module in model.modules()):
        raise UserError("the model is in training mode: call model.eval() before an attack")


def ordinary(tensor: Tensor) -> Tensor:
    """`tensor`, or where it was made under `torch.inference_mode` a copy that autograd takes."""
    return tensor.clone() if tensor.is_inference() else tensor


def differentiate(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Gradient of each image's own `ascent_loss` at the image, like `images` and contiguous, and logits [B, classes].

    That is the gradient of the cross-entropy, or where rounding would leave nothing of it, it times a positive number.

    Args:
        model: takes NCHW; nothing of it changes (`frozen` saves what its own gradients would cost).
        images: float [B, H, W, C] in [0, 1].
        labels: int64 [B].
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = ordinary(images).detach().requires_grad_()
        logits = predict(model, leaf)
        # a sum: the gradient of an image does not shrink with the batch
        loss = ascent_loss(logits, ordinary(labels)).sum()
        (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True) if loss.requires_grad else (None,)
    gradient = torch.zeros_like(images) if gradient is None else gradient  # the model detaches its pixels
    return gradient.contiguous(), logits.detach()


def pgd_to_the_end(model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, step: float, steps: int) -> Tensor:
    """The point, like `images`, after `steps` steps from the images, also behind points that fool the model.

    `pgd` is the attack to judge with: it keeps the first point that fools. The arguments are those of `pgd`.
    """
    with torch.inference_mode(False), frozen(model := differentiable(model)):
        images = point = ordinary(images)
        for _ in range(steps):
            gradient, _ = differentiate(model, point, labels)
            point = projected_step(images, point, gradient, step, eps)
    return point


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    step: float,
    steps: int,
    restarts: int = 1,
    random_start: bool = True,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
) -> Tensor:
    """Projected gradient descent in the L-inf ball (Madry et al., arXiv 1706.06083, section 2.1).

    Kept for each image: the clean image if the model already gets it wrong, else the first point visited (the start
    included) that fools the model, else the end of the last restart. Images that are fooled take no further steps.
    Asks for input gradients only: nothing of the model changes. `apart_fast.models.folding.fold` makes a cheaper model.

    Args:
        model: takes NCHW, in eval mode, on the device of `images`.
        images: float [B, H, W, C] in [0, 1].
        labels: int64 [B].
        eps, step: radius of the ball and length of a step, fractions of the pixel range.
        steps: gradient steps in each restart, at least 1.
        restarts: independent starts, at least 1; without a random start they are all the same, so 1.
        random_start: start from uniform(-eps, eps), clipped to [0, 1], instead of from the image.
        generator: on the CPU; one number for each image is drawn from it, in order, so that an image's noise depends
            neither on the batch size nor on the other images.
        batch_size: images that go through the model at a time; None: all.

    Returns:
        like `images`: within eps of them and in [0, 1]. A warning says where images had no gradient to follow.

    Raises:
        UserError: a module of the model is in training mode, or an argument does not fit.
    """
    refuse_training(model)
    if not images.is_floating_point() or images.dim() != 4:
        raise UserError(f"pgd needs float images [B, H, W, C], got {images.dtype} with shape {list(images.shape)}")
    check_labels(labels, len(images))
    if not (0 <= eps < math.inf and 0 <= step < math.inf):
        raise UserError(f"pgd needs finite eps and step >= 0, got {eps} and {step}")
    check_counts(steps=steps, restarts=restarts, **({} if batch_size is None else {"batch_size": batch_size}))
    if restarts > 1 and not random_start:
        raise UserError("restarts without a random start are all the same: use 1 restart")
    if len(images) == 0:
        return images.clone()
    low, high = images.aminmax()
    if not (low >= 0 and high <= 1):
        raise UserError(f"pixels must lie in [0, 1], got [{low:.3g}, {high:.3g}]: normalise inside the model")

    with torch.inference_mode(False):
        labels = ordinary(labels).long()
        model = any_layout(differentiable(model), images[:2].permute(0, 3, 1, 2))
        check_classes(labels, count_classes(model, images[:2].permute(0, 3, 1, 2)))
        seeds = draw_seeds(len(images), generator) if random_start else None
        size = batch_size or len(images)
        adversarial = images.detach().clone(memory_format=torch.contiguous_format)
        right = correct(model, adversarial, labels, size).nonzero().squeeze(1)
        if len(right):
            mine = None if seeds is None else seeds[right.cpu()]
            settings: dict[str, Any] = dict(eps=eps, step=step, steps=steps, restarts=restarts, batch_size=size)
            found = search(model, adversarial[right], labels[right], seeds=mine, **settings)
            adversarial[right] = found.points
            if blind := int(found.blind.sum()):
                warnings.warn(f"pgd: {blind} of {len(right)} images had no gradient to follow", stacklevel=2)
    return adversarial


def draw_seeds(n: int, generator: torch.Generator | None) -> Tensor:
    """int64 [n] on the CPU: of the noise of each image; the same numbers whether drawn at once or in parts."""
    return torch.randint(2**62, (n,), generator=generator, device="cpu")


@torch.no_grad()
def correct(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int) -> Tensor:
    """bool [N]: `is_correct` of float NHWC images [N, H, W, C], `batch_size` of them at a time."""
    if len(images) == 0:  # many a model cannot take none
        return torch.zeros(0, dtype=torch.bool, device=images.device)
    batches = zip(images.split(batch_size), labels.split(batch_size), strict=True)
    return torch.cat([is_correct(predict(model, x), y) for x, y in batches])


class Found(NamedTuple):
    """What a search found, for each of N images.

    points: like the images; the first one that fools, else the last one.
    fooled: bool [N], on the way. The very last points are not judged: the caller has to.
    not_finite, zero: bool [N]; at some step before it was fooled the image's gradient had a NaN or an infinity, or
        (and never that) was zero everywhere. There the search stood still.
    """

    points: Tensor
    fooled: Tensor
    not_finite: Tensor
    zero: Tensor

    @property
    def blind(self) -> Tensor:
        """bool [N]: stands after a search without a gradient."""
        return ~self.fooled & (self.not_finite | self.zero)


def search(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    eps: float,
    step: float,
    steps: int,
    restarts: int,
    seeds: Tensor | None,
    batch_size: int,
    progress: Callable[[int], object] = lambda done: None,
    kept: "KeptSteps | None" = None,
) -> Found:
    """The search of `pgd` for all of the images, which the model is expected to get right.

    It goes through the images step by step, not batch by batch, and leaves out those that are fooled: batches stay
    full, and the host asks the device who is left once a step for all images, never within a batch.

    Args:
        seeds: int64 [N] on the CPU, for random starts; None: start from the images.
        progress: called with the number of gradient steps that were taken or are no longer needed, in all
            N * steps * restarts.
        kept: CUDA graphs of earlier searches of this model, to be taken again; None: none is kept.

    The other arguments are those of `pgd`.
    """
    images = images.detach().contiguous()
    found, standing = images.clone(), torch.arange(len(images), device=images.device)
    marks = torch.zeros_like(labels, dtype=torch.uint8)  # read by the caller, at the end
    fooled = marks.bool()
    if len(images) == 0:
        return Found(found, fooled, fooled, fooled)
    batches = -(-len(images) // batch_size) * steps * restarts
    with frozen(model):
        advance = (kept or KeptSteps()).get(model, images, batch_size, batches, step, eps)
        for restart in range(restarts):
            if seeds is not None:
                noise = _noise(seeds[standing.cpu()], restart, images.shape[1:], eps)
                found[standing] = (images[standing] + noise.to(images)).clamp_(0, 1)
            later = steps * (restarts - restart - 1)
            for left in reversed(range(steps)):
                if not len(standing):
                    break
                new = torch.empty_like(standing, dtype=torch.uint8)
                for rows, mine in zip(standing.split(batch_size), new.split(batch_size), strict=True):
                    found[rows] = advance(images[rows], found[rows], labels[rows], mine)
                    progress(len(rows))
                marks[standing] |= new
                standing = standing[new & FOOLED == 0]
                progress((len(new) - len(standing)) * (left + later))
            if later:
                right = correct(model, found[standing], labels[standing], batch_size)
                progress((len(right) - int(right.sum())) * later)
                standing = standing[right]
    fooled = torch.ones_like(fooled)
    fooled[standing] = False
    not_finite = marks & NOT_FINITE > 0
    return Found(found, fooled, not_finite, (marks & ZERO > 0) & ~not_finite)


class _Step:
    """One step of PGD on a batch: writes `marks` (uint8, bits of `apart_fast.evaluation.gradient`) for the points `xk`,
    returns the next ones (`xk` where fooled)."""

    def __init__(self, model: nn.Module, step: float, eps: float):
        self._model, self._step, self._eps = model, step, eps

    def __call__(self, x: Tensor, xk: Tensor, labels: Tensor, marks: Tensor) -> Tensor:
        gradient, logits = differentiate(self._model, xk, labels)
        fooled = ~is_correct(logits, labels)
        marks.copy_(gradient_marks(gradient) * ~fooled + fooled * FOOLED)
        moved = projected_step(x, xk.detach(), gradient, self._step, self._eps)
        return torch.where(fooled[:, None, None, None], xk.detach(), moved)


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """One for each device: cuBLAS keeps a workspace for every stream that it has seen."""
    return torch.cuda.Stream(device)


class _GraphedStep:
    """A `_Step` replayed as one CUDA graph: one launch for hundreds. Batches of `size` images, or fewer.

    A model that cannot be captured (it waits for the device, say) is called as it is, after one warning.
    """

    def __init__(self, step: _Step, images: Tensor, size: int):
        self._step = step
        x, labels = images.new_zeros(size, *images.shape[1:]), images.new_zeros(size, dtype=torch.int64)
        # a smaller batch leaves old rows behind it: in eval mode no image sees another one
        self._buffers = (x, x.clone(), labels, labels.to(torch.uint8))
        self._replay: Callable[[], None] | None = None
        try:
            self._replay, self._moved = capture(lambda: step(*self._buffers), stream=_capture_stream(images.device))
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            warnings.warn(f"the attack runs without a CUDA graph, and slower: {reason}", stacklevel=4)

    def __call__(self, x: Tensor, xk: Tensor, labels: Tensor, marks: Tensor) -> Tensor:
        if self._replay is None:
            return self._step(x, xk, labels, marks)
        n = len(labels)
        for buffer, value in zip(self._buffers, (x, xk, labels), strict=False):
            buffer[:n].copy_(value)
        self._replay()
        marks.copy_(self._buffers[3][:n])
        return self._moved[:n]  # read before the next replay


class KeptSteps:
    """Steps of PGD against one model, from search to search: what is captured once is replayed from then on.

    The model's parameters must stay where they are; their values may change.

    Args:
        searches: how many searches like the next one are to be expected, about.

    Attributes:
        room: images that a captured step has room for, at least, where the batch size allows it.
    """

    def __init__(self, searches: int = 1):
        self._searches, self.room = searches, 0
        self._batches = 0  # so far
        self._graphs: dict[tuple, tuple[int, _GraphedStep]] = {}

    def get(
        self, model: nn.Module, images: Tensor, batch_size: int, batches: int, step: float, eps: float
    ) -> "_Step | _GraphedStep":
        """A step for batches of `images` (at most `batch_size`); `batches`: how many the search has at most."""
        key = (step, eps, images.shape[1:], images.device)
        size, graph = self._graphs.get(key, (0, None))
        least = min(batch_size, len(images))
        if graph is not None and size >= least:
            return graph
        self._batches += batches
        size = min(batch_size, -(-max(least, self.room) // _ROUNDED) * _ROUNDED)
        made = _make_step(model, images, size, max(self._batches, batches * self._searches), step, eps)
        if isinstance(made, _GraphedStep):
            self._graphs[key] = size, made  # a smaller one goes
        return made


def _make_step(
    model: nn.Module, images: Tensor, size: int, batches: int, step: float, eps: float
) -> _Step | _GraphedStep:
    plain = _Step(model, step, eps)
    if not images.is_cuda or batches < _GRAPH_FROM:
        return plain
    with torch.cuda.device(images.device):
        return _GraphedStep(plain, images, size)
