"""The whole step as one CUDA graph: bookkeeping on any machine, results on a GPU."""

from contextlib import contextmanager

import pytest
import torch

from apart_fast import Apart, UserError, build_model
from apart_fast.evaluation.judge import reproducible
from apart_fast.loaders import Split, make_loader
from apart_fast.runs.config import TrainConfig
from apart_fast.step.optimizer import SGD
from apart_fast.training.graph import WARM_UP, GraphedStep
from apart_fast.training.trainer import wants_graph

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def batches(device, kind="resident", n=44, epochs=3):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 12, 12, 3), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.randint(0, 4, (n,), generator=generator))
    with make_loader(kind, split, batch_size=8, seed=0, device=device, padding=2, flip=True) as loader:
        for epoch in range(epochs):
            yield from loader.epoch(epoch)


@pytest.fixture
def fake_cuda(monkeypatch):
    """Streams and graphs that a CPU can run: capturing records the step, replaying calls it."""

    class Graph:
        replays = 0

        def register_generator_state(self, generator):
            assert isinstance(generator, torch.Generator)

        def replay(self):
            Graph.replays += 1
            self.step()

    class Stream:
        def wait_stream(self, other):
            pass

    @contextmanager
    def capture(graph, stream, capture_error_mode):
        capture.on = True
        yield
        capture.on = False

    @contextmanager
    def stream(_):
        yield

    capture.on = False
    for name, fake in dict(
        CUDAGraph=Graph, Stream=Stream, stream=stream, graph=capture, current_stream=lambda: Stream()
    ).items():
        monkeypatch.setattr(torch.cuda, name, fake)
    return Graph, capture


@pytest.mark.parametrize("kind", ["resident", "dataloader"])
def test_every_batch_is_done_once_in_order(fake_cuda, kind):
    Graph, capture = fake_cuda
    seen, captured = [], []

    def step(batch):
        if capture.on:
            captured.append(batch)
            graphed._graph.step = lambda: step(batch)
        else:
            seen.append((batch.indices.tolist(), batch.images[batch.rows].sum().item(), batch.offsets.tolist()))

    graphed = GraphedStep(step, 8, [torch.Generator()])
    expected = []
    for batch in batches("cpu", kind):
        graphed(batch)
        expected.append((batch.indices.tolist(), batch.images[batch.rows].sum().item(), batch.offsets.tolist()))
    assert seen == expected
    assert len(captured) == 1
    assert Graph.replays == 3 * 5 - WARM_UP  # the odd last batches run eagerly


def test_a_graph_needs_a_gpu():
    cpu = torch.device("cpu")
    assert not wants_graph(TrainConfig(), cpu) and not wants_graph(TrainConfig(graph=False), cpu)
    assert wants_graph(TrainConfig(), torch.device("cuda")) and not wants_graph(
        TrainConfig(graph=False), torch.device("cuda")
    )
    with pytest.raises(UserError, match="needs a GPU"):
        wants_graph(TrainConfig(graph=True), cpu)


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
            result = apart.step(
                batch.images, batch.labels, batch.indices, rows=batch.rows, offsets=batch.offsets, flips=batch.flips
            )
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
