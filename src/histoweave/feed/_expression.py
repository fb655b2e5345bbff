"""What is measured and visible around every spot, for models that fill in what is missing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from histoweave.batch import Batch, Needs
from histoweave.data.section import Section
from histoweave.pp.median import median_fill, median_tables

EXPRESSION = Needs.EXPR | Needs.CTX_EXPR | Needs.FILL | Needs.CTX_FILL
_SEED = 20_260  # of the entries that validation hides: any number, but always the same


class Expression:
    """Values of all spots of a cohort, which of them are shown, and what medians make of the others.

    Parameters
    ----------
    sections
        The sections of the cohort, in order.
    values
        Target values (n, g), float32.
    seen
        Which of them are measured and visible (n, g), bool.
    center
        What is taken off every value (g,) after the medians were taken; None for nothing.
    """

    def __init__(self, sections: Sequence[Section], values: Tensor, seen: Tensor, center: Tensor | None) -> None:
        self._sections, self._values, self._seen, self._center = sections, values, seen, center
        self._fill: Tensor | None = None

    def hiding(self, rate: float) -> tuple[Expression, Tensor]:
        """The same without a share of what was seen, always the same entries, and these (n, g)."""
        drawn = torch.rand(self._seen.shape, generator=torch.Generator().manual_seed(_SEED)) < rate
        hidden = self._seen & drawn.to(self._seen.device)
        return Expression(self._sections, self._values, self._seen & ~hidden, self._center), hidden

    def add(self, made: Batch, needs: Needs, near: Tensor | None) -> None:
        """Fills the fields of a batch; `near` holds the spot and its neighbours as rows (b, 1 + k), -1 for none."""
        if Needs.EXPR in needs:
            made.seen = self._seen[made.spot]
            made.expr = self._centred(self._values[made.spot]) * made.seen
        if Needs.FILL in needs:
            made.fill = self._centred(self._filled()[made.spot])
        if near is None:
            return
        there = (near >= 0)[..., None]  # (b, k, 1)
        if Needs.CTX_EXPR in needs:
            made.ctx_seen = self._seen[near.clamp(min=0)] & there
            made.ctx_expr = self._centred(self._values[near.clamp(min=0)]) * made.ctx_seen
        if Needs.CTX_FILL in needs:
            made.ctx_fill = self._centred(self._filled()[near.clamp(min=0)]) * there

    def _centred(self, values: Tensor) -> Tensor:
        return values if self._center is None else values - self._center

    def _filled(self) -> Tensor:
        """All values with what is not seen filled by medians of each section (n, g); made once, and only if asked for."""
        if self._fill is None:
            sizes = [section.n for section in self._sections]
            parts = zip(self._sections, self._values.split(sizes), self._seen.split(sizes), strict=True)
            made = [median_fill(v.cpu().numpy(), m.cpu().numpy(), median_tables(s)) for s, v, m in parts]
            self._fill = torch.from_numpy(np.concatenate(made)).to(self._values.device)
        return self._fill
