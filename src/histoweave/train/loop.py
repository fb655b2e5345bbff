"""`fit`: one flat training loop on Lightning Fabric.

A run that is killed goes on from its last checkpoint to the same weights: everything random in an epoch is a function of
the seed and the epoch, and the learning rate is a function of the epoch. Checkpoints are safetensors and JSON.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from histoweave.batch import Batch, Needs
from histoweave.feed import Feed
from histoweave.train.recipe import Recipe

CHECKPOINT_SECONDS = 20.0  # at most this much work is lost
Progress = Callable[[int, int, str], None]


@dataclass(slots=True)
class History:
    """What happened in training: one row per epoch, and the epoch whose weights were kept."""

    rows: list[dict[str, float]] = field(default_factory=list)
    best: float = -math.inf
    best_epoch: int = -1

    @property
    def stale(self) -> int:
        """Epochs since the best one."""
        return len(self.rows) - 1 - self.best_epoch


def fit(
    module: nn.Module,
    train: Feed,
    val: Feed,
    recipe: Recipe,
    *,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Progress | None = None,
) -> History:
    """Trains a module in place and leaves the weights of its best epoch in it.

    Parameters
    ----------
    train, val
        Feeds of the training spots and of those that decide when to stop; never of the test fold.
    checkpoint
        Folder of this run; where it holds a checkpoint, training goes on from it.

    Raises
    ------
    FloatingPointError
        If the loss is not finite.
    """
    accelerator = "cuda" if train.device.type == "cuda" else "cpu"
    lightning = Fabric(accelerator=accelerator, devices=1, precision=recipe.precision)
    optimizer = _optimizer(module, recipe)
    history, best = History(), _copy(module)
    if checkpoint is not None and (checkpoint / "state.json").exists():
        history, best = _restore(checkpoint, module, optimizer)
    wrapped, fabric_optimizer = lightning.setup(module, optimizer)
    wrapped.mark_forward_method("loss")
    saved = time.monotonic()
    while len(history.rows) < recipe.epochs and history.stale < recipe.patience:
        epoch = len(history.rows)
        row = _epoch(lightning, wrapped, fabric_optimizer, train, recipe, seed, epoch)
        row |= {f"val_{key}": value for key, value in evaluate(wrapped, val, recipe.batch).items()}
        history.rows.append(row)
        score = row["val_pcc"] if recipe.monitor == "pcc" else -row["val_mse"]
        if score > history.best:
            history.best, history.best_epoch, best = score, epoch, _copy(module)
        if progress is not None:
            progress(epoch + 1, recipe.epochs, f"val {recipe.monitor} {abs(score):.4f}, best {abs(history.best):.4f}")
        if checkpoint is not None and time.monotonic() - saved > CHECKPOINT_SECONDS:
            _save(checkpoint, module, optimizer, history, best)
            saved = time.monotonic()
    module.load_state_dict(best)
    module.eval()
    return history


def _epoch(
    lightning: Any, module: Any, optimizer: Any, train: Feed, recipe: Recipe, seed: int, epoch: int
) -> dict[str, float]:
    """One pass over the training spots; mean loss and its parts, and the gradient norm before clipping."""
    module.train()
    torch.manual_seed((seed * 1_000_003 + epoch) % 2**63)
    order = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    for group in optimizer.param_groups:
        group["lr"] = recipe.rate(epoch)
    total: dict[str, float] = {}
    spots = 0
    for batch in _batches(train, recipe, order):
        with lightning.autocast():  # a wrapped module does so for `forward` alone
            value, parts = module.loss(batch)
        if not torch.isfinite(value):
            raise FloatingPointError(
                f"the loss became {float(value.detach())} in epoch {epoch + 1}; lower the learning rate "
                f"(now {recipe.rate(epoch):g}) or set `clip`"
            )
        optimizer.zero_grad()
        lightning.backward(value)
        if recipe.clip is not None:
            lightning.clip_gradients(module, optimizer, max_norm=recipe.clip)
        optimizer.step()
        spots += len(batch)
        for key, part in {"loss": value, **parts}.items():
            total[key] = total.get(key, 0.0) + float(part.detach()) * len(batch)
    return {"epoch": epoch, **{key: value / spots for key, value in total.items()}}


def _batches(train: Feed, recipe: Recipe, order: torch.Generator) -> Iterator[Batch]:
    """The batches of an epoch: all spots once in random order, or as many batches as the recipe says, in new orders."""
    if recipe.steps is None:
        yield from train.batches(recipe.batch, generator=order)
        return
    passes = chain.from_iterable(train.batches(recipe.batch, generator=order) for _ in count())
    yield from islice(passes, recipe.steps)


@torch.no_grad()
def evaluate(module: Any, feed: Feed, batch: int) -> dict[str, float]:
    """Within-section Pearson correlation (mean over genes, then sections) and squared error of a feed's spots."""
    prediction, y, mask, section, _ = predictions(module, feed, batch)
    if not mask.any():
        raise ValueError("none of the spots that decide when to stop has counts in the panel; leave their sections out")
    error = ((prediction - y) ** 2)[mask].mean()
    scores = [
        within(prediction[here], y[here], mask[here]) for s in section.unique() if (here := section == s).sum() > 1
    ]
    kept = [score for score in scores if not math.isnan(score)]
    return {"mse": float(error), "pcc": sum(kept) / len(kept) if kept else 0.0}


def within(p: Tensor, y: Tensor, mask: Tensor) -> float:
    """Mean Pearson correlation over the genes (columns) of one section; constant truth is left out, NaN if all are."""
    m = mask.double()
    n = m.sum(dim=0).clamp(min=1)
    a, b = ((v.double() - (v * m).sum(dim=0) / n) * m for v in (p, y))
    var = (a * a).sum(dim=0) * (b * b).sum(dim=0)
    r = (a * b).sum(dim=0) / var.sqrt().clamp(min=1e-12)
    told = (b * b).sum(dim=0) > 1e-12
    return float(r[told].mean()) if told.any() else math.nan


class Predicted(NamedTuple):
    """What a model says of the spots of a feed, in order: (n, g) each, but for section (n,).

    `spread` is the standard deviation over the occurrences of a spot, NaN for one that is in a single sequence, for
    models that see spots repeatedly; else None.
    """

    values: Tensor
    y: Tensor
    mask: Tensor
    section: Tensor
    spread: Tensor | None


@torch.no_grad()
def predictions(module: Any, feed: Feed, batch: int) -> Predicted:
    """Predictions of the feed's spots; those of a spot that occurs repeatedly are averaged by exact sums and counts."""
    module.eval()
    size, repeats = feed.n_total, Needs.SEQ in feed.needs
    made: Tensor | None = None
    square: Tensor | None = None
    count = torch.zeros(size, dtype=torch.float64, device=feed.device)
    sequences = torch.zeros_like(count)
    y, mask, section = None, None, torch.zeros(size, dtype=torch.long, device=feed.device)
    for part in feed.batches(batch):
        out = module(part).double()  # (b, g)
        if made is None or y is None or mask is None:
            made = torch.zeros(size, out.shape[1], dtype=torch.float64, device=feed.device)
            square = torch.zeros_like(made) if repeats else None
            y, mask = torch.zeros_like(made, dtype=torch.float32), torch.zeros_like(made, dtype=torch.bool)
        made.index_add_(0, part.spot, out)
        if square is not None:
            assert part.seq is not None
            square.index_add_(0, part.spot, out.square())
            there = torch.stack([part.spot, part.seq]).unique(dim=1)[0]  # a spot once for each sequence that has it
            sequences.index_add_(0, there, torch.ones_like(there, dtype=torch.float64))
        count.index_add_(0, part.spot, torch.ones_like(part.spot, dtype=torch.float64))
        y[part.spot], mask[part.spot], section[part.spot] = part.y, part.y_mask, part.section
    assert made is not None and y is not None and mask is not None
    rows = count > 0
    mean = made[rows] / count[rows, None]
    spread = None
    if square is not None:
        spread = (square[rows] / count[rows, None] - mean.square()).clamp(min=0).sqrt().float()
        spread[sequences[rows] < 2] = math.nan
    return Predicted(mean.float(), y[rows], mask[rows], section[rows], spread)


def _optimizer(module: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    parameters = [p for p in module.parameters() if p.requires_grad]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "nadam": torch.optim.NAdam}
    return kinds[recipe.optimizer](parameters, lr=recipe.lr, weight_decay=recipe.weight_decay)


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def _save(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, history: History, best: dict[str, Tensor]
) -> None:
    """A checkpoint whose JSON, written last, names the tensors that belong to it."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"module/{key}": value for key, value in module.state_dict().items()}
    tensors |= {f"best/{key}": value for key, value in best.items()}
    for i, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{i}/{key}": torch.as_tensor(value) for key, value in state.items() if value is not None}
    name = f"state-{len(history.rows)}.safetensors"
    save_file({key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()}, folder / f"{name}.part")
    os.replace(folder / f"{name}.part", folder / name)
    state = {"tensors": name, "rows": history.rows, "best": history.best, "best_epoch": history.best_epoch}
    (folder / "state.json.part").write_text(json.dumps(state), encoding="utf-8")
    os.replace(folder / "state.json.part", folder / "state.json")
    for old in folder.glob("state-*.safetensors"):
        if old.name != name:
            old.unlink()


def _restore(folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[History, dict[str, Tensor]]:
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    parts: dict[str, dict[str, Tensor]] = {"module": {}, "best": {}, "optimizer": {}}
    for key, value in load_file(folder / state["tensors"]).items():
        kind, _, rest = key.partition("/")
        parts[kind][rest] = value
    module.load_state_dict(parts["module"])
    stored = optimizer.state_dict()
    for key, value in parts["optimizer"].items():
        i, _, name = key.partition("/")
        stored["state"].setdefault(int(i), {})[name] = value
    optimizer.load_state_dict(stored)
    return History(state["rows"], state["best"], state["best_epoch"]), parts["best"]
