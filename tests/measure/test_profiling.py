"""The profile of a tiny run: its figures hang together, its files can be read, and it leaves no trace in the step."""

import gzip
import json
import sys
from contextlib import nullcontext
from itertools import groupby

import pytest
import torch
import tyro

from apart_fast import graphs
from apart_fast.errors import UserError
from apart_fast.loaders.datasets import load_dataset
from apart_fast.measure import arithmetic, profiling
from apart_fast.measure.arithmetic import count_flops, floor
from apart_fast.measure.clocks import HostClock
from apart_fast.measure.interleave import Spread, spread
from apart_fast.measure.stopwatch import PHASES, Stopwatch
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.folder import RunFolder
from apart_fast.step.spans import SPANS, listening, span
from apart_fast.training.trainer import Trainer


def make_trainer(settings, folder, *more):
    config = tyro.cli(TrainConfig, args=[*settings, *more, "--out", str(folder)])
    data = load_dataset(config.dataset, config.data_dir, download=False, progress=False)
    return Trainer(config, RunFolder.choose(config), data)


def nobody_listens():
    return all(isinstance(span(name), nullcontext) for name in SPANS)


def attributes(trainer):
    """What hangs on the objects that a step calls, and which functions: nothing is replaced or left there."""
    owners = [trainer, trainer.execution, trainer.apart, trainer.optimizer, trainer.average, trainer.scaler]
    return [
        {name: id(value) if callable(value) else None for name, value in vars(owner).items()}
        for owner in owners
        if owner is not None
    ]


def heard(trainer):
    """Names of the phases of one step, in their order; several of one name in a row count once."""
    trainer.model.train()
    watch = Stopwatch(HostClock())
    with trainer.execution.eagerly(), listening(watch.phase), watch.step():
        trainer.step(next(trainer.loader.epoch(0)))
    return [name for name, _ in groupby(name for name, _, _ in watch.steps[0].phases)]


@pytest.fixture(scope="module")
def profiled(settings, tmp_path_factory):
    """(trainer, report, attributes before and after) of a profile with mixed precision and EMA."""
    folder = tmp_path_factory.mktemp("profile") / "run"
    trainer = make_trainer(settings, folder, "--amp", "--ema", "0.9")
    before = attributes(trainer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(arithmetic.MATRIX_SIZE, "cpu", 128)
        patch.setattr(arithmetic, "PEAK_SECONDS", 0.05)
        patch.setattr(sys, "argv", ["train.py", "--profile"])
        report = profiling.run(trainer)
    return trainer, report, before, attributes(trainer)


def test_phases_make_up_the_step(profiled):
    _, report, _, _ = profiled
    assert tuple(report.phases) == PHASES
    assert all(phase.seconds > 0 for phase in report.phases.values())
    # medians of parts need not add up to the median of the whole, but on average they nearly do
    assert sum(phase.seconds for phase in report.phases.values()) == pytest.approx(report.step.median, rel=0.25)
    assert sum(phase.share for phase in report.phases.values()) == pytest.approx(1, rel=0.25)
    assert report.phases["pass 2"].share > report.phases["optimizer"].share
    assert report.phases["rest"].share < 0.3


def test_figures_hang_together(profiled):
    trainer, report, _, _ = profiled
    assert (report.method, report.batch_size, report.dtype, report.loader) == ("apart", 8, "bfloat16", "resident")
    assert (report.graph, report.compiled, report.passes) == (False, False, 5)
    assert report.images_per_second == pytest.approx(8 / report.step.median)
    assert report.flops_per_second == pytest.approx(report.flops / report.step.median)
    assert report.floor.low <= report.floor.median <= report.floor.high
    assert 0.8 < report.overhead.median < 20  # a step does more than its passes; tiny ones are mostly overhead
    assert report.peak_flops > 1e8
    assert 100 < report.launches["operator calls"] < 5000
    assert report.peak_bytes > 50 * 2**20
    assert trainer.progress.step == 0


@pytest.mark.parametrize(("method", "units"), [("standard", 3), ("fgsm", 5), ("pgd-2", 7), ("apart", 5)])
def test_flops_are_those_of_the_methods_passes(settings, tmp_path, method, units):
    trainer = make_trainer(settings, tmp_path / "run", "--method", method, "--test-images", "4")
    batch = next(trainer.loader.epoch(0))
    with torch.no_grad():
        forward = count_flops(lambda: trainer.model(torch.zeros(8, 3, 12, 12)))
    trainer.model.train()
    # the first layer needs no data-backward in pass 2 where no step size is learned: a little less than `units`
    assert count_flops(lambda: trainer.execution.device_step(batch)) / forward == pytest.approx(units, rel=0.02)
    x = torch.rand(8, 12, 12, 3)
    assert count_flops(lambda: floor(trainer.apart, x, batch.labels)) / forward == pytest.approx(units, rel=0.02)


def test_a_profile_leaves_the_step_as_it_was(profiled):
    trainer, _, before, after = profiled
    assert trainer.apart.state_dict()["epoch"].tolist() == [0, 3]  # of the training's own steps
    assert before == after
    assert nobody_listens()
    assert all(p.grad is None for p in trainer.model.parameters())


def test_a_graphed_step_is_timed_whole_and_its_phases_without_the_graph(settings, tmp_path, monkeypatch):
    """On the CPU: the graph is a stand-in that names no spans, as a replayed one names none."""
    trainer = make_trainer(settings, tmp_path / "run")
    execution, replays, captured = trainer.execution, [], []

    def replayed(batch):
        assert nobody_listens()
        replays.append(len(batch))
        execution.device_step(batch)

    def capture(function, generators):
        captured.append(function)
        return function, None

    execution._advance = replayed
    monkeypatch.setattr(type(execution), "graphed", True)
    monkeypatch.setattr(graphs, "capture", capture)
    monkeypatch.setitem(arithmetic.MATRIX_SIZE, "cpu", 128)
    monkeypatch.setattr(arithmetic, "PEAK_SECONDS", 0.05)
    report = profiling.profile(trainer, warmup=1, steps=2)
    assert report.graph and "one graph a step" in report.table() and "eager steps" in report.table()
    assert all(phase.seconds > 0 for phase in report.phases.values())
    # captured after the warm-up, then 2 timed, 1 for its launches, and with the floor, which is one graph too
    assert replays == [8] * (report.warmup + 2 + 1 + 2 + 2) and report.warmup == 1 + graphs.WARM_UP + 1
    assert len(captured) == 1
    assert execution._advance is replayed


def test_nobody_listens_after_an_exception(settings, tmp_path):
    trainer = make_trainer(settings, tmp_path / "run")
    trainer.optimizer.step = lambda: None if nobody_listens() else 1 / 0
    before = attributes(trainer)
    with pytest.raises(ZeroDivisionError):
        profiling.profile(trainer)
    with pytest.raises(ZeroDivisionError):
        heard(trainer)
    assert nobody_listens()
    assert attributes(trainer) == before


def test_profiled_steps_are_the_steps_of_training(settings, tmp_path):
    """Listening changes no result."""
    states = []
    for name in ("plain", "profiled"):
        trainer = make_trainer(settings, tmp_path / name)
        trainer.progress.step = 3  # where the learning rate is not 0
        if name == "plain":
            trainer.model.train()
            trainer.step(next(trainer.loader.epoch(0)))
        else:
            assert heard(trainer) == ["optimizer", *SPANS]  # first the old gradients go
        states.append([*trainer.model.state_dict().values(), trainer.apart.step_sizes, trainer.apart.memory.store])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


def test_a_profile_counts_the_transfers_of_omega(settings, tmp_path):
    """The rows of omega come before the step, and go home after it."""
    names = heard(make_trainer(settings, tmp_path / "run", "--omega-device", "disk"))
    assert names == ["start", "optimizer", *SPANS, "remember"]


def test_files_of_a_profile(profiled):
    trainer, report, _, _ = profiled
    saved = json.loads((trainer.folder.path / "profile.json").read_text())
    assert saved["phases"]["pass 1"]["seconds"] == report.phases["pass 1"].seconds
    assert saved["environment"]["command"].endswith("train.py --profile")
    assert saved["environment"]["device"]
    assert saved["environment"]["threads"] == torch.get_num_threads()
    trace = json.loads(gzip.decompress((trainer.folder.path / "trace.json.gz").read_bytes()))
    names = {event.get("name") for event in trace["traceEvents"]}
    assert names >= {"start", "pass 1", "move", "pass 2", "remember", "optimizer"}
    assert "aten::convolution_backward" in names


def test_table_shows_every_phase_and_figure(profiled):
    _, report, _, _ = profiled
    lines = report.table().splitlines()
    assert all(len(line) <= 200 for line in lines)
    for name in (*PHASES, "whole step", "floor (5 bare passes)", "overhead", "images/s", "peak memory"):
        assert sum(line.startswith(name) for line in lines) == 1, name
    assert "bfloat16" in lines[0]
    assert "operator calls" in report.table()


@pytest.mark.parametrize("counts", [{"steps": 0}, {"warmup": 0}])
def test_profile_refuses_no_steps(settings, tmp_path, counts):
    with pytest.raises(UserError, match="at least 1"):
        profiling.profile(make_trainer(settings, tmp_path / "run"), **counts)


def test_spread_is_the_median_between_the_quartiles():
    assert spread([5.0]) == Spread(5, 5, 5)
    assert spread([1.0, 2.0, 3.0, 4.0, 9.0]) == Spread(3, 2, 4)
