"""A network judged on data whose classes have other names, or the same ones in another order."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from test_bad_input import refuse

from apart_fast.analysis.inputs import judged_data, open_runs
from apart_fast.analysis.settings import PerturbationsConfig
from apart_fast.cli import main
from apart_fast.errors import UserError
from apart_fast.loaders import load_dataset
from apart_fast.runs import checkpoint
from tests.conftest import CLASSES


@pytest.fixture(scope="module")
def trained(settings, tmp_path_factory):
    """A finished run; not to be altered."""
    out = tmp_path_factory.mktemp("runs") / "one"
    with pytest.raises(SystemExit) as end:
        main(["train", *settings, "--epochs", "1", "--keep-weights", "1", "--no-test", "--out", str(out)])
    assert not end.value.code
    return out


@pytest.fixture
def renamed(trained, tmp_path):
    """Makes a copy of the run whose checkpoints name their classes otherwise; None: not at all."""

    def rename(classes, name="other"):
        out = shutil.copytree(trained, tmp_path / name)
        for path in out.rglob("*.pt"):
            state = torch.load(path, weights_only=True)
            state.pop("classes")
            torch.save(state if classes is None else state | {"classes": classes}, path)
        return out

    return rename


def judge(run, root):
    with pytest.raises(SystemExit) as end:
        main(["evaluate", str(run / "last.pt"), "--data-dir", str(root), "--device", "cpu", "--attacks", "clean"])
    assert not end.value.code
    return json.loads((run / "evaluation.json").read_text())["attacks"]["clean"]["accuracy"]


@pytest.mark.filterwarnings("ignore:.*another order")
@pytest.mark.parametrize("turn", [str, str.upper])
def test_the_same_classes_in_another_order(trained, renamed, image_folder, tmp_path, turn):
    """Folders are renamed so that their alphabet is another one; each keeps its pictures' meaning through the name."""
    run, root = renamed([turn(f"{name}-{i}") for i, name in enumerate(CLASSES)]), tmp_path / "data"
    for part in ("train", "test"):
        for i, name in enumerate(CLASSES):
            shutil.copytree(image_folder / part / name, root / part / f"{name}_{i}")
    straight = judge(run, root)
    other = renamed([f"{'cba'[i]}-{name}" for i, name in enumerate(CLASSES)], "turned")
    turned = tmp_path / "turned-data"
    for part in ("train", "test"):
        for i, name in enumerate(CLASSES):
            shutil.copytree(image_folder / part / name, turned / part / f"{'cba'[i]}-{name}")
    assert judge(other, turned) == straight


def test_labels_follow_the_names(image_folder):
    data = load_dataset("folder", image_folder, progress=False)
    description = {"num_classes": 3, "image_size": [12, 12], "in_channels": 3}
    with pytest.warns(UserWarning, match="folder has the classes of best.pt in another order: .* by name"):
        found = checkpoint.check_data(description, data, "folder", "best.pt", ["square", "circle", "cross"])
    assert found.classes == ["square", "circle", "cross"]
    for before, after in ((data.train, found.train), (data.test, found.test)):
        assert [data.classes[i] for i in before.labels] == [found.classes[i] for i in after.labels]
        assert torch.equal(before.images, after.images)
    for same in (data.classes, None):
        assert checkpoint.check_data(description, data, "folder", "best.pt", same) is data


def test_numbers_stand_for_the_classes_of_a_known_set(image_folder):
    data = replace(load_dataset("folder", image_folder, progress=False), name="cifar10")
    description = {"num_classes": 3, "image_size": [12, 12], "in_channels": 3}
    assert checkpoint.check_data(description, data, "cifar10", "best.pt", ["0", "1", "2"]) is data
    with pytest.raises(UserError, match="knows other classes"):
        checkpoint.check_data(description, replace(data, name="folder"), "folder", "best.pt", ["0", "1", "2"])


def test_other_classes_are_refused(renamed, image_folder, capsys):
    run = renamed(["circle", "heart", "square"])
    line = refuse(capsys, "evaluate", run / "last.pt", "--data-dir", image_folder, "--device", "cpu")
    assert "last.pt knows other classes than folder ('heart' is none of them, and 'cross' is missing): choose" in line
    out = run.parent / "out"
    line = refuse(capsys, "analyze", "perturbations", run, "--data-dir", image_folder, "--device", "cpu", "--out", out)
    assert "'heart' is none of them" in line


def test_a_checkpoint_that_does_not_name_its_classes(trained, renamed, image_folder):
    assert judge(renamed(None), image_folder) == judge(shutil.copytree(trained, trained.parent / "copy"), image_folder)


@pytest.mark.filterwarnings("ignore:.*another order")
def test_analyses_have_the_labels_of_their_run(trained, renamed, image_folder):
    turned = renamed(["square", "circle", "cross"])
    config = PerturbationsConfig(run=turned, data_dir=image_folder, images=9, progress=False)
    straight, _ = judged_data(config, open_runs([trained], weights=True))
    data, split = judged_data(config, open_runs([turned], weights=True))
    assert data.classes == ["square", "circle", "cross"] and len(split) == 9
    assert torch.equal(data.test.labels, (straight.test.labels + 1) % 3)
    with pytest.raises(UserError, match="other numbers the classes otherwise than one"):
        judged_data(config, open_runs([trained, turned], weights=True))
