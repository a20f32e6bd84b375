"""Two and three gloo ranks take the steps that one process takes."""

import sys
from pathlib import Path

import pytest
import torch
from ranks_script import BATCH, METHODS, WORLDS, EachByItself, N, loader_of, trained
from starting import start_ranks

from apart_fast.kernels import Crops
from apart_fast.loaders import Batch

SCRIPT = Path(__file__).parent / "ranks_script.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What each rank of three has found: [rank][world, norm, method]."""
    folder = tmp_path_factory.mktemp("ranks")
    ranks = start_ranks(3, [sys.executable, str(SCRIPT), str(folder)])
    assert [rank.wait(300) for rank in ranks] == [0, 0, 0]
    return [torch.load(folder / f"{r}.pt") for r in range(3)]


def together(world):
    """The batches of all ranks as those of one process."""
    loaders = [loader_of(rank, world) for rank in range(world)]

    def batches(epoch):
        for parts in zip(*(loader.epoch(epoch) for loader in loaders), strict=True):
            owned = [(loader, part) for loader, part in zip(loaders, parts, strict=True) if len(part)]
            indices = torch.cat([torch.from_numpy(loader.shard)[part.indices] for loader, part in owned])
            offsets, flips = (torch.cat([getattr(part, name) for _, part in owned]) for name in ("offsets", "flips"))
            labels = torch.cat([part.labels for _, part in owned])
            EachByItself.sizes = [len(part) for _, part in owned]
            yield Batch(loaders[0].split.images, labels, Crops(indices, indices, offsets, flips))

    return batches


def assert_alike(mine, alone):
    """Of what a rank and one process have: step sizes, losses and weights are the same."""
    for name in {"sizes", "results", "gate", "shared", "shared_momentum"} & mine.keys():
        torch.testing.assert_close(mine[name], alone[name], rtol=0, atol=1e-10)
    for name, value in alone["model"].items():
        torch.testing.assert_close(mine["model"][name], value, rtol=0, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("world", WORLDS)
def test_ranks_take_the_steps_of_one_process(found, world, method):
    alone = trained(method, "group", loader_of(0, 1), None, together(world))
    memory = torch.full_like(alone["memory"], torch.nan) if "memory" in alone else None
    for rank in range(world):
        mine = found[rank][world, "group", method]
        assert_alike(mine, alone)
        if memory is not None:
            memory[loader_of(rank, world).shard] = mine["memory"]
    if memory is not None:
        torch.testing.assert_close(memory, alone["memory"], rtol=0, atol=1e-10)
        assert memory.abs().max() > 0.01
    assert alone["results"].shape == (2 * -(-N // BATCH), 3)


@pytest.mark.parametrize("method", ["apart", "pgd-2"])
@pytest.mark.parametrize("world", WORLDS)
def test_batchnorm_takes_the_statistics_of_each_rank(found, world, method):
    alone = trained(method, "each", loader_of(0, 1), None, together(world))
    for rank in range(world):
        mine = found[rank][world, "batch", method]
        assert_alike(mine, alone)
        for place in (1, 4):
            for kind, running in zip(("mean", "var"), alone["network"][place].running[rank], strict=True):
                torch.testing.assert_close(mine["model"][f"{place}.running_{kind}"], running, rtol=0, atol=1e-10)
