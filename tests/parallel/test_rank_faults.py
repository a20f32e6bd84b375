"""A rank that fails, ends or is ahead of the others: what the first of two does, without a second process."""

import threading
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from starting import free_port
from torch import nn

from apart_fast.errors import RankLost, SaidElsewhere, UserError
from apart_fast.parallel.world import World, store_of_this_attempt, world
from apart_fast.runs import checkpoint, shards
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.folder import RunFolder
from apart_fast.step.ranks import Ranks
from apart_fast.step.result import StepResult
from apart_fast.training.keep import Keeper
from apart_fast.training.run import train
from apart_fast.training.setup import check_last_batch
from apart_fast.training.state import Progress

WAIT = 30  # seconds: more than any thread needs here


@pytest.fixture
def us(monkeypatch):
    """The first of two ranks; the second, where it is asked, says nothing."""
    monkeypatch.setattr(shards, "LOOK", 0.0)
    monkeypatch.setattr(shards, "GRACE", 0.0)
    dist.init_process_group("gloo", world_size=1, rank=0, store=dist.HashStore())
    yield World(0, 2, 0, None, dist.HashStore())
    dist.destroy_process_group()


def make_keeper(us, tmp_path):
    state = {"model": {"a": torch.zeros(3)}, "description": {}, "dataset": "none"}
    known = SimpleNamespace(contents=lambda progress: dict(state), of_rank=lambda: {"kind": shards.KIND})
    parts = SimpleNamespace(splits=SimpleNamespace(train=range(9)), device=torch.device("cpu"))
    return Keeper(TrainConfig(), RunFolder(tmp_path), parts, known, us)


@pytest.fixture
def keeper(us, tmp_path):
    return make_keeper(us, tmp_path)


def write_second(folder, name):
    """What the second rank writes for the checkpoint `name`."""
    shards.save(shards.path_of(folder, name, 1), {"kind": shards.KIND})


def test_what_a_rank_begins_while_the_checkpoint_before_is_written_stays(keeper, monkeypatch, tmp_path):
    real, go, reached = checkpoint.save, threading.Event(), threading.Event()

    def slow(path, state):
        if path.name == "last.pt":
            reached.set()
            assert go.wait(WAIT)
        real(path, state)

    monkeypatch.setattr(checkpoint, "save", slow)
    (tmp_path / "ranks/killed").mkdir(parents=True)
    with keeper:
        keeper.within_epoch(Progress(step=1))
        while not (names := [path.parent.name for path in tmp_path.glob("ranks/*/0.pt")]):
            pass
        write_second(tmp_path, names[0])
        assert reached.wait(WAIT)
        write_second(tmp_path, "next")  # two checkpoints soon after each other
        go.set()
    assert {path.name for path in (tmp_path / "ranks").iterdir()} == {names[0], "next"}
    assert shards.path_of(tmp_path, "next", 1).is_file() and (tmp_path / "last.pt").is_file()


def test_one_process_removes_what_several_have_left_when_no_checkpoint_names_it(tmp_path):
    (tmp_path / "ranks/several").mkdir(parents=True)
    with make_keeper(World(), tmp_path) as keeper:
        keeper.went_on_from({"name": "several"})
        for there in (True, False):  # last.previous.pt names it, and then does not
            keeper.within_epoch(Progress(step=1))
            keeper.wait()
            assert (tmp_path / "ranks/several").exists() is there


def test_nobody_waits_for_what_a_rank_that_has_ended_did_not_write(keeper, us, tmp_path):
    keeper.within_epoch(Progress(step=1))
    us.says("no space left")  # as the second does
    with pytest.raises(SaidElsewhere):
        keeper.wait()
    assert not (tmp_path / "last.pt").exists()


def test_nobody_waits_for_ranks_that_cannot_be_reached(keeper, tmp_path, monkeypatch):
    monkeypatch.setattr("apart_fast.parallel.world.NOTICE", 0.0)
    with pytest.raises(RuntimeError, match="gloo"), keeper:
        keeper.within_epoch(Progress(step=1))
        raise RuntimeError("gloo: connection closed by peer")
    assert not (tmp_path / "last.pt").exists()


def test_several_that_miss_a_rank_say_so_once(us):
    for said in (RankLost, SaidElsewhere):
        with pytest.raises(said) as end, us.one_line():
            raise RankLost("rank 1 has ended")
        assert end.value.code == 1


def test_a_run_can_go_on_with_a_step_in_which_a_rank_has_no_images():
    model, nothing = nn.Linear(2, 1), torch.zeros(())
    ranks = Ranks(lambda tensors, share, like: [t + 1 for t in tensors], torch.arange(3), 7)
    result, sizes = ranks.share(model, StepResult(nothing, nothing, nothing), torch.zeros(2), 0, 1)
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in model.parameters())
    assert result.loss == 1 and sizes.tolist() == [1, 1]


def test_a_restart_does_not_hear_what_was_said_before_it(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    first = store_of_this_attempt()
    first.set("ended", "a line")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    again = store_of_this_attempt()  # torchrun keeps the store
    assert first.check(["ended"]) and not again.check(["ended"])
    for name, value in {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_MAX_RESTARTS": "3"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with pytest.raises(UserError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"):
        store_of_this_attempt()


def test_each_rank_has_a_gpu_of_its_own(monkeypatch):
    """Whatever number the device of a run had that began alone, and goes on with several."""
    monkeypatch.setattr(dist, "get_backend", lambda: "gloo")
    assert World(0, 2).device("cpu") == "cpu"
    with pytest.raises(UserError, match="the run computes on GPUs: give --device cuda"):
        World(0, 2).device("cuda")
    monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
    with pytest.raises(UserError, match="the run computes on the CPU: give --device cuda, or --device cpu"):
        World(0, 2).device("cpu")
    assert [World(r, 2, r).device(name) for r, name in ((0, "cuda"), (1, "cuda"), (1, "cuda:0"))] == [
        *("cuda:0", "cuda:1", "cuda:1")
    ]
    assert World().device("cuda:1") == "cuda:1"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="--device cuda:0 with several processes would be the device of all"):
        with world("cuda:0"):
            pass


def test_what_several_ranks_cannot_do_is_told_in_one_line(us, tmp_path):
    with pytest.raises(UserError, match="without torchrun"):
        train(TrainConfig(profile=True, out=tmp_path / "run"), us)
    assert not (tmp_path / "run").exists()
    model = nn.Sequential(nn.SyncBatchNorm(3))
    check_last_batch(model, 4, range(8), us)
    with pytest.raises(UserError, match="--sync-bn needs an image"):
        check_last_batch(model, 4, range(9), us)
