"""The device's part of a step, on a CUDA device that computes nothing: a wait for it, or a mix of devices, fails."""

import gc
import warnings
import weakref
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from fake_cuda import CUDA, Stream, fake_cuda
from torch import nn

from apart_fast import Apart, build_model
from apart_fast.evaluation import attacks
from apart_fast.graphs import WARM_UP
from apart_fast.kernels import Crops
from apart_fast.kernels.learned_step import learned_step_triton
from apart_fast.kernels.update import Tables
from apart_fast.loaders import Batch, Split, make_loader
from apart_fast.measure.arithmetic import floor
from apart_fast.step import transfer
from apart_fast.step.methods import get_method
from apart_fast.step.optimizer import SGD
from apart_fast.training.accumulate import Accumulation
from apart_fast.training.average import WeightAverage
from apart_fast.training.totals import Totals
from apart_fast.training.trainer import Trainer

OWN_KERNELS = ("apart", "fgsm+", "fgsm", "fgsm-rs", "n-fgsm", "pgd-2", "atta-2", "standard")
METHODS = (*OWN_KERNELS, "apart+mse", "apart+js")  # the others launch no further ones
METHODS += ("fgsm-pgi", "fgsm-mep-cs", "fgsm-rs-cs", "fgsm-uap", "fgsm-cuap", "liet", "trades-2", "awp-pgd-2")
PRECISIONS = (torch.bfloat16, torch.float16, None)
STORES = (torch.float16, torch.int8, torch.float32)


def small_network():
    with CUDA:
        return nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)),
        )


def batch_of(n, indices=True):
    def some(*shape, dtype=torch.int64):
        return torch.zeros(shape, dtype=dtype, device=CUDA)

    crops = Crops(some(n), some(n) if indices else None, some(n, 2), some(n, dtype=torch.bool))
    return Batch(some(50, 12, 12, 3, dtype=torch.uint8), some(n), crops, resident=True)


def parts(model, method="apart", amp=torch.bfloat16, store=torch.float16, ema=True, points=("2:output", "5:output")):
    """What `Trainer._device_step` uses, on the device."""
    scaler = torch.amp.GradScaler("cuda") if amp == torch.float16 else None
    options = dict(omega_dtype=store) if get_method(method).maps else {}
    apart = Apart(model, 50, (12, 12, 3), padding=2, method=method, amp=amp, scaler=scaler, points=points, **options)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=2e-4)
    average = WeightAverage(model, 0.9) if ema else None
    if average is not None:
        average.follow(optimizer)
    made = SimpleNamespace(
        apart=apart, optimizer=optimizer, scaler=scaler, average=average, totals=Totals(CUDA), model=model
    )
    made.accumulation, made._update = None, partial(Trainer._update, made)
    return made


def stores_of(method):
    """How its memory can be stored; a momentum takes no integers."""
    return {0: STORES[:1], 1: STORES, 2: [s for s in STORES if s.is_floating_point]}[get_method(method).maps]


def cases():
    for i, method in enumerate(METHODS):
        for k, amp in enumerate(PRECISIONS):
            for store in stores_of(method):
                yield pytest.param(
                    method, amp, store, (i + k) % 2 == 0, id=f"{method} {amp} {store}".replace("torch.", "")
                )


@pytest.mark.parametrize(("method", "amp", "store", "ema"), list(cases()))
def test_a_step_neither_waits_nor_mixes_devices(method, amp, store, ema):
    with fake_cuda() as cuda:
        made = parts(small_network(), method, amp, store, ema)
        made.apart.start_epoch(2)  # random starts of examples, open gates
        Trainer._device_step(made, batch_of(8))  # with the checks of rows and offsets, as before a capture
        Trainer._device_step(made, batch_of(5))
        cuda.launches.clear()
        with cuda.capture():
            Trainer._device_step(made, batch_of(8))
        assert cuda.launches["start"] == 1
        assert cuda.launches["update"] == 1 + made.apart.method.learned  # of the step sizes
        assert made.optimizer.averaged == ema
        row = made.apart.method
        assert cuda.launches["update_omega"] == row.learned
        assert cuda.launches["learned_step"] == (row.learned or row.from_start)
        assert cuda.launches["relu_capture_sign"] == cuda.launches["relu_sign_dot"] == 2 * row.blocks
        assert cuda.launches["projected_step"] == row.steps * (row.move == "fixed")
        assert all(p.grad.device == CUDA and p.grad.dtype == torch.float32 for p in made.model.parameters())


@pytest.mark.parametrize("amp", PRECISIONS)
def test_gradients_are_summed_within_a_capture_and_applied_after_it(amp):
    with fake_cuda() as cuda:
        made = parts(small_network(), amp=amp)
        made.accumulation = Accumulation(2, made.model, made.apart.sizes)
        for captured in (False, False, True, True):
            with cuda.capture() if captured else nullcontext():
                Trainer._device_step(made, batch_of(8))
            if made.accumulation.full(8, last=False):
                cuda.launches.clear()
                made.accumulation.take_means()
                made.apart.sizes.step(made.scaler)
                made._update()
                made.accumulation.clear()
                assert cuda.launches["update"] == 2 and made.optimizer.averaged  # weights, and step sizes
                cuda.launches.clear()
            assert cuda.launches["update"] == 0


def test_the_released_network_neither_waits_nor_mixes_devices():
    with fake_cuda() as cuda:
        with CUDA:
            model = build_model("preact_resnet18", num_classes=10, width=0.0625)
        made = parts(model, points=None)
        with cuda.capture():
            Trainer._device_step(made, batch_of(8))
        assert cuda.launches["relu_add_sign"] == len(made.apart.points) == 8


def test_a_capture_without_a_step_before_it_updates_plainly():
    """Host memory for its table of addresses is pinned outside of captures only."""
    with fake_cuda() as cuda:
        made = parts(small_network())
        with cuda.capture():
            Trainer._device_step(made, batch_of(8))
        assert cuda.launches["update"] == 0 and made.optimizer.averaged
        for _ in range(2):
            Trainer._device_step(made, batch_of(8))
            with cuda.capture():
                Trainer._device_step(made, batch_of(8))
        assert cuda.launches["update"] == 8


def test_what_a_captured_update_reads_stays_when_others_follow():
    """In an eager step of a network that drops a layer, fewer tensors have gradients."""
    with fake_cuda() as cuda:
        tables, rows = Tables(), [[16, 32, 48, 0, 3], [64, 80, 96, 0, 3]]
        tables.get(rows, CUDA)
        with cuda.capture():
            captured = [weakref.ref(tensor) for tensor in tables.get(rows, CUDA)]
        tables.get(rows[:1], CUDA)
        gc.collect()
        assert all(tensor() is not None for tensor in captured)


def test_a_parameter_without_gradient_leaves_the_average_to_itself():
    with fake_cuda():
        made = parts(small_network())
        Trainer._device_step(made, batch_of(8))
        assert made.optimizer.averaged
        made.model[0].weight.grad = None
        made.optimizer.step()
        assert not made.optimizer.averaged


READS = {
    "item": lambda x: x.sum().item(),
    "branch": lambda x: 1 if (x > 0).all() else 0,
    "boolean index": lambda x: x[x > 0],
    "tolist": lambda x: x.flatten().tolist(),
    "nonzero": lambda x: x.nonzero(),
    "mixed devices": lambda x: x + torch.ones(x.shape),
}


@pytest.mark.parametrize("read", READS)
def test_a_wait_for_the_device_would_be_seen(read):
    """Each is put into the network, in the midst of the step."""

    class Reading(nn.Module):
        def forward(self, x):
            READS[read](x)
            return x

    with fake_cuda():
        model = small_network()
        made = parts(model)
        Trainer._device_step(made, batch_of(8))
        model[2].register_forward_hook(lambda module, args, out: Reading()(out))
        with pytest.raises(Exception, match="(?i)data.?dependent|dynamic|devices|local_scalar|nonzero"):
            Trainer._device_step(made, batch_of(8))


def test_a_wrong_launch_would_be_seen():
    with fake_cuda():
        x = torch.zeros(2, 4, 4, 3, device=CUDA)
        learned_step_triton(x, x, x, torch.zeros((), device=CUDA), 0.1)
        for alpha in (torch.zeros(()), torch.zeros((), device=CUDA, dtype=torch.float16)):
            with pytest.raises(AssertionError, match="alpha_ptr"):
                learned_step_triton(x, x, x, alpha, 0.1)


@pytest.mark.parametrize("amp", PRECISIONS)
def test_the_floor_of_a_profile_can_be_captured(amp):
    with fake_cuda() as cuda:
        made = parts(small_network(), amp=amp)
        with cuda.capture():
            floor(made.apart, torch.zeros(8, 12, 12, 3, device=CUDA), torch.zeros(8, dtype=torch.int64, device=CUDA))
        assert not cuda.launches


@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_the_step_of_an_attack_can_be_captured(amp, monkeypatch):
    monkeypatch.setattr(attacks, "_GRAPH_FROM", 1)
    attacks._capture_stream.cache_clear()
    with fake_cuda() as cuda, torch.autocast("cuda", dtype=amp, enabled=amp is not None), warnings.catch_warnings():
        warnings.simplefilter("error")  # a step that cannot be captured warns
        model, x = small_network().eval(), torch.zeros(16, 12, 12, 3, device=CUDA)
        labels = torch.zeros(16, dtype=torch.int64, device=CUDA)
        step = attacks.KeptSteps().get(model, x, 16, 8, 2 / 255, 8 / 255)
        assert isinstance(step, attacks._GraphedStep) and cuda.launches["projected_step"] == WARM_UP + 1
        assert step(x[:5], x[:5], labels[:5], labels[:5].to(torch.uint8)).device == CUDA
    attacks._capture_stream.cache_clear()


@pytest.mark.parametrize("store", STORES)
def test_the_main_thread_waits_for_no_rows(store, monkeypatch):
    waits, boxes = [], []
    monkeypatch.setattr(transfer, "as_bytes", lambda box: boxes.append(box.device.type))
    monkeypatch.setattr(Stream, "synchronize", lambda self: waits.append(1))
    with fake_cuda() as cuda:
        rows = torch.zeros(8, 6, 6, 3, dtype=store, device=CUDA)
        between = transfer.make_transfer(rows)
        between.send(5)
        with cuda.capture():
            assert between.capturing()
        between.take(rows[:5])
        between.give(rows[:5])
        assert boxes == ["cpu", "cpu"] and not waits
        between.wait_sent(), between.wait_arrived()  # in the worker
        assert len(waits) == 2


def test_the_resident_loader_hands_over_on_the_device():
    split = Split(torch.zeros(20, 12, 12, 3, dtype=torch.uint8), torch.zeros(20, dtype=torch.int64))
    with fake_cuda(), make_loader("resident", split, batch_size=8, seed=0, device=CUDA, padding=2, flip=True) as loader:
        made = parts(small_network())
        sizes = []
        for batch in loader.epoch(0):
            assert all(t.device == CUDA for t in (batch.images, *batch.changing()))
            assert batch.host_indices.device.type == batch.upcoming.device.type == "cpu"
            batch.copy().fill(batch)
            Trainer._device_step(made, batch)
            sizes.append(len(batch))
        assert sizes == [8, 8, 4]
