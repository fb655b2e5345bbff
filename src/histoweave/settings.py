"""The settings of every command as dataclasses: a field is a flag of the command line and an argument in Python.

What they make is imported where it is made, so that the command line answers ``--help`` without loading it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from histoweave.data.section import Cohort
    from histoweave.data.store import Store
    from histoweave.view import View

# Models and controls of a benchmark that names none: where all expression is hidden, and where a part is.
PREDICTING = ("mean,ridge,knn,stnet,triplex", "mean,ridge,knn,shuffled")
IMPUTING = ("spage,anchors,gimvi,tangram,xmint", "gene-mean,knn-expression,ridge-expression,ridge-shares,pca-knn")
COMPLETING = ("median,sme[weights=ge],spackle", "zero,gene-mean,slide-median,spot-gene,low-rank,ridge-visible")


def flag(default: Any, help: str) -> Any:
    """A field with its help text."""
    if isinstance(default, (list, dict)):
        raise TypeError("settings are immutable; use a tuple")
    return field(default=default, metadata={"help": help})


def choose_sections(cohort: Cohort, sections: str) -> Cohort:
    """``all``, ``with-image``, or ids joined by commas."""
    if sections == "all":
        return cohort
    if sections == "with-image":
        kept = cohort.with_image()
        if not len(kept):
            raise ValueError("no section of the cohort has an image")
        return kept
    return cohort.subset(part.strip() for part in sections.split(","))


def set_up(threads: int | None, device: str) -> None:
    """Sets the threads of torch (None leaves them as they are); `ValueError` if it cannot use so many, or the device."""
    import torch

    if threads is not None:
        if threads < 1:
            raise ValueError(f"threads={threads}; expected 1 or more")
        torch.set_num_threads(threads)
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter is how a build without CUDA says so
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {device!r} cannot be used here ({reason}); use 'cpu' or 'cuda'") from error


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """How sections are looked at."""

    target: str = flag("triplex-paper", "what is predicted: a preset, with changes in brackets")
    panel: str = flag("top-mean:250", "which genes: top-mean:N, rank-sum:N, hvg:N, moran:N, spared:N or list:A,B")
    encoder: str = flag("efficientnet-lite0", "frozen encoder; see `histoweave encoders`")
    weights: str | None = flag(None, "local file of the encoder's weights")
    dtype: Literal["fp32", "bf16"] = flag("fp32", "arithmetic of the encoder: fp32 or bf16")
    window_um: float = flag(112.0, "side of the window around a spot in µm")
    window_px: int | None = flag(None, "side in native pixels instead, as papers have it")
    out_px: int = flag(224, "side in pixels handed to the encoder")
    standardize: Literal["none", "train", "section", "both"] = flag(
        "train", "scale embeddings by the training spots, by the section's own (transductive), by both, or not"
    )

    stain: Literal["none", "macenko"] = flag("none", "stain normalisation of the windows: none or macenko")

    def view(self) -> View:
        """The view that these settings describe."""
        from histoweave.data.image import Window
        from histoweave.pp.counts import Target
        from histoweave.view import View

        window = (
            Window(px=self.window_px, out=self.out_px)
            if self.window_px is not None
            else Window(um=self.window_um, out=self.out_px)
        )
        return View(
            target=Target.parse(self.target),
            panel=self.panel,
            encoder=self.encoder,
            weights=self.weights,
            dtype=self.dtype,
            window=window,
            standardize=self.standardize,
            stain=self.stain,
        )


@dataclass(frozen=True, kw_only=True)
class RunSettings(ViewSettings):
    """How and where it is computed."""

    sections: str = flag("all", "all, with-image, or section ids joined by commas")
    recipe: str = flag("cpu", "training recipe: paper, cpu or tiny")
    trunk_weights: str | None = flag(None, "local file of weights that trainable trunks start from; else random")
    store: str | None = flag(None, "folder of embeddings; default $HISTOWEAVE_STORE or ~/.cache/histoweave")
    device: str = flag("cpu", "cpu or cuda")
    threads: int | None = flag(None, "threads of torch; default: all cores")

    def open_store(self) -> Store:
        """The store of embeddings."""
        from histoweave.data.store import Store

        return Store(self.store or os.environ.get("HISTOWEAVE_STORE") or Path.home() / ".cache" / "histoweave")


@dataclass(frozen=True, kw_only=True)
class BenchSettings(RunSettings):
    """A benchmark."""

    models: str = flag("auto", "models joined by commas, arguments in brackets; auto: by what is hidden")
    controls: str = flag("auto", "controls added to every table; auto: by what is hidden")
    hide: str = flag(
        "everything",
        "of the test patients: everything, entries:0.3, entries:0.3:all, thin:0.5, genes:first:200, genes:random:200:0, …",
    )
    rates: str = flag("", "further rates of hidden entries at which the same fits are scored, joined by commas")
    target_layer: str = flag("raw", "what counts of 0 are in training: raw, measured, or a model that completes")
    measured: bool = flag(False, "also score measured entries alone, leaving out counts of 0")
    split: str = flag("leave-one-patient-out", "leave-one-patient-out, or k-fold:K of patients")
    protocol: Literal["strict", "paper"] = flag(
        "strict", "strict; or paper: panel from all sections, epoch chosen on the test fold"
    )
    seeds: int = flag(1, "number of seeds of the models that are trained by gradient")
    ensemble: int = flag(0, "0: one fit on all training patients; K: mean of K fits")
    max_hours: float = flag(12.0, "refuse to start if the plan takes longer")
    name: str | None = flag(None, "name of the benchmark in its tables")
    resume: bool = flag(True, "take finished cells of the output folder as they are; otherwise they must not be there")

    def named(self) -> BenchSettings:
        """The settings with models and controls by name, in the place of ``auto``."""
        kind = {"everything": PREDICTING, "genes": IMPUTING}
        models, controls = kind.get(self.hide.partition(":")[0], COMPLETING)
        return replace(
            self,
            models=models if self.models == "auto" else self.models,
            controls=controls if self.controls == "auto" else self.controls,
        )


@dataclass(frozen=True, kw_only=True)
class FitSettings(RunSettings):
    """Fitting a model on all sections of a cohort."""

    model: str = flag("triplex", "model, with arguments in brackets")
    seed: int = flag(0, "seed")
    cv: int = flag(0, "folds of cross-validation for the expected accuracy per gene; 0: none")
    from_bench: str | None = flag(None, "take the expected accuracy per gene from this run")


@dataclass(frozen=True, kw_only=True)
class CompleteSettings(RunSettings):
    """Completion of the sections of a cohort."""

    target: str = flag("log1p-cpm", "in which units: a preset, with changes in brackets")
    method: str = flag("spackle", "model that completes, with arguments in brackets")
    seed: int = flag(0, "seed")


@dataclass(frozen=True, kw_only=True)
class ImputeSettings(RunSettings):
    """Imputation of genes that a panel lacks."""

    method: str = flag("spage", "imputer, or xmint, with arguments in brackets")
    genes: str | None = flag(None, "genes to impute, joined by commas; default: all that the target lacks")
    groups: str | None = flag(None, "column of a reference with the type of each cell; default: cell_type, where it is")
    seed: int = flag(0, "seed")


@dataclass(frozen=True, kw_only=True)
class PredictSettings:
    """Prediction on a slide without counts."""

    mpp: float | None = flag(None, "µm per px of the slide, where the file does not say")
    pitch: float | None = flag(None, "distance between tiles in µm; default: as in training")
    min_tissue: float = flag(0.5, "fraction of a tile that must be tissue")
    weights: str | None = flag(None, "local file of the encoder's weights")
    store: str | None = flag(None, "folder of embeddings; default $HISTOWEAVE_STORE or ~/.cache/histoweave")
    device: str = flag("cpu", "cpu or cuda")
    threads: int | None = flag(None, "threads of torch; default: all cores")
