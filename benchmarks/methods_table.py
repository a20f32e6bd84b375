"""The table of `benchmarks/methods.py`: a row for each method."""

import statistics
from collections.abc import Iterable

from apart_fast.report.text import number
from apart_fast.runs.reading import Run
from apart_fast.step.methods import get_method

TITLES = {"clean": "clean", "pgd-20": "PGD-20", "pgd-50": "PGD-50 x 10", "autoattack": "AutoAttack"}  # of the attacks


def make_row(method: str, runs: dict[int, Run], evaluations: Iterable[dict[str, dict]], cost: dict | None) -> dict:
    """What is known of a method.

    Args:
        runs: seed -> run.
        evaluations: of each run, attack -> result.
        cost: of a step, as in cost.json.
    """
    row: dict = {"method": method, "seeds": sorted(runs), "passes": get_method(method).passes}
    figures: dict[str, list[dict]] = {}
    for evaluation in evaluations:
        for attack, result in evaluation.items():
            figures.setdefault(attack, []).append(result)
    for attack, results in figures.items():
        images = max(result["n"] for result in results)  # a judging that was stopped leaves fewer in some
        results = [result for result in results if result["n"] == images]
        values = [result["accuracy"] for result in results]
        row[attack] = {
            "mean": statistics.mean(values),
            "deviation": statistics.stdev(values) if len(values) > 1 else None,
            "worst": min(values),
            "seeds": len(values),
            "images": images,
        }
    tests = [number(run.summary, "test", "best", "attacks", "pgd-20", "accuracy") for run in runs.values()]
    tested = [test for test in tests if test is not None]
    row["best_weights_pgd20"] = statistics.mean(tested) if len(tested) == len(runs) else None
    row["collapsed_at"] = {seed: run.summary.get("collapsed_at", run.collapsed_epochs) for seed, run in runs.items()}
    row["omega_bytes"] = max(number(run.summary, "memory_bytes") or 0 for run in runs.values())
    row["peak_gpu_bytes"] = max(number(run.summary, "peak_gpu_bytes") or 0 for run in runs.values()) or None
    row["step"] = cost
    return row


def make_cell(row: dict, attack: str, images: int) -> str:
    """Mean accuracy under an attack and its deviation over the seeds; which seeds or `images` are missing, if any."""
    if attack not in row:
        return "-"
    found, notes = row[attack], []
    if found["seeds"] < len(row["seeds"]):
        notes.append(f"{found['seeds']} of {len(row['seeds'])} seeds")
    if found["images"] < images:
        notes.append(f"{found['images']:,} images")
    deviation = found.get("deviation")
    spread = "" if deviation is None else f" ± {100 * deviation:.1f}"
    return f"{found['mean']:.1%}{spread}" + (f" ({', '.join(notes)})" if notes else "")


def to_markdown(rows: list[dict], about: str, reference: str) -> str:
    """The table, below `about`; `reference`: the method whose step the others are compared with."""
    attacks = [a for a in TITLES if any(a in row for row in rows)]
    images = {a: max(row[a]["images"] for row in rows if a in row) for a in attacks}
    tested = any(row["best_weights_pgd20"] is not None for row in rows)
    head = ["method", "seeds", *(f"{TITLES[a]} ({images[a]:,})" for a in attacks), "PGD-20, worst seed"]
    head += ["PGD-20, best weights"] if tested else []
    head += ["collapsed at epoch (by seed)", "passes", f"step / {reference} step", "omega MB"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        cells = [
            row["method"],
            str(len(row["seeds"])),
            *(make_cell(row, a, images[a]) for a in attacks),
        ]
        best = row["best_weights_pgd20"]
        cells.append(f"{row['pgd-20']['worst']:.1%}" if "pgd-20" in row else "-")
        cells += ["-" if best is None else f"{best:.1%}"] if tested else []
        fell = [", ".join(map(str, epochs)) or "no" for epochs in row["collapsed_at"].values()]
        cells.append(" / ".join(fell) if row["method"] != "standard" else "-")
        cells.append(f"{row['passes']} F")
        ratio = row["step"] and row["step"]["over_reference"]
        cells.append(f"{ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]" if ratio else "-")
        cells.append(f"{row['omega_bytes'] / 1e6:.0f}")
        lines.append(cells)
    return about + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
