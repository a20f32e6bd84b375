"""The whole step as one CUDA graph: bookkeeping on any machine, results on a GPU."""

import weakref
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch

from apart_fast import Apart, UserError, build_model
from apart_fast.evaluation.judge import reproducible
from apart_fast.graphs import WARM_UP
from apart_fast.loaders import Split, make_loader
from apart_fast.step.optimizer import SGD
from apart_fast.training.execution import GraphedStep, wants_graph

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def batches(device, kind="resident", n=44, epochs=3):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 12, 12, 3), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.randint(0, 4, (n,), generator=generator))
    with make_loader(kind, split, batch_size=8, seed=0, device=device, padding=2, flip=True) as loader:
        for epoch in range(epochs):
            yield from loader.epoch(epoch)


class StandIn:
    """What `torch.cuda` gives a capture, on the CPU: what is called within it is recorded, and a replay calls it."""

    def __init__(self, monkeypatch, fails=False):
        self.capturing, self.replays, self.current, self.registered = False, 0, "default", []
        owner = self

        class Graph:
            def register_generator_state(self, generator):
                owner.registered.append(generator)

            def replay(self):
                owner.replays += 1
                owner.captured()

        class Stream:
            def wait_stream(self, other):
                pass

        @contextmanager
        def graph(graph, stream, capture_error_mode):
            owner.capturing, owner.current = True, stream
            yield
            owner.capturing = False
            if fails:  # as torch 2.14, which leaves the other stream current
                raise RuntimeError("operation not permitted when stream is capturing\nmore of it")
            owner.current = "default"

        fakes = dict(
            CUDAGraph=Graph,
            Stream=Stream,
            stream=lambda _: nullcontext(),
            graph=graph,
            current_stream=lambda: SimpleNamespace(wait_stream=lambda other: None, name=owner.current),
            set_stream=lambda stream: setattr(owner, "current", stream.name),
        )
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)

    def captured(self):
        raise AssertionError("nothing was captured")


def seen_of(batch):
    return batch.indices.tolist(), batch.images[batch.rows].sum().item(), batch.offsets.tolist()


@pytest.mark.parametrize("kind", ["resident", "dataloader"])
@pytest.mark.parametrize("fails", [False, True])
def test_every_batch_is_done_once_in_order(monkeypatch, capsys, kind, fails):
    cuda, seen, captured = StandIn(monkeypatch, fails), [], []

    def step(batch):
        if cuda.capturing:
            captured.append(batch)
            cuda.captured = lambda: seen.append(seen_of(batch))
        else:
            seen.append(seen_of(batch))

    generator = torch.Generator()
    graphed = GraphedStep(step, 8, [generator])
    expected = []
    for batch in batches("cpu", kind):
        graphed(batch)
        expected.append(seen_of(batch))
    assert seen == expected
    assert cuda.registered == [generator]  # by every version of torch
    assert len(captured) == 1 and cuda.current == "default"  # a capture that failed is not tried again
    assert cuda.replays == (0 if fails else 3 * 5 - WARM_UP)  # the odd last batches run eagerly
    said = capsys.readouterr().out
    assert ("cannot be one CUDA graph (operation not permitted when stream is capturing)" in said) == fails


def test_what_was_captured_is_let_go_and_captured_anew(monkeypatch):
    """NCCL does not end while a graph holds one of its collectives."""
    cuda, captures = StandIn(monkeypatch), []
    graphs = weakref.WeakSet()
    made = torch.cuda.CUDAGraph
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graphs.add(graph := made()) or graph)

    def step(batch):
        if cuda.capturing:
            captures.append(batch)
            cuda.captured = lambda: None

    graphed, (batch, *_) = GraphedStep(step, 8, []), batches("cpu")
    for round_ in (1, 2):
        for _ in range(WARM_UP + 2):
            graphed(batch)
        assert len(captures) == round_ and len(graphs) == 1
        graphed.close()
        assert not graphs


def test_a_graph_needs_a_gpu():
    cpu = torch.device("cpu")
    gpu = torch.device("cuda")
    assert not wants_graph(None, cpu) and not wants_graph(False, cpu)
    assert wants_graph(None, gpu) and wants_graph(True, gpu) and not wants_graph(False, gpu)
    with pytest.raises(UserError, match="needs a GPU"):
        wants_graph(True, cpu)


@needs_gpu
@pytest.mark.parametrize("method", ["apart", "pgd-3", "standard", "atta-1", "n-fgsm"])
@pytest.mark.parametrize("amp", [None, torch.bfloat16, torch.float16])
@reproducible()  # steps along signs: a last bit may turn one
def test_graph_and_eager_agree(method, amp):
    losses = []
    for graphed in (False, True):
        torch.manual_seed(0)
        model = build_model("preact_resnet18", 4, image_size=(12, 12), width=0.125).cuda()
        scaler = torch.amp.GradScaler("cuda") if amp == torch.float16 else None
        apart = Apart(model, 44, (12, 12, 3), padding=2, method=method, amp=amp, scaler=scaler, eta=1e-5)
        optimizer = SGD(model.parameters(), momentum=0.9)
        total = torch.zeros((), device="cuda")

        def step(batch, apart=apart, optimizer=optimizer, scaler=scaler, total=total):
            optimizer.zero_grad(set_to_none=True)
            result = apart.step_crops(batch.images, batch.labels, batch.crops)
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
            total.add_(result.loss)

        advance = GraphedStep(step, 8, [apart.generator]) if graphed else step
        run = []
        for i, batch in enumerate(batches("cuda")):
            optimizer.set(lr=0.01 * (1 + i % 3))  # a device scalar: the graph sees it change
            advance(batch)
            run.append(total.clone())
        losses.append(torch.stack(run).diff().tolist())
    assert losses[0] == pytest.approx(losses[1], rel=2e-2 if amp else 2e-3)
