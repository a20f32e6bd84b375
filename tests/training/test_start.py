"""`--init-from`: weights of any origin, by plain names and shapes; what did not fit is said."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from apart_fast import build_model
from apart_fast.cli import main
from apart_fast.errors import UserError
from apart_fast.export.settings import ExportConfig
from apart_fast.export.write import export_network
from apart_fast.models import external
from apart_fast.runs import checkpoint
from apart_fast.runs.begin import find_origin
from apart_fast.runs.foreign import plain_names, read_origin
from apart_fast.step.apart import Apart
from apart_fast.training.start import find_start, start_from, take_step_sizes

CLASSES = ["circle", "cross", "square"]
SMALL = dict(name="preact_resnet18", width=0.0625, image_size=(12, 12))


def network(classes=3, seed=0, **more):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_model(num_classes=classes, **{**SMALL, **more})


def start(origin, model=None, classes=CLASSES):
    """The weights of a network that began with what is in a file."""
    model = network(len(classes)) if model is None else model
    start_from(model, read_origin(origin), classes)
    return model.state_dict()


def alike(found, expected, but=()):
    assert all(torch.equal(found[name], expected[name]) for name in expected if name not in but)


def prefixed(weights, prefix):
    return {prefix + name: tensor for name, tensor in weights.items()}


def robustness(weights):
    """As MadryLab's robustness has them: all of it twice, with the statistics."""
    one = {
        **prefixed(weights, "model."),
        "normalizer.new_mean": torch.rand(3, 1, 1),
        "normalizer.new_std": torch.ones(3),
    }
    return {"model": {**prefixed(one, "module."), **prefixed(one, "module.attacker.")}, "epoch": 3, "amp": None}


WRAPPED = {
    "plain": lambda w: w,
    "DataParallel": lambda w: prefixed(w, "module."),
    "compiled and parallel": lambda w: prefixed(w, "module._orig_mod."),
    "in the middle": lambda w: {name.replace("layer1.", "layer1.module."): t for name, t in w.items()},
    "state_dict": lambda w: {
        "state_dict": prefixed(w, "model."),
        "epoch": 9,
        "optimizer": {"state": {0: {"m": w["bn.bias"]}}},
    },
    "beside accuracies": lambda w: {"state_dict": w, "best_acc1": torch.ones(()), "best_acc5": torch.ones(())},
    "nested": lambda w: {"model": {"state_dict": w}},
    "robustness": robustness,
    "RobustBench": lambda w: {**prefixed(w, "model."), "normalize.mean": torch.rand(1, 3, 1, 1), "mu": torch.rand(3)},
    "Sequential": lambda w: {"0.mean": torch.rand(3), "0.std": torch.rand(3), **prefixed(w, "1.")},
    "float16": lambda w: {name: t.half() if t.is_floating_point() else t for name, t in w.items()},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_are_left_out(name, tmp_path, capsys):
    weights = {k: v.half().float() if v.is_floating_point() else v for k, v in network(seed=1).state_dict().items()}
    torch.save(WRAPPED[name](weights), tmp_path / "x.pt")
    alike(start(tmp_path / "x.pt"), weights)
    lines = capsys.readouterr().out.splitlines()
    assert f"init: {len(weights)} of {len(weights)} tensors are those of {tmp_path / 'x.pt'}" == lines[0]
    statistics = name in ("robustness", "RobustBench", "Sequential")
    assert len(lines) == 1 + statistics and (not statistics or "--normalize" in lines[1])


def test_a_network_that_normalises_keeps_its_own_statistics(tmp_path, capsys):
    torch.save(WRAPPED["RobustBench"](network(seed=1).state_dict()), tmp_path / "x.pt")
    found = start(tmp_path / "x.pt", network(normalize=((0.4,) * 3, (0.2,) * 3)))
    assert found["normalize.mean"].flatten().tolist() == pytest.approx([0.4] * 3)
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_safetensors_and_folders(tmp_path):
    save_file = pytest.importorskip("safetensors.torch").save_file
    weights = {name: tensor.contiguous() for name, tensor in network(seed=1).state_dict().items()}
    save_file(prefixed(weights, "model."), tmp_path / "model.safetensors")
    alike(start(tmp_path), weights)
    alike(start(tmp_path / "model.safetensors"), weights)
    (tmp_path / "model.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(UserError, match="is damaged or no safetensors file"):
        read_origin(tmp_path)


def test_another_number_of_classes_makes_the_head_anew(tmp_path, capsys):
    weights = network(classes=100, seed=1).state_dict()
    torch.save(weights, tmp_path / "x.pt")
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = start(tmp_path / "x.pt", model)
    head = {"linear.weight", "linear.bias"}
    alike(found, weights, but=head)
    alike({name: found[name] for name in head}, {name: before[name] for name in head})
    assert (
        "the head (linear.weight, linear.bias) is made anew: it knew 100 classes, the data has 3"
        in capsys.readouterr().out
    )


def ours(path, classes, kind="weights", **more):
    description = {**SMALL, "num_classes": 3, "in_channels": 3, "normalize": None}
    weights = {name: tensor.clone() for name, tensor in network(seed=1).state_dict().items()}
    about = {"kind": kind, "model": weights, "description": description, "classes": classes, "dataset": "x", "epoch": 1}
    checkpoint.save(path, {**about, **more})
    return weights


def test_classes_are_matched_by_their_names(tmp_path, capsys):
    weights = ours(tmp_path / "best.pt", ["square", "circle", "cross"])
    found = start(tmp_path)
    alike(found, weights, but={"linear.weight", "linear.bias"})
    assert torch.equal(found["linear.weight"], weights["linear.weight"][[1, 2, 0]])
    assert torch.equal(found["linear.bias"], weights["linear.bias"][[1, 2, 0]])
    ours(tmp_path / "best.pt", ["cat", "circle", "cross"])
    start(tmp_path)
    assert "is made anew: it knew other classes (cat, circle, cross)" in capsys.readouterr().out


def test_classes_of_an_exported_file_are_matched_by_their_names(tmp_path, capsys):
    pytest.importorskip("safetensors")
    weights = ours(tmp_path / "best.pt", ["square", "circle", "cross"])
    export_network(ExportConfig(tmp_path / "best.pt", "safetensors", out=tmp_path / "there"))
    found = start(tmp_path / "there")
    assert torch.equal(found["linear.weight"], weights["linear.weight"][[1, 2, 0]])
    ours(tmp_path / "best.pt", ["cat", "circle", "cross"])
    export_network(ExportConfig(tmp_path / "best.pt", "safetensors", out=tmp_path / "others"))
    capsys.readouterr()
    start(tmp_path / "others")
    assert "is made anew: it knew other classes (cat, circle, cross)" in capsys.readouterr().out


def test_what_did_not_fit_is_named_in_one_line(tmp_path, capsys):
    weights = {**network(seed=1).state_dict(), "extra.weight": torch.ones(2, 2)}
    weights["conv1.weight"] = torch.ones(9, 3, 3, 3)
    del weights["bn.bias"]
    torch.save(weights, tmp_path / "x.pt")
    start(tmp_path / "x.pt")
    line = next(line for line in capsys.readouterr().out.splitlines() if "did not fit" in line)
    assert "keeps its own conv1.weight [4, 3, 3, 3], bn.bias; not taken conv1.weight [9, 3, 3, 3], extra.weight" in line


def test_the_released_scripts_step_sizes_are_taken(tmp_path, capsys):
    model = network(seed=1)
    weights = dict(model.state_dict())
    sizes = {"alpha": 0.012, "alpha_omega": 0.009} | {
        f"layer{i}.{j}.alpha": 1e-3 * (2 * i + j) for i in range(1, 5) for j in range(2)
    }
    order = sorted([*weights, *sizes], key=lambda name: (not name.startswith("alpha"), name))
    torch.save({n: torch.tensor([sizes[n]]) if n in sizes else weights[n] for n in order}, tmp_path / "x.pt")
    origin = read_origin(tmp_path / "x.pt")
    assert origin.step_sizes == pytest.approx(list(sizes.values())) and set(origin.weights) == set(weights)
    fresh = network()
    start_from(fresh, origin, CLASSES)
    apart = Apart(fresh, 4, (12, 12, 3), padding=2)
    take_step_sizes(apart, origin)
    assert apart.step_sizes.tolist() == pytest.approx(list(sizes.values()))
    plain = Apart(network(), 4, (12, 12, 3), padding=2, method="fgsm+")
    take_step_sizes(plain, origin)
    assert plain.step_sizes.tolist() == pytest.approx([1e-4, 1e-4])
    out = capsys.readouterr().out
    assert "step sizes too: alpha 0.01200, alpha_omega 0.00900" in out and "10 learned step sizes there, 2 here" in out


class Program:
    def __reduce__(self):
        return print, ("run",)


@pytest.mark.parametrize(
    ("value", "line"),
    [
        ({}, "holds no weights"),
        ({"epoch": 3, "optimizer": {"a": torch.ones(2)}}, "holds no weights"),
        (torch.ones(3), "holds no weights"),
        ({"conv.weight": torch.ones(3, 3), "b": torch.full((2,), float("nan"))}, "numbers that are not finite"),
        (
            {"conv.weight": torch.ones(3, 3), "conv.bias": torch.ones(3)},
            "fits the network: it has weight [3, 3], the network",
        ),
        (
            {"bn.weight": torch.ones(32), "bn.num_batches_tracked": torch.ones((), dtype=torch.int64)},
            "it has no weights",
        ),
        ({"model": Program()}, "holds more than tensors"),
        (nn.Linear(2, 2), "holds more than tensors (torch.nn.modules.linear.Linear)"),
        (b"\x80\x04 no file of torch's", "is damaged or no file of torch.save"),
        (b"", "is damaged or no file of torch.save"),
        (b"PK\x03\x04", "is damaged or no file of torch.save"),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, value, line, capsys):
    path = tmp_path / "x.pt"
    path.write_bytes(value) if isinstance(value, bytes) else torch.save(value, path)
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError) as error:
        start(path, model)
    assert line in str(error.value) and "\n" not in str(error.value) and capsys.readouterr().out == ""
    alike(model.state_dict(), before)


def test_nothing_there_is_told(tmp_path):
    for path, line in ((tmp_path, "no weights in the folder"), (tmp_path / "x.pt", "no weights at")):
        with pytest.raises(UserError, match=line):
            find_origin(path)


def test_plain_names_are_the_same_with_and_without_wrappers():
    names = dict.fromkeys(("conv.weight", "pos_embed", "blocks.0.bias"), torch.ones(1))
    for prefix in ("", "module.", "net.model.", "_orig_mod.module.x."):
        assert list(plain_names(prefixed(names, prefix))) == list(names)


@pytest.mark.parametrize("source", ["torchvision", "timm"])
def test_pretrained_weights(source, monkeypatch, capsys):
    if source == "timm":
        pytest.importorskip("timm")
    trained = nn.Sequential(nn.Flatten(), nn.Linear(6, 1000))
    fetch = {"torchvision": "pretrained_torchvision", "timm": "pretrained_timm"}[source]
    made = replace(
        external.TORCHVISION if source == "torchvision" else external.TIMM, make_pretrained=lambda *_: trained
    )
    monkeypatch.setitem(find_start.__globals__["SOURCES"], source, made)
    origin = find_start(find_start.__globals__["PRETRAINED"], f"{source}/resnet18", 3, (32, 32))
    assert origin.normalised  # outside of the network, which a line then says
    assert list(origin.weights.values())[0].shape == (1000, 6) and callable(getattr(external, fetch))

    def fail(*_):
        raise OSError("<urlopen error [Errno -3] Temporary failure in name resolution>\nand more")

    monkeypatch.setitem(find_start.__globals__["SOURCES"], source, replace(made, make_pretrained=fail))
    with pytest.raises(UserError, match=r"cannot be had \(<urlopen error .*>\): fetch them where there is a network"):
        find_start(find_start.__globals__["PRETRAINED"], f"{source}/resnet18", 3, (32, 32))
    with pytest.raises(UserError, match="there are no pretrained weights of preact_resnet18"):
        find_start(find_start.__globals__["PRETRAINED"], "preact_resnet18", 3, (32, 32))


def call(words):
    with pytest.raises(SystemExit) as end:
        main(["train", *map(str, words)])
    return end.value.code


def test_a_run_begins_with_them_and_goes_on_without(settings, tmp_path, capsys):
    weights, run = ours(tmp_path / "best.pt", CLASSES), tmp_path / "run"
    words = [*settings, "--init-from", tmp_path / "best.pt", "--epochs", 1, "--cycle", 1, "--lr", 0, "--no-test"]
    assert call([*words, "--out", run]) == 0, capsys.readouterr()
    lines = capsys.readouterr().out
    assert f"init: {len(weights)} of {len(weights)} tensors" in lines
    alike(torch.load(run / "last.pt")["model"], weights, but={n for n in weights if "running" in n or "tracked" in n})
    (tmp_path / "best.pt").unlink()
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"epochs": 2}))
    assert call(["--resume", run, "--no-progress"]) == 0, capsys.readouterr()
    assert torch.load(run / "last.pt")["progress"]["epoch"] == 2
    assert "init:" not in capsys.readouterr().out
    assert call(["--resume", run, "--init-from", tmp_path / "other.pt"]) == 2
    assert "leave out --init-from" in capsys.readouterr().err
    assert call([*words, "--out", tmp_path / "new"]) == 2
    assert "no weights at" in capsys.readouterr().err and not (tmp_path / "new").exists()
