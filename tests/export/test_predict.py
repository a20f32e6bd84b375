"""`apart-fast predict`."""

import json
from dataclasses import asdict
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from apart_fast import load
from apart_fast.cli import main
from apart_fast.export.settings import ExportConfig
from apart_fast.export.write import export_network
from apart_fast.loaders.datasets.reading import Reading
from apart_fast.loaders.datasets.resizing import Resizing, resize
from apart_fast.runs import checkpoint
from tests.export.made_runs import make_run
from tests.runs.test_bad_input import refuse


def draw(path, size=(12, 12), seed=0, gray=False, **options):
    shape = size[::-1] if gray else (*size[::-1], 3)
    image = Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))
    image.save(path, **options)
    return image


def ask(capsys, *words):
    with pytest.raises(SystemExit) as end:
        main(["predict", *map(str, words), "--device", "cpu"])
    said = capsys.readouterr()
    assert end.value.code == 0, said.err
    return said.out


@torch.no_grad()
def probabilities(run, image):
    x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255
    return load(run)(x).softmax(1)[0]


def test_a_line_for_each_picture(run, tmp_path, capsys):
    images = [draw(tmp_path / f"{i}.png", seed=i) for i in range(3)]
    lines = ask(capsys, run, *(tmp_path / f"{i}.png" for i in range(3))).splitlines()
    for i, (line, image) in enumerate(zip(lines, images, strict=True)):
        found = probabilities(run, image)
        name = ("circle", "cross", "square")[int(found.argmax())]
        assert line == f"{tmp_path / f'{i}.png'}: {name} {found.max():.1%}"


def test_json_with_every_probability(run, tmp_path, capsys):
    image = draw(tmp_path / "a.png")
    found = json.loads(ask(capsys, run, tmp_path / "a.png", "--json"))
    assert found["classes"] == ["circle", "cross", "square"] and found["attack"] is None
    (one,) = found["pictures"]
    assert one["probabilities"] == pytest.approx(probabilities(run, image).tolist(), abs=1e-5)
    assert one["probability"] == max(one["probabilities"]) and "holds" not in one


def test_whether_the_decision_holds(run, tmp_path, capsys):
    for i in range(2):
        draw(tmp_path / f"{i}.png", seed=i)
    names = [tmp_path / "0.png", tmp_path / "1.png"]
    assert ask(capsys, run, *names, "--attack", "pgd-3", "--eps", "0").count("holds within 0 under pgd-3") == 2
    assert ask(capsys, run, *names, "--attack", "fgsm", "--eps", "1e-6").count("holds within 1e-6 under fgsm") == 2
    lines = ask(capsys, run, *names, "--attack", "pgd-20", "--eps", "0.9")
    assert lines.count("does not hold within 0.9 under pgd-20: ") == 2
    found = json.loads(ask(capsys, run, *names, "--attack", "pgd-20", "--eps", "0.9", "--json", "--batch-size", "1"))
    assert found["attack"] == {"name": "pgd-20", "eps": 0.9, "restarts": 1, "seed": 0}
    for one in found["pictures"]:
        assert one["holds"] is False and one["attacked"]["class"] != one["class"]


@pytest.mark.skipif(find_spec("pyautoattack") is None, reason="not installed: pyautoattack")
def test_autoattack_does_not_talk_into_the_json(run, tmp_path, capsys):
    draw(tmp_path / "a.png")
    words = [run, tmp_path / "a.png", "--attack", "autoattack", "--eps", "0.9", "--json"]
    assert json.loads(ask(capsys, *words))["pictures"][0]["holds"] is False


def test_pictures_are_read_as_those_of_training(run, tmp_path, capsys):
    image = draw(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 3
    turned = image.transpose(Image.Transpose.ROTATE_180)
    turned.save(tmp_path / "turned.png", exif=exif)
    clear = image.convert("RGBA")
    clear.putalpha(0)
    clear.save(tmp_path / "clear.png")
    Image.new("RGB", (12, 12), "white").save(tmp_path / "white.png")
    names = ["upright", "turned", "clear", "white"]
    with pytest.warns(UserWarning, match="1 of 4 pictures have transparency: shown on white"):
        found = json.loads(ask(capsys, run, *(tmp_path / f"{name}.png" for name in names), "--json"))
    upright, turned, clear, white = (one["probabilities"] for one in found["pictures"])
    assert upright == pytest.approx(turned) and clear == pytest.approx(white) and upright != pytest.approx(white)


def test_pictures_are_resized_as_those_of_training(run, tmp_path, capsys):
    state = checkpoint.load(run / "best.pt")
    checkpoint.save(tmp_path / "best.pt", {**state, "reading": asdict(Reading(Resizing(12, "pad")))})
    image = draw(tmp_path / "large.png", (40, 25))
    found = json.loads(ask(capsys, tmp_path / "best.pt", tmp_path / "large.png", "--json"))
    wanted = probabilities(run, resize(image, Resizing(12, "pad")))
    assert found["pictures"][0]["probabilities"] == pytest.approx(wanted.tolist(), abs=1e-5)
    _, out, _, _ = export_network(ExportConfig(tmp_path / "best.pt", "robustbench"))
    assert (
        "brought to 12x12 (long side resized, the rest black; bilinear, antialiased)" in (out / "README.md").read_text()
    )


def test_gray_networks_take_gray_pictures(tmp_path, capsys):
    folder = make_run(tmp_path / "run", "nowhere", in_channels=1, normalize=None)
    image = draw(tmp_path / "gray.png", gray=True)
    image.convert("RGB").save(tmp_path / "rgb.png")
    found = json.loads(ask(capsys, folder, tmp_path / "gray.png", tmp_path / "rgb.png", "--json"))
    assert found["pictures"][0]["probabilities"] == found["pictures"][1]["probabilities"]
    draw(tmp_path / "colour.png")
    assert "holds colour, the network takes gray" in refuse(capsys, "predict", folder, tmp_path / "colour.png")


def test_other_channels(tmp_path, capsys):
    folder = make_run(tmp_path / "run", "nowhere", in_channels=4, normalize=None)
    draw(tmp_path / "a.png")
    assert "pictures of 4 channels" in refuse(capsys, "predict", folder, tmp_path / "a.png")


def test_names_with_line_breaks_stay_on_their_line(tmp_path, capsys):
    folder = make_run(tmp_path / "run", "nowhere", classes=["a\nb", "c\nd"])
    draw(tmp_path / "a.png")
    assert ask(capsys, folder, tmp_path / "a.png").count("\n") == 1


@pytest.mark.parametrize(
    "words, line",
    [
        (["{run}"], "no pictures"),
        (["{run}", "{tmp}/none.png"], "none.png cannot be read as an image (No such file"),
        (["{run}", "{tmp}"], "cannot be read as an image (Is a directory"),
        (["{run}", "{run}/config.json"], "config.json cannot be read as an image"),
        (["{run}", "{tmp}/large.png"], "large.png is 13x12, the network takes 12x12"),
        (["{run}", "{tmp}/deep.png"], "16 bits a channel"),
        (["{run}/none", "{tmp}/a.png"], "nothing at"),
        (["{run}", "{tmp}/a.png", "--attack", "clean"], "--attack clean is no attack"),
        (["{run}", "{tmp}/a.png", "--attack", "pgd"], "write the number of steps like pgd-20"),
        (["{run}", "{tmp}/a.png", "--attack", "pgd-5", "--eps", "8"], "did you mean 8/255"),
        (["{run}", "{tmp}/a.png", "--batch-size", "0"], "--batch-size 0 is too small"),
        (["{run}", "{tmp}/a.png", "--device", "abacus"], "unknown device"),
    ],
)
def test_wrong_words_and_pictures(run, tmp_path, capsys, words, line):
    draw(tmp_path / "a.png")
    draw(tmp_path / "large.png", (13, 12))
    Image.fromarray(np.zeros((12, 12), np.uint16)).save(tmp_path / "deep.png")
    assert line in refuse(capsys, "predict", *[word.format(run=run, tmp=tmp_path) for word in words])
