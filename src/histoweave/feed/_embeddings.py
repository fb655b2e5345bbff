"""What the frozen encoder made of the spots and tiles of a cohort, standardized as the view says."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from histoweave.batch import Needs
from histoweave.data.section import Cohort
from histoweave.view import Features, FittedView, section_moments


class Embeddings:
    """One table of vectors over all sections, and where each spot and each of its tiles stands in it."""

    def __init__(
        self, view: FittedView, cohort: Cohort, features: Features, needs: Needs, device: torch.device
    ) -> None:
        parts: list[np.ndarray] = []
        emb_rows, ctx_rows, masks, offset = [], [], [], 0
        for section in cohort:
            got = features[section.id]
            emb_rows.append(offset + np.arange(section.n, dtype=np.int64))
            parts.append(np.asarray(got.emb))
            if Needs.CTX_EMB in needs:
                parts.append(np.asarray(got.ctx))
                ctx_rows.append(offset + np.asarray(got.ctx_index, dtype=np.int64))
                masks.append(np.asarray(got.ctx_mask))
            offset += section.n + (len(parts[-1]) if Needs.CTX_EMB in needs else 0)

        def joined(arrays: list[np.ndarray]) -> Tensor:
            return torch.from_numpy(np.concatenate(arrays)).to(device)

        self._vectors, self._emb_row = joined(parts), joined(emb_rows)
        if Needs.CTX_EMB in needs:
            self._ctx_row, self._ctx_mask = joined(ctx_rows), joined(masks)
        shift, scale = _moments(view, cohort, features, self.width)
        self._shift, self._scale = torch.from_numpy(shift).to(device), torch.from_numpy(scale).to(device)

    @property
    def width(self) -> int:
        """Width of the vectors."""
        return int(self._vectors.shape[1])

    def spots(self, rows: Tensor, section: Tensor) -> Tensor:
        """Vectors of the spots at rows of the cohort (b, …) → (b, …, d), float32; `section` (b,) is that of each b."""
        return self._scaled(self._emb_row[rows], section)

    def tiles(self, rows: Tensor, section: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of the tiles around the spots (b, k, d), and which of them are there (b, k)."""
        return self._scaled(self._ctx_row[rows], section), self._ctx_mask[rows]

    def _scaled(self, rows: Tensor, section: Tensor) -> Tensor:
        shape = (len(section),) + (1,) * (rows.ndim - 1) + (-1,)
        shift, scale = (table[section].view(shape) for table in (self._shift, self._scale))
        return (self._vectors[rows].float() - shift) / scale


def _moments(view: FittedView, cohort: Cohort, features: Features, d: int) -> tuple[np.ndarray, np.ndarray]:
    """What to subtract from and divide by, per section (s, d): the section's own moments, then the training ones."""
    how = view.view.standardize
    shift: np.ndarray = np.zeros((len(cohort), d), np.float32)
    scale: np.ndarray = np.ones((len(cohort), d), np.float32)
    if how in ("section", "both"):
        own = [section_moments(features[section.id], section.id) for section in cohort]
        shift, scale = np.stack([m for m, _ in own]), np.stack([sd for _, sd in own])
    if view.shift is not None and view.scale is not None:
        if len(view.shift) != d:
            raise ValueError(
                f"embeddings are {d} wide, but the view was fitted on {len(view.shift)}; embed with the encoder of the "
                f"view, {view.view.encoder!r}"
            )
        shift, scale = shift + view.shift * scale, scale * view.scale
    return shift, scale
