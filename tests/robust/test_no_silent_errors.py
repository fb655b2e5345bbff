"""Errors that would give wrong numbers without a word: rows out of order, columns that do not agree, stale cells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch

from histoweave import _keys as K
from histoweave.bench._digest import section_digest
from histoweave.bench.benchmark import Benchmark
from histoweave.bench.summary import summarise
from histoweave.data.phantom import Phantom
from histoweave.data.section import Cohort, Section
from histoweave.data.split import leave_one_out
from histoweave.data.store import Store
from histoweave.models import model_class
from histoweave.train import Learner, Recipe
from histoweave.train.regions import regions
from histoweave.view import View, _encoder


def wide(section: Section) -> Section:
    """The section with its spots in an order of no lattice axis."""
    return section.with_spots(section.spots[np.random.default_rng(0).permutation(section.n)].copy())


def test_predictions_keep_the_order_of_the_spots(small: Phantom, view: View, shared_store: Store) -> None:
    """Also of a section that is larger than any of the training sections, and hence predicted region by region."""
    train, test = small.cohort[0], wide(small.cohort[1])
    train = train.with_spots(train.spots[:30].copy())
    recipe = Recipe(name="quick", epochs=1, args=model_class("triplex").tiny())
    learner = Learner("triplex", view, shared_store, recipe=recipe).fit(Cohort([train]))
    learner.max_context = 20
    assert len(list(learner.stream(test))) > 1
    made = learner.predict(Cohort([small.cohort[2], test]))
    names = [f"{s.id}/{name}" for s in (small.cohort[2], test) for name in s.spots.obs_names]
    assert list(made.obs_names) == names
    assert np.array_equal(made.obsm[K.SPATIAL], np.concatenate([small.cohort[2].xy, test.xy]))


def test_regions_alone_are_out_of_order() -> None:
    """What the test above rests on: regions, one after the other, do not list the spots in their order."""
    rc = np.random.default_rng(0).permutation(np.stack(np.meshgrid(range(12), range(30)), axis=-1).reshape(-1, 2))
    listed = np.concatenate([rows[core] for rows, core in regions(rc, 100)])
    assert np.array_equal(np.sort(listed), np.arange(len(rc))) and not np.array_equal(listed, np.arange(len(rc)))


@pytest.mark.parametrize("panel", ["top-mean:10", "hvg:6"])
def test_members_of_an_ensemble_predict_the_same_genes(
    small: Phantom, view: View, shared_store: Store, tmp_path: Path, panel: str
) -> None:
    """Each member sees other patients, so a panel of its own would put other genes into the same column."""
    run = Benchmark(
        name="ensemble",
        cohort=small.cohort,
        splits=tuple(leave_one_out(small.cohort)[:1]),
        view=replace(view, panel=panel),
        models=("mean",),
        controls=(),
        recipe="tiny",
        ensemble=2,
    )
    (cell,) = run.run(tmp_path, shared_store)
    made = anndata.read_h5ad(cell.folder / "prediction.h5ad")
    train = small.cohort.subset(cell.split.train)
    means = {}
    for section in train:
        fitted = run.fitted_view().fit(Cohort([section]))
        fitted = replace(fitted, genes=replace(fitted.genes, genes=tuple(made.var_names)))
        y, mask = fitted.truth(section)
        means[section.patient] = (y * mask).sum(axis=0) / mask.sum(axis=0)
    assert cell.card()["fits"] == 2
    np.testing.assert_allclose(made.X[0], np.mean(list(means.values()), axis=0), rtol=1e-5)


def test_a_cell_follows_what_the_target_divides_by(small: Phantom) -> None:
    section = small.cohort[0]
    other = section.spots.copy()
    other.obs[K.SIZE_FACTOR] = other.obs[K.SIZE_FACTOR] * 2
    assert section_digest(section.with_spots(other)) != section_digest(section)


def test_a_cell_follows_the_weights_of_the_encoder(small: Phantom, view: View, tmp_path: Path) -> None:
    """A file of the same name with other content is another encoder; a model without an encoder does not care."""
    from safetensors.torch import save_file

    from histoweave.embed import create_encoder

    state = create_encoder("resnet18", weights="random", px=32).trunk.net.state_dict()
    state = {key: value.contiguous() for key, value in state.items()}
    file = tmp_path / "weights.safetensors"
    run = Benchmark(
        name="weights",
        cohort=small.cohort,
        splits=tuple(leave_one_out(small.cohort)[:1]),
        view=replace(view, encoder="resnet18", weights=str(file)),
        models=("mean", "ridge"),
        controls=(),
        recipe="tiny",
    )
    found = []
    for factor in (1.0, 1.5):
        save_file(state | {"bn1.weight": state["bn1.weight"] * factor}, file)
        _encoder.cache_clear()  # as in a new process
        found.append({cell.model: cell.folder.name for cell in run.cells(tmp_path)})
    assert found[0]["ridge"] != found[1]["ridge"] and found[0]["mean"] == found[1]["mean"]


def test_a_renamed_benchmark_is_one_table(small: Phantom, view: View, shared_store: Store, tmp_path: Path) -> None:
    """Cells that were finished under another name are compared with new ones."""
    run = Benchmark(
        name="first",
        cohort=small.cohort,
        splits=tuple(leave_one_out(small.cohort)),
        view=view,
        models=("ridge",),
        controls=(),
        recipe="tiny",
    )
    run.run(tmp_path, shared_store)
    run = replace(run, name="second", models=("ridge", "mean"))
    report = summarise(run, run.run(tmp_path, shared_store), tmp_path)
    assert set(report.rows["benchmark"]) == {"second"}
    assert list(report.tests["model"]) == ["mean"]


def test_shuffled_expression_is_that_of_measured_spots(small: Phantom, view: View) -> None:
    """The zero that stands for a spot without counts is nobody's expression."""
    from histoweave.batch import Batch, Dims

    model = model_class("shuffled")(Dims(genes=2, emb=3))
    mask = torch.ones(6, 2, dtype=torch.bool)
    mask[[1, 4]] = False
    y = torch.arange(1.0, 13.0).view(6, 2) * mask
    batch = Batch(spot=torch.arange(6), section=torch.zeros(6, dtype=torch.long), y=y, y_mask=mask)
    rows = mask.all(dim=1)
    moved, counts = model.target(batch)
    target = moved[rows]
    assert torch.equal(counts, mask)
    assert torch.equal(target.sort(dim=0).values, y[rows].sort(dim=0).values) and not torch.equal(target, y[rows])
