"""The three loaders give the same batches, survive bad input and leave nothing behind."""

import errno
import resource
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from io import FileIO

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apart_fast.errors import UserError
from apart_fast.loaders import LOADERS, Batch, EpochPlan, Split, load_dataset, make_loader, subset
from apart_fast.loaders.datasets.table import DEBIAN_FASHION_MNIST
from apart_fast.loaders.plan import shard_positions, share_of

needs_ffcv = pytest.mark.skipif(find_spec("ffcv") is None, reason="ffcv is not installed: pip install apart_fast[ffcv]")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
KINDS = [pytest.param(kind, marks=needs_ffcv if kind == "ffcv" else ()) for kind in LOADERS]
OTHERS = [pytest.param(kind, marks=needs_ffcv if kind == "ffcv" else ()) for kind in LOADERS if kind != "resident"]
OPTIONS = {"batch_size": 64, "seed": 3, "padding": 4, "flip": True, "progress": False}


def synthetic(n=300, shape=(9, 7, 3), seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(n) % 10, "synthetic")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def make(kind, split, cache, **options):
    more = {"cache": cache} if kind == "ffcv" else {}
    return make_loader(kind, split, **{**OPTIONS, **more, **options})


def seen(batch):
    """A batch with its images gathered, on the CPU, and owned by nobody else."""
    images = batch.images[batch.rows]
    rest = (batch.labels, batch.crops.indices, batch.crops.offsets, batch.crops.flips)
    assert [t.dtype for t in (batch.rows, *rest)] == [torch.int64] * 4 + [torch.bool]
    assert len(batch) == len(images) and {t.device for t in (images, *rest)} == {batch.images.device}
    return [t.cpu().clone() for t in (images, *rest)]


def run(loader, epoch, start=0):
    # all batches are taken before any is looked at, so that a reused buffer shows
    return [seen(batch) for batch in list(loader.epoch(epoch, start))]


def same(a, b):
    return len(a) == len(b) and all(
        torch.equal(x, y) for p, q in zip(a, b, strict=True) for x, y in zip(p, q, strict=True)
    )


@needs_ffcv
def test_ffcv_leaves_torch_its_threads(cache):
    # the first test of this file that imports ffcv, which would set them to 1
    before, new = torch.get_num_threads(), []
    torch.set_num_threads(3)
    try:
        with make("ffcv", synthetic(), cache) as loader:
            run(loader, 0)
        thread = threading.Thread(target=lambda: new.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert torch.get_num_threads() == 3 and new == [3]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("shape", [(9, 7, 3), (8, 8, 1)])
def test_same_batches_as_resident(kind, shape, cache):
    split = synthetic(shape=shape)
    many = {"batch_size": 16}  # more batches than a loader has buffers
    with make("resident", split, cache, **many) as reference, make(kind, split, cache, **many) as loader:
        assert len(loader) == len(reference) == 19 and loader.num_examples == 300
        for epoch in (0, 1):
            assert same(run(reference, epoch), run(loader, epoch))
        assert same(run(reference, 1)[3:], run(loader, 1, start=3))
        assert run(loader, 1, start=19) == []
        loader.epoch(1, start=19).close()  # a generator like the others


@pytest.mark.skipif(not DEBIAN_FASHION_MNIST.exists(), reason="Debian's package dataset-fashion-mnist is not installed")
@pytest.mark.parametrize("kind", OTHERS)
def test_same_batches_as_resident_on_fashion_mnist(kind, tmp_path):
    split = subset(load_dataset("fashion-mnist", tmp_path, download=False).train, 2000)
    with make("resident", split, None) as reference, make(kind, split, tmp_path) as loader:
        assert same(run(reference, 7), run(loader, 7))


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_holds_every_example_once(kind, cache):
    split = synthetic()
    with make(kind, split, cache) as loader:
        batches = run(loader, 0)
    assert [len(batch[1]) for batch in batches] == [64, 64, 64, 64, 44]
    images, labels, indices, offsets, flips = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert sorted(indices.tolist()) == list(range(300))
    assert torch.equal(images, split.images[indices]) and torch.equal(labels, split.labels[indices])
    assert set(offsets.flatten().tolist()) == set(range(9))
    assert 100 < flips.sum() < 200


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_own_fixed_and_separate_shards(kind, cache):
    split = synthetic(n=97)  # seven batches of 14 less one
    owned, sizes = [], []
    with make(kind, split, cache, batch_size=14) as loader:
        alone = {  # crops and flips by epoch and example
            (epoch, int(i)): (*offset.tolist(), bool(flip))
            for epoch in (0, 1)
            for _, _, indices, offsets, flips in run(loader, epoch)
            for i, offset, flip in zip(indices, offsets, flips, strict=True)
        }
    for rank in range(3):
        with make(kind, split, cache, batch_size=14, rank=rank, world_size=3) as loader:
            positions = torch.from_numpy(loader.shard)
            assert loader.num_examples == len(positions) and len(loader) == 7
            for epoch in (0, 1):
                batches = run(loader, epoch)
                sizes.append([len(batch[1]) for batch in batches])
                for images, labels, indices, offsets, flips in batches:
                    # the index leads to the same example in every epoch
                    assert torch.equal(images, split.images[positions[indices]])
                    assert torch.equal(labels, split.labels[positions[indices]])
                    for i, offset, flip in zip(positions[indices], offsets, flips, strict=True):
                        assert alone[epoch, int(i)] == (*offset.tolist(), bool(flip))
            owned += positions.tolist()
    assert sorted(owned) == list(range(97))
    assert np.array(sizes)[::2].sum(0).tolist() == [14] * 6 + [13]
    assert sizes[0] == sizes[1] == [5] * 7 and sizes[4] == [4] * 7


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_without_images_in_the_last_batch_takes_the_step_along(kind, cache):
    shares = []
    for rank in range(3):
        with make(kind, synthetic(n=13), cache, batch_size=6, rank=rank, world_size=3) as loader:
            batches = list(loader.epoch(0))
            assert [len(batch) for batch in batches] == ([2, 2, 1], [2, 2, 0], [2, 2, 0])[rank]
            assert [batch.together for batch in batches] == [6, 6, 1]
            shares.append([len(batch) / batch.together for batch in batches])
            assert [len(batch.indices) for batch in loader.epoch(0, start=2)] == [(1, 0, 0)[rank]]
    assert np.allclose(np.sum(shares, 0), 1)


def test_of_each_batch_a_rank_has_its_share():
    for n, batch, world in ((1000, 128, 3), (1000, 128, 8), (10, 10, 4), (11, 5, 5)):
        owned = [shard_positions(n, rank, world, batch) for rank in range(world)]
        assert sorted(np.concatenate(owned).tolist()) == list(range(n))
        for rank, positions in enumerate(owned):
            whole, rest = divmod(n, batch)
            assert len(positions) == whole * share_of(batch, rank, world) + share_of(rest, rank, world)


@pytest.mark.parametrize("kind", KINDS)
def test_leaving_early_leaves_nothing(kind, cache):
    before = threading.active_count()
    generators = torch.get_rng_state(), np.random.get_state()[1]
    with make(kind, synthetic(), cache, batch_size=8) as loader:
        expected = run(loader, 1)
        for i, _ in enumerate(loader.epoch(0)):
            if i == 2:
                break
        unfinished = loader.epoch(0)
        next(unfinished)
        assert same(expected, run(loader, 1))
    del unfinished
    assert threading.active_count() == before
    assert torch.equal(generators[0], torch.get_rng_state())  # the run's own randomness is not touched
    assert np.array_equal(generators[1], np.random.get_state()[1])


def test_worker_processes_survive_an_unfinished_epoch():
    split = synthetic()
    with make("resident", split, None) as reference, make("dataloader", split, None, workers=1) as loader:
        next(loader.epoch(0))
        for epoch in (0, 1):
            assert same(run(reference, epoch), run(loader, epoch))


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_filled_with_other_batches(kind, cache):
    """As the static buffers of a CUDA graph: the same tensors for good, another batch's values."""
    with make(kind, synthetic(), cache, batch_size=100) as loader:
        first, second, _ = loader.epoch(0)
        copied = first.copy()
        assert same([seen(copied)], [seen(first)]) and (copied.images is first.images) == (kind == "resident")
        assert len(copied.changing()) == (5 if kind == "resident" else 6)
        mine = [tensor.data_ptr() for tensor in copied.changing()]
        assert not set(mine) & {tensor.data_ptr() for tensor in first.changing()}
        copied.fill(second)
        assert same([seen(copied)], [seen(second)]) and torch.equal(copied.rows, second.rows)
        assert mine == [tensor.data_ptr() for tensor in copied.changing()]
        assert torch.equal(copied.host_indices, second.indices) and copied.upcoming is None


def test_a_copy_of_as_many_resident_images_as_the_batch_is_resident():
    """What is resident is said, not guessed from lengths."""
    with make("resident", synthetic(n=64), None) as loader:
        (batch,) = loader.epoch(0)
        copied = batch.copy()
        assert batch.resident and copied.images is batch.images is loader.images
        with pytest.raises(ValueError, match="Batch.images is another tensor than in the first step"):
            copied.fill(replace(batch, images=batch.images.clone()))
        with pytest.raises(ValueError, match="Batch.images is another tensor than in the first step"):
            copied.fill(replace(batch, resident=False))
        with pytest.raises(ValueError, match="Batch.indices is given for only one"):
            copied.fill(replace(batch, crops=replace(batch.crops, indices=None)))


def test_a_batch_without_memory_has_no_indices():
    with make("resident", synthetic(), None) as loader:
        batch = next(loader.epoch(0))
    bare = Batch(batch.images, batch.labels, replace(batch.crops, indices=None))
    assert bare.indices is None and bare.host_indices is None and len(bare.copy().changing()) == 5


@needs_cuda
@pytest.mark.parametrize("kind", KINDS)
def test_same_batches_on_cuda(kind, cache):
    split = synthetic(n=3000)
    with make(kind, split, cache) as host, make(kind, split, cache, device="cuda") as device:
        batch = next(device.epoch(0))
        assert batch.images.is_cuda and all(tensor.is_cuda for tensor in batch.changing())
        assert same(run(host, 0), run(device, 0))


@given(n=st.integers(1, 60), seed=st.integers(0, 2**40), epoch=st.integers(0, 500), padding=st.integers(0, 5))
def test_plan(n, seed, epoch, padding):
    plan, again = (EpochPlan(n, seed, epoch, padding, flip=True) for _ in range(2))
    assert sorted(plan.order) == list(range(n))
    assert plan.offsets.shape == (n, 2) and plan.offsets.min() >= 0 and plan.offsets.max() <= 2 * padding
    assert all(np.array_equal(getattr(plan, a), getattr(again, a)) for a in ("order", "offsets", "flips"))
    bare = EpochPlan(n, seed, epoch)
    assert np.array_equal(bare.order, plan.order) and not bare.flips.any() and not bare.offsets.any()


def test_plan_depends_on_seed_and_epoch_and_stays_for_good():
    plans = [EpochPlan(50, *key, 4, True) for key in ((0, 0), (1, 0), (0, 1))]
    for what in ("order", "offsets", "flips"):
        assert len({getattr(plan, what).tobytes() for plan in plans}) == 3
    # written down once: a change here means that no earlier run can be repeated
    plan = EpochPlan(6, seed=5, epoch=2, padding=4, flip=True)
    assert plan.order.tolist() == [4, 2, 5, 0, 1, 3]
    assert plan.offsets.tolist() == [[7, 1], [7, 4], [4, 1], [2, 1], [1, 4], [6, 0]]
    assert plan.flips.tolist() == [True, False, False, False, False, False]


def test_plan_is_uniform():
    plan = EpochPlan(20_000, 0, 0, padding=4, flip=True)
    counts = np.bincount(plan.offsets[:, 0] * 9 + plan.offsets[:, 1], minlength=81)
    expected = 20_000 / 81
    assert ((counts - expected) ** 2 / expected).sum() < 125  # chi-squared, 80 degrees of freedom: p = 0.001
    assert abs(plan.flips.mean() - 0.5) < 0.015


# ---------------------------------------------------------------------------------------------------------------------
# bad input


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 301}, "a batch of 301 is larger than the data .* at most 300"),
        ({"batch_size": 2, "world_size": 3}, "leaves some without images: .* at least 3"),
        ({"batch_size": 0}, "batch size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"rank": 2, "world_size": 2}, "rank 2"),
        ({"workers": -1}, "workers is -1"),
    ],
)
def test_arguments_out_of_range(kind, options, message, tmp_path):
    with pytest.raises(UserError, match=message) as raised:
        make(kind, synthetic(), tmp_path, **options)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_unknown_loader():
    with pytest.raises(UserError, match="unknown loader 'fast': choose one of ffcv, resident, dataloader"):
        make_loader("fast", synthetic())


def test_ffcv_is_imported_only_when_used():
    code = "import apart_fast.loaders, sys; sys.exit('ffcv' in sys.modules or 'numba' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_ffcv_not_installed(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ffcv", None)  # as if it could not be found
    with pytest.raises(UserError, match=r"ffcv is not installed: pip install apart_fast\[ffcv\]"):
        make("ffcv", synthetic(), tmp_path)


@needs_ffcv
def test_converted_once_and_again_when_the_data_changed(tmp_path):
    split = synthetic()
    make("ffcv", split, tmp_path).close()
    (beton,) = tmp_path.glob("*.beton")
    written = beton.stat().st_mtime_ns
    make("ffcv", split, tmp_path).close()
    assert [beton] == list(tmp_path.glob("*.beton")) and beton.stat().st_mtime_ns == written
    split.images[17, 3, 3, 0] ^= 1
    with make("ffcv", split, tmp_path) as loader:
        assert len(list(tmp_path.glob("*.beton"))) == 2
        images, _, indices, *_ = (torch.cat(parts) for parts in zip(*run(loader, 0), strict=True))
        assert torch.equal(images, split.images[indices])
    assert not list(tmp_path.glob("*.tmp"))


@needs_ffcv
@pytest.mark.parametrize("damage", ["cut", "altered", "note"])
def test_damaged_beton(damage, tmp_path):
    make("ffcv", synthetic(), tmp_path).close()
    (beton,) = tmp_path.glob("*.beton")
    victim = beton.with_name(beton.name + ".json") if damage == "note" else beton
    data = bytearray(victim.read_bytes())
    if damage == "altered":
        data[len(data) // 2] ^= 1
    else:
        del data[len(data) // 2 :]
    victim.write_bytes(data)
    with pytest.raises(UserError, match=f"{beton} is damaged: delete it and run again"):
        make("ffcv", synthetic(), tmp_path)
    assert victim.read_bytes() == data
    beton.unlink()  # the advice helps
    make("ffcv", synthetic(), tmp_path).close()


@contextmanager
def file_size_limit(size):
    """Writing beyond `size` bytes fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@needs_ffcv
@pytest.mark.parametrize("size", [100, 3_000_000, 4_194_304, 6_000_000, 6_291_556])
def test_no_space_for_the_beton(size, tmp_path):
    # limits within the header, a page, between pages, the last page and the table at the end
    split = synthetic(n=1500, shape=(32, 32, 3))
    (tmp_path / "mine").write_text("kept")
    with file_size_limit(size), pytest.raises(UserError, match="no space left for"):
        make("ffcv", split, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@needs_ffcv
def test_writes_cut_short_without_an_error(tmp_path, monkeypatch):
    class Short(FileIO):
        def write(self, data):
            return super().write(data[:-1])

    monkeypatch.setattr("ffcv.memory_allocator.open", lambda name, mode, buffering: Short(name, mode), raising=False)
    with pytest.raises(UserError, match="no space left for"):
        make("ffcv", synthetic(), tmp_path)
    assert not list(tmp_path.iterdir())


@needs_ffcv
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), SystemExit(1)])
def test_a_failing_reader_does_not_hang(error, tmp_path, monkeypatch):
    from ffcv.loader.epoch_iterator import EpochIterator

    healthy = EpochIterator.run_pipeline

    def failing(self, number, *args):
        if number == 2:
            raise error
        return healthy(self, number, *args)

    monkeypatch.setattr(EpochIterator, "run_pipeline", failing)
    before = threading.active_count()
    with make("ffcv", synthetic(), tmp_path) as loader:
        batches = loader.epoch(0)
        next(batches), next(batches)
        with pytest.raises(RuntimeError, match="the thread that reads the FFCV file ended"):
            next(batches)
        assert threading.active_count() == before
        monkeypatch.undo()
        assert len(run(loader, 0)) == 5  # the loader itself is still good
