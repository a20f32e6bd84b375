"""`apart-fast export`: what is written is opened by what its users have."""

import json
import os
import resource
import signal
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import get_args

import pytest
import torch

from apart_fast import UserError, load
from apart_fast.cli import main
from apart_fast.export import comparing, to_robustbench, write
from apart_fast.export.figures import Figure, figures
from apart_fast.export.formats import FORMATS, check_installed
from apart_fast.export.settings import ExportConfig, FormatName
from apart_fast.export.stored import read_network
from apart_fast.export.write import export_network
from tests.export.made_runs import STATISTICS, listing, make_run, pixels
from tests.runs.test_bad_input import contents, refuse

NEEDED = {name: [p for p in wanted.packages if find_spec(p) is None] for name, wanted in FORMATS.items()}


def needs(name):
    missing = NEEDED[name]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


ALL = [pytest.param(name, marks=needs(name)) for name in FORMATS]
QUICK = [name for name in FORMATS if name in ("safetensors", "robustbench") and not NEEDED[name]]


def export(capsys, *words):
    """What the command prints."""
    with pytest.raises(SystemExit) as end:
        main(["export", *map(str, words)])
    said = capsys.readouterr()
    assert end.value.code == 0, said.err
    return said.out


@pytest.fixture
def outside(monkeypatch):
    """Runs code in a folder as a Python would that does not have this package."""

    def run(folder, code):
        with monkeypatch.context() as patch:
            for module in [*sys.modules]:
                if module.partition(".")[0] == "apart_fast":
                    patch.setitem(sys.modules, module, None)  # importing it would fail
            patch.delitem(sys.modules, "network", raising=False)
            patch.syspath_prepend(folder)
            patch.chdir(folder)
            patch.setattr(sys, "dont_write_bytecode", True)
            space = {"__name__": "__main__"}
            exec(code, space)
            patch.setitem(sys.modules, "network", None)
        sys.modules.pop("network", None)
        return space

    return run


def logits(run, x):
    with torch.no_grad():
        return load(run)(x)


# ---- the formats


def test_formats_are_those_of_the_flag_and_extras_those_of_the_package():
    assert get_args(FormatName) == tuple(FORMATS)
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for wanted in FORMATS.values():
        listed = [word.partition(">")[0] for word in extras.get(wanted.extra, [])]
        assert sorted(wanted.packages) == sorted(listed)


@needs("safetensors")
def test_safetensors_with_torch_and_safetensors_alone(run, image_folder, tmp_path, capsys, outside):
    out = tmp_path / "deep" / "x"
    said = export(capsys, run, "--to", "safetensors", "--out", out)
    assert "on 12 test images of folder: logits within" in said and "the same decisions" in said and str(out) in said
    assert listing(out) == ["README.md", "config.json", "model.safetensors", "network.py"]
    assert out.stat().st_mode & 0o777 == 0o777 & ~umask()
    opened = outside(out, "from network import CLASSES, load; network = load()")
    assert not opened["network"].training and opened["CLASSES"] == ["circle", "cross", "square"]
    assert torch.allclose(opened["network"](pixels()), logits(run, pixels()), atol=1e-5)
    config = json.loads((out / "config.json").read_text())
    assert config["id2label"] == {"0": "circle", "1": "cross", "2": "square"} and config["license"] == "mit"
    assert config["architecture"]["normalize"] == [list(part) for part in STATISTICS]


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@needs("onnx")
def test_onnx_in_its_runtime(run, tmp_path, capfd):
    import onnx
    import onnxruntime

    out = tmp_path / "x.onnx"
    export_network(ExportConfig(run / "last.pt", "onnx", out=out))
    assert capfd.readouterr() == ("", "")
    assert listing(tmp_path) == ["x.onnx"]
    onnx.checker.check_model(onnx.load(out), full_check=True)
    assert str(Path(__file__).parents[2]).encode() not in out.read_bytes()
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    for n in (1, 2, 7):
        (found,) = session.run(None, {"pixels": pixels(n).numpy()})
        assert abs(found - logits(run / "last.pt", pixels(n)).numpy()).max() < 1e-4
    about = json.loads(session.get_modelmeta().custom_metadata_map["apart_fast"])
    assert about["classes"] == ["circle", "cross", "square"] and about["weights"] == "averaged weights"


def test_torch_export_with_torch_alone(run, tmp_path, capfd, outside):
    out = tmp_path / "x.pt2"
    export_network(ExportConfig(run, "torch-export", out=out))
    assert capfd.readouterr().out == ""
    code = """
import torch
extra = {"apart_fast.json": ""}
network = torch.export.load("x.pt2", extra_files=extra).module()
"""
    opened = outside(tmp_path, code)
    assert json.loads(opened["extra"]["apart_fast.json"])["classes"] == ["circle", "cross", "square"]
    for n in (1, 2, 7):
        assert torch.allclose(opened["network"](pixels(n)), logits(run, pixels(n)), atol=1e-5)
    x = pixels(2).requires_grad_()  # an attack needs its gradient
    opened["network"](x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert str(Path(__file__).parents[2]).encode() not in out.read_bytes()


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """A run that says it is of CIFAR-10."""
    classes = [f"c{i}" for i in range(10)]
    folder = make_run(
        tmp_path_factory.mktemp("cifar") / "run", "nowhere", dataset="cifar10", classes=classes, image_size=(32, 32)
    )
    export_network(ExportConfig(folder, "robustbench"))
    return folder / "robustbench"


def test_robustbench_has_what_its_benchmark_and_its_json_need(cifar, outside, monkeypatch):
    """benchmark(), as RobustBench has it: clean accuracy and AutoAttack, both stand-ins here."""
    info = "model_info/cifar10/Linf/apart_preact_resnet18.json"
    assert set(listing(cifar)) >= {"README.md", "benchmark.py", info, "network.py", "weights.pt"}
    fields = json.loads((cifar / info).read_text())
    assert (
        list(fields)
        == (
            "link name authors additional_data number_forward_passes dataset venue architecture eps clean_acc reported "
            "autoattack_acc"
        ).split()
    )
    assert (fields["dataset"], fields["eps"]) == ("cifar10", "8/255")
    # the run was tested on 200 images
    assert fields["clean_acc"] is fields["reported"] is fields["autoattack_acc"] is None
    assert fields["additional_data"] is False
    calls = []

    def benchmark(model, n_examples, dataset, threat_model, eps, device):
        assert not model.training and model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
        calls.append((n_examples, dataset, threat_model, eps))
        return 0.75, 0.5012

    monkeypatch.setitem(sys.modules, "robustbench", ModuleType("robustbench"))
    monkeypatch.setitem(sys.modules, "robustbench.eval", SimpleNamespace(benchmark=benchmark))
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "7"])
    outside(cifar, "import runpy; runpy.run_path('benchmark.py')")
    assert calls == [(7, "cifar10", "Linf", 8 / 255)]
    fields |= {"clean_acc": "75.00", "autoattack_acc": "50.12"}
    assert json.loads((cifar / info).read_text()) == fields


def test_robustbench_takes_figures_of_the_whole_test_set_alone(cifar, monkeypatch):
    def info(n=10_000, caution="", eps=8 / 255, *more):
        clean = Figure("clean", 0.75, 0.7, 0.8, 10_000, 8 / 255, 1, "")
        made = [clean, *more, Figure("pgd-20", 0.5, 0.4, 0.6, n, eps, 1, caution)]
        monkeypatch.setattr(to_robustbench, "figures", lambda _: made)
        return to_robustbench.model_info(read_network(cifar.parent))[0]

    assert (info()["clean_acc"], info()["reported"]) == ("75.00", "50.00")
    stronger = Figure("pgd-50", 0.45, 0.4, 0.5, 10_000, 8 / 255, 10, "")
    assert info(10_000, "", 8 / 255, stronger)["reported"] == "45.00"
    for others in (dict(n=200), dict(caution="no measure of robustness"), dict(eps=4 / 255)):
        found = info(**others)
        assert (found["clean_acc"], found["reported"], found["eps"]) == ("75.00", None, "8/255")


def test_figures_with_more_random_starts_are_others():
    def judged(accuracy, n, **more):
        result = {"accuracy": accuracy, "low": accuracy, "high": accuracy, "n": n}
        return {"eps": 8 / 255, "attacks": {"clean": result, "pgd-20": result}, **more}

    card = {"evaluation": {"test": {"last": judged(0.5, 10_000)}, "further": judged(0.4, 1_000, restarts=10)}}
    assert [(one.words, one.accuracy) for one in figures(card)] == [
        ("clean", 0.5),
        ("pgd-20 at 8/255", 0.5),
        ("pgd-20 at 8/255, 10 restarts", 0.4),
    ]


@pytest.mark.skipif(find_spec("pyautoattack") is None, reason="not installed: pyautoattack")
def test_autoattack_itself_runs_on_the_network_for_robustbench(cifar, outside):
    code = """
import torch
from pyautoattack import AutoAttack
from network import load
network = load()
torch.manual_seed(0)
x = torch.rand(3, 3, 32, 32)
y = network(x).argmax(1)
attack = AutoAttack(network, eps=8 / 255, version="custom", attacks=["apgd-ce", "square"])
attack.apgd.n_iter, attack.square.n_queries = 5, 5
found, labels = attack.run_standard_evaluation(x, y, batch_size=3)
"""
    made = outside(cifar, code)
    assert made["found"].shape == (3, 3, 32, 32) and (made["found"] - made["x"]).abs().max() < 8 / 255 + 1e-6


def test_other_data_sets_have_no_leaderboard(run, tmp_path, capsys):
    export(capsys, run, "--to", "robustbench", "--out", tmp_path / "x")
    assert not (tmp_path / "x" / "benchmark.py").exists()
    assert "has no data set" in (tmp_path / "x" / "README.md").read_text()
    assert json.loads((tmp_path / "x" / "model_info.json").read_text())["dataset"] == "folder"


# ---- the card


def test_the_card_is_what_the_hub_shows(run, tmp_path, capsys):
    yaml = pytest.importorskip("yaml", reason="not installed: pyyaml")
    export(capsys, run, "--to", QUICK[0], "--out", tmp_path / "x", "--licence", "cc-by-4.0")
    text = (tmp_path / "x" / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    head = yaml.safe_load(head)
    assert head["license"] == "cc-by-4.0" and head["pipeline_tag"] == "image-classification"
    (result,) = head["model-index"][0]["results"]
    values = {metric["name"]: metric["value"] for metric in result["metrics"]}
    assert values == {"accuracy, clean": 75.0, "accuracy, pgd-20 at 8/255": 50.0}
    assert "| pgd-20 at 8/255 | 50.0% | 45.0% to 55.0% | 200 |" in body and "secret" not in body
    assert "from network import" in body and "cc-by-4.0" in body


@pytest.mark.parametrize(
    "dataset, hub, shown",
    [
        ("hf:/home/me/secret/birds", None, "hf:birds"),
        ("hf:../secret/birds", None, "hf:birds"),
        ("hf:someone/birds:small", "someone/birds", "hf:someone/birds:small"),
    ],
)
def test_folders_of_data_are_nobodys_business(tmp_path, dataset, hub, shown):
    folder = make_run(tmp_path / "run", "nowhere", dataset=dataset)
    for name in QUICK:
        export_network(ExportConfig(folder, name))
        for file in (folder / name).iterdir():
            assert b"secret" not in file.read_bytes()
        text = (folder / name / "README.md").read_text()
        assert ('datasets: ["someone/birds"]' in text) == (hub is not None) and f"on {shown}" in text


def test_a_card_without_figures_says_so(tmp_path, capsys, run):
    (tmp_path / "best.pt").write_bytes((run / "best.pt").read_bytes())
    said = export(capsys, tmp_path / "best.pt", "--to", QUICK[0])
    assert "no card.json of these weights: the export comes without figures" in said
    assert "drawn pixels, as the test images are not at hand" in said
    assert "None: the run had no card" in (tmp_path / QUICK[0] / "README.md").read_text()


def test_names_with_line_breaks_and_markup_stay_names(tmp_path, capsys):
    names = ["a\n---\nlicense: x", "<b>|`", 'q"\\']
    folder = make_run(tmp_path / "run", "nowhere", classes=names)
    export(capsys, folder, "--to", QUICK[0])
    text = (folder / QUICK[0] / "README.md").read_text()
    assert text.count("\n---\n") == 1 and r"a\\n---\\nlicense: x, \<b\>\|\`" in text
    assert load(folder).classes == names
    if QUICK[0] == "safetensors":
        assert load(folder / QUICK[0]).classes == names


# ---- nothing half-written


def interrupted(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["torch-export", *QUICK])
@pytest.mark.parametrize("where", ["compare", "in the middle"])
def test_an_interrupted_export_leaves_nothing(run, tmp_path, monkeypatch, name, where):
    if where == "compare":
        monkeypatch.setattr(write, "compare", interrupted)
    else:
        monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_network(ExportConfig(run, name, out=tmp_path / "deep" / "er" / "x.pt2"))
    assert listing(tmp_path) == []


@pytest.mark.parametrize("name", ["torch-export", *QUICK])
def test_a_full_disk_is_one_line_and_leaves_nothing(run, tmp_path, capsys, name):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
        line = refuse(
            capsys, "export", run, "--to", name, "--out", tmp_path / ("x.pt2" if name == "torch-export" else "x")
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "no space left" in line and listing(tmp_path) == []


def test_what_a_killed_one_has_left_is_removed_by_the_next(run, tmp_path):
    code = f"""
import os, signal
from pathlib import Path
from apart_fast.export import write
from apart_fast.export.settings import ExportConfig
write.compare = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write.export_network(ExportConfig(Path({str(run)!r}), {QUICK[0]!r}, out=Path({str(tmp_path / "x")!r})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == -signal.SIGKILL and len(list(tmp_path.iterdir())) == 1
    assert not (tmp_path / "x").exists()
    export_network(ExportConfig(run, QUICK[0], out=tmp_path / "x"))
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


# ---- what is compared


def test_another_function_is_not_called_an_export(run, tmp_path, monkeypatch):
    import apart_fast.export.to_robustbench as module

    opened = module.reopen
    monkeypatch.setattr(module, "reopen", lambda place: lambda x: opened(place)(x) + 2e-4)
    with pytest.raises(UserError, match="gives other logits .by up to 0.0002.: it was removed"):
        export_network(ExportConfig(run, "robustbench", out=tmp_path / "x"))
    assert listing(tmp_path) == []


def test_comparing():
    images = (pixels(3) * 255).byte().permute(0, 2, 3, 1)
    scores = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.50001]])

    def give(values):
        return lambda x: values[: len(x)]

    def written(values):
        return lambda: give(values)

    assert comparing.compare(give(scores), written(scores), images) == (3, 0.0, 0)
    other = scores.clone()
    other[2] = other[2].flip(0)
    assert comparing.compare(give(scores), written(other), images).ties == 1
    with pytest.raises(UserError, match="other logits"):
        comparing.compare(give(scores), written(scores + torch.tensor([2e-4, 0])), images)
    with pytest.raises(UserError, match="other logits"):
        comparing.compare(give(scores), written(scores * float("nan")), images)
    with pytest.raises(UserError, match="not finite"):
        comparing.compare(give(scores * float("inf")), written(scores), images)
    with pytest.raises(UserError, match="gives .3, 1. instead of .3, 2."):
        comparing.compare(give(scores), written(scores[:, :1]), images)

    def fixed(x):
        if len(x) == 1:
            raise RuntimeError("batch of 3 wanted\nand more")
        return scores[: len(x)]

    with pytest.raises(UserError, match=r"cannot be run \(batch of 3 wanted\)"):
        comparing.compare(give(scores), lambda: fixed, images)

    def refused():
        raise NotImplementedError("IR version 99")

    with pytest.raises(UserError, match=r"cannot be run \(IR version 99\)"):
        comparing.compare(give(scores), refused, images)


# ---- where it is written


@pytest.mark.parametrize("name", ["best.pt", "config.json", "summary.json", "."])
@pytest.mark.parametrize("to", ["torch-export", *QUICK[:1]])
def test_no_output_falls_on_an_input_or_another_file(run, capsys, to, name):
    before = contents(run)
    line = refuse(capsys, "export", run, "--to", to, "--out", run / name)
    assert any(words in line for words in ("name a file that ends", "writes a folder", "is there already"))
    config = ExportConfig(run, to, out=run / name)
    with pytest.raises(UserError):  # also where the ending is not looked at
        export_network(config)
    assert contents(run) == before


def test_an_earlier_export_is_replaced_where_it_is_a_file_and_spared_where_it_is_a_folder(run, tmp_path, capsys):
    (tmp_path / "x.pt2").write_bytes(b"")
    for source in (run, run / "last.pt"):
        export_network(ExportConfig(source, "torch-export", out=tmp_path / "x.pt2"))
    (tmp_path / "x").mkdir()
    export_network(ExportConfig(run, QUICK[0], out=tmp_path / "x"))
    line = refuse(capsys, "export", run, "--to", QUICK[0], "--out", tmp_path / "x")
    assert "is there already: remove it, or name another folder with --out" in line


# ---- wrong inputs


def test_a_missing_package_is_told_before_torch_is_imported(run, monkeypatch, capsys):
    monkeypatch.setattr("apart_fast.export.formats.find_spec", lambda name: None)
    line = refuse(capsys, "export", run, "--to", "onnx")
    assert "onnx and onnxscript and onnxruntime are not installed: pip install 'apart_fast[onnx]'" in line
    check_installed(FORMATS["torch-export"])


@pytest.mark.parametrize(
    "words, line",
    [
        (["nowhere", "--to", "robustbench"], "nothing at nowhere"),
        (["{run}", "--to", "robustbench", "--licence", "a b"], "is no licence's name"),
        (["{run}", "--to", "robustbench", "--images", "0"], "--images 0 is too small"),
        (["{run}", "--to", "torch-export", "--out", "x.pt"], "--out x.pt: name a file that ends in .pt2"),
        (["{run}", "--to", "robustbench", "--out", "x.pt"], "--to robustbench writes a folder"),
    ],
)
def test_wrong_words(run, capsys, words, line):
    assert line in refuse(capsys, "export", *[word.format(run=run) for word in words])


def test_a_network_that_cannot_be_traced_is_told_in_a_line(run, tmp_path, monkeypatch):
    def trace(*_, **__):
        raise RuntimeError("data-dependent\nmany lines")

    monkeypatch.setattr(torch.export, "export", trace)
    with pytest.raises(UserError, match=r"cannot be written as .* \(data-dependent\): use --to safetensors"):
        export_network(ExportConfig(run, "torch-export", out=tmp_path / "x"))
    assert listing(tmp_path) == []


@pytest.mark.parametrize("to", [param for param in ALL if param.values[0] in ("safetensors", "onnx")])
def test_networks_of_torchvision(tmp_path, to):
    folder = make_run(tmp_path / "run", "nowhere", name="torchvision/squeezenet1_1", width=1.0, image_size=(32, 32))
    _, out, compared, words = export_network(ExportConfig(folder, to))
    assert out.exists() and words.startswith("drawn pixels") and compared.difference < 1e-4
