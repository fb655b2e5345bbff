"""The folder of a saved model: ``model.json``, ``weights.safetensors`` and, where known, ``accuracy.csv``."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from histoweave import _keys as K
from histoweave._repro import versions

FORMAT = 1
_JSON, _TENSORS, _ACCURACY = "model.json", "weights.safetensors", "accuracy.csv"
_NEEDED = (
    *("model", "recipe", "view", "panel", "encoder", "width", "first", "trained_on", "max_context", "spacing"),
    "expected_accuracy",
)
_NO_VALUE = {K.CV_PCC: [""], K.CV_PCC_SD: [""], K.CV_PCC_N: [""]}


def write_folder(folder: Path, card: dict[str, Any], tensors: dict[str, Tensor], accuracy: pd.DataFrame | None) -> None:
    """Writes the folder beside its place and moves it there; an existing saved model is replaced, anything else kept.

    Raises
    ------
    FileExistsError
        If the folder exists and is not a saved model.
    """
    check_folder(folder)
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


def check_folder(folder: Path) -> None:
    """`FileExistsError` if a model cannot be saved there without harm to something else."""
    file = folder.exists() and not folder.is_dir()
    if file or (folder.exists() and any(folder.iterdir()) and not (folder / _JSON).exists()):
        raise FileExistsError(f"{folder} exists and is not a saved model; choose another folder or empty it")


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], pd.DataFrame | None]:
    """What `write_folder` wrote.

    Raises
    ------
    FileNotFoundError, ValueError
        No saved model there, or one of a newer format.
    """
    if not (folder / _JSON).exists():
        raise FileNotFoundError(f"{folder} is not a saved model: it has no {_JSON}. Make one with `histoweave fit`")
    try:
        card = json.loads((folder / _JSON).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{folder / _JSON} is damaged ({error}); copy the model again, or fit it again") from error
    if card.get("format") != FORMAT:
        raise ValueError(f"{folder} has format {card.get('format')!r}; this version reads {FORMAT}. Update histoweave")
    if lacking := [key for key in _NEEDED if key not in card]:
        raise ValueError(f"{folder / _JSON} lacks {', '.join(lacking)}; copy the model again, or fit it again")
    accuracy = None
    if (folder / _ACCURACY).exists():
        # "NA" and "nan" are names that a gene may have
        accuracy = pd.read_csv(folder / _ACCURACY, dtype={"gene": str}, keep_default_na=False, na_values=_NO_VALUE)
        accuracy = accuracy.set_index("gene")
    try:
        return card, load_file(folder / _TENSORS), accuracy
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"{folder / _TENSORS} is damaged ({error}); copy the model again, or fit it again") from error


def restore(module: nn.Module, state: dict[str, Tensor], *, where: str) -> None:
    """Puts saved tensors into a module; what was sized in `index` (reference banks, tables) takes the saved size."""
    for key, own in {**dict(module.named_buffers()), **dict(module.named_parameters())}.items():
        if key in state and state[key].shape != own.shape:
            parent, _, name = key.rpartition(".")
            new = torch.empty_like(state[key])
            setattr(module.get_submodule(parent), name, nn.Parameter(new) if isinstance(own, nn.Parameter) else new)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{where}: the saved weights do not fit the model; copy it again, or fit it again") from error
