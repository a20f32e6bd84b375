"""The page of a suite: summary.md, made anew after each part from the JSON files that are there by then.

A file that is missing or damaged leaves a dash or a line that says so; the page itself is written whole or not at all.
"""

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

from apart_fast.files import atomic_write
from benchmarks.gpu.estimates import clock
from benchmarks.gpu.parts import PARTS

NAME = "summary.md"
_BROKEN = (OSError, ValueError, LookupError, TypeError, AttributeError, ElementTree.ParseError)

Lines = list[str]


def write(out: Path) -> Path:
    """Make the page of the output folder.

    Raises:
        UserError: it cannot be written.
    """
    lines = []
    for title, section in SECTIONS.items():
        try:
            found = section(out)
        except _BROKEN as error:
            found = [f"Cannot be read ({type(error).__name__}: {error})."]
        lines += ["", f"## {title}", "", *(found or ["Nothing yet."])]
    atomic_write(out / NAME, "\n".join([*_head(out), *lines, ""]))
    return out / NAME


def read(file: Path) -> dict:
    """The object in a JSON file; empty where there is none, or a damaged one."""
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _rows(head: list[str], rows: list[list[str]]) -> Lines:
    """A Markdown table; nothing where there are no rows."""
    lines = [head, ["---"] * len(head), *rows] if rows else []
    return ["| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in line) + " |" for line in lines]


def _head(out: Path) -> Lines:
    suite = read(out / "suite.json")
    about = suite.get("environment") or {}
    lines = [f"# {about.get('device', 'no device yet')}", ""]
    if suite.get("dry"):
        lines += ["**A dry pass: tiny sizes on the CPU, benchmarks by stand-ins. No figure here says anything.**", ""]
    names = ("cuda", "driver", "torch", "triton", "torchvision", "numpy", "ffcv", "python", "cores", "commit", "date")
    return lines + [f"- {name}: {about[name]}" for name in names if about.get(name) is not None]


def _short_of_all(out: Path) -> Lines:
    """The figures that are asked for first; a dash where there is none yet."""
    rows = []
    steps = _ratios(out, "step-speed")
    sizes = sorted({size for _, _, size in steps}) or [""]
    wanted = {
        "APART step faster than PGD-10": ("apart", "pgd-10"),
        "floor over APART step": ("apart", "floor"),
        "APART step faster than the released step in float32": ("apart", "released float32"),
        "APART step faster than the released step in bfloat16": ("apart", "released bfloat16"),
    }
    for title, (name, other) in wanted.items():
        rows += [[title, _spread(r) if (r := steps.get((name, other, size))) else "-", size] for size in sizes]
    rates = [(_rate(entry), entry["group"].split(",")[0]) for entry in _benchmarks(out, "kernel-speed")]
    slow = f"{min(rates)[0]:,.0f} ({min(rates)[1]}) to {max(rates)[0]:,.0f} ({max(rates)[1]}) GB/s" if rates else "-"
    copy = [r["median"] for (_, other, _), r in _ratios(out, "kernel-speed").items() if other == "copy"]
    rows.append(["kernels' bandwidth", slow, f"{min(copy):.0%} to {max(copy):.0%} of a copy's" if copy else ""])
    for name in ("apart-30", "pgd-10-30", "fgsm-30"):
        summary = read(out / name / "summary.json")
        clean, last, best, collapsed = _judged(summary) if summary else ["-"] * 4
        time = f"{summary['train_seconds']:.1f} s, {summary['epochs']} epochs" if summary else "-"
        rows.append([f"{name}: time of the training", time, ""])
        rows.append([f"{name}: PGD-20 (clean)", f"{last} ({clean})", f"best weights {best}; collapsed: {collapsed}"])
    check = read(out / "check.json")
    lines = [line for found in (check.get("checks") or {}).values() for line in found]
    wrong = [line["what"] for line in lines if line["verdict"] in ("differs", "fails")]
    verdict = "-" if not check else "all right" if check.get("right") else f"wrong: {', '.join(wrong)}"
    rows.append(["checks", verdict, f"{len(lines)} lines" if check else ""])
    return _rows(["figure", "value", ""], rows)


def _ratios(out: Path, file: str) -> dict[tuple[str, str, str], dict]:
    """(what, compared with, size) -> ratio, of a benchmark's JSON."""
    return {
        (entry["params"]["name"], ratio["compared with"], entry["group"].partition(", ")[2]): ratio
        for entry in _benchmarks(out, file)
        for ratio in entry["extra_info"]["ratios"]
    }


def _rate(entry: dict) -> float:
    """GB/s of a kernel, from "name, 123 MB, device" and its seconds."""
    return float(entry["group"].rsplit(", ", 2)[1].split()[0]) / 1e3 / entry["stats"]["median"]


def _elsewhere(part: dict, about: dict) -> Lines:
    """Where a part ran, as far as the head of the page says something else."""
    return [f"{key} {part[key]}" for key in ("commit", "device") if key in part and part[key] != about.get(key)]


def _parts(out: Path) -> Lines:
    whole = read(out / "suite.json")
    suite, about = whole.get("parts") or {}, whole.get("environment") or {}
    rows = []
    for name, part in PARTS.items():
        if (found := suite.get(name)) is None:
            continue
        seconds = "-" if not found.get("seconds") else f"{found['seconds']:.0f}"
        remarks = [str(found.get("why") or ""), *_elsewhere(found, about)]
        state, why = str(found.get("state", "-")), "; ".join(filter(None, remarks))
        rows.append([name, state, seconds, f"{part.seconds:.0f}", why])
    lines = _rows(["part", "state", "seconds", "estimate", ""], rows)
    missing = [name for name in PARTS if name not in suite]
    return [*lines, *(["", f"Not asked for: {', '.join(missing)}."] if missing and lines else [])]


def _checks(out: Path) -> Lines:
    found = read(out / "check.json")
    rows = [
        [name, line["what"], line["verdict"], _short(line.get("text") or "")]
        for name, lines in (found.get("checks") or {}).items()
        for line in lines
    ]
    return _rows(["check", "what", "verdict", ""], rows)


def _short(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 200 else text[:197] + "..."


def _verified(out: Path) -> Lines:
    rows, failed = [], []
    for file in sorted(out.glob("verify-*.xml")):
        try:
            root = ElementTree.parse(file).getroot()
        except _BROKEN as error:
            rows.append([file.stem, *["-"] * 3, f"damaged: {error}"])
            continue
        suites = list(root.iter("testsuite"))
        tests, bad, skipped = (
            sum(int(suite.get(key, 0)) for suite in suites for key in keys)
            for keys in (("tests",), ("failures", "errors"), ("skipped",))
        )
        seconds = sum(float(suite.get("time", 0)) for suite in suites)
        rows.append([file.stem, str(tests - bad - skipped), str(bad), str(skipped), f"{seconds:.0f}"])
        for case in root.iter("testcase"):
            if (fault := case.find("failure")) is not None or (fault := case.find("error")) is not None:
                failed.append(f"- {case.get('classname')}::{case.get('name')}: {_short(fault.get('message') or '')}")
    more = [f"- and {len(failed) - 20} more"] if len(failed) > 20 else []
    lines = _rows(["verification", "passed", "failed", "skipped", "seconds"], rows)
    return [*lines, *([""] if failed else []), *[" ".join(line.split()) for line in failed[:20]], *more]


def _benchmarks(out: Path, name: str) -> list[dict]:
    return read(out / f"{name}.json").get("benchmarks") or []


def _spread(ratio: dict) -> str:
    return f"{ratio['median']:.3g} [{ratio['low']:.3g}, {ratio['high']:.3g}]"


def _steps(out: Path) -> Lines:
    rows = []
    for entry in _benchmarks(out, "step-speed"):
        group, name = entry["group"], (entry.get("params") or {}).get("name", "")
        if name not in ("apart", "apart + update", "5 bare passes"):
            continue
        for ratio in entry["extra_info"]["ratios"]:
            other = ratio["compared with"]
            reads = {"floor": "floor over APART step", "floor + update": "the same with the update of the weights"}
            what = reads.get(other, f"{'APART step' if name == 'apart' else name} faster than {other}")
            limit = "" if ratio.get("ceiling") is None else f"{ratio['ceiling']:.3g}"
            aim = "" if ratio.get("target") is None else f"{ratio['target']:.3g}"
            rows.append([what, group.partition(", ")[2], _spread(ratio), limit, aim])
    lines = _rows(["what", "size", "times [quartiles]", "ceiling", "aim"], rows)
    medians = [
        [str(entry["params"]["name"]), entry["group"].partition(", ")[2], f"{entry['stats']['median'] * 1e3:.3f}"]
        for entry in _benchmarks(out, "step-speed")
        if entry["group"].startswith("step")
    ]
    return [*lines, *([""] if medians else []), *_rows(["a step of", "size", "ms"], medians)]


def _kernels(out: Path) -> Lines:
    rows = []
    for entry in _benchmarks(out, "kernel-speed"):
        name = entry["group"].rsplit(", ", 2)[0]
        others = {ratio["compared with"]: _spread(ratio) for ratio in entry["extra_info"]["ratios"]}
        rows.append(
            [
                name,
                f"{_rate(entry):,.0f}",
                *(others.get(key, "-") for key in ("copy", "twin", "compiled twin", "separate")),
            ]
        )
    head = ["kernel", "GB/s", "share of a copy's speed", "faster than its twin", "than the compiled twin", "than apart"]
    return _rows(head, rows)


def _others(out: Path) -> Lines:
    rows = []
    for file in ("epoch-speed", "evaluation-speed", "loader-speed"):
        for entry in _benchmarks(out, file):
            ratios = [f"{_spread(r)} x faster than {r['compared with']}" for r in entry["extra_info"]["ratios"]]
            name = (entry.get("params") or {}).get("name") or str(entry.get("param"))
            rows.append([name, entry["group"], f"{entry['stats']['median']:.4g}", "; ".join(ratios)])
    return _rows(["what", "of", "seconds", "against"], rows)


def _profiles(out: Path) -> Lines:
    rows = []
    for file in sorted(out.glob("profile-*/profile.json")):
        p = read(file)
        if not p:
            rows.append([file.parent.name, "damaged", *["-"] * 6])
            continue
        launches = ", ".join(f"{count:,} {what}" for what, count in p["launches"].items())
        rows.append([
            f"{p['method']}, batch {p['batch_size']}, {p['dtype']}{', graph' if p['graph'] else ''}",
            f"{p['step']['median'] * 1e3:.3f}", f"{p['floor']['median'] * 1e3:.3f}", f"{p['overhead']['median']:.3f}",
            f"{p['images_per_second']:,.0f}", f"{p['flops_per_second'] / 1e12:.1f}",
            f"{p['flops_per_second'] / p['peak_flops']:.1%}", launches,
        ])  # fmt: skip
    head = ["step", "ms", "floor ms", "step / floor", "images/s", "TFLOP/s", "of the matrix product's", "launches"]
    return _rows(head, rows)


def _scaling(out: Path) -> Lines:
    found = read(out / "scaling.json")
    rates, silent = found.get("images_per_second") or {}, found.get("silent_over") or {}
    alone = next(iter(rates.values()), None)
    rows = [
        [kind, f"{rate:,.0f}", f"{rate / alone:.2f}", f"{1 - silent[kind]['median']:.1%}" if kind in silent else ""]
        for kind, rate in rates.items()
    ]
    head = [f"{found.get('ranks')} ranks, batch {found.get('batch')} each", "images/s", "times one", "communication"]
    return _rows(head, rows)


def _trainings(out: Path) -> Lines:
    rows = []
    for config in sorted(out.glob("*/config.json")) + sorted(out.glob("methods-paper/*/config.json")):
        folder, made = config.parent, read(config)
        if made.get("profile"):
            continue
        summary, name = read(folder / "summary.json"), str(folder.relative_to(out))
        if not summary:
            log = folder / "metrics.jsonl"
            done = len(log.read_text().splitlines()) if log.is_file() else 0
            rows.append([name, f"{done} of {made.get('epochs', '?')}", *["-"] * 5])
            continue
        seconds = summary["train_seconds"]
        rows.append([name, str(summary["epochs"]), f"{seconds:.1f} ({clock(seconds)})", *_judged(summary)])
    head = ["training", "epochs", "seconds of the steps", "clean", "PGD-20", "PGD-20, best weights", "collapsed at"]
    return _rows(head, rows)


def _judged(summary: dict) -> list[str]:
    test = summary.get("test") or {}
    cells = []
    for weights, attack in (("last", "clean"), ("last", "pgd-20"), ("best", "pgd-20")):
        found = ((test.get(weights) or {}).get("attacks") or {}).get(attack)
        cells.append("-" if found is None else f"{found['accuracy']:.2%} of {found['n']:,}")
    return [*cells, ", ".join(map(str, summary.get("collapsed_at") or [])) or "no"]


def _evaluations(out: Path) -> Lines:
    rows = []
    for file in sorted(out.glob("*/evaluation.json")):
        for attack, found in (read(file).get("attacks") or {}).items():
            rows.append([file.parent.name, attack, f"{found['accuracy']:.2%} of {found['n']:,}"])
    return _rows(["run", "attack", "accuracy"], rows)


SECTIONS: dict[str, Callable[[Path], Lines]] = {
    "In short": _short_of_all,
    "Parts": _parts,
    "Checks": _checks,
    "Verification": _verified,
    "A training step": _steps,
    "Kernels": _kernels,
    "Profiles": _profiles,
    "Several GPUs": _scaling,
    "Trainings": _trainings,
    "Further evaluations": _evaluations,
    "Epochs, evaluation, loaders": _others,
}
