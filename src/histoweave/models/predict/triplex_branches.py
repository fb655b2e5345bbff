"""TEM, NEM and GEM: the branches of TRIPLEX alone, as the paper compares them (Chung, Ha, Im and Lee, CVPR 2024).

A single branch predicts by itself, with its own error as the loss. Each is `Triplex` with two branches off; the names
exist because the paper's tables have rows for them.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from histoweave.batch import Card, Dims, Needs
from histoweave.models.predict.triplex import Triplex

_PAPER = Triplex.card.citation


class TEM(Triplex):
    """The target branch: the window's tokens, averaged, and one linear head; arguments are those of `Triplex`."""

    card: ClassVar[Card] = Card(
        title="TRIPLEX TEM",
        citation=_PAPER,
        published={"BC1 MSE": 0.252, "BC1 PCC(M)": 0.208, "BC1 PCC(H)": 0.365, "BC2 MSE": 0.190, "BC2 PCC(M)": 0.119}
        | {"BC2 PCC(H)": 0.227, "SCC MSE": 0.290, "SCC PCC(M)": 0.296, "SCC PCC(H)": 0.402},
    )
    needs: Needs = Needs.WINDOW

    def __init__(
        self,
        dims: Dims,
        *,
        trunk: str = "trainable",
        width: int = 512,
        augment: bool = True,
        start: Literal["random", "mean"] = "random",
    ) -> None:
        super().__init__(dims, trunk=trunk, width=width, neighbor=False, global_=False, augment=augment, start=start)

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Arguments of a small model with every part."""
        return {"width": 64, "trunk": "test_resnet", "augment": False}


class NEM(Triplex):
    """The neighbour branch: a transformer over the tiles around, averaged; arguments are those of `Triplex`."""

    card: ClassVar[Card] = Card(
        title="TRIPLEX NEM",
        citation=_PAPER,
        published={"BC1 MSE": 0.278, "BC1 PCC(M)": 0.255, "BC1 PCC(H)": 0.424, "BC2 MSE": 0.193, "BC2 PCC(M)": 0.152}
        | {"BC2 PCC(H)": 0.277, "SCC MSE": 0.373, "SCC PCC(M)": 0.308, "SCC PCC(H)": 0.444},
        wrong="the feed-forward layers are 1 or 4 units wide",
    )
    needs: Needs = Needs.CTX_EMB

    def __init__(
        self,
        dims: Dims,
        *,
        preset: Literal["bc1", "bc2", "scc"] = "bc1",
        width: int = 512,
        depth: int | None = None,
        heads: int | None = None,
        ratio: int | None = None,
        dropout: float | None = None,
        context: int = 5,
        start: Literal["random", "mean"] = "random",
        legacy: str | tuple[str, ...] = (),
    ) -> None:
        super().__init__(
            dims, target=False, global_=False, preset=preset, width=width, depth=depth, heads=heads, ratio=ratio,
            dropout=dropout, context=context, start=start, legacy=legacy,
        )  # fmt: skip

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Arguments of a small model with every part."""
        return {"width": 64, "depth": 1, "heads": 2, "ratio": 2}


class GEM(Triplex):
    """The global branch: a transformer over all spots of the section; arguments are those of `Triplex`."""

    card: ClassVar[Card] = Card(
        title="TRIPLEX GEM",
        citation=_PAPER,
        published={"BC1 MSE": 0.253, "BC1 PCC(M)": 0.295, "BC1 PCC(H)": 0.491, "BC2 MSE": 0.221, "BC2 PCC(M)": 0.193}
        | {"BC2 PCC(H)": 0.341, "SCC MSE": 0.317, "SCC PCC(M)": 0.276, "SCC PCC(H)": 0.392},
        wrong="dropout stays on at evaluation, so predictions are random",
    )
    needs: Needs = Needs.POOL

    def __init__(
        self,
        dims: Dims,
        *,
        preset: Literal["bc1", "bc2", "scc"] = "bc1",
        width: int = 512,
        depth: int | None = None,
        heads: int | None = None,
        ratio: int | None = None,
        dropout: float | None = None,
        peg: Literal["apeg", "peg", "none"] = "apeg",
        residual: bool = True,
        start: Literal["random", "mean"] = "random",
        legacy: str | tuple[str, ...] = (),
    ) -> None:
        super().__init__(
            dims, target=False, neighbor=False, preset=preset, width=width, depth=depth, heads=heads, ratio=ratio,
            dropout=dropout, peg=peg, residual=residual, start=start, legacy=legacy,
        )  # fmt: skip

    @classmethod
    def tiny(cls) -> dict[str, Any]:
        """Arguments of a small model with every part."""
        return {"width": 64, "depth": 2, "heads": 2, "ratio": 2}
