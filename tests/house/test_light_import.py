"""Importing histoweave is cheap, loads no torch, and its public names are where the table says."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

import histoweave

SRC = Path(histoweave.__file__).parent
BUDGET_S = 0.5


def run(code: str) -> str:
    """Standard output of a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def best_of(times: int, code: str) -> float:
    """Seconds that the fastest of some fresh interpreters took."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        run(code)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def test_import_loads_no_heavy_package() -> None:
    loaded = set(run("import histoweave, sys; print(*{name.partition('.')[0] for name in sys.modules})").split())
    assert "histoweave" in loaded
    heavy = {"torch", "torchvision", "timm", "lightning_fabric", "anndata", "scipy", "pandas", "matplotlib"}
    assert loaded.isdisjoint(heavy)


def test_import_is_fast() -> None:
    extra = best_of(3, "import histoweave") - best_of(3, "pass")
    assert extra < BUDGET_S, f"import histoweave takes {extra:.2f} s more than a bare interpreter, at most {BUDGET_S} s"


@pytest.mark.parametrize("room", ["data", "pp", "bio"])
def test_no_module_of_the_lower_floors_loads_torch(room: str) -> None:
    files = [path for path in sorted((SRC / room).rglob("*.py")) if path.name != "__init__.py"]
    modules = [".".join(path.relative_to(SRC.parent).with_suffix("").parts) for path in files]
    assert modules
    load_all = f"import importlib, sys\nfor m in {modules!r}: importlib.import_module(m)"
    found = run(f"{load_all}\nprint('torch' in sys.modules)")
    assert found == "False"


@pytest.mark.parametrize("name", sorted(set(histoweave.__all__) - {"__version__"}))
def test_public_name_resolves(name: str) -> None:
    value = getattr(histoweave, name)
    assert value is getattr(histoweave, name)
    assert name in dir(histoweave)


def test_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(AttributeError, match="no 'Secton'; did you mean 'Section'"):
        histoweave.Secton  # noqa: B018
    with pytest.raises(AttributeError, match=r"no 'zzz'; it has: .*Cohort"):
        histoweave.zzz  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Secton'"):
        from histoweave import Secton  # noqa: F401
