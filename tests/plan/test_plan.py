"""`apart-fast plan`: formulas against hand-computed figures and against what is really allocated, written and sent."""

import io
import json
import shlex
from collections import Counter
from dataclasses import fields, replace
from functools import cache
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import tyro

from apart_fast import Apart, build_model
from apart_fast.cli import main
from apart_fast.errors import UserError
from apart_fast.kernels import Crops
from apart_fast.loaders import Split
from apart_fast.loaders.datasets.decode import Decoded
from apart_fast.loaders.datasets.writing import write_images
from apart_fast.loaders.ffcv import import_backend
from apart_fast.loaders.plan import shard_positions
from apart_fast.measure.arithmetic import count_flops, count_kept, floor
from apart_fast.parallel import exchange
from apart_fast.plan.counting import count_network
from apart_fast.plan.hardware import HARDWARE, Hardware
from apart_fast.plan.make import make_plan
from apart_fast.plan.memory import beton_bytes, count_memory, rank_examples
from apart_fast.plan.settings import PlanConfig
from apart_fast.plan.step import longest, ring_bytes
from apart_fast.runs import checkpoint
from apart_fast.runs.begin import begin
from apart_fast.runs.config import TrainConfig
from apart_fast.step.methods import METHODS, get_method
from apart_fast.step.optimizer import SGD
from apart_fast.step.ranks import Ranks

SMALL = PlanConfig(images=24, image_size=12, batch_size=8, width=0.125, padding=2, device_kind="cpu")
SHAPE = (12, 12, 3)


def small_apart(ranks=None, **options):
    model = build_model("preact_resnet18", 10, image_size=SHAPE[:2], width=0.125)
    return Apart(model, 24, SHAPE, padding=2, ranks=ranks, **options)


@cache
def counted(image_size, width, on_host, method):
    config = replace(SMALL, image_size=image_size, width=width, method=method)
    return count_network(config if on_host else replace(config, device_kind="h100"))


def network_of(config):
    return counted(config.image_size, config.width, config.hardware.on_host, config.method)


def made_of(config):
    return make_plan(config, network_of(config))


def plan(capsys, *words):
    """(exit code, stdout, stderr)."""
    with pytest.raises(SystemExit) as end:
        main(["plan", *words])
    return end.value.code, *capsys.readouterr()


# ---------------------------------------------------------------------------------------------------------------------
# by hand


def test_imagenet_on_64_gpus_by_hand():
    made = made_of(PlanConfig(images=1_281_167, image_size=224, gpus=64, padding=4))
    n = 10_009 * 2 + 1  # two of each whole batch of 128, and one of the last 15
    row = 232 * 232 * 3
    assert made.memory.rank_examples == n
    assert {o.dtype: o.rank for o in made.memory.omega} == {
        "float32": 4 * n * row,
        "float16": 2 * n * row,
        "int8": n * row,
    }
    assert made.memory.of("int8").host == 8 * n * row and made.memory.of("int8").all == 1_281_167 * row
    assert made.memory.image_map == 128 + 1_281_167 * 150_528
    assert made.memory.beton == 2**21 * (-(-(24 + 3 * 1041 + 24 * 1_281_167) // 2**21) + 98_552) + 24 * 1_281_167
    weights = sum(p.numel() for p in build_model("preact_resnet18", 10).parameters())
    assert made.step.network == 2 * 63 / 64 * 4 * weights
    assert made.step.seconds["network"] == made.step.network / (8 * 40e9)  # eight ways out of a host
    assert made.network.step_flops == 5 * made.network.forward_flops
    assert made.step.flops == 2 * made.network.step_flops
    assert made.step.seconds["compute"] == made.step.flops / (0.15 * 989e12)


def test_a_pass_is_that_of_the_documents():
    network = count_network(PlanConfig())
    assert network.forward_flops == pytest.approx(1.11e9, rel=0.005)
    assert network.step_flops == pytest.approx(5.55e9, rel=0.005)


@pytest.mark.parametrize("name", [name + "-2" * numbered for name, (_, numbered, _) in METHODS.items()])
def test_every_method_costs_its_passes(name):
    network = count_network(replace(SMALL, method=name))
    method = get_method(name)
    assert network.step_flops == method.passes * network.forward_flops
    memory = count_memory(replace(SMALL, method=name), network)
    kept = {0: [], 1: ["float32", "float16", "int8"], 2: ["float32", "float16"]}[method.maps]
    assert [o.dtype for o in memory.omega] == kept
    apart = small_apart(method=name, amp=None)
    if kept:
        assert memory.of("float16").rank == apart.memory.nbytes
    # the first layer needs no data-backward where no step size is learned, and one too many through z0
    with apart.omega_at_hand(torch.arange(8)):  # LIET's look at grey is not part of every step
        images, labels = torch.zeros(8, *SHAPE, dtype=torch.uint8), torch.arange(8)
        for passes in (lambda: apart.step(images, labels, torch.arange(8)), lambda: floor(apart, images / 255, labels)):
            assert count_flops(passes) == pytest.approx(8 * network.step_flops, rel=0.03)


@pytest.mark.parametrize("images, batch, gpus", [(24, 8, 2), (25, 8, 3), (23, 7, 3), (128, 128, 64), (130, 128, 64)])
def test_the_largest_rank(images, batch, gpus):
    held = [len(shard_positions(images, rank, gpus, batch)) for rank in range(gpus)]
    assert rank_examples(images, batch, gpus) == max(held) and sum(held) == images


# ---------------------------------------------------------------------------------------------------------------------
# what is real


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_omega_is_what_apart_allocates(dtype):
    memory = small_apart(omega_dtype=getattr(torch, dtype)).memory
    found = count_memory(SMALL, network_of(SMALL)).of(dtype)
    assert found.rank == found.host == found.all == memory.nbytes
    assert found.step == memory.contents()[:8].nbytes


def test_the_map_is_what_is_written():
    file = io.BytesIO()
    write_images(file, (12, 12), [Decoded(np.zeros((24, *SHAPE), np.uint8), True, Counter())], [np.zeros(24, np.int64)])
    assert count_memory(SMALL, network_of(SMALL)).image_map == len(file.getvalue())


# not importorskip: importing ffcv by hand sets torch's threads to 1
@pytest.mark.skipif(find_spec("ffcv") is None, reason="ffcv is not installed: pip install apart_fast[ffcv]")
@pytest.mark.parametrize("count, side", [(1, 8), (700, 32), (3, 900)])
def test_the_beton_is_what_ffcv_writes(tmp_path, count, side):
    images = torch.zeros(1, side, side, 3, dtype=torch.uint8).expand(count, -1, -1, -1)
    import_backend().write(tmp_path / "a.beton", Split(images, torch.zeros(count, dtype=torch.int64)), progress=False)
    assert beton_bytes(count, side * side * 3) == (tmp_path / "a.beton").stat().st_size


def test_the_all_reduce_is_what_a_step_sends(monkeypatch):
    sent = []
    monkeypatch.setattr(exchange.dist, "all_reduce", lambda values, group=None: sent.append(values.nbytes))
    apart = small_apart(Ranks(exchange.Exchange(), torch.arange(24), 24))
    rows = torch.arange(8)
    crops = Crops(rows, rows, torch.zeros(8, 2, dtype=torch.int64), rows < 4)
    apart.step_crops(torch.zeros(8, *SHAPE, dtype=torch.uint8), rows, crops, 16)
    parameters = list(apart.model.parameters())
    network = network_of(SMALL)
    assert 4 * network.parameters == sum(p.nbytes for p in parameters)
    (found,) = sent  # one, with step sizes and losses, each tensor in steps of 16 bytes
    assert 0 <= found - 4 * network.parameters <= 16 * len(parameters) + 256
    assert ring_bytes(2, network.parameters) == sum(p.nbytes for p in parameters)  # two ranks: each sends all of it
    assert ring_bytes(1, network.parameters) == 0


def test_the_arithmetic_is_that_of_the_bare_passes():
    apart, x, labels = small_apart(), torch.zeros(8, *SHAPE), torch.arange(8)
    found = network_of(SMALL)
    assert 8 * found.step_flops == pytest.approx(count_flops(lambda: floor(apart, x, labels)), rel=0.02)
    pixels = x.requires_grad_()
    assert 8 * found.kept == pytest.approx(count_kept(lambda: apart.loss(pixels, labels)[0], apart.model), rel=0.02)


def test_a_checkpoint_is_what_is_written(tmp_path):
    apart = small_apart()
    optimizer = SGD(apart.model.parameters(), lr=0.1, momentum=0.9)
    state = {"model": apart.model.state_dict(), "optimizer": optimizer.velocities(), "apart": apart.state_dict()}
    checkpoint.save(tmp_path / "last.pt", state)
    found = count_memory(SMALL, network_of(SMALL)).checkpoint
    assert found == pytest.approx((tmp_path / "last.pt").stat().st_size, rel=0.1)  # each tensor has a name


# ---------------------------------------------------------------------------------------------------------------------
# what follows

FAST = {f.name: 1e20 for f in fields(Hardware)}  # nothing takes any time, and there is room for all


@pytest.mark.parametrize(
    "changed, bound",
    [
        ({"flops": 1e6}, "compute"),
        ({"memory_rate": 1e6}, "memory"),
        ({"nvlink": 1e3}, "network"),
        ({"network": 1e3, "gpus_per_host": 1}, "network"),
        ({"memory": 2e6, "pcie": 1e3}, "PCIe"),
        ({"memory": 2e6, "loader_rate": 1e3}, "loader"),
        ({"memory": 2e6, "host_memory": 1e3, "disk_rate": 1e3}, "disk"),
    ],
)
def test_the_bound_follows_the_hardware(changed, bound):
    config = replace(SMALL, device_kind="h100", gpus=2, images=240_000, **{**FAST, **changed})
    config.check()
    step = made_of(config).step
    assert step.bound == bound and step.total == pytest.approx(step.seconds[bound], rel=1e-3)


def test_parts_beside_the_passes_take_no_time_of_theirs():
    seconds = {"compute": 2.0, "memory": 2.5, "network": 1.0, "PCIe": 3.0, "loader": 5.0, "disk": 0.0}
    assert longest(seconds) == (5.5, "memory")  # the loader is beside all three
    assert longest({**seconds, "loader": 5.6}) == (5.6, "loader")


def test_places_by_room():
    config = replace(SMALL, device_kind="h100", images=10**6)
    network = network_of(config)
    memory = count_memory(config, network)
    base, omega = memory.weights + memory.activations, memory.of("float16").rank
    chosen = []
    for room, host in [(omega + memory.rank_images, 1e12), (omega, 1e12), (0, 1e12), (0, 1e3)]:
        made = made_of(replace(config, memory=(base + room) / 0.79, host_memory=host))
        assert made.choice.fits
        chosen.append((made.choice.place, made.choice.loader))
    assert chosen == [("device", "resident"), ("device", "ffcv"), ("host", "ffcv"), ("disk", "ffcv")]
    assert made.step.pcie_in == 8 * 432 + made.step.pcie_out and made.step.pcie_out == 8 * 16 * 16 * 3 * 2
    assert made.step.disk == 8 * 432 + 2 * made.step.pcie_out  # nothing of it is cached
    nothing = made_of(replace(config, memory=base / 2, host_memory=1e3))
    assert not nothing.choice.fits and "Nothing fits, not even the weights" in nothing.notes[0]
    for method, more in (("apart", "more GPUs, "), ("liet", "")):  # nothing of omega is on the device any more
        crowded = replace(config, memory=memory.weights / 0.79, host_memory=1e3, method=method, batch_size=800)
        assert made_of(crowded).notes[0].startswith(f"Nothing fits: take {more}a smaller --batch-size, or a")


def test_the_batch_that_is_named_makes_the_network_a_tenth():
    config = replace(SMALL, device_kind="h100", gpus=8, gpus_per_host=1, images=10**6, network=1e9)
    (note,) = [note for note in made_of(config).notes if "less than a tenth" in note]
    batch = int(note.split("--batch-size ")[1].split()[0])
    for size, small in ((batch, True), (batch - 8, False)):
        seconds = made_of(replace(config, batch_size=size)).step.seconds
        serial = seconds["compute"] + seconds["memory"] + seconds["network"]
        assert (seconds["network"] <= 0.1 * serial) == small


def test_more_gpus_than_one_are_no_more_than_linear():
    made = [made_of(replace(SMALL, device_kind="h100", gpus=gpus)) for gpus in (1, 2, 8)]
    assert made[0].speed_up == 1 and made[1].speed_up < 2 and made[2].speed_up < 8
    assert made[0].step.network == 0


@pytest.mark.parametrize(
    "words, flags",
    [
        (["--gpus", "64", "--image-size", "16"], "--omega-device device --loader resident"),
        (["--method", "pgd-3", "--padding", "0", "--epochs", "3"], "--padding 0 --epochs 3 --method pgd-3"),
        (["--memory", "7e8", "--omega-dtype", "int8", "--width", "0.5"], "--width 0.5"),
        (["--device-kind", "cpu", "--gpus", "2"], "--device cpu"),
        (["--memory", "1e6", "--host-memory", "1e6"], "--omega-device disk --ffcv"),
    ],
)
def test_the_flags_are_those_of_train(capsys, words, flags):
    code, out, _ = plan(capsys, "--json", *words)
    found = json.loads(out)
    assert code == 0 and flags in " ".join(found["flags"])
    config = tyro.cli(TrainConfig, args=found["flags"])
    config.check()
    assert config.batch_size == 128 and config.method == found["settings"]["method"]
    assert shlex.split(found["command"])[-len(found["flags"]) :] == found["flags"]
    assert ("torchrun" in found["command"]) == (found["settings"]["gpus"] > 1)
    assert ("--omega-dtype" in found["flags"]) == bool(found["memory"]["omega"])


def test_points_that_nobody_knows_are_to_be_named(capsys):
    words = ["--model", "torchvision/squeezenet1_1", "--image-size", "32"]
    _, out, _ = plan(capsys, *words)
    assert "has no known perturbation points: name them with --points" in " ".join(out.split())  # lines are wrapped
    for others in ([*words, "--method", "fgsm+"], ["--image-size", "32"]):
        assert "perturbation" not in plan(capsys, *others)[1]


def test_a_network_larger_than_this_machine_is_planned(capsys, monkeypatch):
    monkeypatch.setattr("apart_fast.models.size.available_bytes", lambda: 1000)
    assert plan(capsys, "--width", "2")[0] == 0


@pytest.mark.parametrize("name", [name + "-2" * numbered for name, (_, numbered, _) in METHODS.items()])
@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_what_is_planned_is_what_begins(monkeypatch, tmp_path, name, dtype):
    monkeypatch.chdir(tmp_path)
    for gpus in (1, 2):
        config = replace(SMALL, method=name, omega_dtype=dtype, gpus=gpus, width=0.125, device_kind="h100")
        wanted = TrainConfig(method=name, omega_dtype=dtype)
        try:
            config.check()
        except UserError as refused:
            with pytest.raises(UserError, match=str(refused)):
                begin(wanted, gpus)
            continue
        made = made_of(config)
        begin(tyro.cli(TrainConfig, args=made.flags), gpus)
        kept = [row for row in made.memory.omega if row.dtype == dtype]
        assert made.memory.checkpoint > sum(row.all for row in kept) and len(kept) == (get_method(name).maps > 0)


def test_the_page_says_what_the_data_say(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    words = ["--images", "1281167", "--image-size", "224", "--gpus", "64", "--network", "1e8", "--padding", "4"]
    code, out, _ = plan(capsys, *words)
    assert code == 0 and out.startswith("A prediction") and "Nothing here was measured" in out
    assert max(len(line) for line in out.splitlines() if "train.py" not in line) <= 120
    data = json.loads(plan(capsys, *words, "--json")[1])
    assert data["prediction"] in " ".join(out.split()) and data["bound"] == "network"
    rows = [" ".join(row.split()) for row in out.splitlines()]
    assert any(row.startswith("bound network") for row in rows) and "--network 100.0 MB/s given" in rows
    assert any(row.startswith("float16 6.5 GB a rank; 51.7 GB a host, 413.7 GB in all") for row in rows)
    assert data["hardware"] == {**vars(HARDWARE["h100"]), "network": 1e8}
    assert data["step"]["total"] * data["steps_in_an_epoch"] == pytest.approx(data["epoch_seconds"])


def test_every_assumed_figure_has_a_flag():
    names = {field.name for field in fields(PlanConfig)}
    assert {field.name for field in fields(Hardware)} <= names
    for kind in HARDWARE:
        given = PlanConfig(device_kind=kind, flops=1e12)
        assert given.hardware == replace(HARDWARE[kind], flops=1e12)


@pytest.mark.parametrize(
    "words, line",
    [
        ("--images 0", "--images 0 is too small: give at least 1"),
        ("--batch-size 64 --images 63", "--batch-size 64 is larger than --images 63"),
        ("--gpus 129", "over 129 GPUs leaves some without images: give at least 129"),
        ("--gpus 10 --gpus-per-host 8", "no whole number of hosts"),
        ("--gpus 0", "--gpus 0 is too small"),
        ("--classes 1", "--classes 1 is too small: give at least 2"),
        ("--padding -1", "--padding -1 is too small"),
        ("--flops nan", "--flops nan is not a finite number"),
        ("--memory inf", "--memory inf is not a finite number"),
        ("--network 0", "--network 0.0 is too small"),
        ("--images 99999999999999999999", "is too large"),
        ("--width inf", "--width inf is not a finite number"),
        ("--method apartt", "did you mean apart"),
        ("--method fgsm-3", "takes no number"),
        ("--model preact_resnet", "did you mean preact_resnet"),
        ("--image-size 4", "too small: each side needs at least 8"),
        ("--model torchvision/vit_b_16 --image-size 32", "cannot take 32x32 images"),
        ("--device-kind cpu --pcie 1e9", "leave it out"),
        ("--method fgsm-pgi --omega-dtype int8", "momentum of fgsm-pgi has no bounds: give --omega-dtype float16"),
        ("--method fgsm-mep-cs --omega-dtype int8 --images 100000000", "momentum of fgsm-mep-cs has no bounds"),
        ("--method liet --gpus 8", "method liet draws for the whole batch: train it with one process"),
        ("--padding 32", "--padding 32 of 32x32 images: a crop could miss the image; give at most 31"),
    ],
)
def test_bad_input_is_one_line(capsys, words, line):
    code, out, error = plan(capsys, *words.split())
    assert code == 2 and not out
    assert error.startswith("error: ") and line in error and error.count("\n") == 1
