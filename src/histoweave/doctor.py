"""What a new user's machine can do: versions, threads, device, encoder, store."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Finding:
    """One check."""

    what: str
    found: str
    ok: bool


def examine() -> list[Finding]:
    """Every check; one that fails says why and does not stop the others."""
    checks: dict[str, Callable[[], str]] = {
        "versions": _versions,
        "device": _device,
        "slides": _slides,
        "encoder": _encoder,
        "store": _store,
        "data": _data,
    }
    found = []
    for what, check in checks.items():
        try:
            found.append(Finding(what, check(), ok=True))
        except Exception as error:  # noqa: BLE001  a check may fail in any way; the report is the purpose
            found.append(Finding(what, f"{type(error).__name__}: {error}", ok=False))
    return found


def _versions() -> str:
    from histoweave._repro import versions

    return ", ".join(f"{name} {version}" for name, version in versions().items())


def _device() -> str:
    import torch

    cuda = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "no CUDA device"
    return f"{torch.get_num_threads()} threads, {cuda}"


def _slides() -> str:
    import imagecodecs
    import openslide
    import tifffile

    return (
        f"openslide {openslide.__library_version__}, tifffile {tifffile.__version__}, imagecodecs "
        f"{imagecodecs.__version__}"
    )


def _encoder() -> str:
    import torch

    from histoweave.embed import create_encoder

    encoder = create_encoder("efficientnet-lite0")
    pixels = torch.zeros(8, 3, 224, 224, dtype=torch.uint8)
    encoder.encode(pixels)
    start = time.perf_counter()
    encoder.encode(pixels)
    return f"{encoder.name}, {encoder.dim} wide, {8 / (time.perf_counter() - start):.0f} windows per second"


def _store() -> str:
    from histoweave.settings import RunSettings

    root = Path(RunSettings().open_store().root)
    root.mkdir(parents=True, exist_ok=True)
    if not os.access(root, os.W_OK):
        raise PermissionError(f"{root} cannot be written; set $HISTOWEAVE_STORE")
    return f"{root}, {shutil.disk_usage(root).free / 1e9:.0f} GB free"


def _data() -> str:
    folder = os.environ.get("HISTOWEAVE_DATA")
    if folder is None:
        return "$HISTOWEAVE_DATA is not set; `data fetch` downloads"
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"$HISTOWEAVE_DATA is {folder}, which is no folder")
    return folder
