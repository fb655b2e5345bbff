"""`Predictor`: what the benchmark and the user see; `Learner` makes every model in the table one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData, concat
from torch import Tensor, nn

from histoweave import _keys as K
from histoweave.batch import FROZEN, Dims, Needs
from histoweave.data.section import Cohort, Section
from histoweave.data.store import Store
from histoweave.embed import SectionFeatures
from histoweave.embed.weights import read_weights
from histoweave.feed import Feed, dense_rc
from histoweave.models import create
from histoweave.train.layers import HIDE, center_of, check_sections, check_target, filled_values
from histoweave.train.loop import History, Progress, fit, predictions
from histoweave.train.provenance import describe
from histoweave.train.recipe import Recipe
from histoweave.train.regions import regions, spacing
from histoweave.train.saved import write_folder
from histoweave.train.spec import resolve
from histoweave.view import Features, FittedView, View

CHUNK = 4096  # spots predicted at a time by models that look at each spot alone
TOGETHER = Needs.POOL | Needs.WHOLE_SECTION | Needs.NBR | Needs.ADJACENCY | Needs.ADJACENCY_RAW  # all spots at once
OVERALL = Needs.WHOLE_SECTION | Needs.FILL | Needs.CTX_FILL  # values that stand for a whole section
AROUND = Needs.CTX_EXPR | Needs.CTX_FILL | Needs.POOLED  # the spots around each
STATISTICS = ("shift", "scale", "center")  # of a fitted view


class Predictor(Protocol):
    """Fits on a training cohort and predicts for another one."""

    def fit(self, train: Cohort, val: Cohort | None = None) -> Self:
        """Learns from the training cohort; `val` decides when to stop, else the inner split of `train` does."""
        ...

    def predict(self, cohort: Cohort) -> AnnData:
        """``X``: predictions (n, g) in the units given in ``uns["histoweave"]``."""
        ...


class Learner:
    """A model of the table as a `Predictor`.

    Parameters
    ----------
    model
        Name, with arguments in brackets: ``triplex[fusion=sum]``.
    view
        How cohorts are looked at.
    store
        Where embeddings are kept.
    recipe
        Name of a recipe of the model, or a `Recipe`.
    checkpoint
        Folder in which a killed training finds its state again.
    progress
        Called as ``progress(done, total, label)``.
    trunk_weights
        Local file of weights that a trainable trunk starts from; without, it starts at random, and says so.
    """

    def __init__(
        self,
        model: str,
        view: View,
        store: Store,
        *,
        recipe: str | Recipe = "cpu",
        seed: int = 0,
        device: str = "cpu",
        checkpoint: Path | None = None,
        progress: Progress | None = None,
        trunk_weights: str | None = None,
    ) -> None:
        self.model = model
        self.spec = resolve(model, recipe)
        self.name, self.recipe, self.needs = self.spec.name, self.spec.recipe, self.spec.needs
        self.view = replace(view, target=replace(view.target, delta=True)) if self.spec.delta else view
        self.store, self.seed, self.device = store, seed, device
        self.checkpoint, self.progress, self.trunk_weights = checkpoint, progress, trunk_weights
        self.first: Learner | None = None
        if self.spec.first is not None:
            self.first = Learner(
                self.spec.first.text, view, store, recipe=self.spec.first.recipe, seed=seed, device=device,
                checkpoint=checkpoint and checkpoint / "first", progress=progress, trunk_weights=trunk_weights,
            )  # fmt: skip
            self.trunk_weights = None
        self.fitted: FittedView | None = None
        self.module: nn.Module | None = None
        self.history = History()
        self.rung = "none"
        self.expected: pd.DataFrame | None = None  # accuracy per gene seen in cross-validation
        self.expected_note = "not measured: fit with cross-validation or take it from a benchmark"
        self.max_context = CHUNK  # spots looked at together: the largest training section
        self.spacing: dict[str, Any] = {}
        self.width = 0  # of the embeddings it was fitted on
        self.encoder_digest: str | None = None  # of the weights that made the embeddings it was fitted on

    def fit(self, train: Cohort, val: Cohort | None = None) -> Self:
        """Learns panel, statistics and weights from the training cohort.

        Raises
        ------
        ValueError
            Sections without an image for a model that looks at one; no counts.
        """
        for spec in filter(None, (self.spec, self.spec.filler)):
            check_sections(spec, train)
        check_target(self.spec, self.view.target)
        self.encoder_digest = None
        if self.first is not None:
            self.first.fit(train, val)
        features = self._embed(train)
        if self.embeds:
            self.encoder_digest = self.view.make_encoder(self.device).digest
        self.fitted = self.view.fit(train, features)
        filled = self._fill(train)
        self.max_context = max(section.n for section in train)
        self.spacing = spacing(train)
        feed = self._feed(train, features, filled)
        torch.manual_seed(self.seed)
        self.width = feed.width
        self.module = self.build(self.width)
        self._start_trunk(self.module)
        learns = self.spec.card.learns
        if learns != "gradient":
            self.rung = feed.inner.rung if learns != "none" and len(train) else "none"
            self.module.index(feed)  # type: ignore[operator]
            self.module.eval()
            return self
        if val is None:
            self.rung = feed.inner.rung
            held = torch.from_numpy(feed.inner.fold == 0)
            whole = feed if filled is None else self._feed(train, features)  # what was filled in is no truth to stop on
            part, stop = feed.only(~held), whole.only(held)
        else:
            self.rung = "given"
            part, stop = feed, self._feed(val)
        if self.spec.completes:
            stop = stop.hiding(HIDE)
        if hasattr(self.module, "index"):
            self.module.index(part)  # type: ignore[operator]
        self.history = fit(
            self.module, part, stop, self.recipe, seed=self.seed, checkpoint=self.checkpoint, progress=self.progress
        )
        return self

    def choose(self, val: Cohort) -> Self:
        """Lets other sections than those it was fitted on choose among the penalties that it fitted, where it has any.

        Models that are trained step by step choose their epoch in `fit`, and the others have nothing to choose.
        """
        _, module = self.ready()
        if hasattr(module, "choose"):
            module.choose(self._feed(val))  # type: ignore[operator]
            self.rung = "given"
        return self

    def predict(self, cohort: Cohort) -> AnnData:
        """Predictions for every spot, counts or not: ``X`` (n, g) float32, ``obsm["spatial"]``, section and patient."""
        parts = [self._whole(section) for section in cohort]
        made = concat(parts, join="inner")
        made.uns[K.UNS] = parts[0].uns[K.UNS]
        made.var = parts[0].var
        return made

    def stream(self, section: Section) -> Iterator[AnnData]:
        """Predictions of one section, region by region; together they hold every spot once.

        Models that look at all spots at once get regions of at most `max_context` spots with a halo, the others any
        number of spots, so that memory does not grow with the section.
        """
        fitted, module = self.ready()
        check_sections(self.spec, Cohort([section]))
        features = self._embed(Cohort([section]))
        together = bool(self.needs & TOGETHER)
        whole = Needs.SEQ in self.needs or (self.spec.completes and bool(self.needs & OVERALL))
        at_most = self.max_context if together else max(CHUNK, self.max_context)
        cut = [(np.arange(section.n), np.ones(section.n, dtype=bool))]
        if section.n > at_most and not whole:
            cut = list(
                regions(dense_rc(section), at_most, halo=self.spec.halo if together or self.needs & AROUND else 0)
            )
        for rows, core in cut:
            part = section if len(rows) == section.n else section.with_spots(section.spots[rows].copy())
            taken = {id: found.take(rows) for id, found in features.items()} if part is not section else features
            feed = self._feed(Cohort([part]), taken)
            found = predictions(module, feed, self.recipe.batch)
            made = found.values.cpu().numpy()
            table = self._table(part, made if fitted.center is None else made + fitted.center, core)
            if found.spread is not None:
                table.layers[K.SPREAD] = found.spread.cpu().numpy()[core]
            yield table

    @torch.no_grad()
    def stage(self, cohort: Cohort) -> Features:
        """Features (n, d) and predictions (n, g) of every section, from which a next stage starts."""
        _, module = self.ready()
        made: dict[str, SectionFeatures] = {}
        for section in cohort:
            feed = self._feed(Cohort([section]))
            parts = [module.features(batch) for batch in feed.batches(self.recipe.batch)]  # type: ignore[operator]
            prior = np.asarray(self._whole(section).X)
            made[section.id] = SectionFeatures(emb=torch.cat(parts).cpu().numpy(), prior=prior)
        return made

    def _whole(self, section: Section) -> AnnData:
        """The predictions of a section in the order of its spots: regions do not come in it."""
        parts = list(self.stream(section))
        if len(parts) == 1:
            return parts[0]
        made = concat(parts, join="inner")[_names(section)].copy()
        made.uns[K.UNS] = parts[0].uns[K.UNS]
        made.var = parts[0].var
        return made

    def _table(self, section: Section, made: np.ndarray, core: np.ndarray) -> AnnData:
        """The predictions of a section's core spots as AnnData."""
        assert self.fitted is not None
        keep = [c for c in (K.ROW, K.COL) if c in section.spots.obs]
        obs = section.spots.obs[keep].copy()
        obs.index = _names(section)
        obs[K.SECTION], obs[K.PATIENT] = section.id, section.patient
        out = AnnData(X=made[core], obs=obs[core], var=self.var(), obsm={K.SPATIAL: section.xy[core]})
        out.uns[K.UNS] = {"units": self.units, "card": json.dumps(self.describe(), sort_keys=True)}
        return out

    def var(self) -> pd.DataFrame:
        """The genes, with the accuracy that was seen in cross-validation: mean PCC, its sd over patients, and their number."""
        assert self.fitted is not None
        var = pd.DataFrame(index=pd.Index(list(self.fitted.genes.genes), dtype=object))
        seen = self.expected if self.expected is not None else pd.DataFrame(columns=[K.CV_PCC, K.CV_PCC_SD, K.CV_PCC_N])
        return var.join(seen.astype(float))

    def describe(self) -> dict[str, Any]:
        """What made these predictions: model, recipe, view, encoder with its licence, training patients."""
        return describe(self)

    @property
    def units(self) -> str:
        """What a prediction is, in words."""
        fitted, _ = self.ready()
        return "expected counts at the median library" if self.spec.counts else fitted.view.target.units

    def save(self, dir: str | Path) -> None:
        """Writes a folder of safetensors and JSON, whole or not at all; `load_predictor` reads it."""
        write_folder(Path(dir), self.describe(), self.tensors(), self.expected)

    def tensors(self) -> dict[str, Tensor]:
        """All that was learnt in numbers, by the names under which it is saved."""
        fitted, module = self.ready()
        tensors = {f"module/{key}": value for key, value in module.state_dict().items()}
        for key in STATISTICS:
            if getattr(fitted, key) is not None:
                tensors[f"view/{key}"] = torch.from_numpy(getattr(fitted, key))
        if self.first is not None:
            tensors |= {f"first/{key}": value for key, value in self.first.tensors().items()}
        return tensors

    # -- inside -------------------------------------------------------------------------------------------------

    def ready(self) -> tuple[FittedView, nn.Module]:
        if self.fitted is None or self.module is None:
            raise ValueError(f"model {self.model!r} was not fitted; call fit(cohort) or load_predictor(folder) first")
        return self.fitted, self.module

    def _feed(
        self, cohort: Cohort, features: Features | None = None, filled: dict[str, np.ndarray] | None = None
    ) -> Feed:
        """Batches of a cohort, which is embedded if its features are not given; `filled` is learnt in place of gaps."""
        assert self.fitted is not None
        check_sections(self.spec, cohort)
        return Feed(
            self.fitted,
            cohort,
            self._embed(cohort) if features is None else features,
            self.needs,
            device=self.device,
            hops=self.spec.hops,
            zeros=self.spec.zeros,
            filled=filled,
            sequencing=self.spec.sequencing,
        )

    def _fill(self, train: Cohort) -> dict[str, np.ndarray] | None:
        """The training sections as another model, fitted on them, completes them, where this one learns from that."""
        filled, spec = None, self.spec
        if spec.filler is not None:
            plain = replace(self.view, target=replace(self.view.target, delta=False))
            filler = Learner(
                spec.filler.text, plain, self.store, recipe=spec.filler.recipe, seed=self.seed, device=self.device,
                checkpoint=self.checkpoint and self.checkpoint / "layer", progress=self.progress,
            ).fit(train)  # fmt: skip
            filled = filled_values(filler, train)
        if not spec.zeros and self.fitted is not None and self.fitted.center is not None:
            self.fitted = replace(self.fitted, center=center_of(self.fitted, train, spec, filled))
        return filled

    def _embed(self, cohort: Cohort) -> Features:
        """Features of a cohort, by the weights that the model was fitted with and no others."""
        if self.first is not None:
            return self.first.stage(cohort)
        if self.encoder_digest is not None and self.embeds:
            found = self.view.make_encoder(self.device).digest
            if found != self.encoder_digest:
                raise ValueError(
                    f"model {self.model!r} was fitted on encoder {self.view.encoder!r} with weights "
                    f"{self.encoder_digest[:12]}…, but these are {found[:12]}…; give the same weights (`--weights`)"
                )
        return self.view.embed(cohort, self.needs, self.store, device=self.device, progress=self.progress)

    @property
    def embeds(self) -> bool:
        """Whether the frozen encoder is read by this stage itself."""
        return self.first is None and bool(self.needs & FROZEN)

    def build(self, width: int) -> nn.Module:
        """The model before it learns, for embeddings of a width; the fitted view says for how many genes."""
        assert self.fitted is not None
        dims = Dims(genes=len(self.fitted.genes.genes), emb=width, shared=len(self.view.shared))
        return create(self.name, dims, **self.spec.args).to(self.device)  # type: ignore[attr-defined]

    def _start_trunk(self, module: nn.Module) -> None:
        if self.trunk_weights is None:
            return
        trunk = getattr(module, "trunk", None)
        if trunk is None:
            raise ValueError(
                f"model {self.model!r} has no trainable trunk to load {self.trunk_weights!r} into; use "
                "trunk=trainable, or leave the weights out"
            )
        trunk.load(read_weights(self.trunk_weights))


def _names(section: Section) -> pd.Index:
    """Names of a section's spots in predictions."""
    return pd.Index(section.id + "/" + section.spots.obs_names.astype(str), dtype=object)
