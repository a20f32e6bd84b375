"""What the README, the pages in docs/, CONTRIBUTING.md and the benchmarks' README show does what they say."""

import re
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
import tyro
from torch.distributed.run import get_args_parser

from apart_fast import METHODS, get_method
from apart_fast.commands.table import COMMANDS, TRAIN, Group
from apart_fast.errors import UserError
from apart_fast.evaluation.names import parse_attack
from apart_fast.runs.begin import begin
from apart_fast.runs.config import EvaluateConfig, TrainConfig
from apart_fast.runs.recipes import RECIPES
from benchmarks import gpu_suite, methods, scaling, time_to_accuracy

ROOT = Path(__file__).parent.parent
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = {str(page.relative_to(ROOT)): page.read_text() for page in (ROOT / "README.md", *DOCS)} | {
    name: (ROOT / name).read_text() for name in ("CONTRIBUTING.md", "benchmarks/README.md")
}
README = PAGES["README.md"]
SCRIPTS = {
    "benchmarks/methods.py": methods.Config,
    "benchmarks/gpu_suite.py": gpu_suite.Config,
    "benchmarks/scaling.py": scaling.Config,
    "benchmarks/time_to_accuracy.py": time_to_accuracy.Config,
}
TORCHRUN = get_args_parser()
# folders and files that come to be by commands
MADE = re.compile(r"(runs|data|\.venv|tensorboard|weights|ranks|\.apart_fast)/|(network|benchmark)\.py$")

CODE = re.compile(r"^```[a-z]*\n(.*?)^```$", re.S | re.M)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LAUNCHED = re.compile(r"(?:srun )?(?:\.venv/bin/)?torchrun (.*)")
PROGRAM = re.compile(rf"(?:\.venv/bin/)?(?:python )?(train\.py|apart-fast|{'|'.join(SCRIPTS)})(?=\s)")
PATH = re.compile(r"\.?[A-Za-z][\w.*-]*(?:/[\w.*+-]+)*/?")
NAME = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*")


def spans(text: str) -> list[str]:
    """Code in running text, each on one line."""
    return [" ".join(span.split()) for span in SPAN.findall(CODE.sub("", text))]


def command_lines(text: str) -> list[str]:
    """Lines of code blocks, and code with flags in running text, that call a program of ours."""
    lines = [line for block in CODE.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    lines += [span for span in spans(text) if "--" in span]
    return [line for line in map(launched, lines) if PROGRAM.match(line)]


def launched(line: str) -> str:
    """The program that each process runs which torchrun starts, if it is torchrun that is called."""
    if not (found := LAUNCHED.match(line)):
        return line
    words = TORCHRUN.parse_args(shlex.split(found[1].removesuffix("&"), comments=True))
    script = words.training_script.replace(".", "/") + ".py" if words.module else words.training_script
    return shlex.join([script, *words.training_script_args])


def section(text: str, title: str) -> str:
    """What stands under a heading of the second level."""
    (found,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", text, re.S | re.M)
    return found


def anchors(text: str) -> set[str]:
    """What `#...` in a link can lead to, as GitHub makes it of headings."""
    titles = re.findall(r"^#+ (.*)$", CODE.sub("", text), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def parse(line: str) -> object:
    """The settings that a command line stands for; `<word>` stands for a name."""
    words = shlex.split(re.sub(r"<([\w-]+)>", r"\1", line), comments=True)
    while words[0].split("/")[-1] in ("python", "env"):
        words.pop(0)
    program, *words = words
    program = program.removeprefix(".venv/bin/")
    if program in SCRIPTS:
        return tyro.cli(SCRIPTS[program], args=words)
    command = TRAIN
    if program == "apart-fast":
        command = COMMANDS[words.pop(0)]
        while isinstance(command, Group):
            command = command.commands[words.pop(0)]
    if words == ["--help"]:
        return None
    if command is TRAIN and "--recipe" in words:
        recipe = words[words.index("--recipe") + 1]
        return tyro.cli(TrainConfig, args=words, default=TrainConfig.of(recipe))
    return tyro.cli(command.settings, args=words)


def test_the_readme_is_short_and_names_what_is_used_daily():
    assert len(README.splitlines()) <= 150
    for words in ("make demo", "make test", "train.py --amp --ffcv", "pytest benchmarks"):
        assert words in README, words


def test_the_example_runs(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(compile(example, "README.md", "exec"), {})
    out = capsys.readouterr().out
    assert "omega (64, 3, 40, 40)" in out and "pgd-5" in out


def test_the_table_of_methods_is_that_of_the_code():
    page = PAGES["docs/methods.md"]
    rows = {m[1]: int(m[2]) for m in re.finditer(r"^\| `([a-z+-]+)`.*\| (\d+) F \|$", page, re.M)}
    assert rows == {name: get_method(name).passes for name in rows}
    counted = re.findall(r"^\| `([a-z+-]+)-k`.*\| (\d+) \+ 2k F \|$", page, re.M)
    assert all(get_method(f"{name}-7").passes == int(fixed) + 14 for name, fixed in counted)
    named = set(re.findall(r"^\| `([a-z+-]+?)(?:-k)?`.*F \|$", page, re.M))
    assert all(source in page for _, _, source in METHODS.values() if source[-4:].isdigit() and "arXiv" not in source)
    assert named == set(METHODS)


def test_the_table_of_recipes_names_those_of_the_code():
    table = section(PAGES["docs/runs.md"], "Recipes")
    assert set(re.findall(r"^\| `([a-z]+(?:-[a-z]+)*)`.* \|$", table, re.M)) == set(RECIPES)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", PAGES[name]):
        file = (ROOT / name).parent / target if target else ROOT / name
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), f"{target}#{anchor}"


def test_every_page_is_linked_from_the_readme():
    linked = {(ROOT / target).resolve() for target in re.findall(r"\]\((?!https?:)([^)#]+)", README)}
    assert {ROOT / name for name in PAGES} - {ROOT / "README.md"} <= linked


@pytest.mark.parametrize("name", PAGES)
def test_paths_in_backticks_exist(name):
    """In the checkout or beside the page; names of files that commands make have no folder before them."""
    text = re.sub(r"\[[^\]]*\]\([^)]*\)", "", PAGES[name])  # of a link the target counts, not the text
    code = [s for s in spans(text) if PATH.fullmatch(s) and ("/" in s or s.endswith((".py", ".md", ".toml")))]
    paths = [path for path in code if not MADE.match(path)]
    assert len(paths) >= {"docs/design.md": 40, "CONTRIBUTING.md": 30, "README.md": 12}.get(name, 0)
    for path in paths:
        found = [place for place in (ROOT, (ROOT / name).parent) if any(place.glob(path.rstrip("/")))]
        assert found, path


def test_every_room_is_named():
    rooms = {f"apart_fast/{file.parent.name}/" for file in (ROOT / "apart_fast").glob("*/__init__.py")}
    rooms |= {"kernels/", "loaders/", "benchmarks/", "tests/"}
    assert set(re.findall(r"^\| `([^`]+)` \|", section(README, "Where things are"), re.M)) == rooms


def test_names_in_the_design_are_those_of_the_code():
    """Each part of `Class.method`; a name stands for itself wherever it is defined."""
    files = [file for room in ("apart_fast", "kernels", "loaders") for file in (ROOT / room).rglob("*.py")]
    known = set(re.findall(r"\w+", "\n".join(file.read_text() for file in files)))
    text = PAGES["docs/design.md"]
    names = {s for s in spans(text) if NAME.fullmatch(s) and not s.endswith((".py", ".md", ".pt"))}
    assert len(names) >= 40
    assert {name for name in names if not set(name.split(".")) <= known} == set()


@pytest.mark.parametrize("name", ["docs/design.md", "CONTRIBUTING.md"])
def test_names_are_defined_in_the_file_beside_them(name):
    """`Name` (`file.py`), `Name` in `file.py`, and `file.py`: ... `Name`."""
    text = " ".join(PAGES[name].split())
    pairs = re.findall(r"`([\w.]+)` (?:\(|in )`([\w/]+\.py)`", text)
    pairs += [(inner, file) for file, inner in re.findall(r"`([\w/]+\.py)`: [^.`|]*`([\w.]+)`", text)]
    assert len(pairs) >= 10
    for inner, file in pairs:
        last = inner.split(".")[-1]
        source = (ROOT / file).read_text()
        assert re.search(rf"^\s*(?:(?:class|def) {last}\b|{last}\b.*[:=])", source, re.M), (inner, file)


@pytest.mark.parametrize("name", PAGES)
def test_command_lines_are_taken_by_their_programs(name, capsys):
    for line in command_lines(PAGES[name]):
        try:
            check(parse(line))
        except (SystemExit, KeyError, UserError) as end:
            pytest.fail(f"{name}: {line}: {end!r} {capsys.readouterr().err}")


def check(config: object) -> None:
    """What the settings refuse before anything is looked for on disk."""
    if isinstance(config, TrainConfig) and config.resume is None:
        begin(replace(config, init_from=None))
    elif isinstance(config, EvaluateConfig):
        config.check()
        for attack in config.attacks:
            parse_attack(attack)
    elif isinstance(config, methods.Config):
        assert set(config.stages) <= methods.STAGES.keys()
        config.wanted(methods.METHODS[0], 0).check()
    elif isinstance(config, gpu_suite.Config):
        assert set(config.parts) <= gpu_suite.PARTS.keys()


def test_there_are_command_lines():
    """So that a change of style does not leave the test above without any."""
    programs = [PROGRAM.match(line)[1] for text in PAGES.values() for line in command_lines(text)]
    assert programs.count("train.py") >= 8 and programs.count("apart-fast") >= 8
    assert set(SCRIPTS) <= set(programs)


def test_flags_in_running_text_exist():
    settings = [EvaluateConfig, TRAIN.settings, *SCRIPTS.values()]
    for entry in COMMANDS.values():
        settings += [c.settings for c in entry.commands.values()] if isinstance(entry, Group) else [entry.settings]
    known = {f"--{name.replace('_', '-')}" for kind in settings for name in kind.__dataclass_fields__} | {"--help"}
    known |= set(re.findall(r"--[a-z-]+", TORCHRUN.format_help()))
    text = {
        name: [word for s in spans(page) if s.startswith("--") for word in s.split()] for name, page in PAGES.items()
    }
    wrong = {
        (name, word)
        for name, words in text.items()
        for word in words
        if word.startswith("--") and not word.startswith("--benchmark-") and word.partition("=")[0] not in known
    }
    assert wrong == set()
