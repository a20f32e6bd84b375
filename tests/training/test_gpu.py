"""Whole commands on a GPU: what no other test file runs there."""

import json

import pytest
import torch

from apart_fast import build_model, evaluate
from apart_fast.cli import main
from apart_fast.device import pick_device
from apart_fast.errors import UserError
from apart_fast.evaluation import attacks
from apart_fast.evaluation.judge import Evaluator
from apart_fast.runs import checkpoint

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("name, index", [(None, 0), ("cuda", 0), ("cuda:1", 1)])
def test_a_gpu_has_an_index_and_becomes_the_current_one(name, index, monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert pick_device(name) == torch.device("cuda", index)
    assert current == [torch.device("cuda", index)]  # torch.cuda.set_device refuses a device without an index
    with pytest.raises(UserError, match="torch sees 2 GPUs"):
        pick_device("cuda:2")


def train(settings, out, *flags):
    with pytest.raises(SystemExit) as end:
        main(["train", *settings, "--device", "cuda", "--out", str(out), *flags])
    assert not end.value.code


@needs_gpu
@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--graph", "False"],
        ["--amp", "--ema", "0.9", "--omega-device", "host"],
        ["--amp", "--amp-dtype", "float16", "--ema", "0.9"],
        ["--amp", "--compile"],
        ["--amp", "--amp-dtype", "float16", "--ema", "0.9", "--grad-accum", "2", "--schedule", "onecycle"],
        ["--method", "pgd-3", "--loader", "dataloader"],
    ],
    ids=" ".join,
)
def test_a_run_ends_and_resumes(settings, tmp_path, flags):
    train(settings, tmp_path / "run", *flags)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test"]["last"]["attacks"]["clean"]["n"] == 12 and summary["peak_gpu_bytes"] > 0
    (tmp_path / "run" / "summary.json").unlink()
    with pytest.raises(SystemExit) as end:
        main(["train", "--resume", str(tmp_path / "run"), "--no-progress"])
    assert not end.value.code


@needs_gpu
@pytest.mark.parametrize("flags", [[], ["--amp"], ["--amp", "--graph", "False"]], ids=" ".join)
def test_a_profile_stays_within_what_the_machine_can_do(settings, tmp_path, flags):
    train(settings, tmp_path / "run", "--profile", *flags)
    report = json.loads((tmp_path / "run" / "profile.json").read_text())
    assert 0 < report["flops_per_second"] < report["peak_flops"]
    assert report["peak_bytes"] > 0 and report["overhead"]["median"] > 0.5


@needs_gpu
def test_attacks_as_a_graph_and_eager_agree(monkeypatch):
    torch.manual_seed(0)
    model = build_model("preact_resnet18", 4, image_size=(12, 12), width=0.125).cuda()
    images = torch.randint(0, 256, (40, 12, 12, 3), dtype=torch.uint8)
    logits = model.eval()(images.permute(0, 3, 1, 2).float().cuda() / 255)
    labels = logits.argmax(1).cpu()  # all right before the attack
    found = []
    for least in (1, 10**9):
        monkeypatch.setattr(attacks, "_GRAPH_FROM", least)
        report = evaluate(
            model, images, labels, eps="1/255", attacks=("clean", "pgd-5"), batch_size=16, device="cuda", progress=False
        )
        found.append([report.attacks[name].correct for name in ("clean", "pgd-5")])
    assert found[0] == found[1] and found[0][0] == 40


@needs_gpu
def test_deterministic_runs_have_the_same_bits(settings, tmp_path):
    for name in "ab":
        train(settings, tmp_path / name, "--amp", "--deterministic", "--no-test")
    first, second = (checkpoint.load(tmp_path / name / "last.pt") for name in "ab")
    assert all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())
    assert torch.equal(first["apart"]["memory"], second["apart"]["memory"])


@needs_gpu
@pytest.mark.parametrize("amp", [None, torch.bfloat16])
def test_a_captured_attack_sees_the_weights_of_the_moment(amp):
    """The steps are captured in the first call; weights change between calls, as in a training."""
    torch.manual_seed(0)
    model = build_model("preact_resnet18", 4, image_size=(12, 12), width=0.125).cuda().eval()
    images = torch.randint(0, 256, (40, 12, 12, 3), dtype=torch.uint8)
    settings = dict(eps="1/255", batch_size=16, device="cuda", amp=amp)
    evaluator, found, wanted = Evaluator(model, calls=30, **settings), [], []
    for _ in range(4):
        with torch.no_grad():
            for value in (*model.parameters(), *model.buffers()):
                if value.is_floating_point():
                    value.mul_(1 + 0.2 * torch.rand_like(value))
            labels = model(images.permute(0, 3, 1, 2).float().cuda() / 255).argmax(1).cpu()
        found.append(evaluator(images, labels, ("pgd-5",)).attacks["pgd-5"].correct)
        report = evaluate(model, images, labels, attacks=("pgd-5",), progress=False, **settings)
        wanted.append(report.attacks["pgd-5"].correct)
    assert found == pytest.approx(wanted, abs=1)  # a replay may round otherwise
