"""What the fast code is measured against: the training step as the released code of APART performs it, a plain PGD
step and a plain PGD evaluation.

`Released` does what the code published with arXiv 2010.08034 does, written anew in plain PyTorch and as well as that
allows: float32 stores of padded NCHW images and of omega, a Python loop over the images to crop, to flip and to write
back, weight gradients in pass 1, whose graph is kept for pass 2, gradients from tensor hooks, and three `.item()` a
step. tests/benchmarks/test_baselines.py checks that it gives the numbers of `Apart.step`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apart_fast.models import default_points
from apart_fast.step.points import match_points


class Released:
    """Steps of APART on a data set held as the released code holds it.

    Args:
        model: in training mode, on its device; forward hooks are put on its block points.
        images: uint8 [N, H, W, C], kept as padded floats [N, C, H + 2p, W + 2p] on the model's device.
        labels: int64 [N].
        padding: grey (0.5) pixels on each side; eps: radius, a fraction of the pixel range.
        eta, momentum, decay: of the step sizes (the script on torch >= 2 has decay 400).
        amp: torch.bfloat16 for autocast; None: as released, without.
        dtype: of the stores and of the step sizes; float64 for tests.
        seed: of omega's start.

    Attributes:
        omega: [N, C, H + 2p, W + 2p] in [-1, 1].
        alpha, alpha_omega, alpha_blocks: the step sizes, 0-dim parameters.
        loss, start_loss, correct: of the last step.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        padding: int = 4,
        eps: float = 0.031,
        eta: float = 5e-8,
        momentum: float = 0.9,
        decay: float = 400.0,
        amp: torch.dtype | None = None,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ):
        self.model, self.eps, self.amp = model, eps, amp
        self.device = next(model.parameters()).device
        pixels = images.to(self.device).permute(0, 3, 1, 2).to(dtype) / 255
        self._size = tuple(images.shape[1:3])
        self.images = F.pad(pixels, (padding,) * 4, value=0.5)
        self.labels = labels.to(self.device)
        generator = torch.Generator(self.device).manual_seed(seed)
        self.omega = 1e-3 * torch.randn(self.images.shape, dtype=dtype, device=self.device, generator=generator)

        points = match_points(model, default_points(model))
        start = torch.tensor([1e-4, 1e-4] + [0.0] * len(points), dtype=dtype, device=self.device)
        self.alpha, self.alpha_omega, *self.alpha_blocks = [nn.Parameter(s) for s in start.clone().unbind()]
        self.step_sizes = [self.alpha, self.alpha_omega, *self.alpha_blocks]
        self.step_optimizer = torch.optim.SGD(self.step_sizes, lr=eta, momentum=momentum, weight_decay=decay)
        self._perturb_blocks = False
        self._input_grad: Tensor | None = None
        self._block_grads: list[Tensor | None] = [None] * len(points)
        modules = dict(model.named_modules())
        for i, (name, side) in enumerate(points):
            if side == "input":
                modules[name].register_forward_pre_hook(lambda _, args, i=i: (self._at_block(i, args[0]),))
            else:
                modules[name].register_forward_hook(lambda _, _args, a, i=i: self._at_block(i, a))

    def step(self, indices: Tensor, offsets: Sequence[Sequence[int]], flips: Sequence[bool]) -> None:
        """One step on the examples `indices` (int64 [B]): weight gradients in `p.grad`, step sizes and omega updated.

        offsets: (top, left) of each crop in the padded image; flips: whether it is mirrored, after the crop.
        """
        x = self._crop(self.images[indices], offsets, flips)
        omega = self._crop(self.omega[indices], offsets, flips)
        labels = self.labels[indices]

        self._zero_grad()
        delta = (self.alpha_omega * omega).clamp(-self.eps, self.eps)
        inputs = (x + delta).clamp(0, 1)
        loss, outputs = self._forward(inputs, labels, blocks=False)
        loss.backward(retain_graph=True)
        self.start_loss = loss.detach()

        delta = (delta + self.alpha * self._input_grad.sign()).clamp(-self.eps, self.eps)
        inputs = (x + delta).clamp(0, 1)
        loss, outputs = self._forward(inputs, labels, blocks=True)
        self._zero_grad()
        loss.backward()
        self.loss = loss.detach()

        ratio = self.alpha.item() / (self.alpha_omega.item() + 1e-7)
        omega = (omega + ratio * self._input_grad.sign()).clamp_(-1, 1)
        for size in self.step_sizes:
            size.grad.neg_()  # ascent
        self.step_optimizer.step()
        self.correct = outputs.detach().argmax(1).eq(labels).sum().item()
        self.omega[indices] = self._uncrop(self.omega[indices], omega, offsets, flips)

    def _crop(self, padded: Tensor, offsets, flips) -> Tensor:
        out = padded.new_empty(*padded.shape[:2], *self._size)
        for into, image, (top, left), flip in zip(out, padded, offsets, flips, strict=True):
            part = image[:, top : top + self._size[0], left : left + self._size[1]]
            into.copy_(part.flip(2) if flip else part)
        return out

    def _uncrop(self, into: Tensor, values: Tensor, offsets, flips) -> Tensor:
        for image, part, (top, left), flip in zip(into, values, offsets, flips, strict=True):
            image[:, top : top + self._size[0], left : left + self._size[1]] = part.flip(2) if flip else part
        return into

    def _forward(self, inputs: Tensor, labels: Tensor, blocks: bool) -> tuple[Tensor, Tensor]:
        inputs.register_hook(self._keep_input_grad)
        self._perturb_blocks = blocks
        with torch.autocast(self.device.type, dtype=self.amp, enabled=self.amp is not None):
            outputs = self.model(inputs)
        outputs = outputs.to(self.omega.dtype)
        return F.cross_entropy(outputs, labels), outputs

    def _at_block(self, i: int, a: Tensor) -> Tensor:
        if not a.requires_grad:
            return a
        signs = self._block_grads[i].sign() if self._perturb_blocks else None
        a.register_hook(lambda grad: self._keep_block_grad(i, grad))
        return a if signs is None else a + self.alpha_blocks[i] * signs

    def _keep_input_grad(self, grad: Tensor) -> None:
        self._input_grad = grad.detach().clone()

    def _keep_block_grad(self, i: int, grad: Tensor) -> None:
        self._block_grads[i] = grad.detach().clone()

    def _zero_grad(self) -> None:
        self.model.zero_grad()
        self.step_optimizer.zero_grad()


def plain_pgd(
    model: nn.Module, x: Tensor, labels: Tensor, start: Tensor, *, eps: float, step: float, steps: int
) -> Tensor:
    """PGD as the released code's test attacks: `backward()` with weight gradients, all images, all steps.

    x, start: float [B, C, H, W] in [0, 1] (start within eps of x); labels: int64 [B]. Returns the last point.
    """
    adversarial = start
    for _ in range(steps):
        model.zero_grad()
        adversarial = adversarial.detach().requires_grad_()
        F.cross_entropy(model(adversarial), labels).backward()
        moved = adversarial.detach() + step * adversarial.grad.sign()
        adversarial = torch.min(torch.max(moved, x - eps), x + eps).clamp_(0, 1)
    return adversarial


def plain_evaluation(
    model: nn.Module, images: Tensor, labels: Tensor, *, eps: float, steps: int, batch_size: int, seed: int = 0
) -> int:
    """Number of uint8 images [N, H, W, C] that `model` (in eval mode) classifies rightly after `plain_pgd`."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)
    correct = 0
    for i in range(0, len(images), batch_size):
        x = images[i : i + batch_size].to(device).permute(0, 3, 1, 2).float() / 255
        y = labels[i : i + batch_size].to(device)
        start = x + torch.empty_like(x).uniform_(-eps, eps, generator=generator)
        with torch.no_grad():
            start.clamp_(0, 1)
        end = plain_pgd(model, x, y, start, eps=eps, step=eps / 4, steps=steps)
        with torch.no_grad():
            correct += model(end).argmax(1).eq(y).sum().item()
    return correct
