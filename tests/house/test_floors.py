"""An import may only point down, some rooms keep some packages out, and files and functions stay short."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRC = ROOT / "src"

FLOORS = {
    "histoweave": 0,  # the package itself: only its version is to be had from below
    "_keys": 0, "_optional": 0, "_repro": 0, "engine": 0,
    "data": 1,
    "pp": 2,
    "embed": 3,
    "batch": 4,
    "view": 5, "feed": 5, "models": 5,
    "train": 6,
    "bench": 7, "bio": 7,
    "pl": 8, "report": 8, "export": 8, "inference": 8, "filling": 8, "settings": 8,
    "commands": 9, "demo": 9, "doctor": 9,
    "cli": 10, "__main__": 10,
}  # fmt: skip

TORCH = ("torch", "torchvision", "timm", "lightning_fabric", "lightning", "histoweave._optional.timm")
FILES = ("anndata", "h5py", "zarr", "tifffile", "openslide", "imagecodecs", "PIL", "pyarrow", "pooch")
# Room -> what may not be imported there, at module level or inside a function.
BANNED = {
    "data": TORCH,
    "pp": TORCH,
    "models": ("histoweave.data", "histoweave.embed", *FILES),
}
# Room -> what may not be imported there when it is loaded; inside a function it may.
BANNED_ON_LOAD = {room: TORCH for room, floor in FLOORS.items() if floor == 0}

MAX_MODEL, MAX_FILE, MAX_FUNCTION = 250, 350, 60
DYNAMIC = ("import_module", "__import__", "needs", "find_spec")


def module_of(path: Path) -> str:
    """Dotted name of a file below src/."""
    parts = list(path.relative_to(SRC).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, tuple[str, bool]]:
    """Module name -> (text, whether it is a package) of everything in src/."""
    return {module_of(p): (p.read_text("utf-8"), p.name == "__init__.py") for p in sorted(SRC.rglob("*.py"))}


def room_of(module: str) -> str:
    """Name under which a module of histoweave has its floor."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def _walk(node: ast.AST, *, deferred: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, with whether it runs later than at import (inside a function, or for the type checker only)."""
    for child in ast.iter_child_nodes(node):
        later = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") and child in node.body:
            later = True
        yield child, later
        yield from _walk(child, deferred=later)


def imports(module: str, text: str, *, package: bool) -> Iterator[tuple[int, str, bool]]:
    """Line, dotted name and whether it is deferred, of every import of a module, also of those by string."""
    for node, deferred in _walk(ast.parse(text)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                home = module.split(".")
                home = home[: len(home) - node.level + package]
                base = ".".join([*home, *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).rpartition(".")[2]
            if called in DYNAMIC and isinstance(node.args[0].value, str):
                names = [node.args[0].value]
        for name in names:
            yield getattr(node, "lineno", 0), name, deferred


def _under(name: str, roots: tuple[str, ...]) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def violations(tree: Mapping[str, tuple[str, bool]]) -> list[str]:
    """Every import of `tree` that points up or enters a room where it is not wanted, one line each."""
    found = []
    for module, (text, package) in tree.items():
        room = room_of(module)
        if room not in FLOORS:
            found.append(f"{module}: '{room}' has no floor; give it one in FLOORS")
            continue
        for line, name, deferred in imports(module, text, package=package):
            where = f"{module}:{line} imports {name}"
            if _under(name, BANNED.get(room, ())):
                found.append(f"{where}: not in {room}")
            if not deferred and _under(name, BANNED_ON_LOAD.get(room, ())):
                found.append(f"{where}: in {room} only inside a function")
            if not _under(name, ("histoweave",)):
                continue
            target = room_of(name)
            if target == "__version__":
                continue
            if target not in FLOORS:
                found.append(f"{where}: no such room; import the name from the file that defines it")
            elif FLOORS[target] > FLOORS[room]:
                found.append(f"{where}: points up from floor {FLOORS[room]} to floor {FLOORS[target]}")
    return found


def excused(tree: ast.Module) -> str:
    """The reason for its length that a module gives in a docstring line starting with 'Length:', or ''."""
    match = re.search(r"^Length:[ ]*(\S.{20,})", ast.get_docstring(tree) or "", re.MULTILINE | re.DOTALL)
    return match[1] if match else ""


def too_long(name: str, text: str) -> list[str]:
    """Whether a file is too long, and its functions that are (their docstrings are not counted)."""
    tree = ast.parse(text)
    reason = excused(tree)
    limit = MAX_MODEL if "/models/" in name else MAX_FILE
    lines = text.count("\n") + (not text.endswith("\n"))
    found = [f"{name}: {lines} lines, at most {limit}"] if lines > limit and not reason else []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = node.body[0]
        documented = isinstance(first, ast.Expr) and ast.get_docstring(node) is not None
        length = (node.end_lineno or 0) - node.lineno + 1
        length -= (first.end_lineno or 0) - first.lineno + 1 if documented else 0
        if length > MAX_FUNCTION and not re.search(rf"\b{node.name}\b", reason):
            found.append(f"{name}:{node.lineno} {node.name}: {length} lines, at most {MAX_FUNCTION}")
    return found


def test_imports_point_down() -> None:
    assert not violations(sources()), "\n".join(violations(sources()))


PLANTED = {
    "up": ("histoweave.data.section", "from histoweave.train.loop import fit", "points up"),
    "up inside a function": ("histoweave.pp.counts", "def f():\n    import histoweave.models", "points up"),
    "up for the type checker": (
        "histoweave.batch",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from histoweave.feed import Feed",
        "points up",
    ),
    "up, relative": ("histoweave.data.section", "from ..train import loop", "points up"),
    "up from a package, relative": ("histoweave.pp", "from .. import bench", "points up"),
    "up by string": ("histoweave.pp.counts", "importlib.import_module('histoweave.cli')", "points up"),
    "up through the package": ("histoweave._keys", "from histoweave import bench", "points up"),
    "lazy public name": ("histoweave.cli", "from histoweave import Section", "no such room"),
    "torch in data": ("histoweave.data.store", "def f():\n    import torch.nn", "not in data"),
    "torch in pp": ("histoweave.pp.counts", "from torch import Tensor", "not in pp"),
    "timm in pp by string": ("histoweave.pp.counts", "needs('timm', extra='x')", "not in pp"),
    "timm in data": ("histoweave.data.image", "from histoweave._optional import timm", "not in data"),
    "data in a model": ("histoweave.models.predict.x", "from histoweave.data.section import Section", "not in models"),
    "embedding in a model": ("histoweave.models.x", "from histoweave import embed", "not in models"),
    "files in a model": ("histoweave.models.x", "import anndata as ad", "not in models"),
    "torch on load at the bottom": ("histoweave._repro", "import torch", "only inside a function"),
    "no floor": ("histoweave.utils", "", "no floor"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_a_planted_violation_is_found(case: str) -> None:
    module, text, message = PLANTED[case]
    found = violations({module: (text, module == "histoweave.pp")})
    assert len(found) >= 1
    assert any(message in line for line in found), found


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("histoweave.train.loop", "from histoweave.models import create\nfrom histoweave import __version__"),
        ("histoweave.models.predict.x", "import torch\nfrom histoweave.models._layers import Block"),
        ("histoweave._repro", "def seed():\n    import torch"),
        ("histoweave._optional", "TYPE_CHECKING = 1\nif TYPE_CHECKING:\n    from torch.library import Library"),
        ("histoweave.pp.counts", "from .neighbors import knn\nfrom ..data.section import Section"),
        ("histoweave.data.store", "import torchless"),
    ],
)
def test_what_points_down_is_left_alone(module: str, text: str) -> None:
    assert violations({module: (text, False)}) == []


@pytest.mark.parametrize("folder", ["src", "tests", "benchmarks"])
def test_files_and_functions_are_short(folder: str) -> None:
    found = [
        line
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line in too_long(path.relative_to(ROOT).as_posix(), path.read_text("utf-8"))
    ]
    assert not found, "\n".join(found)


def test_length_is_measured() -> None:
    body = "".join(f"    x{i} = {i}\n" for i in range(60))
    function = f"def f():\n{body}"
    documented = f'def f():\n    """One.\n\n    Two.\n    """\n{body[body.index("    x1 ") :]}'
    assert too_long("src/a.py", function) == ["src/a.py:1 f: 61 lines, at most 60"]
    assert too_long("src/a.py", documented) == []
    assert too_long("src/a.py", f'"""A.\n\nLength: f walks one published table row by row.\n"""\n{function}') == []
    assert too_long("src/a.py", f'"""A.\n\nLength: g walks one published table row by row.\n"""\n{function}')
    lines = "x = 1\n" * 251
    assert too_long("src/histoweave/models/a.py", lines) == ["src/histoweave/models/a.py: 251 lines, at most 250"]
    assert too_long("src/histoweave/data/a.py", lines) == []
    assert too_long("src/histoweave/data/a.py", "x = 1\n" * 351) == ["src/histoweave/data/a.py: 351 lines, at most 350"]


def test_no_room_for_leftovers() -> None:
    names = {path.name for path in SRC.rglob("*.py")}
    assert names.isdisjoint({"utils.py", "util.py", "helpers.py", "misc.py", "common.py"})


def test_every_extra_that_the_code_names_exists() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    named = {
        (module, keyword.value.value)
        for module, (text, _) in sources().items()
        for node in ast.walk(ast.parse(textwrap.dedent(text)))
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] == "needs"
        for keyword in node.keywords
        if keyword.arg == "extra" and isinstance(keyword.value, ast.Constant)
    }
    unknown = {(module, extra) for module, extra in named if extra not in project["optional-dependencies"]}
    assert not unknown, f"needs(extra=...) names extras that pyproject.toml does not have: {sorted(unknown)}"
