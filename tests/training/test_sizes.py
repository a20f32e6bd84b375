"""Pictures of mixed sizes, trained on at one, are judged at it without being told."""

import numpy as np
import pytest
import torch
from PIL import Image

from apart_fast.cli import main
from apart_fast.runs import checkpoint


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Pictures of mixed sizes in two classes."""
    root, drawn = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for label in ("dark", "light"):
            (root / part / label).mkdir(parents=True)
            for i in range(count):
                pixels = drawn.integers(0, 100, (*drawn.integers(40, 90, 2), 3)) + 150 * (label == "light")
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / label / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    words = f"train --dataset folder --data-dir {photos} --image-size 64 --resize pad --width 0.0625 --batch-size 10"
    words += " --epochs 1 --val-images 4 --probe-images 0 --device cpu --no-progress --no-test --points layer3.*.conv1"
    with pytest.raises(SystemExit) as end:
        main([*words.split(), "--out", str(out)])
    assert not end.value.code
    return out


def refused(capsys, *words):
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 2 and error.startswith("error: ")
    return error


def test_a_checkpoint_knows_the_size_and_omega_has_its_padding(run):
    state = checkpoint.load(run / "last.pt")
    assert state["reading"]["resizing"] == {"size": 64, "how": "pad"} and state["description"]["image_size"] == (64, 64)
    assert state["apart"]["memory"].shape == (20, 80, 80, 3)
    assert all(torch.isfinite(x).all() for x in state["model"].values())


def test_it_is_judged_as_it_was_trained(run, photos, capsys):
    words = ["evaluate", str(run / "last.pt"), "--data-dir", str(photos), "--device", "cpu", "--attacks", "clean"]
    with pytest.raises(SystemExit) as end:
        main([*words, "--no-progress"])
    assert not end.value.code and "clean" in capsys.readouterr().out
    line = refused(capsys, *words, "--image-size", "32", "--no-progress")
    assert "knows images of [64, 64, 3] (height, width, channels), folder has [32, 32, 3]" in line


def test_a_resumed_run_keeps_its_size(run, capsys):
    line = refused(capsys, "train", "--resume", run, "--image-size", "32")
    assert "a resumed run keeps its settings: leave out --image-size" in line
