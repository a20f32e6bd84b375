"""The end of a run: its figures on the test set, its pictures, its card and its report."""

from dataclasses import asdict

from apart_fast.files import check_held
from apart_fast.loaders import subset
from apart_fast.parallel.world import World
from apart_fast.report import pictures
from apart_fast.report.sparing import sparing
from apart_fast.report.write import write_report
from apart_fast.runs import checkpoint
from apart_fast.runs.card import write_card
from apart_fast.runs.config import TrainConfig
from apart_fast.runs.folder import RunFolder
from apart_fast.training.execution import plain_model
from apart_fast.training.setup import Parts
from apart_fast.training.state import Progress
from apart_fast.training.watch import CollapseWatch, Judge


def finish(
    config: TrainConfig,
    folder: RunFolder,
    parts: Parts,
    progress: Progress,
    collapse: CollapseWatch,
    judge: Judge,
    classes: list[str],
    us: World,
) -> dict:
    """Judge the weights of a run that has ended and write everything that is left to write; returns the summary.

    All ranks judge; rank 0 alone writes. A picture or page that fails is left out, and a line says so.

    Raises:
        UserError: full disk, or the folder is gone.
    """
    us.meet()  # rank 0 has written best.pt
    if not folder.best.is_file():  # lost after its epoch
        progress.best_epoch, progress.best_by = config.epochs, "default, as best.pt was lost"
    records = folder.metrics()
    summary = {
        "dataset": config.dataset,
        "method": parts.apart.method.name,
        "model": parts.description,
        "epochs": config.epochs,
        "train_seconds": progress.seconds,
        "best": {"epoch": progress.best_epoch, "by": progress.best_by, "accuracy": progress.best_accuracy},
        "collapsed_at": collapse.epochs,
        "final": records[-1] if records else {},
        "parameters": sum(p.numel() for p in parts.model.parameters()),
        "memory_bytes": parts.apart.memory.nbytes if parts.apart.memory is not None else 0,
        **({"ranks": us.size} if us.size > 1 else {}),
    }
    if parts.device.type == "cuda":
        progress.note_peak(parts.device)
        summary["peak_gpu_bytes"] = progress.peak_gpu_bytes
    if config.test:
        summary["test"] = _test(config, folder, parts, progress, judge)
    if not us.first:
        return summary
    folder.write("summary.json", summary)
    with sparing("curves.png"):
        pictures.curves({parts.apart.method.name: records}, folder.path / "curves.png")
    val = parts.splits.val
    shown, path = subset(val, min(8, len(val))), folder.path / "perturbations.png"
    with sparing("perturbations.png"), plain_model(config.compile):
        pictures.perturbations(parts.judged_model, shown, classes, judge.eps, path)
    with sparing("card.json"):
        write_card(folder, config)
    with sparing("report.html"):
        write_report([folder.path], folder.path / "report.html")
    check_held(folder.path)
    return summary


def _test(config: TrainConfig, folder: RunFolder, parts: Parts, progress: Progress, judge: Judge) -> dict:
    """Reports on the test set, which is looked at here only, in float32: of the last weights and of the best ones."""
    model, attacks = parts.judged_model, ("clean", "pgd-20")
    last = {name: value.clone() for name, value in model.state_dict().items()}
    reports = {"last": asdict(judge(parts.splits.test, attacks, None, progress=True))}
    another = progress.best_epoch != config.epochs or config.best_of == "both"  # than the last, or than the average
    best = checkpoint.load_best(folder, parts.device) if another else None
    if best is not None:
        checkpoint.load_model(model, best["model"], folder.best)
        reports["best"] = asdict(judge(parts.splits.test, attacks, None, progress=True))
        model.load_state_dict(last)
    else:
        reports["best"] = reports["last"]
    return reports
