"""The profile of a tiny run: its figures hang together, its files can be read, and it leaves no trace in the step."""

import copy
import gzip
import json
import sys

import pytest
import torch
import tyro

from apart_fast.errors import UserError
from apart_fast.loaders.datasets import load_dataset
from apart_fast.measure import profiling
from apart_fast.measure.interleave import Spread, spread
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.folder import RunFolder
from apart_fast.step import apart as apart_module
from apart_fast.training.trainer import Trainer


def make_trainer(settings, folder, *more):
    config = tyro.cli(TrainConfig, args=[*settings, *more, "--out", str(folder)])
    data = load_dataset(config.dataset, config.data_dir, download=False, progress=False)
    return Trainer(config, RunFolder.choose(config), data)


def seams(trainer):
    """Everything a profile replaces, as it is now."""
    tables = [apart_module._STARTS, apart_module._MOVES, apart_module._MEMORIES]
    owners = [trainer, trainer.apart, trainer.optimizer, trainer.average, trainer.scaler]
    return [dict(table) for table in tables], [None if owner is None else set(vars(owner)) for owner in owners]


@pytest.fixture(scope="module")
def profiled(settings, tmp_path_factory):
    """(trainer, report, what is printed, seams before and after) of a profile with mixed precision and EMA."""
    folder = tmp_path_factory.mktemp("profile") / "run"
    trainer = make_trainer(settings, folder, "--amp", "--ema", "0.9")
    before, advance = copy.copy(seams(trainer)), trainer.advance
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(profiling.MATRIX_SIZE, "cpu", 128)
        patch.setattr(profiling, "_PEAK_SECONDS", 0.05)
        patch.setattr(sys, "argv", ["train.py", "--profile"])
        report = profiling.run(trainer)
    assert trainer.advance == advance
    return trainer, report, before, seams(trainer)


def test_phases_make_up_the_step(profiled):
    _, report, _, _ = profiled
    assert tuple(report.phases) == profiling.PHASES
    assert all(phase.seconds > 0 for phase in report.phases.values())
    # medians of parts need not add up to the median of the whole, but on average they nearly do
    assert sum(phase.seconds for phase in report.phases.values()) == pytest.approx(report.step.median, rel=0.25)
    assert sum(phase.share for phase in report.phases.values()) == pytest.approx(1, rel=0.25)
    assert report.phases["pass 2"].share > report.phases["optimiser"].share
    assert report.phases["rest"].share < 0.3


def test_stopwatch_adds_up_exactly_and_gives_inner_phases_to_the_outer():
    class Clock:
        now = 0

        def mark(self):
            return self.now

        def seconds(self, begin, end):
            return end - begin

        def wait(self):
            pass

    watch = profiling._Stopwatch(clock := Clock())
    for waits in (1, 2):
        with watch.step():
            with watch.phase("start"):
                clock.now += waits
            with watch.phase("finish"):
                clock.now += 3
                with watch.phase("optimiser"):
                    clock.now += 4
            with watch.phase("start"):
                clock.now += 5
            clock.now += 10
    wholes, phases = watch.read()
    assert wholes == [23, 24]
    assert [p["start"] for p in phases] == [6, 7]
    assert [(p["finish"], p["optimiser"], p["pass 1"], p["rest"]) for p in phases] == [(7, 0, 0, 10)] * 2


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
    with torch.utils.flop_counter.FlopCounterMode(display=False) as forward, torch.no_grad():
        trainer.model(torch.zeros(8, 3, 12, 12))
    trainer.model.train()
    # the first layer needs no data-backward in pass 2 where no step size is learned: a little less than `units`
    assert profiling._count_flops(trainer, batch) / forward.get_total_flops() == pytest.approx(units, rel=0.02)


def test_profile_restores_the_hot_path(profiled):
    trainer, _, before, after = profiled
    assert before == after
    assert all(p.grad is None for p in trainer.model.parameters())


def test_profile_restores_the_hot_path_after_an_exception(settings, tmp_path, monkeypatch):
    trainer = make_trainer(settings, tmp_path / "run")
    trainer.optimizer.step = lambda: 1 / 0
    before = seams(trainer)
    with pytest.raises(ZeroDivisionError):
        with profiling._phases_timed(trainer, watch := profiling._Stopwatch(profiling._HostClock(None))):
            with watch.step():
                trainer.step(next(trainer.loader.epoch(0)))
    assert seams(trainer) == before


def test_profiled_steps_are_the_steps_of_training(settings, tmp_path):
    """Timing the seams changes no result."""
    weights = []
    for name in ("plain", "profiled"):
        trainer = make_trainer(settings, tmp_path / name)
        trainer.progress.step = 3  # where the learning rate is not 0
        trainer.model.train()
        batch, watch = next(trainer.loader.epoch(0)), profiling._Stopwatch(profiling._HostClock(None))
        if name == "plain":
            trainer.step(batch)
        else:
            with profiling._phases_timed(trainer, watch), watch.step():
                trainer.step(batch)
            names = [mark[0] for mark in watch.steps[0]]
            wanted = ["optimiser", "start", "pass 1", "step", "pass 2", "finish", "optimiser", "rest"]
            assert names == wanted
        weights.append([*trainer.model.state_dict().values(), trainer.apart.step_sizes, trainer.apart.memory.store])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_files_of_a_profile(profiled):
    trainer, report, _, _ = profiled
    saved = json.loads((trainer.folder.path / "profile.json").read_text())
    assert saved["phases"]["pass 1"]["seconds"] == report.phases["pass 1"].seconds
    assert saved["environment"]["command"].endswith("train.py --profile")
    assert saved["environment"]["device"]
    assert saved["environment"]["threads"] == torch.get_num_threads()
    trace = json.loads(gzip.decompress((trainer.folder.path / "trace.json.gz").read_bytes()))
    names = {event.get("name") for event in trace["traceEvents"]}
    assert names >= {"start", "pass 1", "step", "pass 2", "finish", "optimiser"}
    assert "aten::convolution_backward" in names


def test_table_shows_every_phase_and_figure(profiled):
    _, report, _, _ = profiled
    lines = report.table().splitlines()
    assert all(len(line) <= 200 for line in lines)
    for name in (*profiling.PHASES, "whole step", "floor (5 bare passes)", "overhead", "images/s", "peak memory"):
        assert sum(line.startswith(name) for line in lines) == 1, name
    assert "bfloat16" in lines[0]
    assert "operator calls" in report.table()


def event(name, cat, ts=0, dur=1, tid=1):
    return {"ph": "X", "name": name, "cat": cat, "ts": ts, "dur": dur, "tid": tid}


def test_launches_on_a_gpu_are_kernels_and_host_calls():
    trace = [
        event("ampere_sgemm", "kernel"),
        event("_step_kernel", "kernel"),
        event("Memcpy HtoD", "gpu_memcpy"),
        event("Memset", "gpu_memset"),
        event("pass 1", "gpu_user_annotation"),
        event("aten::mm", "cpu_op"),
        event("cudaLaunchKernel", "cuda_runtime"),
        event("cudaGraphLaunch", "cuda_runtime"),
        event("cuLaunchKernelEx", "cuda_driver"),
        event("cudaMemcpyAsync", "cuda_runtime"),
        event("cudaEventRecord", "cuda_runtime"),
        {"ph": "M", "name": "process_name"},
    ]
    assert profiling.count_launches({"traceEvents": trace}, "cuda") == {"kernels": 4, "host launches": 4}


def test_launches_on_the_cpu_are_the_outermost_operators():
    trace = [
        event("aten::conv2d", "cpu_op", 0, 10),
        event("aten::convolution", "cpu_op", 0, 9),
        event("aten::mkldnn_convolution", "cpu_op", 1, 8),
        event("aten::relu", "cpu_op", 10, 1),
        event("ReluBackward0", "cpu_op", 5, 10, tid=2),
        event("aten::threshold_backward", "cpu_op", 6, 2, tid=2),
        event("aten::mul", "cpu_op", 9, 2, tid=2),
        event("pass 1", "user_annotation", 0, 100),
    ]
    assert profiling.count_launches({"traceEvents": trace}, "cpu") == {"operator calls": 4}


@pytest.mark.parametrize("counts", [{"steps": 0}, {"warmup": 0}])
def test_profile_refuses_no_steps(settings, tmp_path, counts):
    with pytest.raises(UserError, match="at least 1"):
        profiling.profile(make_trainer(settings, tmp_path / "run"), **counts)


def test_spread_is_the_median_between_the_quartiles():
    assert spread([5.0]) == Spread(5, 5, 5)
    assert spread([1.0, 2.0, 3.0, 4.0, 9.0]) == Spread(3, 2, 4)
