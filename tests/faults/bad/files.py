"""Files of a run that hold other things than a run writes."""

import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from faults.bad.site import EITHER, REFUSED, Input, Site, Words, loop, pipe
from faults.contents import difference

READERS: dict[str, Callable[[Site, Path], Words]] = {
    "report": lambda s, run: ["apart-fast", "report", run],
    "curves": lambda s, run: s.analyse("curves", run=run),
    "gradients": lambda s, run: s.analyse("gradients", run=run),
    "perturbations": lambda s, run: s.analyse("perturbations", "--reference", run, run=run),
    "collapse": lambda s, run: s.analyse("collapse", "--every", "9", run=run),
    "resume": lambda s, run: ["train.py", "--resume", run],
}
FILES = {  # file of a run -> who reads it
    "config.json": ("report", "curves", "resume", "gradients"),
    "summary.json": ("report", "curves", "perturbations"),
    "card.json": ("report",),
    "environment.json": ("report",),
    "evaluation.json": ("report", "resume"),
}
DEEP = "[" * 100_000 + "]" * 100_000
SQUARE_BRACKETS = json.dumps("x" * 10**6)
VALUES: dict[str, str] = {  # text of JSON values
    "null": "null",
    "text": '"x"',
    "-1": "-1",
    "0": "0",
    "1e999": "1e999",
    "NaN": "NaN",
    "a huge integer": "9" * 5000,
    "2^70": str(2**70),
    "true": "true",
    "a list": "[]",
    "an object": "{}",
    "a list of lists": "[[1], {}]",
    "text of a surrogate": '"\\ud800"',
    "markup": '"<script>alert(1)</script>$x_$"',
    "long text": SQUARE_BRACKETS,
    "deep": DEEP,
}
WHOLE: dict[str, bytes] = {  # contents of a whole file
    "nothing": b"",
    "null": b"null",
    "a list": b"[]",
    "an object": b"{}",
    "text": b'"x"',
    "a number": b"1",
    "half": b'{"epochs": ',
    "deep": DEEP.encode(),
    "zeros": bytes(4096),
    "not UTF-8": b'{"recipe": "\xff\xfe"}',
    "UTF-16": '{"recipe": "paper"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"recipe": "paper"}',
    "a pickle": b"\x80\x04\x95\x00",
}
KINDS = ("a folder", "a pipe", "a loop of links", "a dangling link")
ROW_KEYS = (
    "epoch",
    "loss",
    "val_pgd20",
    "probe_pgd10",
    "collapsed",
    "alpha",
    "alpha_blocks",
    "seconds",
    "train_accuracy",
)
STATE_KEYS = {  # of last.pt
    *(
        "format",
        "kind",
        "model",
        "description",
        "classes",
        "dataset",
        "method",
        "epoch",
        "average",
        "optimizer",
        "apart",
    ),
    *("progress", "watch", "totals", "threads", "data", "rng"),
    *("apart.step_sizes", "apart.velocity", "apart.generator", "apart.memory", "progress.epoch", "progress.step"),
    *("progress.best_epoch", "progress.best_by", "progress.best_accuracy", "progress.seconds", "watch.best"),
    *("watch.epochs", "rng.cpu", "rng.cuda", "description.num_classes", "description.image_size", "description.name"),
    *("description.width", "description.in_channels", "model.conv1.weight", "model.linear.bias", "optimizer.0"),
    *("optimizer.3",),
}
CHANGES = (  # of an entry, by `faults.bad.states.change`
    *("missing", "None", "text", "-1", "1e30", "2**70", "list", "dict", "nan tensor", "empty tensor", "float64 tensor"),
    *("integer tensor", "sparse tensor", "large tensor", "one more dimension", "unknown key beside it"),
)


def inputs() -> Iterator[Input]:
    for file, readers in FILES.items():
        for reader in readers:
            for value in VALUES:
                for place in range(3):
                    name = f"{reader}: {file}, {value} in entry {place}"
                    yield Input(name, f"entries of {file}", partial(_entry, file, reader, value, name), EITHER)
            for content in WHOLE:
                must = REFUSED if file in ("config.json", "summary.json") and reader != "resume" else EITHER
                yield Input(
                    f"{reader}: {file} is {content}", "whole files", partial(_whole, file, reader, content), must
                )
            for kind in KINDS:
                yield Input(f"{reader}: {file} is {kind}", "kinds of files", partial(_kind, file, reader, kind), EITHER)
    for reader in ("report", "curves", "resume"):
        for value in VALUES:
            for key in ROW_KEYS:
                yield Input(
                    f"{reader}: metrics, {value} as {key}", "metrics", partial(_row, reader, value, key), EITHER
                )
        for content in WHOLE:
            make = partial(_whole, "metrics.jsonl", reader, content)
            yield Input(f"{reader}: metrics.jsonl is {content}", "whole files", make, EITHER)
        for kind in KINDS:
            make = partial(_kind, "metrics.jsonl", reader, kind)
            yield Input(f"{reader}: metrics.jsonl is {kind}", "kinds of files", make, EITHER)
    for key in sorted(STATE_KEYS):
        for change in CHANGES:
            for reader in ("resume", "evaluate"):
                used = key.startswith("model.") and change != "unknown key beside it"
                must = REFUSED if used and reader == "evaluate" else EITHER  # to go on, there is the one before
                taken = _same_bits if reader == "resume" else _nothing_wrong
                make = partial(_state, reader, key, change)
                yield Input(f"{reader}: last.pt, {key}: {change}", "entries of last.pt", make, must, taken=taken)
    for picture in ("perturbations.png", "curves.png"):
        yield Input(f"a link as {picture}", "links in a run", partial(_link, picture), EITHER, secret="xyzzy-secret")
    for file in ("evaluation.json", "card.json", "environment.json", "metrics.jsonl", "summary.json"):
        yield Input(f"a link as {file}", "links in a run", partial(_linked_json, file), EITHER, secret="xyzzy-secret")
    for picture, content in {"text": b"xyzzy-secret", "nothing": b"", "zeros": bytes(100)}.items():
        make = partial(_whole_picture, content)
        yield Input(f"a picture that is {picture}", "links in a run", make, EITHER, secret="xyzzy-secret")
    for file, kind in (("last.pt", k) for k in KINDS):
        yield Input(f"resume: {file} is {kind}", "kinds of files", partial(_kind, file, "resume", kind), EITHER)
        yield Input(f"resume: best.pt is {kind}", "kinds of files", partial(_kind, "best.pt", "resume", kind), EITHER)


def _run(site: Site, reader: str) -> Path:
    return site.stopped() if reader == "resume" else site.finished()


def _entry(file: str, reader: str, value: str, name: str, site: Site) -> Words:
    """Another value in one of the file's entries, or of those within it; which, the name decides."""
    run = _run(site, reader)
    path = run / file
    known = json.loads(path.read_text()) if path.exists() else {"n": 1, "attacks": {"clean": {}}}
    places = [(key, None) for key in known]
    places += [(key, inner) for key, item in known.items() if isinstance(item, dict) for inner in item]
    key, inner = places[sum(name.encode()) * 7919 % len(places)]
    holder = known if inner is None else known[key]
    holder[inner or key] = "@@"
    path.write_text(json.dumps(known, indent=1).replace('"@@"', VALUES[value]))
    return READERS[reader](site, run)


def _whole(file: str, reader: str, content: str, site: Site) -> Words:
    run = _run(site, reader)
    (run / file).write_bytes(WHOLE[content])
    return READERS[reader](site, run)


def _kind(file: str, reader: str, kind: str, site: Site) -> Words:
    run = _run(site, reader)
    path = run / file
    path.unlink(missing_ok=True)
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        pipe(path)
    elif kind == "a loop of links":
        loop(path)
    else:
        os.symlink("nowhere", path)
    return READERS[reader](site, run)


def _row(reader: str, value: str, key: str, site: Site) -> Words:
    run = _run(site, reader)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows[1][key] = "@@"
    text = "".join(json.dumps(row).replace('"@@"', VALUES[value]) + "\n" for row in rows)
    (run / "metrics.jsonl").write_text(text)
    return READERS[reader](site, run)


def _state(reader: str, key: str, change: str, site: Site) -> Words:
    run = site.stopped()
    site.shop.launcher.call("faults.bad.states:change", run / "last.pt", key, change)
    return ["train.py", "--resume", run] if reader == "resume" else site.judge(file=run / "last.pt")


def _link(picture: str, site: Site) -> Words:
    run = site.finished()
    (run / picture).unlink()
    os.symlink(site.file("secret.txt", "xyzzy-secret\n" * 50), run / picture)
    return ["apart-fast", "report", run]


def _linked_json(file: str, site: Site) -> Words:
    run = site.finished()
    (run / file).unlink()
    os.symlink(site.file("secret.json", '{"token": "xyzzy-secret", "epoch": 1}\n'), run / file)
    return ["apart-fast", "report", run]


def _whole_picture(content: bytes, site: Site) -> Words:
    run = site.finished()
    (run / "perturbations.png").write_bytes(content)
    return ["apart-fast", "report", run]


def _same_bits(site: Site) -> str | None:
    """The run went on: then as if nothing had been changed."""
    differs = difference(site.shop.unbroken("plain").last, site.shop.digest(site.folder / "run" / "last.pt"))
    return differs and f"taken, and last.pt has other bits: {differs}"


def _nothing_wrong(site: Site) -> None:
    return None
