"""One whole adversarial training step, from raw images to weight gradients, for every method of the family.

The way of the data is `Apart.step`: start -> (pass 1 -> move) x steps -> pass 2 -> remember.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from apart_fast.kernels import Crops
from apart_fast.models.channels_last import PlainLayout, any_layout
from apart_fast.models.default_points import default_points
from apart_fast.models.dressing import Dressed
from apart_fast.models.layers import dress_layers
from apart_fast.models.logits import check_parameters
from apart_fast.models.modes import frozen, is_compiled
from apart_fast.models.norms import BatchCounters
from apart_fast.models.trial import check_takes
from apart_fast.step import spans
from apart_fast.step.checks import check_arguments, check_batch, check_trainable
from apart_fast.step.epochs import Epochs
from apart_fast.step.losses import CrossEntropy, pixel_gradient
from apart_fast.step.methods import Method, check_keeping, get_method
from apart_fast.step.moves import MOVES
from apart_fast.step.noise import ExampleNoise
from apart_fast.step.objective import Objective
from apart_fast.step.omega import INITIAL
from apart_fast.step.perturbation import Given, Gradients, Setting, fixed_scale
from apart_fast.step.places import memory_of
from apart_fast.step.points import BlockPoints
from apart_fast.step.ranks import Ranks, Whole
from apart_fast.step.remember import REMEMBER, learn_from_others, make_shared
from apart_fast.step.result import StepResult
from apart_fast.step.saved import take_over
from apart_fast.step.spans import span
from apart_fast.step.starts import STARTS
from apart_fast.step.step_sizes import StepSizes, StepSizesAtHand
from apart_fast.step.weight_step import WeightStep
from apart_fast.units import parse_eps

# of the gradients at the block points, int8; None without points
Signs = list[Tensor | None] | None


class Apart(StepSizesAtHand):
    """Adversarial training steps for any model in anyone's loop (arXiv 2010.08034).

    ```
    apart = Apart(model, num_examples=50_000, image_shape=(32, 32, 3), padding=4, eps="8/255")
    for epoch in range(epochs):
        apart.start_epoch(epoch, epochs=epochs)  # without it some methods train differently
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
        label_smoothing: of the cross-entropy in both passes; a method that draws its labels anew (liet) goes without.
        eta: learning rate of the step sizes, for the released run of 11,730 steps 5e-8 (see `scaled_eta`).
        decay: lambda, their weight decay: 1200 as in the published curves, 400 as the released script on torch >= 2.
        omega_dtype: torch.float16, float32, float64 or int8 (x 127); None: float16, or float64 when `dtype` is.
        omega_device: where the memory lies: "device" (the model's), or where it is too large for that, "host" or
            "disk". The results are the same. See `omega_at_hand`.
        omega_folder: for "disk", where the file lies; it has no name and ends with the process.
        dtype: of pixels, perturbations and step sizes: torch.float32, or float64 with a float64 model.
        flip: draw horizontal flips where the caller gives none.
        ranks: where several processes train the network, this one among them; None: there are no others.
        seed: of the memory's start, random starts, and crops and flips that the caller does not give.

    Raises:
        UserError: an argument that makes no sense, a model without parameters or in half precision, block points that
            cannot work, or no room for the memory (one line says which).
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
        ranks: Ranks | None = None,
    ):
        check_arguments(
            num_examples, image_shape, padding=padding, amp=amp, scaler=scaler, label_smoothing=label_smoothing,
            eta=eta, decay=decay, omega_dtype=omega_dtype, dtype=dtype, seed=seed,
        )  # fmt: skip
        self.model, self.amp, self.scaler = model, amp, scaler
        self.method = method = get_method(method)
        if omega_dtype is None:
            omega_dtype = torch.float64 if dtype == torch.float64 else torch.float16
        check_keeping(method, str(omega_dtype).removeprefix("torch."), omega_device, 1 if ranks is None else 2)
        self.eps = parse_eps(eps)
        self.padding, self.flip, self.dtype = padding, flip, dtype
        self.image_shape = tuple(image_shape)
        check_parameters(model, dtype)
        self.device = next(model.parameters()).device
        seed = int(seed)  # torch takes none of numpy's
        self.generator = torch.Generator(self.device).manual_seed(seed)

        self.points: BlockPoints | None = None
        self._dressed: list[Dressed] = []
        self._network = model
        try:
            if method.blocks:
                self.points = BlockPoints(model, default_points(model) if points is None else points)
            self.ranks = ranks
            self.memory = memory_of(
                method, omega_device, num_examples, self.image_shape, padding, omega_dtype, self.device, omega_folder
            )
            self._reset_memory()
            count = len(self.points) if self.points else 0
            self.sizes = StepSizes(count, learned=method.learned, eta=eta, decay=decay, dtype=dtype, device=self.device)
            sample = torch.zeros(2, *self.image_shape, dtype=dtype, device=self.device).permute(0, 3, 1, 2)
            self._network = any_layout(model, sample)
            check_takes(self._network, sample, amp)
            if self.points:
                self.points.try_out(self._network, sample)
            self._uncast = dress_layers(model, self._network, sample, amp, self._dressed)
            self._counters = BatchCounters(model)
            self.loss = CrossEntropy(self._network, amp, label_smoothing, method.loss.relax, self.generator)
            self.objective = Objective(method.loss, dtype, self.device)
            self._weight_step = WeightStep(model, method.weight_step) if method.weight_step else None
            self.shared = make_shared(
                method, model, self.loss, self._scaled, sample.permute(0, 2, 3, 1), self.eps, self.generator
            )
            noise = ExampleNoise(seed, self.device, None if ranks is None else ranks.examples)
            self._epochs = Epochs(method, noise, self.objective)
            scale = fixed_scale(method, self.eps, dtype, self.device)
            self._setting = Setting(
                method, self.eps, padding, dtype, self.generator, noise, self.sizes, self.memory, scale, self.shared
            )
        except BaseException:
            self.remove()  # the model is as it came
            raise

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
        together: int | None = None,
    ) -> StepResult:
        """A whole step: perturbs, adds the weight gradients to `p.grad`, updates step sizes and memory.

        Args:
            images: uint8 [M, H, W, C] on the model's device: the batch, or with `rows` any tensor that holds it.
            labels: int64 [B].
            indices: int64 [B], rows of the memory, each at most once; needed by methods that remember. On the model's
                device, or with `omega_device` "host" or "disk" also on the CPU.
            rows: int64 [B], rows of `images`; None: 0..B-1.
            offsets: int64 [B, 2], (top, left) of the crop in the padded image, 0..2*padding; None: drawn.
            flips: bool [B], horizontal flip after the crop; None: drawn.
            together: number of images of all ranks in this step; needed with `ranks`.

        Nothing waits for the device (but see `omega_at_hand`). Raises ValueError when the model is in eval mode or all
        of it is frozen, the batch is empty, `indices` is missing or names an example twice, or a tensor has another
        shape, dtype or device, UserError when the network gives no logits or has no gradient at the pixels,
        IndexError for a label, example, row or offset out of range (on a GPU a device-side assertion).
        """
        self._check(images, labels, indices=indices, rows=rows, offsets=offsets, flips=flips)
        with self.omega_at_hand(indices):
            with span(spans.START):
                crops = self._draw(len(labels), indices, rows, offsets, flips)
            return self._step(images, labels, crops, together)

    def step_crops(self, images: Tensor, labels: Tensor, crops: Crops, together: int | None = None) -> StepResult:
        """`step` on what a loader has drawn: `batch.images, batch.labels, batch.crops, batch.together`."""
        self._check(images, labels, **vars(crops))
        with self.omega_at_hand(crops.indices):
            return self._step(images, labels, crops, together)

    def step_without_images(self, together: int) -> StepResult:
        """What a rank does in a step in which only others have images, `together` of them."""
        nothing = torch.zeros((), dtype=torch.promote_types(self.dtype, torch.float32), device=self.device)
        self._scaled(nothing)  # a scaler that was just loaded has its scale from the first call on
        whole = Whole(self.ranks, 0, together)
        if self._weight_step is not None:  # in the order of a step
            self._weight_step.without_images(whole)
        self.objective.without_images(whole)
        learn_from_others(self._setting, whole)
        size_grads = torch.zeros_like(self.sizes.values) if self.method.learned else None
        return self._finish(StepResult(nothing, nothing, nothing), size_grads, 0, together)

    @contextmanager
    def _both_passes(self) -> Iterator[None]:
        """Within: autocast's casts of the weights serve all passes (it forgets them at the outermost end)."""
        with torch.autocast(self.device.type, enabled=False), self._counters.together():
            yield

    def _step(self, images: Tensor, labels: Tensor, crops: Crops, together: int | None = None) -> StepResult:
        whole = Whole(self.ranks, len(labels), len(labels) if together is None else together)
        with self._both_passes(), self.objective.step(whole):
            result, size_grads = self._passes(images, labels, crops, whole)
        return self._finish(result, size_grads, len(labels), together)

    def _finish(self, result: StepResult, size_grads: Tensor | None, images: int, together: int | None) -> StepResult:
        """Let the gradients be those of all ranks, and update the step sizes."""
        with span(spans.REMEMBER):
            if self.ranks is not None:
                assert together is not None, "with ranks, say how many images they have together"
                result, size_grads = self.ranks.share(self.model, result, size_grads, images, together)
            if size_grads is not None:
                self.sizes.update(size_grads, self.scaler)
        return result

    def _passes(self, images: Tensor, labels: Tensor, crops: Crops, whole: Whole) -> tuple[StepResult, Tensor | None]:
        """What the passes find, and the gradients of the step sizes where they are learned."""
        method, setting = self.method, self._setting
        start_loss, signs = None, None
        with span(spans.START):
            if self.memory is not None and crops.indices is not None:
                rows = self.memory.rows(crops.indices)
                crops = replace(crops, indices=rows if method.maps == 1 else rows * method.maps)
            given = Given(images, labels, crops, whole)
            made = STARTS[method.start](setting, given)
        if method.loss.at == "image":
            with span(spans.PASS_1):
                self.objective.note(*self.loss(made.x, labels))
        for _ in range(method.steps):
            with span(spans.PASS_1):
                loss, gradient, signs = self._pass1(made.point, labels)
            with span(spans.MOVE):
                made = MOVES[method.move](setting, made, gradient)
            start_loss = loss if start_loss is None else start_loss
        with span(spans.PASS_2):
            loss, correct, gradients = self._pass2(made.point, labels, signs)
        with span(spans.REMEMBER):
            size_grads = REMEMBER[method.remembers](setting, given, made, gradients)
        return StepResult(loss, loss if start_loss is None else start_loss, correct), size_grads

    def omega_at_hand(self, indices: Tensor | None, upcoming: Tensor | None = None) -> AbstractContextManager[None]:
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
        if self.shared is not None:
            return self.shared.within_step()
        if self.memory is None:
            return nullcontext()
        if indices is None:
            raise ValueError(f"method {self.method.name} remembers: give the indices of the examples")
        return self.memory.at_hand(indices, upcoming)

    def _check(self, images: Tensor, labels: Tensor, **each: Tensor | None) -> None:
        check_trainable(self.model)
        self._epochs.check_told()
        host = self.memory is not None and self.memory.host_indices
        check_batch(images, labels, self.image_shape, self.padding, self.device, self.loss.classes, host, **each)

    def _draw(
        self, n: int, indices: Tensor | None, rows: Tensor | None, offsets: Tensor | None, flips: Tensor | None
    ) -> Crops:
        """Crops of `n` examples; what the caller did not give is drawn."""
        if rows is None:
            rows = torch.arange(n, device=self.device)
        if offsets is None:
            offsets = torch.randint(0, 2 * self.padding + 1, (n, 2), device=self.device, generator=self.generator)
        if flips is None:
            flips = torch.rand(n, device=self.device, generator=self.generator) < (0.5 if self.flip else 0.0)
        return Crops(rows, indices, offsets, flips)

    def _pass1(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Signs]:
        """Loss, input gradient (times a positive scale) and the signs at the block points; no weight gradients."""
        x = x.detach().requires_grad_()
        capturing = self.points.capturing() if self.points else nullcontext()
        keep = self.objective.keeps_graph
        with nullcontext() if keep else self._no_weight_gradients(), capturing as signs:
            loss, logits = self.loss(x, labels)
            gradient = pixel_gradient(self._scaled(self.objective.climbed(loss, logits)), x, keep)
        self.objective.note(loss, logits)
        return loss.detach(), gradient, signs

    def _no_weight_gradients(self) -> AbstractContextManager[None]:
        """In pass 1. Autocast keeps no casts of frozen weights: with it only layers that take none from it are frozen,
        and `autograd.grad` skips the gradients of the others. A compiled backward skips nothing."""
        return frozen(self.model if self.amp is None or is_compiled(self.model) else self._uncast)

    def _pass2(self, x: Tensor, labels: Tensor, signs: Signs) -> tuple[Tensor, Tensor, Gradients | None]:
        """Loss, right answers, and gradients of input and block steps; weight gradients go to `p.grad`."""
        x = x.detach().requires_grad_(self.method.learned)
        alphas = self.sizes.blocks.detach().requires_grad_()

        def forward() -> tuple[Tensor, Tensor]:
            with self.points.perturbing(signs, alphas.unbind()) if self.points and signs else nullcontext():
                return self.loss(x, labels)

        step, whole = self._weight_step, self.objective.whole
        with nullcontext() if step is None else step.moved(lambda: self._scaled(forward()[0]), whole):
            loss, logits = forward()
            self._scaled(self.objective.total(loss, logits)).backward()
        correct = (logits.detach().argmax(1) == labels).sum()
        gradients = None if x.grad is None else Gradients(x.grad, alphas.grad)
        return loss.detach(), correct, gradients

    def _scaled(self, loss: Tensor) -> Tensor:
        return self.scaler.scale(loss) if self.scaler is not None else loss

    def start_epoch(self, epoch: int, step: int = 0, epochs: int | None = None) -> None:
        """Say that epoch `epoch` (from 0) begins, or goes on from `step`: a method with `reset_every` draws its memory
        anew at the beginning of some. Random starts of examples with indices then depend on seed, epoch and example.
        A loaded state knows its epoch.

        Args:
            epochs: of the whole training: losses that change over it need to know; None: 100.

        Raises:
            UserError: a number that is negative or not whole, or no epochs at all.
        """
        self._epochs.start(epoch, step, epochs)
        if self.shared is not None:
            self.shared.start_epoch(step)
        every = self.method.reset_every
        if every and epoch and epoch % every == 0 and step == 0:
            self._reset_memory()

    def _reset_memory(self) -> None:
        if self.memory is not None:
            ranks, initial = self.ranks, INITIAL[self.method.remembers]
            examples, total = (None, None) if ranks is None else (ranks.examples, ranks.total)
            self.memory.reset(self.generator, examples, total, initial)

    def state_dict(self) -> dict[str, Tensor]:
        """All that a later step depends on, apart from the model and the scaler."""
        state = {
            **self.sizes.tensors(),
            "generator": self.generator.get_state(),
            **self._epochs.tensors(),
            **self.objective.tensors(),
            **({} if self.shared is None else self.shared.tensors()),
        }
        return state | ({"memory": self.memory.contents()} if self.memory is not None else {})

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over the state of an `Apart` made with the same arguments. Earlier versions did not save the epoch and
        the rates: after theirs, call `start_epoch` (with `step`) and `set_rates`.

        Raises:
            UserError: another method, number of examples, image shape, omega dtype or number of block points.
        """
        take_over(state, self.state_dict(), self.generator)
        self._epochs.go_on()

    def remove(self) -> None:
        """Leave the model as it came: its layers' classes, its hooks, the layout of its weights.

        No step can be made afterwards.
        """
        if self.points:
            self.points.remove()
        for layer in self._dressed:
            layer.remove()
        if isinstance(self._network, PlainLayout):
            self._network.remove()
