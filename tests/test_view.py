"""Views: what is learnt from the training cohort, and how embeddings are scaled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from histoweave.batch import Needs
from histoweave.data.phantom import Phantom
from histoweave.data.section import Cohort
from histoweave.data.store import Store
from histoweave.feed import Feed
from histoweave.pp.counts import Target
from histoweave.pp.genes import GenePanel
from histoweave.view import View


def scaled(how: str, small: Phantom, view: View, store: Store, train: int = 2) -> np.ndarray:
    """Embeddings of all sections as a model gets them, after a fit on the first few."""
    view = replace(view, standardize=how)  # type: ignore[arg-type]
    features = view.embed(small.cohort, Needs.EMB, store)
    fitted = view.fit(Cohort(small.cohort[:train]), features)
    feed = Feed(fitted, small.cohort, features, Needs.EMB)
    emb = feed.batch(torch.arange(feed.n)).emb
    assert emb is not None
    return emb.numpy()


def test_standardize(small: Phantom, view: View, shared_store: Store) -> None:
    sizes = np.cumsum([section.n for section in small.cohort])
    raw = scaled("none", small, view, shared_store)
    by_train = scaled("train", small, view, shared_store)
    inside = raw[: sizes[1]]
    np.testing.assert_allclose(by_train, (raw - inside.mean(axis=0)) / inside.std(axis=0), atol=1e-3)
    for how in ("section", "both"):
        made = scaled(how, small, view, shared_store)
        for part in np.split(made, sizes[:-1]):
            np.testing.assert_allclose(part.mean(axis=0), 0, atol=1e-3)
            np.testing.assert_allclose(part.std(axis=0), 1, atol=2e-2)


def test_a_unit_that_hardly_fires_is_not_blown_up(small: Phantom, view: View, shared_store: Store) -> None:
    features = dict(view.embed(small.cohort, Needs.EMB, shared_store))
    for id, found in features.items():
        emb = np.array(found.emb)
        emb[:, 0] = 1e-5 * np.arange(len(emb)) if id == small.cohort[2].id else 0.0
        features[id] = replace(found, emb=emb)
    fitted = view.fit(Cohort(small.cohort[:2]), features)
    assert fitted.scale is not None and fitted.scale[0] == pytest.approx(np.median(fitted.scale) * 1e-2, rel=0.05)


def test_too_few_spots_for_statistics_of_their_own(small: Phantom, view: View, shared_store: Store) -> None:
    section = small.cohort[0]
    few = Cohort([section.with_spots(section.spots[:20].copy())])
    view = replace(view, standardize="section")
    features = view.embed(few, Needs.EMB, shared_store)
    with pytest.raises(ValueError, match=r"at least 50 spots.*has 20.*standardize='train'"):
        Feed(view.fit(few, features), few, features, Needs.EMB)


def test_stain_normalisation_is_another_address(small: Phantom, view: View, shared_store: Store) -> None:
    plain, normal = (
        replace(view, stain=stain).embed(small.cohort, Needs.EMB, shared_store) for stain in ("none", "macenko")
    )
    assert not np.allclose(plain[small.cohort[0].id].emb, normal[small.cohort[0].id].emb)
    with pytest.raises(ValueError, match="'none' or 'macenko'"):
        replace(view, stain="vahadane")


def test_a_view_and_its_dictionary(view: View) -> None:
    panel = GenePanel(("A", "B"), "list:A,B")
    view = replace(view, stain="macenko", standardize="both", target=Target.preset("stnet").bind(100))
    again = View.from_dict(view.to_dict(), panel)
    assert again == replace(view, panel=panel)


def test_statistics_come_from_training_sections(small: Phantom, view: View, shared_store: Store) -> None:
    features = view.embed(small.cohort, Needs.EMB, shared_store)
    fitted = view.fit(Cohort(small.cohort[:1]), features)
    assert fitted.trained_on == (small.cohort[0].patient,) and fitted.genes.trained_on == (small.cohort[0].id,)
    expected = np.asarray(features[small.cohort[0].id].emb, dtype=np.float64)
    np.testing.assert_allclose(fitted.shift, expected.mean(axis=0), atol=1e-6)


def test_truth_masks_spots_without_counts(small: Phantom, view: View) -> None:
    section = small.cohort[0]
    spots = section.spots.copy()
    counts = spots.X.tolil()
    counts[3] = 0
    spots.X = counts.tocsr()
    spots.obs["library"] = np.asarray(spots.X.sum(axis=1)).ravel()
    spots.obs.loc[spots.obs_names[3], "size_factor"] = 0.0
    y, mask = view.fit(small.cohort).truth(section.with_spots(spots))
    assert not mask[3].any() and mask[:3].all() and np.isfinite(y).all()
