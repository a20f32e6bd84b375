"""When ranks agree to stop, keep and give up, and for whom they wait: with stand-ins for the others and for the GPU."""

from types import SimpleNamespace

import pytest
import torch

from apart_fast.errors import RankLost
from apart_fast.parallel import agreement as module
from apart_fast.parallel.agreement import BAD, FLAGS, SAVE, STOP, Agreed, Agreement
from apart_fast.parallel.world import World

NOTHING = dict(stop=False, save=False, bad=False)


class Exchanges:
    """Of ranks whose flags are summed between two steps."""

    def __init__(self, ranks):
        self.flags = torch.zeros(ranks, FLAGS)
        self.ranks = [
            SimpleNamespace(agreed=torch.zeros(FLAGS), raise_flag=lambda i, on, r=r: self._raise(r, i, on))
            for r in range(ranks)
        ]

    def _raise(self, rank, flag, on):
        self.flags[rank, flag] = float(on)

    def step(self):
        for rank in self.ranks:
            rank.agreed = self.flags.sum(0)


@pytest.mark.parametrize(("name", "flag"), [("stop", STOP), ("save", SAVE), ("bad", BAD)])
def test_what_one_rank_wants_all_do_after_the_same_step(name, flag):
    exchanges = Exchanges(3)
    ranks = [Agreement(one, torch.device("cpu"), World(r, 3)) for r, one in enumerate(exchanges.ranks)]
    found = []
    for step in range(4):
        exchanges.step()
        found.append([one.after_step(**NOTHING | {name: r == 1 and step == 1}) for r, one in enumerate(ranks)])
    assert [{agreed[flag] for agreed in step} for step in found] == [{False}, {False}, {True}, {False}]
    assert all(agreed._replace(**{name: False}) == Agreed(False, False, False) for step in found for agreed in step)


def test_alone_it_is_at_once():
    alone = Agreement(None, torch.device("cuda"), World())
    assert alone.after_step(stop=True, save=False, bad=True) == (True, False, True)
    alone.wait()  # no other rank: what reads from the GPU waits for it


class Others:
    """What the other ranks say of themselves."""

    def __init__(self, end):
        self.end, self.asked = end, 0

    def others_end(self):
        self.asked += 1
        return self.end

    def lost(self, error):
        return RankLost(f"lost: {error}")


class Event:
    def __init__(self, looks):
        self.looks = looks

    def query(self):
        self.looks -= 1
        return self.looks < 0


def waiting(others):
    return Agreement(Exchanges(1).ranks[0], torch.device("cuda"), others)


def test_a_step_that_ends_is_waited_for():
    others, event = Others(end=False), Event(3)
    waiting(others)._wait_for(event)
    assert event.looks == -1 and not others.asked  # within a second nobody asks


def test_a_step_without_end_is_given_up_where_another_rank_has_ended_or_after_the_time_limit(monkeypatch):
    monkeypatch.setattr(module, "LOOK", 0.01)
    with pytest.raises(RankLost, match="lost: a step has not ended in 0 s"):
        waiting(Others(end=True))._wait_for(Event(10**9))
    others = Others(end=False)
    monkeypatch.setattr(module, "TIMEOUT", SimpleNamespace(total_seconds=lambda: 0.05))
    with pytest.raises(RankLost, match="lost"):
        waiting(others)._wait_for(Event(10**9))
    assert others.asked > 1
