"""The HTML page of runs, the curves on it, and the energy meter whose numbers it shows."""

import json
import re
import shutil
import sys
from html.parser import HTMLParser
from types import ModuleType, SimpleNamespace

import pytest
import torch
import tyro

from apart_fast.cli import main
from apart_fast.errors import UserError
from apart_fast.measure.energy import EnergyMeter
from apart_fast.report.charts import make_charts, run_colour
from apart_fast.report.facts import collapses, comparison, costs, settings
from apart_fast.report.pictures import COLOURS, curves_figure
from apart_fast.report.settings import ReportConfig
from apart_fast.report.text import duration, percent, scaled
from apart_fast.report.write import run, write_report
from apart_fast.runs import checkpoint
from apart_fast.runs.card import write_card
from apart_fast.runs.folder import RunFolder
from apart_fast.runs.judged import digest
from apart_fast.runs.reading import read_runs

VOID = {"meta", "img", "br", "hr", "input", "link"}


class Page(HTMLParser):
    """Parses a page; fails where a tag is not closed in its place. text: what a reader sees."""

    def __init__(self, html):
        super().__init__()
        self.open, self.text, self.ids, self.links, self.tags = [], "", [], [], []
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes))
        self.ids += [attributes["id"]] if "id" in attributes else []
        self.links += [attributes[k] for k in ("src", "href", "xlink:href", "srcset", "action") if k in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data

    def attributes(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def page(folders, out):
    return Page(write_report(folders, out).read_text())


def change(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def change_metrics(folder, edit):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(edit(line)) + "\n" for line in lines))


@pytest.fixture(scope="module")
def apart(settings, tmp_path_factory):
    """A finished run."""
    out = tmp_path_factory.mktemp("runs") / "apart-0"
    with pytest.raises(SystemExit) as end:
        main(["train", *settings, "--epochs", "2", "--val-every", "1", "--test-images", "9", "--out", str(out)])
    assert not end.value.code
    return out


@pytest.fixture(scope="module")
def fgsm(apart, tmp_path_factory):
    """What FGSM would have left: other settings and accuracies, no learned step sizes."""
    out = shutil.copytree(apart, tmp_path_factory.mktemp("runs") / "fgsm-0")
    change(out / "config.json", method="fgsm", lr=0.01)
    result = {"accuracy": 1 / 9, "correct": 1, "n": 9, "low": 0.0199, "high": 0.435, "seconds": 1.0}
    report = {"n": 9, "eps": 8 / 255, "attacks": {"clean": result, "pgd-20": result}}
    change(out / "summary.json", method="fgsm", memory_bytes=0, test={"last": report, "best": report})
    change_metrics(out, lambda line: {k: v for k, v in line.items() if "alpha" not in k} | {"val_pgd20": 0.25})
    return out


@pytest.fixture
def own(apart, tmp_path):
    """A copy of a run that a test may alter."""
    return shutil.copytree(apart, tmp_path / "own")


def test_a_page_says_what_the_run_found_and_loads_nothing(apart, tmp_path):
    html = write_report([apart], tmp_path / "report.html").read_text()
    seen = Page(html)
    for which in ("last", "best"):
        for result in json.loads((apart / "summary.json").read_text())["test"][which]["attacks"].values():
            assert percent(result["accuracy"]) in seen.text
            assert f"[{100 * result['low']:.1f}, {100 * result['high']:.1f}]" in seen.text
    for words in ("apart on folder", "PGD-20 test accuracy", "Memory of omega", "--width", torch.__version__):
        assert words in seen.text
    assert seen.links and all(link.startswith(("data:image/png;base64,", "#")) for link in seen.links)
    assert "url(http" not in html and "@import" not in html and not seen.attributes("script")
    assert all(picture["alt"] for picture in seen.attributes("img"))
    assert all(head["scope"] in ("row", "col") for head in seen.attributes("th"))
    assert seen.attributes("html") == [{"lang": "en"}]


def test_ids_of_the_charts_do_not_clash_and_lead_somewhere(apart, fgsm, tmp_path):
    html = write_report([apart, fgsm], tmp_path / "report.html").read_text()
    seen = Page(html)
    assert len(seen.attributes("svg")) > 6 and len(set(seen.ids)) == len(seen.ids)
    used = {link[1:] for link in seen.links if link.startswith("#")} | set(re.findall(r"url\(#([^)]*)\)", html))
    assert used <= set(seen.ids)
    colours = set(re.findall(r"var\(--([\w-]+)\)", html.partition("<body>")[2]))
    assert all(f"--{colour}:" in html for colour in colours) and {"run-0", "run-1", "block-7"} <= colours
    drawn = "".join(re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL))
    assert set(re.findall(r"#[0-9a-f]{6}\b", drawn)) == set()  # every colour is the page's, for light and dark


def test_runs_side_by_side(apart, fgsm, tmp_path):
    seen = page([apart, fgsm], tmp_path / "report.html")
    heads = [head for head in seen.attributes("th") if head.get("class") == "run"]
    assert [re.findall(r"run-\d", head["style"])[0] for head in heads[:2]] == ["run-0", "run-1"]
    runs = read_runs([apart, fgsm])
    rows = {(row.title, row.note): row.cells for row in comparison(runs)}
    for i, run_ in enumerate(runs):
        for which in ("last", "best"):
            for name, title in (("clean", "Clean"), ("pgd-20", "PGD-20")):
                expected = run_.summary["test"][which]["attacks"][name]
                cell = rows[f"{title} test accuracy", f"{which} weights"][i]
                assert (cell.value, cell.low, cell.high) == (expected["accuracy"], expected["low"], expected["high"])
    assert rows["Memory of omega", "remembered directions or perturbations"][1] == "–"
    changed, every = settings(runs)
    first = {setting.flag: setting.values for setting in changed if setting.varies}
    assert first == {"--method": ("apart", "fgsm"), "--lr": ("0.05", "0.01")}
    assert [s.varies for s in changed] == sorted((s.varies for s in changed), reverse=True)
    assert "--out" not in {s.flag for s in changed} and "--out" in {s.flag for s in every}


def test_accuracies_within_different_radii_are_not_in_one_row(apart, own):
    config = json.loads((own / "config.json").read_text())
    (own / "config.json").write_text(json.dumps(config | {"eval_eps": "4/255"}))
    rows = {row.title: row.cells for row in comparison(read_runs([apart, own])) if row.note == "last weights"}
    assert [i for i, cell in enumerate(rows["PGD-20 test accuracy at 8/255"]) if cell == "–"] == [1]
    assert [i for i, cell in enumerate(rows["PGD-20 test accuracy at 4/255"]) if cell == "–"] == [0]
    assert "–" not in rows["Clean test accuracy"]


def test_validation_says_nothing_of_the_best_weights(own):
    summary = json.loads((own / "summary.json").read_text())
    (own / "summary.json").write_text(json.dumps({k: v for k, v in summary.items() if k != "test"}))
    rows = {(row.title, row.note) for row in comparison(read_runs([own]))}
    assert ("PGD-20 validation accuracy", "last weights") in rows
    assert ("PGD-20 validation accuracy", "best weights") not in rows


def test_a_chart_for_each_curve_and_a_colour_for_each_run(apart, fgsm):
    charts = {chart.title: chart for chart in make_charts(read_runs([apart, fgsm]))}
    accuracy, alpha = charts["Validation accuracy: PGD-20"], charts["Learned step sizes: alpha"]
    assert [(line.label, line.colour) for line in accuracy.lines] == [("apart-0", "run-0"), ("fgsm-0", "run-1")]
    assert [line.label for line in alpha.lines] == ["apart-0"]  # the other learns none
    assert accuracy.lines[1].points == [(1, 0.25), (2, 0.25)] and accuracy.lines[1].last == "25.0 %"
    single = {chart.title: chart for chart in make_charts(read_runs([apart]))}
    assert len(single["Validation accuracy"].lines) == 3 and "alpha_omega" in single["Learned step sizes"].description
    assert len({line.colour for line in single["Learned step sizes of the blocks, alpha_b"].lines}) == 8


def test_more_runs_than_colours_have_other_lines(apart):
    styles = [run_colour(i) for i in range(15)]
    assert len(set(styles)) == 15 and styles[len(COLOURS)] == ("run-0", "dashed")
    records = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.0}]
    assert len(curves_figure({str(i): records for i in range(9)}).axes[0].lines) == 9


def test_text_of_others_is_escaped(own, apart, tmp_path):
    name = "<script>alert('x')</script>".replace("/", "") + '&"$a$_'
    folder = own.rename(tmp_path / name)
    (folder / "card.json").write_text(json.dumps({"<b>": ["<img src=//a onerror=x>", {"deep": "&amp;"}]}))
    change(folder / "environment.json", command='"><script src=//evil>')
    for folders in ([folder], [folder, apart]):
        seen = page(folders, tmp_path / "report.html")
        assert not seen.attributes("script") and name in seen.text
        assert all("onerror" not in picture for picture in seen.attributes("img"))
        for text in ("<b>", "<img src=//a onerror=x>", "&amp;", '"><script src=//evil>'):
            assert text in seen.text


def test_what_a_run_lacks_is_left_out(own, tmp_path):
    whole = page([own], tmp_path / "report.html").text
    for name in ("environment.json", "perturbations.png", "metrics.jsonl", "card.json"):
        (own / name).unlink()
    summary = json.loads((own / "summary.json").read_text())
    accuracy = percent(summary["final"]["val_pgd20"])
    (own / "summary.json").write_text(json.dumps({"final": summary["final"]}))
    text = page([own], tmp_path / "report.html").text
    for words in ("Curves", "Perturbations", "Environment", "Training time", "test accuracy", "Model card"):
        assert words in whole and words not in text
    assert "PGD-20 validation accuracy" in text and accuracy in text
    assert "Further evaluation" not in whole and "energy" not in whole


def test_what_a_run_has_more_is_shown(own, tmp_path):
    change_metrics(own, lambda line: line | {"joules": 5000.0})
    change(own / "summary.json", peak_gpu_bytes=3_210_000_000, collapsed_at=[2])
    result = {"accuracy": 0.25, "correct": 3, "n": 12, "low": 0.0889, "high": 0.5323, "seconds": 1.0}
    (own / "evaluation.json").write_text(json.dumps({"dataset": "folder", "attacks": {"autoattack": result}}))
    card = {"intended_use": "research", "limits": ["one seed"], "data": {"images": 48, "judged": {"fgsm": result}}}
    card["environment"] = json.loads((own / "environment.json").read_text())
    (own / "card.json").write_text(json.dumps(card))
    (found,) = read_runs([own])
    rows = {row.title: row.cells[0] for row in costs([found])}
    assert rows["GPU energy"] == "10.0 kJ (3 Wh)" and rows["Peak GPU memory"] == "3.2 GB"
    assert collapses(found) == [2] and rows["Collapse"] == "at epoch 2"
    text = page([own], tmp_path / "report.html").text
    for words in ("AutoAttack", "25.0 %", "[8.9, 53.2]", "3 of 12", "intended use", "research", "one seed", "10.0 kJ"):
        assert words in text
    assert text.count(torch.__version__) == 1  # the card's environment is the run's: said once


def test_the_page_is_replaced_whole_and_the_same_each_time(apart, tmp_path):
    out = tmp_path / "new" / "report.html"
    first = write_report([apart], out).read_bytes()
    out.write_bytes(first + b"left over")
    assert write_report([apart], out).read_bytes() == first
    assert [file.name for file in out.parent.iterdir()] == ["report.html"]


def test_bad_input_is_told_in_one_line(own, apart, tmp_path):
    out = tmp_path / "report.html"
    out.write_text("before")
    (own / "evaluation.json").write_text("{")
    same = shutil.copytree(apart, tmp_path / "elsewhere" / apart.name)
    unfinished = shutil.copytree(apart, tmp_path / "unfinished")
    (unfinished / "summary.json").unlink()
    for folders, words in (
        ([], "no runs"),
        ([tmp_path / "nowhere"], "no run in"),
        ([apart, unfinished], "not finished"),
        ([own], "evaluation.json is damaged"),
        ([apart, apart.parent / "." / apart.name], "named 2 times"),
    ):
        with pytest.raises(UserError, match=words) as error:
            write_report(folders, out)
        assert "\n" not in str(error.value)
    assert out.read_text() == "before"
    assert [run_.name for run_ in read_runs([apart, same])] == [str(apart), str(same)]  # names that tell them apart


def test_the_command_chooses_the_place(own, apart, capsys):
    run(tyro.cli(ReportConfig, args=[str(own)]))
    assert (own / "report.html").is_file() and str(own / "report.html") in capsys.readouterr().out
    with pytest.raises(UserError, match="--out"):
        run(tyro.cli(ReportConfig, args=[str(own), str(apart)]))
    both = own / "both.html"
    run(tyro.cli(ReportConfig, args=[str(own), str(apart), "--out", str(both)]))
    assert both.is_file()
    with pytest.raises(UserError, match="no runs"):
        run(ReportConfig(runs=()))


def test_durations():
    words = {
        0.44: "0.4 s",
        31.6: "32 s",
        59.7: "1 min 0 s",
        1027.97: "17 min 8 s",
        3599.6: "1 h 0 min",
        11100: "3 h 5 min",
    }
    assert {seconds: duration(seconds) for seconds in words} == words


def test_sizes():
    assert [scaled(v, "B") for v in (0, 999, 115_200_000, 3.2e15)] == ["0 B", "999 B", "115.2 MB", "3200.0 TB"]


# ---- energy


@pytest.fixture
def nvml(monkeypatch):
    """A GPU and its NVML, as far as the meter asks."""
    fake = ModuleType("pynvml")
    fake.millijoules, fake.handles = 1_000_000, {"GPU-1234-abcd": "the second GPU"}
    fake.nvmlInit = lambda: None
    fake.nvmlDeviceGetHandleByUUID = lambda uuid: fake.handles[uuid]
    fake.nvmlDeviceGetTotalEnergyConsumption = lambda handle: fake.millijoules
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    properties = SimpleNamespace(uuid="1234-abcd")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    return fake


def test_joules_since_the_start(nvml):
    meter = EnergyMeter(torch.device("cuda:1"))
    assert meter.read() is None  # not started
    meter.start()
    nvml.millijoules += 2500
    assert meter.read() == 2.5
    meter.start()
    nvml.millijoules += 500
    assert meter.read() == 0.5
    nvml.millijoules = 0  # the driver was loaded anew
    assert meter.read() is None


def test_no_energy_where_nothing_tells(nvml, monkeypatch):
    def unsupported(handle):
        raise RuntimeError("Not Supported")

    meters = [EnergyMeter(torch.device("cpu"))]
    nvml.handles.clear()
    meters.append(EnergyMeter(torch.device("cuda")))  # NVML does not know it
    nvml.handles["GPU-1234-abcd"] = "GPU"
    nvml.nvmlDeviceGetTotalEnergyConsumption = unsupported
    meters.append(EnergyMeter(torch.device("cuda")))
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    meters.append(EnergyMeter(torch.device("cuda")))
    for meter in meters:
        meter.start()
        assert meter.read() is None


def test_a_figure_that_is_no_measure_is_marked_on_page_and_card(own, tmp_path):
    summary = json.loads((own / "summary.json").read_text())
    for report in summary["test"].values():
        report["attacks"]["pgd-20"] |= {"correct": 7, "gradient_not_finite": 4, "gradient_zero": 2}
    change(own / "summary.json", test=summary["test"])
    found = summary["test"]["last"] | {"logits_nan": 3, "cautions": [], "environment": {}}
    found |= {"checkpoint": "best.pt", "dataset": "folder"}
    found["weights"] = digest(checkpoint.load(own / "best.pt")["model"])
    (own / "evaluation.json").write_text(json.dumps(found))
    words = "no measure of robustness: of 7 images that stand, 6 had no gradient to follow (4 not finite, 2 all zero)"
    (own / "card.json").unlink()
    assert page([own], tmp_path / "report.html").text.count(words) >= 2  # the test's, and the further evaluation's
    assert words in page([own, shutil.copytree(own, tmp_path / "other")], tmp_path / "both.html").text

    write_card(RunFolder(own), read_runs([own])[0].config)
    caveats = json.loads((own / "card.json").read_text())["caveats"]
    assert f"test, best weights: pgd-20: {words}" in caveats and f"evaluation: pgd-20: {words}" in caveats
    assert "evaluation: logits are NaN for 3 of 9 images, which count as wrong" in caveats
