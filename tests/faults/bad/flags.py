"""Values that no flag should take."""

import os
from collections.abc import Iterator
from functools import partial

from faults.bad.site import BEGUN, REFUSED, WARNED, Input, Site, Words, device, loop, pipe

LONG = "n" * 300
COUNT = ("0", "-1", "1.5", "")
NATURAL = ("-1", "x")
RATE = ("nan", "inf", "-inf", "-1", "")
EPS = ("8", "-1", "nan", "inf", "x", "", "8/0", "8/255/2", "1e400", "0x10", "1e-400", "/", "8/", "8/255 ")
TRAIN = {  # flag -> values
    **dict.fromkeys(("epochs", "cycle", "batch-size", "val-every", "log-every", "checkpoint-every"), COUNT),
    **dict.fromkeys(("milestones", "grad-accum"), COUNT),
    **dict.fromkeys(("val-images", "train-images", "test-images"), COUNT),
    "threads": (*COUNT, "1000000000", "99999999999999999999"),
    "workers": NATURAL,
    "padding": (*NATURAL, "100000", "99999999999999999999"),
    **dict.fromkeys(("probe-images", "keep-weights"), NATURAL),
    "seed": ("-1", str(2**64), str(2**63), "x", "1.5", ""),
    **dict.fromkeys(("lr", "weight-decay", "step-decay", "eta"), RATE),
    **dict.fromkeys(("ema", "label-smoothing"), (*RATE, "1", "1.5")),
    "width": (*RATE, "0", "1e6", "1e300"),
    "eps": EPS[:-1],
    "eval-eps": EPS[:-1],
    **dict.fromkeys(("recipe", "loader", "omega-dtype", "omega-device", "amp-dtype", "kernels"), ("x", "")),
    **dict.fromkeys(("schedule", "schedule-per", "log"), ("x", "")),
    "dataset": ("", "cifar11", LONG, "../data", "mnist"),
    "method": ("", "apartt", LONG, "pgd-0", "pgd-010", "pgd--1", "pgd-x", "pgd-", "pgd-1.5", "apart-3",
               "pgd-99999999999999999999"),
    "model": ("", "resnet", LONG, "torchvision/", "timm/", "torchvision/x", "timm/x", "/x", "x/y/z",
              "torchvision/vgg16", "torchvision/inception_v3", "torchvision/vit_b_16"),
    "points": ("", "[", "layer9.*", "conv1:output:output", ":output", "linear:x"),
    "device": ("", "abacus", "cpu:7", "cuda:99", "cuda:-1", "cpu:x", "meta", "mps", "xla", "hpu", "cuda:cuda"),
}  # fmt: skip
BATCH = {"batch-size": ("1000000", str(2**63), "97"), "val-images": ("96", "1000000"), "train-images": ("1", "97")}
JUDGE = {
    "images": (*COUNT,),
    "eps": EPS[:-1],
    "restarts": COUNT,
    "batch-size": (*COUNT,),
    "seed": ("-1", str(2**64), "x"),
    "device": ("", "abacus", "cpu:7", "cuda:99", "meta"),
    "attacks": ("", "foo", "pgd-0", "pgd--1", "pgd-x", "pgd-", "fgsm ", "PGD-20", "pgd-1e3", LONG, "pgd-٣",
                "pgd-99999999999999999999"),
    "dataset": ("", "cifar11", LONG),
}  # fmt: skip
ANALYSE = {
    "images": COUNT,
    "batch-size": ("0", "-1"),
    "seed": ("-1", str(2**64)),
    "eps": ("8", "nan", "", "1e-400"),
    "device": ("abacus", "cpu:7"),
}
OF_ONE = {
    "collapse": {"every": ("0", "-1", "x"), "reference": ("", "missing", LONG)},
    "perturbations": {"shown": ("0", "-1"), "epochs": ("99", "-1", "x"), "reference": ("missing",)},
    "curves": {},
    "gradients": {"every": ("0", "-1")},
}


def inputs() -> Iterator[Input]:
    for flag, values in TRAIN.items():
        for value in values:
            yield _flag("train", partial(_train, flag, value), flag, value)
    for flag, values in BATCH.items():
        for value in values:
            yield _flag("train", partial(_train, flag, value), flag, value)
    for flag, values in JUDGE.items():
        for value in values:
            yield _flag("evaluate", partial(_judge, flag, value), flag, value)
    for what, own in OF_ONE.items():
        for flag, values in {**ANALYSE, **own}.items():
            for value in values:
                yield _flag(f"analyze {what}", partial(_analyse, what, flag, value), flag, value)
    for name, make in TOGETHER.items():
        yield Input(name, "flags together", make)
    for name, make in PATHS.items():
        yield Input(name, "paths", make)
    yield Input(
        "evaluate --attacks pgd-1000000", "flags of evaluate", lambda s: s.judge("--attacks", "pgd-1000000"), WARNED
    )
    yield Input("train --method pgd-1000000", "flags of train", lambda s: s.train("--method", "pgd-1000000"), WARNED)
    for name, words in MAYBE.items():
        yield Input(name, "flags together", lambda s, words=words: s.train(*words), BEGUN)


def _flag(command: str, make: partial[Words], flag: str, value: str) -> Input:
    shown = value if len(value) < 30 else f"{value[:3]}... ({len(value)})"
    return Input(f"{command} --{flag} {shown!r}", f"flags of {command.split()[0]}", make, REFUSED)


def _train(flag: str, value: str, site: Site) -> Words:
    # =: a value may begin with a dash
    return site.train("--method", "apart", f"--{flag}={value}")


def _judge(flag: str, value: str, site: Site) -> Words:
    return site.judge(f"--{flag}={value}") if flag != "attacks" else [*site.judge()[:-3], "--attacks", value]


def _analyse(what: str, flag: str, value: str, site: Site) -> Words:
    run = site.finished()
    if flag == "reference" and what == "collapse":
        return ["apart-fast", "analyze", what, run, "--data-dir", site.data, f"--reference={value}"]
    return site.analyse(what, f"--{flag}={value}", run=run)


TOGETHER = {
    "two loaders": lambda s: s.train("--ffcv", "--loader", "resident"),
    "a memory that nothing uses": lambda s: s.train("--method", "standard", "--omega-device", "disk"),
    "resume with another setting": lambda s: ["train.py", "--resume", s.stopped(), "--epochs", "9"],
    "resume with another seed": lambda s: ["train.py", "--resume", s.stopped(), "--seed", "9"],
    "resume with other weights": lambda s: ["train.py", "--resume", s.stopped(), "--init-from", s.finished("other")],
    "resume with a dry run": lambda s: ["train.py", "--resume", s.stopped(), "--dry-run"],
    "a dry run and a profile": lambda s: s.train("--dry-run", "--profile"),
    "a cycle of a cosine": lambda s: s.train("--schedule", "cosine", "--cycle", "3"),
    "milestones of a triangle": lambda s: s.train("--milestones", "1"),
    "milestones after the end": lambda s: s.train("--schedule", "multistep", "--milestones", "1000"),
    "pretrained weights that nobody has": lambda s: s.train("--init-from", "pretrained"),
    "weights that are none": lambda s: s.train("--init-from", s.file("x.pt", "x")),
    "settings that are none": lambda s: s.train("--config", s.file("x.yaml", "x")),
    "settings with an unknown name": lambda s: s.train("--config", s.file("x.yaml", "learning_rate: 1")),
    "settings and another recipe": lambda s: s.train("--config", s.file("x.yaml", "recipe: demo"), "--recipe", "small"),
    "resume with another folder": lambda s: ["train.py", "--resume", s.stopped(), "--out", "elsewhere"],
    "resume with other data": lambda s: ["train.py", "--resume", s.stopped(), "--data-dir", "nowhere"],
    "a shortened flag": lambda s: s.train("--epo", "1"),
    "an unknown flag": lambda s: s.train("--nonsense", "1"),
    "a stray word": lambda s: s.train("stray"),
    "a flag without its value": lambda s: s.train("--epochs"),
    "a switch with a value": lambda s: s.train("--amp", "perhaps"),
    "attacks without a value": lambda s: [*s.judge()[:-3], "--no-progress", "--attacks"],
    "no command": lambda s: ["apart-fast"],
    "an unknown command": lambda s: ["apart-fast", "trian"],
    "an unknown analysis": lambda s: ["apart-fast", "analyze", "everything", s.finished()],
    "no checkpoint": lambda s: ["apart-fast", "evaluate"],
    "a report of nothing": lambda s: ["apart-fast", "report"],
    "a report of two runs and no file": lambda s: ["apart-fast", "report", s.finished("a"), s.finished("b")],
    "check on an unknown device": lambda s: ["apart-fast", "check", "--device", "abacus"],
    "check of data that is not there": lambda s: ["apart-fast", "check", "--data-dir", "missing"],
    "check with an empty folder name": lambda s: ["apart-fast", "check", "--quick", "--data-dir", ""],
    "check of a file": lambda s: ["apart-fast", "check", "--data-dir", s.file("f", "x")],
    "demo into others' things": lambda s: ["apart-fast", "demo", "--out", s.file("mine.txt", "x").parent],
    "demo into a file": lambda s: ["apart-fast", "demo", "--out", s.file("mine.txt", "x")],
    "demo into the current folder": lambda s: ["apart-fast", "demo", "--out", s.file("mine.txt", "x") and ""],
    "demo with an unknown loader": lambda s: ["apart-fast", "demo", "--loader", "x"],
    "another dataset than the images": lambda s: s.train("--dataset", "cifar10", "--no-download"),
}
MAYBE = {
    "float16 on a CPU": ("--amp", "--amp-dtype", "float16"),
    "a graph on a CPU": ("--graph", "True"),
    "triton on a CPU": ("--kernels", "triton"),
    "digits that are not ASCII": ("--epochs", "١"),
    "eps as full-width digits": ("--eps", "８/255"),
    "underscores": ("--epochs", "0_1"),
    "blanks around": ("--eps", " 8/255 "),
    "a flag twice": ("--seed", "1", "--seed", "2"),
    "lr 1e30": ("--lr", "1e30"),
    "lr 0": ("--lr", "0"),
    "every schedule's end": ("--schedule", "onecycle", "--schedule-per", "epoch", "--epochs", "1"),
    "more batches in an update than there are": ("--grad-accum", "1000"),
    "a dry run": ("--dry-run",),
    "eta 1e30": ("--eta", "1e30"),
    "points without a value": ("--points",),
    "eps 0": ("--eps", "0"),
    "eps 1": ("--eps", "1"),
    "a batch of one": ("--batch-size", "1"),
    "a probe of more than there is": ("--probe-images", "1000"),
    "a width of next to nothing": ("--width", "0.01"),
    "no padding": ("--padding", "0"),
    "padding beyond the image": ("--padding", "9"),
    "points of everything": ("--method", "apart", "--points", "*"),
    "points of every layer": ("--method", "apart", "--points", "layer*"),
    "profile": ("--profile",),
    "a cycle of a million": ("--cycle", "1000000"),
    "more test images than there are": ("--test-images", "100000"),
}


def _paths() -> Iterator[tuple[str, object]]:
    """name -> function that makes words with a path that cannot be used."""
    long = f"{LONG}/{LONG}"
    for name, path in (("empty", ""), ("missing", "missing"), ("a user who is not there", "~nosuchuser/x"),
                       ("long", LONG),
                       ("two long ones", long), ("a device", "/dev/null"), ("an endless device", "/dev/zero"),
                       ("the kernel's", "/proc/self"), ("bytes that are not UTF-8", "\udcff\udcfe")):  # fmt: skip
        yield f"data-dir: {name}", lambda s, p=path: s.train(f"--data-dir={p}")
        yield f"resume: {name}", lambda s, p=path: ["train.py", f"--resume={p}"]
        yield f"init-from: {name}", lambda s, p=path: s.train(f"--init-from={p}")
        yield f"config: {name}", lambda s, p=path: s.train(f"--config={p}")
        yield f"evaluate: {name}", lambda s, p=path: s.judge(file=p)
        yield f"report: {name}", lambda s, p=path: ["apart-fast", "report", p]
        yield f"analyze: {name}", lambda s, p=path: s.analyse("curves", run=p)
        if name not in ("missing", "bytes that are not UTF-8") and "device" not in name:  # root might replace those
            yield f"out: {name}", lambda s, p=path: s.train(f"--out={p}")
            yield f"report's out: {name}", lambda s, p=path: ["apart-fast", "report", s.finished(), f"--out={p}"]
            yield f"evaluate's out: {name}", lambda s, p=path: s.judge(f"--out={p}")
            yield f"analyze's out: {name}", lambda s, p=path: s.analyse("curves", f"--out={p}")
    yield "data-dir: a file", lambda s: s.train(data=s.file("f", "x"))
    yield "data-dir: a loop of links", lambda s: s.train(data=loop(s.folder / "loop"))
    yield "data-dir: a pipe", lambda s: s.train(data=pipe(s.folder / "pipe"))
    yield "resume: a file", lambda s: ["train.py", "--resume", s.file("f", "x")]
    yield "resume: a loop of links", lambda s: ["train.py", "--resume", loop(s.folder / "loop")]
    yield "resume: a checkpoint", lambda s: ["train.py", "--resume", s.stopped() / "last.pt"]
    yield "resume: an empty folder", lambda s: ["train.py", "--resume", s.file("f", "x").parent]
    yield "out: a file", lambda s: s.train(out=s.file("f", "x"))
    yield "out: in a file", lambda s: s.train(out=s.file("f", "x") / "run")
    yield "out: a loop of links", lambda s: s.train(out=loop(s.folder / "loop"))
    yield "out: a run", lambda s: s.train(out=s.finished())
    yield "evaluate: a folder", lambda s: s.judge(file=s.finished())
    yield "evaluate: text", lambda s: s.judge(file=s.file("f.pt", "text"))
    yield "evaluate: an empty file", lambda s: s.judge(file=s.file("f.pt", ""))
    yield "evaluate: JSON", lambda s: s.judge(file=s.finished() / "config.json")
    yield "evaluate: a picture", lambda s: s.judge(file=s.finished() / "curves.png")
    yield "evaluate: a pipe", lambda s: s.judge(file=pipe(s.folder / "pipe.pt"))
    yield "evaluate: a loop of links", lambda s: s.judge(file=loop(s.folder / "loop.pt"))
    yield "evaluate onto the checkpoint", lambda s: s.judge("--out", s.folder / "run" / "best.pt")
    yield "evaluate onto the other checkpoint", lambda s: s.judge("--out", s.folder / "run" / "last.pt")
    yield "evaluate onto the settings", lambda s: s.judge("--out", s.folder / "run" / "config.json")
    yield "evaluate onto the summary", lambda s: s.judge("--out", s.folder / "run" / "summary.json")
    yield "evaluate onto the metrics", lambda s: s.judge("--out", s.folder / "run" / "metrics.jsonl")
    yield "evaluate onto a picture", lambda s: s.judge("--out", next(s.pictures().rglob("*.png")))
    yield "evaluate onto a folder", lambda s: s.judge("--out", s.folder)
    yield "evaluate into a file", lambda s: s.judge("--out", s.file("f", "x") / "report.json")
    if os.geteuid() == 0:  # only root can make one
        yield "evaluate onto a device", lambda s: s.judge("--out", device(s.folder / "null"))
        yield (
            "report onto a device",
            lambda s: ["apart-fast", "report", s.finished(), "--out", device(s.folder / "null")],
        )
    yield "report onto a checkpoint", lambda s: ["apart-fast", "report", (r := s.finished()), "--out", r / "last.pt"]
    yield (
        "report onto the summary",
        lambda s: ["apart-fast", "report", (r := s.finished()), "--out", r / "summary.json"],
    )
    yield "report onto a picture", lambda s: ["apart-fast", "report", (r := s.finished()), "--out", r / "curves.png"]
    yield "report onto a folder", lambda s: ["apart-fast", "report", s.finished(), "--out", s.folder]
    yield "report of an unfinished run", lambda s: ["apart-fast", "report", s.stopped()]
    yield "analyze an unfinished run", lambda s: s.analyse("curves", run=s.stopped())
    yield "analyze into a file", lambda s: s.analyse("curves", "--out", s.file("f", "x"))
    yield "analyze into a loop", lambda s: s.analyse("curves", "--out", loop(s.folder / "loop"))
    yield "analyze one run as its reference's", lambda s: s.analyse("collapse", "--reference", s.file("f", "x"))


PATHS: dict = dict(_paths())
