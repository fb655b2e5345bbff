"""What every test may use: small phantom cohorts, a store, and a view with the smallest encoder."""

from __future__ import annotations

from pathlib import Path

import pytest

from histoweave.data.image import Window
from histoweave.data.phantom import Phantom, phantom
from histoweave.data.store import Store
from histoweave.pp.counts import Target
from histoweave.view import View


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tests run side by side; more threads would only fight."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small() -> Phantom:
    """Three patients with a few dozen spots each."""
    genes = {"local": 4, "neighbourhood": 2, "global": 2, "noise": 8}
    return phantom(n_patients=3, spots=(8, 8), genes=genes, um_per_px=200 / 32, seed=3)


@pytest.fixture(scope="session")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One store for all tests of a worker: embeddings are made once."""
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty store."""
    return Store(tmp_path / "store")


@pytest.fixture(scope="session")
def view() -> View:
    """A view that embeds in milliseconds."""
    return View(
        target=Target.preset("log1p-given"), panel="top-mean:10", encoder="tiny", window=Window(um=200.0, out=32)
    )
