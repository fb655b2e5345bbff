"""Imports that can fail for a reason the user can mend: a missing extra, and torchvision beside a CPU-only torch."""

from __future__ import annotations

import importlib
import sys
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

    from torch.library import Library

# What torchvision's Python half says when its compiled half could not be loaded, which is the case for a
# CUDA build of torchvision next to a CPU-only torch.
_MISSING_OPERATOR = "operator torchvision::nms does not exist"


def needs(module: str, *, extra: str) -> ModuleType:
    """Return an optional module, or say which command installs it.

    Parameters
    ----------
    module
        Dotted name of the module to import.
    extra
        The extra of histoweave that brings the module.

    Returns
    -------
    The imported module.

    Raises
    ------
    ImportError
        If the module, or a package that it needs, is not installed. The message is the pip line that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        because = "" if module == missing or module.startswith(f"{missing}.") else f" ('{module}' asks for it)"
        raise ImportError(
            f"'{missing}' is not installed{because}; it comes with:  pip install 'histoweave[{extra}]'",
            name=missing,
        ) from error


def import_torchvision_safely() -> ModuleType:
    """Return torchvision, also where its wheel was built for CUDA and torch for the CPU.

    Such a pair refuses to import because the compiled operators are absent. Their schemas are then declared, without
    an implementation, and the import is repeated: models and transforms work, while ``nms`` and ``decode_jpeg`` raise
    when called. With a matching pair this is a plain import. Whatever imports torchvision by itself (timm does) has
    to be imported after this function has run.

    Returns
    -------
    The torchvision module.

    Raises
    ------
    RuntimeError
        If torchvision fails for any other reason, unchanged.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if _MISSING_OPERATOR not in str(error):
            raise
    _declare_missing_operators()
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # half-initialised by the failed attempt
    return importlib.import_module("torchvision")


def timm() -> ModuleType:
    """Return timm, with torchvision mended first where that is necessary.

    Returns
    -------
    The timm module.
    """
    import_torchvision_safely()
    return importlib.import_module("timm")


@cache  # the declarations vanish with the library object, so the cache keeps it for the life of the process
def _declare_missing_operators() -> Library:
    """Declare the operators that torchvision's Python half registers kernels for."""
    from torch.library import Library

    library = Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
