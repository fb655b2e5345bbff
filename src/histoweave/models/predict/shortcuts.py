"""Shortcut controls: what position, nuclear density or colour alone can tell, by the same ridge as the embeddings."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from histoweave.batch import Batch, Card, Dims, Needs
from histoweave.models.predict.ridge import Ridge

_GRID = 4  # density is measured in _GRID × _GRID fields of the window
_NUCLEAR_OD = 0.35  # red optical density above which a pixel counts as nucleus: eosin absorbs hardly any red light


class _Shortcut(Ridge):
    """Ridge on few inputs of different units, hence divided by their standard deviation."""

    scale: ClassVar[bool] = True
    width: ClassVar[int]

    def __init__(self, dims: Dims, *, alphas: tuple[float, ...] = ()) -> None:
        super().__init__(Dims(genes=dims.genes, emb=self.width), components=self.width, alphas=alphas)
        self.needs = Needs.WINDOW

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Three penalties."""
        return {"alphas": (1e-3, 1e-1, 10.0)}


class Position(_Shortcut):
    """Where the spot lies: x and y from the centre of the section, and the distance to the edge of the tissue, in µm."""

    card: ClassVar[Card] = Card(title="Position only", citation="control", learns="closed-form", control=True)
    width = 3

    def __init__(self, dims: Dims, *, alphas: tuple[float, ...] = ()) -> None:
        super().__init__(dims, alphas=alphas)
        self.needs = Needs.XY

    def inputs(self, batch: Batch) -> Tensor:
        """(b, 3)."""
        assert batch.xy is not None and batch.edge is not None
        return torch.cat([batch.xy, batch.edge[:, None]], dim=1)


class Density(_Shortcut):
    """How much of the window is nucleus: mean and standard deviation over a 4 × 4 grid of its fields."""

    card: ClassVar[Card] = Card(title="Nuclear density only", citation="control", learns="closed-form", control=True)
    width = 2

    def inputs(self, batch: Batch) -> Tensor:
        """(b, 2)."""
        assert batch.window is not None
        red = batch.window[:, 0].float()  # (b, h, w)
        nuclear = (-torch.log((red + 1) / 256) > _NUCLEAR_OD).float()
        fields = torch.nn.functional.adaptive_avg_pool2d(nuclear[:, None], _GRID).flatten(1)
        return torch.stack([fields.mean(dim=1), fields.std(dim=1)], dim=1)


class Colour(_Shortcut):
    """Mean and standard deviation of red, green and blue over the window."""

    card: ClassVar[Card] = Card(title="Mean colour only", citation="control", learns="closed-form", control=True)
    width = 6

    def inputs(self, batch: Batch) -> Tensor:
        """(b, 6)."""
        assert batch.window is not None
        pixels = batch.window.flatten(2).float()  # (b, 3, hw)
        return torch.cat([pixels.mean(dim=2), pixels.std(dim=2)], dim=1)
