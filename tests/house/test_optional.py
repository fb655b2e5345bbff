"""Optional packages: the error is the pip line; and torchvision imports beside a CPU-only torch."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

from histoweave import _optional
from histoweave._optional import import_torchvision_safely, needs


def run(code: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in which a warning is an error."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=200, check=False
    )


def test_needs_returns_the_module() -> None:
    import email.message

    assert needs("email.message", extra="test") is email.message


@pytest.mark.parametrize("module", ["no_such_package_xyz", "no_such_package_xyz.sub"])
def test_missing_module_names_the_pip_line(module: str) -> None:
    with pytest.raises(ImportError, match=r"'no_such_package_xyz' is not installed; .*pip install 'histoweave\[ray\]'"):
        needs(module, extra="ray")


def test_missing_dependency_of_a_present_module_is_named(tmp_path, monkeypatch) -> None:
    (tmp_path / "half_installed.py").write_text("import no_such_package_xyz\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ImportError, match=r"'no_such_package_xyz' .* \('half_installed' asks for it\)") as error:
        needs("half_installed", extra="spatialdata")
    assert error.value.name == "no_such_package_xyz"


def test_another_error_of_the_module_is_not_hidden(tmp_path, monkeypatch) -> None:
    (tmp_path / "broken_module.py").write_text("raise RuntimeError('its own trouble')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(RuntimeError, match="its own trouble"):
        needs("broken_module", extra="test")


def test_torchvision_and_timm_work_with_whatever_pair_is_installed() -> None:
    code = """
import gc
from histoweave._optional import import_torchvision_safely, timm
torchvision = import_torchvision_safely()
gc.collect()
import torch
torch.set_num_threads(1)
model = timm().create_model("resnet18", num_classes=3).eval()
assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
assert torchvision.models.shufflenet_v2_x0_5(num_classes=2).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
from torchvision.transforms import v2
assert v2.Resize(8)(torch.zeros(3, 16, 16)).shape == (3, 8, 8)
assert hasattr(torch.ops.torchvision, "nms")
assert import_torchvision_safely() is torchvision
import lightning_fabric
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


def test_cure_works_after_somebody_else_failed() -> None:
    code = """
try:
    import torchvision
except RuntimeError as error:
    assert "torchvision::nms" in str(error)
from histoweave._optional import timm
print(timm().__name__)
"""
    done = run(code)
    assert (done.returncode, done.stdout.strip()) == (0, "timm"), done.stderr


def test_only_the_known_error_is_cured(monkeypatch) -> None:
    def fail(name: str) -> ModuleType:
        raise RuntimeError(f"another trouble of {name}")

    monkeypatch.setattr(_optional.importlib, "import_module", fail)
    monkeypatch.setattr(_optional, "_declare_missing_operators", lambda: pytest.fail("declared operators"))
    with pytest.raises(RuntimeError, match="another trouble of torchvision"):
        import_torchvision_safely()


def test_known_error_is_cured_once_and_half_a_module_is_dropped(monkeypatch) -> None:
    whole, declared = ModuleType("torchvision"), []
    answers = iter([RuntimeError("operator torchvision::nms does not exist"), whole])

    def answer(name: str) -> ModuleType:
        given = next(answers)
        if isinstance(given, RuntimeError):
            raise given
        assert name == "torchvision"
        assert "torchvision.half" not in sys.modules
        return given

    monkeypatch.setattr(_optional.importlib, "import_module", answer)
    monkeypatch.setattr(_optional, "_declare_missing_operators", lambda: declared.append(1))
    monkeypatch.setattr(sys, "modules", {**sys.modules, "torchvision.half": ModuleType("torchvision.half")})
    assert import_torchvision_safely() is whole
    assert declared == [1]
