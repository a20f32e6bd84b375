"""How the project's modules hang together: read from their sources, nothing is imported."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = {"apart_fast": "apart_fast", "kernels": "apart_fast.kernels", "loaders": "apart_fast.loaders"}
LONGEST = 400  # lines of a module
TOP = 8  # modules beside the folders of apart_fast
PRIVATE: set[tuple[str, str]] = set()  # (module, private name of another module that it may use)


def module_name(file: Path) -> str:
    """`kernels/crop.py` -> apart_fast.kernels.crop."""
    folder, *parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join([PACKAGES.get(folder, folder), *(part for part in parts if part != "__init__")])


def read(*folders: str) -> dict[str, tuple[Path, ast.Module]]:
    files = sorted(file for folder in folders for file in (ROOT / folder).rglob("*.py"))
    return {module_name(file): (file, ast.parse(file.read_text())) for file in files}


MODULES = read(*PACKAGES)
PROGRAMS = read("benchmarks", "tests") | {"train": (ROOT / "train.py", ast.parse((ROOT / "train.py").read_text()))}
EVERYTHING = MODULES | PROGRAMS
PRODUCT = [name for name in EVERYTHING if not name.startswith("tests.")]


def walk(node: ast.AST, functions: bool) -> Iterator[ast.AST]:
    """The nodes under `node`; without `functions` only what runs, or is read by a type checker, at import time."""
    for child in ast.iter_child_nodes(node):
        yield child
        if functions or not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from walk(child, functions)


def imports(name: str, functions: bool) -> Iterator[tuple[str, str | None]]:
    """(module, name in it or None) for all that a module imports from the project."""
    file, tree = EVERYTHING[name]
    for node in walk(tree, functions):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name in EVERYTHING)
        elif isinstance(node, ast.ImportFrom):
            package = name if file.name == "__init__.py" else name.rpartition(".")[0]
            steps = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*steps, *([node.module] if node.module else [])])
            for alias in node.names:
                if f"{base}.{alias.name}" in EVERYTHING:
                    yield f"{base}.{alias.name}", None
                elif base in EVERYTHING:
                    yield base, alias.name


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other (strongly connected components of more than one, Tarjan 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in graph[name]:
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in graph:
        if name not in order:
            visit(name)
    return found


def lazy_names() -> dict[str, str]:
    """name -> module for what `apart_fast/__init__.py` shows and imports only when it is asked for."""
    _, tree = MODULES["apart_fast"]
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    return {a.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for a in node.names}


def test_no_circles():
    """Also none through imports for type checkers, and none through the package of a module, which runs before it."""
    shown = lazy_names()
    graph = {name: set() for name in MODULES}
    for name in MODULES:
        if name == "apart_fast":  # shows what lies under it, and imports nothing (tests/test_cli.py)
            continue
        for module, inner in imports(name, functions=False):
            module = shown.get(inner, module) if module == "apart_fast" else module
            above = [module.rsplit(".", k)[0] for k in range(1, module.count("."))]
            graph[name] |= {other for other in (module, *above) if other != name and not name.startswith(f"{other}.")}
            if name.startswith(f"{module}."):  # from the package that a module lies in: a circle where it shows that
                graph[name].add(module)
    assert circles(graph) == []


def test_no_circles_of_rooms():
    """A room is a folder, or a module beside the folders; imports within functions count."""
    graph: dict[str, set[str]] = {room(name): set() for name in MODULES if "." in name}
    for name in MODULES:
        if "." in name:
            graph[room(name)] |= {room(module) for module, _ in imports(name, functions=True) if "." in module}
    assert circles(graph) == []


def room(name: str) -> str:
    return name.split(".")[1]


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a", "d"}}) == [["b", "c"]]


def test_modules_are_short():
    lengths = {name: len(file.read_text().splitlines()) for name, (file, _) in MODULES.items()}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}


def test_few_modules_beside_the_folders():
    assert len(list((ROOT / "apart_fast").glob("*.py"))) <= TOP


def test_graphs_are_captured_in_one_place():
    """In the package and the benchmarks; tests may look at `CUDAGraph` itself."""
    users = {
        name
        for name in PRODUCT
        for node in ast.walk(EVERYTHING[name][1])
        if "CUDAGraph" in (getattr(node, "attr", ""), getattr(node, "id", ""), getattr(node, "name", ""))
    }
    assert users == {"apart_fast.graphs"}


def test_private_names_stay_where_they_are():
    """Neither `from module import _name` nor `module._name`; tests may look inside."""
    assert {pair for name in PRODUCT for pair in private_uses(name)} - PRIVATE == set()


def private_uses(name: str) -> Iterator[tuple[str, str]]:
    """(module, private name of another module that it uses)."""
    here = {alias: module for module, alias in imported_modules(name)}
    for module, inner in imports(name, functions=True):
        if inner is not None and is_private(inner):
            yield name, f"{module}.{inner}"
    for node in ast.walk(EVERYTHING[name][1]):
        if isinstance(node, ast.Attribute) and is_private(node.attr) and ast.unparse(node.value) in here:
            yield name, f"{here[ast.unparse(node.value)]}.{node.attr}"


def imported_modules(name: str) -> Iterator[tuple[str, str]]:
    """(module of the project, what it is called there)."""
    for node in ast.walk(EVERYTHING[name][1]):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
                if whole in EVERYTHING:
                    yield whole, alias.asname or alias.name


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")
