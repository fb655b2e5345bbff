"""How a cohort is looked at: `View` is the recipe, `FittedView` what was learnt from the training sections.

Statistics are learnt in `View.fit` and nowhere else, and it is handed the training cohort only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from histoweave import _keys as K
from histoweave.batch import IMAGE, Needs
from histoweave.data.image import Window
from histoweave.data.section import Cohort, Section
from histoweave.data.store import Store
from histoweave.embed import Encoder, Macenko, SectionFeatures, create_encoder, embed
from histoweave.pp.counts import Target
from histoweave.pp.genes import GenePanel, select_panel
from histoweave.pp.lattice import derive_array, lattice

Standardize = Literal["none", "train", "section", "both"]
Stain = Literal["none", "macenko"]
CONTEXT = 5  # side of the neighbour view in tiles (TRIPLEX: 5 × 5)
MIN_SPOTS = 50  # fewer spots do not carry statistics of their own
Features = Mapping[str, SectionFeatures]


@lru_cache(maxsize=2)
def _encoder(name: str, weights: str | None, dtype: Literal["fp32", "bf16"], device: str, px: int) -> Encoder:
    """An encoder, kept: reading its weights takes as long as encoding a few hundred windows."""
    return create_encoder(name, weights=weights, dtype=dtype, device=device, px=px)


@dataclass(frozen=True, slots=True)
class View:
    """The recipe by which sections become tensors.

    Attributes
    ----------
    target
        What is predicted.
    panel
        Which genes: a recipe learnt on the training sections (``top-mean:250``), or a finished panel.
    shared
        Genes that are measured where others are imputed, in the order in which models are given them.
    among
        Gene names to choose from; None for those common to the training sections. Names are never hidden, values are.
    encoder, weights, dtype
        The frozen encoder, a local file of its weights (else its own), and the arithmetic it runs in.
    window
        What the encoder sees of a spot; trainable trunks get the same pixels.
    standardize
        Scaling of embeddings: by the training spots, by the spots of each section (uses the test image, but no
        expression: transductive), by both, or not at all.
    stain
        Normalisation of the windows, measured once per slide: ``none`` or ``macenko``.
    """

    target: Target = field(default_factory=lambda: Target.preset("triplex-paper"))
    panel: str | GenePanel = "top-mean:250"
    among: tuple[str, ...] | None = None
    shared: tuple[str, ...] = ()
    encoder: str = "efficientnet-lite0"
    weights: str | None = None
    dtype: Literal["fp32", "bf16"] = "fp32"
    window: Window = field(default_factory=lambda: Window(um=112))
    standardize: Standardize = "train"
    stain: Stain = "none"

    def __post_init__(self) -> None:
        if self.standardize not in ("none", "train", "section", "both"):
            raise ValueError(f"standardize={self.standardize!r}; expected 'none', 'train', 'section' or 'both'")
        if self.stain not in ("none", "macenko"):
            raise ValueError(f"stain={self.stain!r}; expected 'none' or 'macenko'")

    def make_encoder(self, device: str = "cpu") -> Encoder:
        """The view's encoder, for windows of the view's size."""
        return _encoder(self.encoder, self.weights, self.dtype, device, self.window.out)

    def embed(
        self,
        cohort: Cohort,
        needs: Needs,
        store: Store,
        *,
        device: str = "cpu",
        progress: Callable[[int, int, str], None] | None = None,
    ) -> Features:
        """Embeddings and windows of the cohort, as far as a model needs them; from the store where they are there."""
        if not needs & IMAGE:
            return {}
        encoder = self.make_encoder(device)
        context = CONTEXT if Needs.CTX_EMB in needs else 0
        return embed(
            cohort,
            encoder,
            store,
            window=self.window,
            context=context,
            pixels=Needs.WINDOW in needs,
            stain=Macenko() if self.stain == "macenko" else None,
            device=device,
            progress=progress,
        )

    def fit(self, train: Cohort, features: Features | None = None) -> FittedView:
        """The view with everything that is learnt from the training sections: gene panel and embedding statistics."""
        panel = self.panel
        if isinstance(panel, str):
            panel = select_panel(train, panel, candidates=self.among or train.genes("common"))
        view = replace(self, target=self.target.bind(len(train.genes("union"))))
        shift = scale = None
        if features and self.standardize in ("train", "both"):
            tables = [self._section_scaled(features[id], id) for id in train.ids]
            shift, scale = _moments(np.concatenate(tables))
        fitted = FittedView(view=view, genes=panel, trained_on=train.patients, shift=shift, scale=scale)
        return replace(fitted, center=fitted.mean_of(train)) if self.target.delta else fitted

    def _section_scaled(self, features: SectionFeatures, id: str) -> np.ndarray:
        emb = np.asarray(features.emb, dtype=np.float32)
        if self.standardize != "both":
            return emb
        shift, scale = section_moments(features, id)
        return (emb - shift) / scale

    def to_dict(self) -> dict[str, Any]:
        """Everything but the panel as JSON-safe values."""
        return {
            "target": self.target.to_dict(),
            "encoder": self.encoder,
            "weights": self.weights,
            "dtype": self.dtype,
            "window": asdict(self.window),
            "standardize": self.standardize,
            "stain": self.stain,
            "shared": list(self.shared),
            "panel": self.panel if isinstance(self.panel, str) else self.panel.recipe,
        }

    @classmethod
    def from_dict(cls, saved: Mapping[str, Any], panel: GenePanel) -> View:
        """The view that `to_dict` wrote, with its finished panel."""
        plain = {key: saved[key] for key in ("encoder", "weights", "dtype", "standardize", "stain")}
        return cls(
            target=Target.from_dict(saved["target"]),
            panel=panel,
            shared=tuple(saved["shared"]),
            window=Window(**saved["window"]),
            **plain,
        )


def lattice_rc(section: Section) -> np.ndarray:
    """Lattice (row, column) of every spot (n, 2), int64, derived from the positions where the section has none."""
    rc = section.array_rc
    return derive_array(section.xy, kind=lattice(section.platform) or "square") if rc is None else rc


def divisor(target: Target, section: Section) -> np.ndarray:
    """What the target divides counts by (n,): the library, or the size factors given with the data."""
    if target.library != "given":
        return section.library
    if K.SIZE_FACTOR not in section.spots.obs:
        raise ValueError(
            f"target '{target}' divides by given size factors, and section {section.id!r} has none; give them as the "
            f"column {K.SIZE_FACTOR!r} of its spots, or use another target, such as 'log1p-cpm'"
        )
    return section.spots.obs[K.SIZE_FACTOR].to_numpy(dtype=np.float64)


def smoothing(target: Target, section: Section) -> np.ndarray | None:
    """The neighbour table (n, k) that the target smooths over, if it does."""
    return None if target.smooth == "none" else target.neighbors(lattice_rc(section))


def _moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation per column (d,), float32.

    Deviations are at least a hundredth of the median one: a unit that hardly ever fires in the training slides would else
    be blown up without bound where it does in another.
    """
    shift = values.mean(axis=0, dtype=np.float64)
    scale = values.std(axis=0, dtype=np.float64)
    least = max(float(np.median(scale)) * 1e-2, 1e-6)
    return shift.astype(np.float32), np.maximum(scale, least).astype(np.float32)


def section_moments(features: SectionFeatures, id: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of one section's own embeddings (d,); refused under 50 spots."""
    emb = features.emb if features.section_emb is None else features.section_emb
    if len(emb) < MIN_SPOTS:
        raise ValueError(
            f"standardize by section needs at least {MIN_SPOTS} spots; section {id!r} has {len(emb)}. "
            "Use standardize='train'"
        )
    return _moments(np.asarray(emb, dtype=np.float32))


@dataclass(frozen=True, slots=True)
class FittedView:
    """A view after `View.fit`.

    Attributes
    ----------
    genes
        The panel, in the order of the columns of y.
    trained_on
        The patients whose sections taught it.
    shift, scale
        Embedding statistics of the training spots (d,), where the view standardizes by them.
    center
        Mean target of the training spots (g,), where models learn the difference from it.
    """

    view: View
    genes: GenePanel
    trained_on: tuple[str, ...]
    shift: np.ndarray | None = None
    scale: np.ndarray | None = None
    center: np.ndarray | None = None

    def mean_of(self, train: Cohort, *, zeros: bool = True) -> np.ndarray:
        """Mean target per gene over the spots where it counts (g,), float32; see `truth` for `zeros`."""
        total, count = np.zeros((2, len(self.genes)), dtype=np.float64)
        for section in train:
            y, mask = self.truth(section, zeros=zeros)
            total += (y * mask).sum(axis=0, dtype=np.float64)
            count += mask.sum(axis=0)
        return (total / np.maximum(count, 1)).astype(np.float32)

    def truth(self, section: Section, *, zeros: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Target values (n, g) float32 and where they count (n, g) bool; nothing counts without counts.

        Spots without counts and hidden entries do not count; without `zeros`, counts of 0 do not either: then they are
        entries that the assay dropped.
        """
        names = list(self.genes.genes)
        present = section.genes.isin(names)
        if not present.any():
            shape = (section.n, len(names))
            return np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=bool)
        if present.sum() < len(names) and K.HIDDEN not in section.spots.layers and self.view.target.library == "panel":
            raise KeyError(
                f"section {section.id!r} lacks {len(names) - int(present.sum())} of {len(names)} genes of the "
                "panel, and the target divides by their sum. Choose genes common to all sections"
            )
        at = section.genes.get_indexer(names)
        counts = section.spots.X[:, np.maximum(at, 0)]
        target = self.view.target
        y, ok = target.transform(counts, divisor(target, section), smoothing(target, section))
        mask = ok[:, None] & (at >= 0)[None, :]
        if K.HIDDEN in section.spots.layers:
            if self.view.target.library == "panel":
                raise ValueError(
                    "entries are hidden, and the target divides by the sum over the panel, which they are "
                    "part of. Use a target with library='all'"
                )
            mask &= ~section.spots.layers[K.HIDDEN][:, np.maximum(at, 0)].toarray()
        if not zeros:
            mask &= counts.toarray() > 0
        return np.where(mask, y, 0.0).astype(np.float32), mask
