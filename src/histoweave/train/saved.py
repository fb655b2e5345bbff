"""The folder of a saved model: ``model.json``, ``weights.safetensors`` and, where known, ``accuracy.csv``."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import load_file, save_file
from torch import Tensor

from histoweave._repro import versions

FORMAT = 1
_JSON, _TENSORS, _ACCURACY = "model.json", "weights.safetensors", "accuracy.csv"


def write_folder(folder: Path, card: dict[str, Any], tensors: dict[str, Tensor], accuracy: pd.DataFrame | None) -> None:
    """Writes the folder beside its place and moves it there; an existing saved model is replaced, anything else kept.

    Raises
    ------
    FileExistsError
        If the folder exists and is not a saved model.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / _JSON).exists():
        raise FileExistsError(f"{folder} exists and is not a saved model; choose another folder or empty it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    new.chmod(0o755)
    save_file({key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}, new / _TENSORS)
    if accuracy is not None:
        accuracy.to_csv(new / _ACCURACY, index_label="gene")
    text = json.dumps({"format": FORMAT, **card, "versions": versions()}, indent=1, sort_keys=True)
    (new / _JSON).write_text(text + "\n", encoding="utf-8")
    if folder.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
        os.replace(folder, old / "model")
        os.replace(new, folder)
        shutil.rmtree(old)
    else:
        os.replace(new, folder)


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], pd.DataFrame | None]:
    """What `write_folder` wrote.

    Raises
    ------
    FileNotFoundError, ValueError
        No saved model there, or one of a newer format.
    """
    if not (folder / _JSON).exists():
        raise FileNotFoundError(f"{folder} is not a saved model: it has no {_JSON}. Make one with `histoweave fit`")
    card = json.loads((folder / _JSON).read_text(encoding="utf-8"))
    if card.get("format") != FORMAT:
        raise ValueError(f"{folder} has format {card.get('format')!r}; this version reads {FORMAT}. Update histoweave")
    accuracy = pd.read_csv(folder / _ACCURACY, index_col="gene") if (folder / _ACCURACY).exists() else None
    return card, load_file(folder / _TENSORS), accuracy
