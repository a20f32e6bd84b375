"""omega on the device, on the host and on disk: the same training, whatever comes late or stops."""

import json
import os
import random
import resource
import signal
import threading
import time
from collections import deque
from contextlib import contextmanager, nullcontext

import pytest
import torch

from apart_fast import METHODS, Apart, UserError, build_model, get_method
from apart_fast.cli import main
from apart_fast.evaluation.judge import reproducible
from apart_fast.loaders import Split, load_dataset, make_loader
from apart_fast.runs import checkpoint
from apart_fast.step import places, transfer
from apart_fast.step.omega import Memory
from apart_fast.step.optimizer import SGD
from apart_fast.step.places import make_memory
from apart_fast.step.staging import StagedMemory
from apart_fast.training import trainer as trainer_module
from apart_fast.training.execution import GraphedStep
from apart_fast.training.trainer import Trainer

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CPU = torch.device("cpu")
SHAPE = (12, 12, 3)

# ---- the rows on their way


class World:
    """CUDA in small, on the CPU: what is put on a stream is done some time later, in any order that events allow."""

    def __init__(self, seed):
        self.random, self.lock, self.local = random.Random(seed), threading.RLock(), threading.local()
        self.streams, self.main = [], None
        self.main = self.Stream()

    def Stream(self, device=None):
        return Stream(self)

    def Event(self, blocking=False):
        return Event(self)

    def current_stream(self, device=None):
        return getattr(self.local, "stream", self.main)

    @contextmanager
    def stream(self, stream):
        before = self.current_stream()
        self.local.stream = stream
        yield
        self.local.stream = before

    def put(self, work, needs=None, stream=None):
        with self.lock:
            (stream or self.current_stream()).queue.append((needs, work))
            for _ in range(self.random.choice((0, 0, 1, 5))):
                self.progress()

    def progress(self):
        ready = [s for s in self.streams if s.queue and (s.queue[0][0] is None or s.queue[0][0].is_set())]
        if ready:
            self.random.choice(ready).queue.popleft()[1]()

    def until(self, done):
        while not done():
            with self.lock:
                self.progress()


class Stream:
    def __init__(self, world):
        self.world, self.queue = world, deque()
        world.streams.append(self)

    def wait_event(self, event):
        if event.mark is not None:
            self.world.put(lambda: None, needs=event.mark, stream=self)


class Event:
    def __init__(self, world):
        self.world, self.mark = world, None

    def record(self, stream):
        self.mark = threading.Event()
        self.world.put(self.mark.set, stream=stream)

    def synchronize(self):
        if self.mark is not None:
            self.world.until(self.mark.is_set)


@pytest.fixture
def fake_cuda(monkeypatch):
    """Makes a `World` in which the transfers of CUDA run."""
    empty = torch.empty

    def make(seed):
        world = World(seed)
        for name in ("Stream", "Event", "current_stream", "stream"):
            monkeypatch.setattr(torch.cuda, name, getattr(world, name))
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
        monkeypatch.setattr(torch, "empty", lambda *args, pin_memory=False, **rest: empty(*args, **rest))
        monkeypatch.setattr(transfer, "_copy", lambda to, source: world.put(lambda: to.copy_(source)))
        monkeypatch.setitem(transfer.TRANSFERS, "cpu", transfer.CudaTransfer)
        return world

    return make


class SlowTransfer(transfer.HostTransfer):
    """The worker takes its time before each job."""

    def wait_sent(self):
        time.sleep(random.choice((0, 1e-4, 1e-3)))

    wait_arrived = wait_sent


def visits(seed, n=22, batch=4, epochs=4):
    """(rows, rows of the next step or what is wrongly taken for it) of some epochs with partial last batches."""
    generator = torch.Generator().manual_seed(seed)
    steps = [part for _ in range(epochs) for part in torch.randperm(n, generator=generator).split(batch)]
    steps = steps[5 if seed % 2 else 0 :]  # a resumed run may begin with the small last batch
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        known = torch.rand((), generator=generator)
        yield step, following if known < 0.8 else None if known < 0.9 else torch.randperm(n, generator=generator)[:4]


def visit(memory, seed, put=lambda work: work()):
    """Steps whose result depends on the order in which each row is visited; returns what the rows must be."""
    expected = memory.contents().copy_(torch.arange(22 * 6.0).view(22, 2, 1, 3)).clone()

    def change(rows, k):
        return rows.mul_(3).add_(k).remainder_(8191)

    for k, (indices, upcoming) in enumerate(visits(seed)):
        with memory.at_hand(indices, upcoming):
            store, rows = memory.store, memory.rows(indices.to(memory.device))
            put(lambda k=k, store=store, rows=rows: store.index_copy_(0, rows, change(store[rows], k)))
        expected[indices] = change(expected[indices], k)
        if k % 9 == 8:
            assert torch.equal(memory.contents(), expected)
    return expected


def home(n=22):
    return torch.zeros(n, 2, 1, 3)


@pytest.mark.parametrize("seed", range(40))
def test_every_visit_sees_the_one_before_on_streams_that_take_any_order(fake_cuda, seed):
    world = fake_cuda(seed)
    memory = StagedMemory(home(), CPU)
    expected = visit(memory, seed, world.put)
    assert torch.equal(memory.contents(), expected)


@pytest.mark.parametrize("seed", range(4))
def test_every_visit_sees_the_one_before_with_a_slow_worker(monkeypatch, seed):
    monkeypatch.setitem(transfer.TRANSFERS, "cpu", SlowTransfer)
    memory = StagedMemory(home(), CPU)
    expected = visit(memory, seed)
    assert torch.equal(memory.contents(), expected)


@needs_gpu
@pytest.mark.parametrize("kind", list(places.PLACES))
def test_every_visit_sees_the_one_before_on_a_gpu(kind, tmp_path):
    memory = make_memory(kind, 22, (2, 1, 3), 0, torch.float32, torch.device("cuda"), tmp_path)
    busy = torch.rand(2000, 2000, device="cuda")

    def put(work):
        busy.copy_((busy @ busy).clamp(0, 1))  # so that the host is ahead
        work()

    expected = visit(memory, 1, put)
    assert torch.equal(memory.contents(), expected)


def test_rows_are_fetched_ahead_but_never_before_they_are_written():
    memory, jobs = StagedMemory(home(), CPU), []
    gather, scatter = memory._gather, memory._scatter
    memory._gather = lambda rows: (jobs.append(("gather", rows.tolist())), gather(rows))
    memory._scatter = lambda rows: (jobs.append(("scatter", rows.tolist())), scatter(rows))
    steps = [[0, 1], [2, 3], [3, 0], [1, 2]]  # 3 is in two steps in a row
    for step, following in zip(steps, [*steps[1:], []], strict=True):
        with memory.at_hand(torch.tensor(step), torch.tensor(following)):
            pass
    memory.contents()
    assert jobs == [
        *[("gather", [0, 1]), ("gather", [2, 3]), ("scatter", [0, 1])],
        *[("scatter", [2, 3]), ("gather", [3, 0])],  # not ahead of its writing
        *[("gather", [1, 2]), ("scatter", [3, 0]), ("scatter", [1, 2])],
    ]


def test_only_a_row_that_is_still_on_its_way_is_waited_for(monkeypatch):
    arrived = threading.Event()
    monkeypatch.setattr(transfer.HostTransfer, "wait_arrived", lambda self: arrived.wait(10))
    memory = StagedMemory(home(), CPU)
    with memory.at_hand(torch.tensor([0, 1]), torch.tensor([2, 3])):
        memory.store.fill_(7)
    with memory.at_hand(torch.tensor([2, 3])):  # [0, 1] have not arrived
        assert not arrived.is_set() and memory.store.max() == 0
        memory.store.fill_(8)
        threading.Timer(0.05, arrived.set).start()
    with memory.at_hand(torch.tensor([3, 0])):
        assert arrived.is_set() and memory.store[:, 0, 0, 0].tolist() == [8, 7]


def test_what_the_caller_may_do():
    memory = StagedMemory(home(), CPU)
    numbers = torch.tensor([4, 2])
    with memory.at_hand(numbers, upcoming := torch.tensor([5, 6])):
        with memory.at_hand(numbers):  # `Apart.step` within the trainer's
            memory.store.fill_(1)
        with pytest.raises(ValueError, match="2 examples are at hand, and the step has 3"):
            with memory.at_hand(torch.arange(3)):
                pass
        with pytest.raises(RuntimeError, match="between steps"):
            memory.reset(torch.Generator())
        numbers.fill_(9), upcoming.fill_(9)  # buffers of the caller's, used again
    assert memory.contents().flatten(1).any(1).nonzero().flatten().tolist() == [2, 4]

    with pytest.raises(ZeroDivisionError), memory.at_hand(torch.tensor([4, 2])):
        memory.store.fill_(5)
        raise ZeroDivisionError
    assert memory.contents().max() == 1  # a step that failed is not remembered
    with memory.at_hand(torch.tensor([0]), torch.tensor([4])):
        pass
    memory.contents()[4] = 3
    with memory.at_hand(torch.tensor([4])):  # fetched before the change
        assert memory.store[0].min() == 3
    with memory.at_hand(torch.arange(0)):  # of a rank without images in a step
        pass
    for wrong in ([0, 22], [-1, 0]):
        with pytest.raises(IndexError, match="outside of 0..21"), memory.at_hand(torch.tensor(wrong)):
            pass


def test_a_captured_graph_keeps_its_rows(monkeypatch):
    memory = StagedMemory(home(), CPU)
    monkeypatch.setattr(transfer.HostTransfer, "capturing", lambda self: True)
    with memory.at_hand(torch.arange(4)):
        memory.rows(torch.arange(4))
    with memory.at_hand(torch.arange(3)):
        pass
    with pytest.raises(ValueError, match="begin with the largest batch"), memory.at_hand(torch.arange(5)):
        pass


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int8])
def test_the_same_numbers_wherever_rows_lie(dtype, tmp_path):
    values = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    rows, contents = torch.tensor([4, 0, 6]), []
    for kind in places.PLACES:
        memory = make_memory(kind, 7, SHAPE, 2, dtype, CPU, tmp_path)
        assert memory.nbytes == 7 * 16 * 16 * 3 * dtype.itemsize
        memory.reset(torch.Generator().manual_seed(1))
        memory.write(rows, values)
        assert (memory.read(rows) - values).abs().max() <= {torch.float16: 3e-4, torch.int8: 4e-3}.get(dtype, 0)
        contents.append(memory.contents())
    assert torch.equal(contents[0], contents[1]) and torch.equal(contents[0], contents[2])
    assert contents[0][1].any() and not list(tmp_path.iterdir())


# ---- in one's own loop


def tiny():
    torch.manual_seed(0)
    return build_model("preact_resnet18", 4, image_size=(12, 12), width=0.0625)


@pytest.mark.parametrize("method", ["apart", "atta-2"])
def test_own_loop_gives_the_same_bits(method, tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (10, *SHAPE), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 4, (10,), generator=generator)
    steps = [torch.tensor(rows) for rows in ([0, 1, 2], [2, 1, 5, 9], [3, 4], [9, 3, 7])]
    ended = []
    for kind, ahead in (("device", False), ("disk", False), ("disk", True)):
        model = tiny()
        apart = Apart(model, 10, SHAPE, padding=2, method=method, omega_device=kind, omega_folder=tmp_path, eta=1e-5)
        optimizer = SGD(model.parameters(), lr=0.05, momentum=0.9)
        for epoch in (0, 10):  # atta draws anew at 10
            apart.start_epoch(epoch)
            for indices, upcoming in zip(steps, [*steps[1:], None], strict=True):
                optimizer.zero_grad()
                with apart.omega_at_hand(indices, upcoming) if ahead else nullcontext():
                    apart.step(images[indices], labels[indices], indices)
                optimizer.step()
        ended.append([*model.state_dict().values(), *apart.state_dict().values(), apart.memory.read(steps[0])])
    for other in ended[1:]:
        assert all(torch.equal(a, b) for a, b in zip(ended[0], other, strict=True))


def test_a_state_moves_between_device_and_disk(tmp_path):
    places = {
        kind: Apart(tiny(), 6, SHAPE, omega_device=kind, omega_folder=tmp_path, seed=1) for kind in ("device", "disk")
    }
    images, rows = torch.zeros(6, *SHAPE, dtype=torch.uint8), torch.arange(6)
    places["device"].step(images, rows % 4, rows)
    places["disk"].step(images, 0 * rows, rows)
    places["disk"].load_state_dict(places["device"].state_dict())
    assert torch.equal(places["disk"].memory.contents(), places["device"].memory.contents())
    other = Apart(tiny(), 6, SHAPE)
    other.load_state_dict(places["disk"].state_dict())
    assert torch.equal(other.memory.store, places["device"].memory.store)


# ---- in a run


def run(*words, code=0):
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert (end.value.code or 0) == code


def outcome(folder):
    state = checkpoint.load(folder / "last.pt")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("seconds"), line.pop("images_per_second")
    return {**state["model"], **state["apart"]}, lines


def assert_same_run(a, b):
    (a, metrics_a), (b, metrics_b) = outcome(a), outcome(b)
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert metrics_a == metrics_b


QUICK = ["--epochs", "2", "--no-test", "--probe-images", "1", "--val-every", "9", "--batch-size", "10"]


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer_module, "finish", lambda *_: {})
        yield


@pytest.fixture(scope="module")
def on_device(settings, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "device"
    run("train", *settings, *QUICK, "--out", out)
    return out


def test_a_run_is_the_same_wherever_omega_lies(on_device, settings, tmp_path):
    for kind, loader in (("host", "resident"), ("disk", "dataloader")):
        run("train", *settings, *QUICK, "--omega-device", kind, "--loader", loader, "--out", tmp_path / kind)
        assert_same_run(tmp_path / kind, on_device)
        names = [{path.name for path in folder.iterdir()} for folder in (tmp_path / kind, on_device)]
        assert names[0] == names[1]


class Killed(BaseException):
    """Nothing is done any more, and what the file of omega held is lost."""


@pytest.mark.parametrize("end", ["kill", "signal"])
def test_disk_resumes_bitwise_in_mid_epoch(on_device, settings, tmp_path, monkeypatch, end):
    """The file has moved on since the checkpoint when the run is killed, and is written to it after a signal."""
    out, step = tmp_path / "stopped", Trainer.step

    def stopping(self, batch):
        step(self, batch)
        if self.global_step == 7:
            if end == "kill":
                raise Killed
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "step", stopping)
    with pytest.raises((Killed, SystemExit)):
        main(["train", *settings, *QUICK, "--omega-device", "disk", "--out", str(out)])
    monkeypatch.setattr(Trainer, "step", step)
    progress = checkpoint.load(out / "last.pt")["progress"]
    assert (progress["epoch"], progress["step"]) == {"kill": (1, 0), "signal": (1, 3)}[end]
    run("train", "--resume", out)
    assert_same_run(out, on_device)


# ---- what cannot be


def refuse(capsys, *words):
    capsys.readouterr()
    run(*words, code=2)
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and "\n" not in error
    return error


def test_a_method_without_memory_is_told(capsys, settings, tmp_path):
    words = ["train", *settings, "--method", "pgd-2", "--omega-device", "host", "--out", tmp_path / "run"]
    assert "--omega-device host: the method pgd-2 remembers nothing" in refuse(capsys, *words)
    assert not (tmp_path / "run").exists()


def test_no_room_on_disk_is_told_before_training(capsys, settings, image_folder, tmp_path):
    load_dataset("folder", image_folder, progress=False)  # so that the decoded images need no room
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # as on a disk with so much left
    try:
        line = refuse(capsys, "train", *settings, "--omega-device", "disk", "--out", tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert f"no space left for omega (0.0 GB) in {tmp_path / 'run'}: free some space" in line
    assert not (tmp_path / "run").exists()


def test_bad_places_are_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot write omega .*choose a folder that can be written"):
        Apart(tiny(), 6, SHAPE, omega_device="disk", omega_folder=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(UserError, match="give omega_folder"):
        Apart(tiny(), 6, SHAPE, omega_device="disk")
    with pytest.raises(UserError, match="unknown omega_device 'disc': choose one of device, host, disk"):
        Apart(tiny(), 6, SHAPE, omega_device="disc")
    monkeypatch.setattr(places, "available_bytes", lambda: 1000)
    with pytest.raises(UserError, match="of host memory, and 0.0 GB are free: store it as int8, or on disk"):
        Apart(tiny(), 6, SHAPE, omega_device="host")


@pytest.mark.parametrize(
    "method, dtype, ways",
    [
        ("apart", torch.float32, "as int8, or on disk"),
        ("apart", torch.int8, "on disk"),
        ("fgsm-pgi", torch.float32, "as float16, or on disk"),
        ("fgsm-mep-cs", torch.float16, "on disk"),
    ],
)
def test_where_there_is_no_room_only_what_goes_is_named(monkeypatch, method, dtype, ways):
    monkeypatch.setattr(places, "available_bytes", lambda: 1000)
    with pytest.raises(UserError, match=f"GB are free: store it {ways} \\(omega_device disk\\)$"):
        Apart(tiny(), 6, SHAPE, method=method, omega_dtype=dtype)


def test_each_process_of_a_host_has_its_part_of_the_memory(monkeypatch):
    needed = make_memory("host", 6, SHAPE, 2, torch.int8, CPU).store.nbytes
    monkeypatch.setattr(places, "available_bytes", lambda: 3.5 * needed)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    make_memory("host", 6, SHAPE, 2, torch.int8, CPU)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UserError, match="GB are free for each process: .*on disk"):
        make_memory("host", 6, SHAPE, 2, torch.int8, CPU)


def test_methods_that_remember_each_example_are_named():
    with pytest.raises(UserError, match="omega_device host: the method trades-10 remembers nothing") as refused:
        Apart(tiny(), 6, SHAPE, method="trades", omega_device="host")
    named = str(refused.value).partition("choose one of ")[2].split(", ")
    assert named == [name + "-k" * numbered for name, (_, numbered, _) in METHODS.items() if get_method(name).maps]


def test_free_host_memory_is_known():
    assert 2**26 < places.available_bytes() < float("inf")
    assert type(make_memory("host", 2, SHAPE, 2, torch.int8, CPU)) is Memory  # nothing to stage on the CPU


# ---- on a GPU


@needs_gpu
@pytest.mark.parametrize("method", ["apart", "atta-1"])
@pytest.mark.parametrize("kind", ["host", "disk"])
@reproducible()  # steps along signs: a last bit may turn one
def test_graph_with_omega_elsewhere_agrees_with_eager_steps_on_the_device(method, kind, tmp_path):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (44, *SHAPE), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.randint(0, 4, (44,), generator=generator))
    losses, contents = [], []
    for where, graphed in (("device", False), (kind, True)):
        model = tiny().cuda()
        apart = Apart(model, 44, SHAPE, padding=2, method=method, eta=1e-5, omega_device=where, omega_folder=tmp_path)
        optimizer = SGD(model.parameters(), momentum=0.9)
        total = torch.zeros((), device="cuda")

        def step(batch, apart=apart, optimizer=optimizer, total=total):
            optimizer.zero_grad(set_to_none=True)
            result = apart.step_crops(batch.images, batch.labels, batch.crops)
            optimizer.step()
            total.add_(result.loss)

        advance, run = GraphedStep(step, 8, [apart.generator]) if graphed else step, []
        with make_loader("resident", split, batch_size=8, seed=0, device="cuda", padding=2, flip=True) as loader:
            for i, batch in enumerate(batch for epoch in range(3) for batch in loader.epoch(epoch)):
                optimizer.set(lr=0.01 * (1 + i % 3))
                with apart.omega_at_hand(batch.host_indices, batch.upcoming):
                    advance(batch)
                run.append(total.clone())
        losses.append(torch.stack(run).diff().tolist())
        contents.append(apart.memory.contents().cpu().float())
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert (contents[0] - contents[1]).abs().mean() < 0.05 * contents[0].abs().mean()
