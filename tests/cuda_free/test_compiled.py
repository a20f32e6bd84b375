"""What `kernels/aot.py` compiles ahead of time is what a training launches: neither more nor less."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from fake_cuda import CUDA, fake_cuda, kernel_name
from test_device_step import METHODS, OWN_KERNELS, PRECISIONS, stores_of

from apart_fast import Apart, build_model
from apart_fast.kernels import Crops
from apart_fast.kernels.aot import EXAMPLES, specialise
from apart_fast.kernels.launch import Launch
from apart_fast.kernels.learned_step import plan_learned_step
from apart_fast.kernels.update_omega import plan_update_omega
from apart_fast.loaders import Batch
from apart_fast.step.methods import get_method
from apart_fast.step.omega import Memory
from apart_fast.step.optimizer import SGD
from apart_fast.training.average import WeightAverage
from apart_fast.training.totals import Totals
from apart_fast.training.trainer import Trainer

# height, width, channels, padding, batch, images in all
CIFAR = (32, 32, 3, 4, 128, 50_000)
TINY = (64, 64, 3, 4, 128, 100_000)
IMAGENET = (224, 224, 3, 4, 128, 1_281_167)  # a store of 2^37 numbers
FASHION = (28, 28, 1, 4, 128, 60_000)
ODD = (31, 33, 3, 2, 3, 50)
PLAIN = ("layer*.*.conv1",)  # points that are no ReLU


def key(launch):
    """What a launch is compiled for, to compare."""
    made = specialise(launch)
    return (
        kernel_name(launch),
        tuple(made.signature.items()),
        tuple(made.constants.items()),
        tuple(sorted(made.aligned)),
        launch.num_warps,
    )


def train_a_step(size, method="apart", amp=torch.bfloat16, store=torch.float16, ema=True, points=None):
    """Two steps of a training: of a whole batch, and of the first of an odd number at an odd place of the epoch."""
    height, width, channels, padding, batch, n = size
    with CUDA:
        model = build_model("preact_resnet18", 10, in_channels=channels, image_size=(height, width), width=0.0625)
    model = model.to(memory_format=torch.channels_last)
    scaler = torch.amp.GradScaler("cuda") if amp == torch.float16 else None
    options = dict(omega_dtype=store) if get_method(method).maps else {}
    apart = Apart(
        model, n, (height, width, channels), padding=padding, method=method, amp=amp, scaler=scaler, points=points,
        **options,
    )  # fmt: skip
    average = WeightAverage(model, 0.9) if ema else None
    made = SimpleNamespace(
        apart=apart,
        optimizer=SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4),
        scaler=scaler,
        average=average,
        totals=Totals(CUDA),
        model=model,
    )
    made.accumulation, made._update = None, partial(Trainer._update, made)
    if average is not None:
        average.follow(made.optimizer)

    def some(*shape, dtype=torch.int64):
        return torch.zeros(shape, dtype=dtype, device=CUDA)

    images, labels = some(n, height, width, channels, dtype=torch.uint8), some(n)
    for at in (slice(0, batch), slice(7, 7 + batch)):
        rows, offsets, flips = some(n)[at], some(n, 2)[at], some(n, dtype=torch.bool)[at]
        Trainer._device_step(made, Batch(images, labels[at], Crops(rows, rows, offsets, flips), resident=True))


def trainings():
    """Every method, precision, store, kind of point, and size of image."""
    for method in METHODS:
        few = None if method in OWN_KERNELS else 1  # precisions and stores
        for amp in PRECISIONS[:few]:
            for store in stores_of(method)[:few]:
                yield CIFAR, dict(method=method, amp=amp, store=store, ema=store == torch.int8)
    for amp in PRECISIONS:
        yield CIFAR, dict(amp=amp, points=PLAIN)
    for size in (TINY, IMAGENET, FASHION, ODD):
        for store in (torch.float16, torch.int8) if size is IMAGENET else (torch.float16,):
            yield size, dict(store=store)


@pytest.fixture(scope="module")
def launched():
    """What all these trainings launch: key -> the training that did so first."""
    found = {}
    for size, options in trainings():
        with fake_cuda(), pytest.MonkeyPatch.context() as patch:
            run = Launch.run
            seen = set()
            patch.setattr(Launch, "run", lambda launch, seen=seen, run=run: (seen.add(key(launch)), run(launch))[1])
            # draws rows by torch alone, a few at a time: minutes where the store has 2^37 numbers
            patch.setattr(Memory, "reset", lambda *_, **__: None)
            train_a_step(size, **options)
        for made in seen:
            found.setdefault(made, (size, options))
    return found


def test_what_is_launched_is_compiled(launched):
    compiled = {key(example.plan()): example.name for example in EXAMPLES}
    missing = {made: by for made, by in launched.items() if made not in compiled}
    assert not missing, missing


def test_what_is_compiled_is_launched(launched):
    compiled = {key(example.plan()): example.name for example in EXAMPLES}
    assert len(compiled) == len(EXAMPLES), "two examples are the same"
    assert [name for made, name in compiled.items() if made not in launched] == []


def wrong_launches():
    x = torch.zeros(2, 4, 4, 3, device=CUDA)
    code, alpha = torch.zeros(2, 4, 4, 3, device=CUDA, dtype=torch.int8), torch.zeros((), device=CUDA)
    some = torch.zeros(2, 2, device=CUDA, dtype=torch.int64)
    crops = Crops(some[0], some[0], some, torch.zeros(2, device=CUDA, dtype=torch.bool))
    flat = plan_learned_step(x, x, x, alpha, 0.1)
    update = plan_update_omega(x, code, x, crops, padding=0, alpha=alpha, alpha_omega=alpha, eps=0.1)
    turned = x.transpose(1, 2)
    yield "layouts differ", flat, {"g0_ptr": turned}
    yield "sizes differ", flat, {"g0_ptr": x[:1]}
    yield "has gaps", flat, {"g0_ptr": x[..., :2]}
    yield "not contiguous", update, {"store_ptr": turned}
    yield "indices_ptr is torch.int32", update, {"indices_ptr": some[0].int()}
    yield "store_ptr is torch.float64", update, {"store_ptr": x.double()}
    yield "alpha_omega_ptr lies on cpu", update, {"alpha_omega_ptr": torch.zeros(())}
    yield "flips_ptr is None|flips_ptr is 1", update, {"flips_ptr": 1}


def test_wrong_arguments_of_a_launch_would_be_seen():
    with fake_cuda():
        for message, launch, changes in wrong_launches():
            launch.run()
            args = [changes.get(name, arg) for name, arg in zip(launch.kernel.arg_names, launch.args, strict=False)]
            with pytest.raises(AssertionError, match=message):
                replace(launch, args=tuple(args)).run()
