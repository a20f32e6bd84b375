"""`apart_fast.load`."""

import io
import json
import pickle
import shutil
from importlib.util import find_spec

import pytest
import torch

import apart_fast
from apart_fast import UserError, build_model, load
from apart_fast.export.settings import ExportConfig
from apart_fast.export.stored import read_network
from apart_fast.export.write import export_network
from apart_fast.runs import checkpoint
from apart_fast.runs.card import write_card
from apart_fast.runs.folder import RunFolder
from apart_fast.runs.judged import digest
from tests.export.made_runs import STATISTICS, judged, pixels, trained
from tests.runs.states import DESCRIPTION, training, weights

needs_safetensors = pytest.mark.skipif(find_spec("safetensors") is None, reason="safetensors is not installed")


def network_of(seed):
    model = build_model(**{**DESCRIPTION, "normalize": STATISTICS})
    model.load_state_dict(trained(seed, normalize=STATISTICS))
    return model.eval()


@torch.no_grad()
def same(network, seed):
    x = pixels()
    return torch.equal(network(x), network_of(seed)(x)) or torch.allclose(network(x), network_of(seed)(x), atol=1e-6)


def test_a_run_gives_its_best_weights_classes_and_card(run):
    state = torch.get_rng_state()
    network = load(run)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(network, 0) and not any(module.training for module in network.modules())
    assert network.classes == ["circle", "cross", "square"]
    assert network.card == json.loads((run / "card.json").read_text())
    assert network.state_dict().keys() == build_model(**{**DESCRIPTION, "normalize": STATISTICS}).state_dict().keys()
    x = pixels().to(memory_format=torch.channels_last)
    with torch.no_grad():
        assert torch.allclose(network(x), network(x.contiguous()), atol=1e-6)


def test_averaged_weights_where_there_are_any(run, tmp_path):
    assert same(load(run / "last.pt"), 2)
    shutil.copy(run / "last.pt", tmp_path)
    assert same(load(str(tmp_path)), 2)  # a folder with last.pt alone
    assert load(tmp_path).card == {}
    checkpoint.save(tmp_path / "last.pt", training())
    assert load(tmp_path / "last.pt").classes == ["circle", "cross", "square"]


def test_a_run_that_went_on_has_no_card_of_its_weights(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "run")
    checkpoint.save(folder / "best.pt", weights())
    assert load(folder).card == {}
    assert load(folder / "last.pt").card


def further(run, file, **changed):
    """The figures of what `evaluate` has written of a checkpoint, in a card for it alone; and in the run's own card."""
    state = checkpoint.load(run / file)
    found = {"checkpoint": str(run / file), "weights": digest(checkpoint.weights_of(state)), "dataset": "folder"}
    found = {name: value for name, value in {**found, **changed}.items() if value is not None}
    (run / "evaluation.json").write_text(json.dumps(judged(0.3, 0.1) | found))
    write_card(*RunFolder.open(run))
    inside = json.loads((run / "card.json").read_text())["evaluation"]["further"]
    return read_network(run / file).public_card["evaluation"]["further"], inside


@pytest.mark.parametrize("file", ["best.pt", "last.pt"])
def test_an_evaluation_of_these_weights_and_data_is_among_the_figures(run, tmp_path, file):
    run = shutil.copytree(run, tmp_path / "run")
    assert all(one["attacks"]["clean"]["accuracy"] == 0.3 for one in further(run, file))
    (run / "evaluation.json").unlink()  # the card has it
    assert read_network(run / file).public_card["evaluation"]["further"]
    other = "best.pt" if file == "last.pt" else "last.pt"
    assert read_network(run / other).public_card["evaluation"]["further"] is None


def test_the_same_weights_in_a_file_of_another_name_have_been_judged(run, tmp_path):
    run = shutil.copytree(run, tmp_path / "run")
    assert all(further(run, "best.pt", checkpoint="elsewhere/copy.pt"))


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"weights": "0" * 32}, "is of other weights"),  # the run went on
        ({"dataset": "cifar10"}, r"was made on other data \(cifar10\)"),
        ({"weights": None}, "was written by a version that did not say"),
    ],
)
def test_an_evaluation_of_other_weights_or_data_is_left_out(run, tmp_path, changed, why):
    run = shutil.copytree(run, tmp_path / "run")
    with pytest.warns(UserWarning, match=f"an evaluation of best.pt in .*run {why}.*left out"):
        assert further(run, "best.pt", **changed) == (None, None)


def test_weights_that_are_no_average_are_not_credited_to_it(run, tmp_path):
    run = shutil.copytree(run, tmp_path / "run")
    own = digest(checkpoint.load(run / "last.pt")["model"])
    with pytest.warns(UserWarning, match="is of other weights"):
        alone, inside = further(run, "last.pt", weights=own)
    assert alone is None and inside["weights"] == own  # the run's card has both networks


def test_a_damaged_last_checkpoint_has_one_before_it(run, tmp_path):
    shutil.copy(run / "last.pt", tmp_path / "last.previous.pt")
    (tmp_path / "last.pt").write_bytes((run / "last.pt").read_bytes()[:999])
    with pytest.warns(UserWarning, match="going on from the checkpoint before it"):
        assert same(load(tmp_path), 2)


def test_classes_without_names_have_numbers_or_those_of_the_data_set(tmp_path):
    state = weights()
    del state["classes"]
    checkpoint.save(tmp_path / "best.pt", state)
    assert load(tmp_path).classes == ["0", "1", "2"]


@needs_safetensors
def test_an_exported_folder_or_file(run, tmp_path):
    export_network(ExportConfig(run / "last.pt", "safetensors", out=tmp_path / "x"))
    shutil.copy(tmp_path / "x" / "model.safetensors", tmp_path / "alone.safetensors")
    for path in (tmp_path / "x", tmp_path / "x" / "model.safetensors", tmp_path / "alone.safetensors"):
        network = load(path)
        assert same(network, 2) and network.classes == ["circle", "cross", "square"]
        assert list(network.card["evaluation"]["test"]) == ["last"]
        assert "secret" not in json.dumps(network.card)
    # and out again, with nothing lost
    export_network(ExportConfig(tmp_path / "x", "safetensors", out=tmp_path / "y"))
    for name in ("model.safetensors", "README.md", "config.json", "network.py"):
        assert (tmp_path / "x" / name).read_bytes() == (tmp_path / "y" / name).read_bytes(), name


class Evil:
    def __reduce__(self):
        return (print, ("unpickled",))


def edit(state, change):
    change(state)
    return state


@pytest.mark.parametrize(
    "make, line",
    [
        (lambda path: None, "nothing at"),
        (lambda path: path.mkdir(), "no run in"),
        (lambda path: (path.mkdir(), (path / "config.json").write_text("{}")), "has no checkpoint: go on with"),
        (lambda path: (path.mkdir(), (path / "network.py").write_text("")), "for RobustBench: open it with load"),
        (lambda path: path.write_bytes(b"PK"), "damaged or not a checkpoint"),
        (lambda path: torch.save({"a": torch.ones(1)}, path), "is not a checkpoint of this program"),
        (lambda path: torch.save(Evil(), path), "damaged or not a checkpoint"),
        (lambda path: path.write_bytes(pickle.dumps(Evil())), "damaged or not a checkpoint"),
        (lambda path: checkpoint.save(path, {**weights(), "model": half(weights()["model"])}), "torch.float16 there"),
        (lambda path: checkpoint.save(path, {**weights(), "model": int8(weights()["model"])}), "torch.int8 there"),
        (lambda path: checkpoint.save(path, {**weights(), "classes": ["a"]}), "has 1 names for 3 classes"),
    ],
)
def test_what_is_no_network_is_told_in_a_line(tmp_path, capsys, make, line):
    make(tmp_path / "x.pt")
    with pytest.raises(UserError, match=line) as error:
        load(tmp_path / "x.pt")
    assert "\n" not in str(error.value) and capsys.readouterr().out == ""


def half(model):
    return {name: t.half() if t.is_floating_point() else t for name, t in model.items()}


def int8(model):
    return {name: t.to(torch.int8) if t.dim() == 4 else t for name, t in model.items()}


@pytest.mark.parametrize("name, line", [("x.onnx", "ONNX Runtime"), ("x.pt2", "torch.export.load")])
def test_files_for_others_are_told_by_whom_they_are_opened(tmp_path, name, line):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=line):
        load(tmp_path / name)


@needs_safetensors
def test_a_safetensors_file_that_is_damaged_or_of_others(run, tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="does not say what network it is"):
        load(tmp_path / "other.safetensors")
    export_network(ExportConfig(run, "safetensors", out=tmp_path / "x"))
    file = tmp_path / "x" / "model.safetensors"
    data = bytearray(file.read_bytes())
    for place in (4, 100, len(data) - 1000):
        broken = bytearray(data)
        broken[place] ^= 64
        file.write_bytes(broken)
        with pytest.raises(UserError, match="damaged"):
            load(file)
    file.write_bytes(data[:-10])
    with pytest.raises(UserError, match="damaged"):
        load(tmp_path / "x")


def test_without_the_package_a_line_says_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "x.safetensors").write_bytes(b"x")
    monkeypatch.setattr("apart_fast.export.formats.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"safetensors is not installed: pip install 'apart_fast\[safetensors\]'"):
        load(tmp_path / "x.safetensors")


def test_a_loaded_network_is_judged_and_attacked(run):
    images = (pixels(6) * 255).byte().permute(0, 2, 3, 1)
    report = apart_fast.evaluate(load(run), images, torch.zeros(6).long(), attacks=["pgd-2"], progress=False)
    assert report.n == 6


def test_it_can_be_pickled_and_copied_like_any_module(run):
    memory = io.BytesIO()
    torch.save(load(run), memory)
    memory.seek(0)
    again = torch.load(memory, weights_only=False)
    assert same(again, 0) and again.classes == ["circle", "cross", "square"]
