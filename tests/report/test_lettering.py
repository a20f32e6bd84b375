"""Names of any letters in pictures, and pictures that fail alone."""

import io
import json
import os
import warnings

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from apart_fast.cli import main
from apart_fast.errors import Interrupted, Stopped, UserError
from apart_fast.report import lettering, pictures
from apart_fast.report.lettering import drawn, lettered
from apart_fast.report.sparing import sparing
from apart_fast.training import finish as finish_module

NAMES = {
    "from_$5_to_$10": r"from_\$5_to_\$10",
    "$": r"\$",
    "_hidden": " _hidden",
    "a\nb\x00\x1bc": "a b  c",
    os.fsdecode(b"\xff\xfe!"): "\N{REPLACEMENT CHARACTER}" * 2 + "!",
    "x" * 300: "x" * 31 + "…" + "x" * 8,
    "漢字": "漢字",
    "": "",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_drawn_as_it_is(name):
    assert drawn(name) == NAMES[name]
    figure = Figure()
    text = figure.text(0.1, 0.5, drawn(name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with lettered(figure):
            for form in ("png", "svg"):
                figure.savefig(io.BytesIO(), format=form)
    assert text.get_parse_math()


@pytest.fixture
def font(tmp_path, monkeypatch):
    """A font of one Chinese letter among those of the system."""
    builder, pen = FontBuilder(1000), TTGlyphPen(None)
    for i, point in enumerate(((0, 0), (0, 900), (900, 900), (900, 0))):
        (pen.lineTo if i else pen.moveTo)(point)
    pen.closePath()
    builder.setupGlyphOrder([".notdef", "cat"])
    builder.setupCharacterMap({ord("猫"): "cat"})
    builder.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "cat": pen.glyph()})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "cat": (1000, 0)})
    builder.setupHorizontalHeader()
    builder.setupNameTable({"familyName": "Of Cats", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    path = str(tmp_path / "cats.ttf")
    builder.save(path)
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    system = font_manager.findSystemFonts()
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [*system, str(tmp_path / "broken.ttf"), path])
    monkeypatch.setattr(font_manager.fontManager, "ttflist", list(font_manager.fontManager.ttflist))
    lettering._families.cache_clear()
    yield path
    lettering._families.cache_clear()


def black(text):
    figure = Figure(figsize=(1, 1))
    figure.text(0.2, 0.3, text, fontsize=40)
    stream = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with lettered(figure):
            figure.savefig(stream, format="png")
    pixels = Image.open(stream).convert("L").tobytes()
    return figure.findobj(Text)[0].get_fontfamily(), sum(pixel < 60 for pixel in pixels)


def test_a_font_that_has_the_letters_is_taken(font):
    families, square = black(drawn("猫"))
    assert families[-1] == "Of Cats" and square > 1500  # the square of this font: filled, not a box
    assert black("cat")[0] == ["sans-serif"]


def test_without_such_a_font_there_are_boxes_and_no_warnings():
    lettering._families.cache_clear()
    assert black("\U0001f9ff\U00012345猫")[1] > 0


# ---- failing alone


def test_what_fails_is_told_in_a_line(capsys):
    with sparing("curves.png"):
        raise ValueError("ParseFatalException:\n  $x")
    assert capsys.readouterr().out == "warning: no curves.png: ParseFatalException: $x\n"
    with sparing("card.json"):
        raise KeyError
    assert capsys.readouterr().out == "warning: no card.json: KeyError\n"
    for error in (KeyboardInterrupt(), Interrupted(15), Stopped(15, "run")):
        with pytest.raises(type(error)), sparing("curves.png"):
            raise error


@pytest.fixture(scope="module")
def odd_classes(tmp_path_factory):
    """Images of classes with names that matplotlib, UTF-8 and fonts do not like."""
    root = tmp_path_factory.mktemp("odd")
    for part, count in (("train", 12), ("test", 2)):
        for i, name in enumerate((b"from_$5_to_$10", b"\xff\xfe_bytes", "猫と犬".encode(), b"n" * 250)):
            folder = os.path.join(os.fsencode(root), part.encode(), name)
            os.makedirs(folder)
            for k in range(count):
                Image.new("RGB", (12, 12), (60 * i, 10 * k, 99)).save(os.path.join(folder, b"%d.png" % k))
    return root


@pytest.fixture
def words(settings, odd_classes, tmp_path):
    short = ["--epochs", "1", "--cycle", "1", "--data-dir", str(odd_classes), "--method", "fgsm"]
    return ["train", *settings, *short, "--out", str(tmp_path / "run")]


def run(words, out):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert not end.value.code, out


def test_a_picture_that_fails_costs_the_picture(words, tmp_path, capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("the picture fails")

    def full(*args, **kwargs):
        raise UserError("no space left")

    monkeypatch.setattr(pictures, "curves", fail)
    monkeypatch.setattr(pictures, "perturbations", fail)
    monkeypatch.setattr(finish_module, "write_card", full)
    monkeypatch.setattr(finish_module, "write_report", fail)
    run(words, capsys)
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: no ")]
    assert said == [
        "warning: no curves.png: the picture fails",
        "warning: no perturbations.png: the picture fails",
        "warning: no card.json: no space left",
        "warning: no report.html: the picture fails",
    ]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["test"]["last"]["n"] == 8
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*[Gg]lyph")
        run(["train", "--resume", str(tmp_path / "run")], capsys)  # draws the odd names
    assert "warning: no" not in capsys.readouterr().out
    assert {"curves.png", "perturbations.png", "card.json", "report.html"} <= set(os.listdir(tmp_path / "run"))
