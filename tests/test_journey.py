"""A newcomer's way: every command of the README's daily use is run, on photographs of mixed sizes and orientations."""

import re
import shlex
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from apart_fast import load
from apart_fast.cli import main

README = (Path(__file__).parent.parent / "README.md").read_text()
CLASSES = ("circle", "square", "stripes")
PACKAGES = ("ffcv", "pyautoattack", "onnx", "onnxscript", "onnxruntime", "safetensors")
SMALL = """--dataset folder --data-dir photos --image-size 16 --width 0.0625 --batch-size 8 --val-images 6
    --test-images 6 --probe-images 0 --train-images 18 --epochs 1 --device cpu --no-progress""".split()
OWN = {"dataset": "folder", "data_dir": "photos", "image_size": 16, "width": 0.0625, "batch_size": 8, "val_images": 6}
ELSEWHERE = ("check", "torchrun", "--help")  # tests/check, tests/parallel, tests/test_cli.py
FORMATS = ("safetensors", "torch-export", "robustbench")  # that of the README is the fourth


def photograph(kind, random):
    """A picture of some size, its short side 24 or more; and an EXIF orientation."""
    height, width = random.integers(24, 60, 2)
    y, x = np.mgrid[:height, :width] - np.array([height, width])[:, None, None] / 2
    mask = {"circle": np.hypot(x, y) < 9, "square": np.maximum(abs(x), abs(y)) < 7, "stripes": x % 8 < 4}[kind]
    image = Image.fromarray((random.integers(0, 90, (height, width, 3)) + 130 * mask[..., None]).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = int(random.integers(1, 9))
    return image, exif


def commands():
    """The words of each command of the block."""
    block = re.search(r"^## Daily use\n\n```\n(.*?)^```$", README, re.S | re.M)[1]
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    found = [words[1:] if words[0].endswith("/python") else words for words in lines]
    return [words for words in found if not any(word.endswith(ELSEWHERE) for word in words)]


def run(*words):
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert not end.value.code, words


def test_every_command_of_daily_use(tmp_path, monkeypatch, capsys):
    missing = [package for package in PACKAGES if find_spec(package) is None]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)} (make setup)")
    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)
    for part, count in (("train", 10), ("test", 4)):
        for kind in CLASSES:
            folder = tmp_path / "photos" / part / kind
            folder.mkdir(parents=True)
            for i in range(count):
                image, exif = photograph(kind, random)
                image.save(folder / f"{i}.jpg", exif=exif)
    Path("mine.yaml").write_text("".join(f"{key}: {value}\n" for key, value in OWN.items()))
    run("train", *SMALL, "--out", "runs/other")
    Path("theirs.pt").write_bytes(Path("runs/other/best.pt").read_bytes())
    photograph("circle", random)[0].save("a.jpg")
    photograph("square", random)[0].save("b.png")

    made = iter(range(100))
    done = set()
    for words in commands():
        words = [word.replace("<run>", "0").replace("<other>", "other") for word in words]
        program, *words = words
        if not program.endswith("apart-fast"):
            begins = "--resume" not in words and "--config" not in words
            run("train", *words, *(SMALL + ["--out", f"runs/{next(made)}"] if begins else ["--device", "cpu"]))
        else:
            if "autoattack" in words:
                words += ["--data-dir", "photos", "--images", "4", "--device", "cpu"]
            run(*words)
        done.add(words[0] if program.endswith("apart-fast") else "train")
    for name in FORMATS:
        run("export", "runs/0", "--to", name)
    assert done == {"train", "evaluate", "report", "export", "predict"}
    said = capsys.readouterr().out
    assert "holds" in said and load("runs/0").classes == list(CLASSES)
    assert {path.name for path in Path("runs/0").iterdir()} >= {"model.onnx", "model.pt2", "safetensors", "robustbench"}
    assert Path("both.html").is_file()
