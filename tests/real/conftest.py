"""Where the real data are: `$HISTOWEAVE_DATA`, or the folder `../shared/data` beside the project. Tests skip without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

BESIDE = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of the real data sets."""
    root = Path(os.environ.get("HISTOWEAVE_DATA") or BESIDE)
    if not root.is_dir():
        pytest.skip(f"no real data: neither $HISTOWEAVE_DATA nor '{BESIDE}' is there")
    return root


@pytest.fixture(scope="session")
def her2st_folder(data_root: Path) -> Path:
    """The her2st data set."""
    folder = data_root / "her2st"
    if not folder.is_dir():
        pytest.skip(f"'{folder}' is not there")
    return folder
