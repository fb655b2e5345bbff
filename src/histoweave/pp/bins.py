"""Pseudo-spots: the cells of a section summed into square bins."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import sparse

from histoweave import _keys as K
from histoweave.data.section import Section, make_section
from histoweave.pp.lattice import lattice

_SUMMED = (K.LIBRARY, K.CONTROL_COUNTS)  # columns that are totals of counts


def bins(section: Section, um: float = 55.0) -> Section:
    """The cells of a section summed into square bins, as a section of its own beside the cells.

    Bins start at the upper left corner of the image, so two sections on one image share them; bins without a cell are
    left out.

    Parameters
    ----------
    section
        Cells (platform ``"xenium"``), with µm per px known.
    um
        Side of a bin in µm: 55 is the diameter of a Visium spot, 100 the pitch of Visium.

    Returns
    -------
    Section
        With the id ``"<id>-<um>um"``, patient, image and µm per px of the cells, and platform ``"visium_hd"``, whose spots
        lie on a square lattice of any pitch. Rows are sorted by lattice position; ``array_rc`` is the bin's (row, column)
        and ``xy`` its centre, at the lower and right edge of an image the centre of the part within it. In ``obs``:
        ``cells``, how many cells were summed, and the sums of ``library`` and ``control_counts``. Other columns have no
        meaning for a sum and are left out.

    Raises
    ------
    ValueError
        A side that is no positive number, µm per px that are unknown, or a section whose rows are no cells.

    Examples
    --------
    >>> import numpy as np
    >>> from histoweave.data.section import make_section
    >>> cells = make_section(id="A", patient="p", counts=np.eye(3), genes=["G1", "G2", "G3"], platform="xenium",
    ...                      um_per_px=0.5, xy=[[10.0, 10.0], [100.0, 30.0], [130.0, 10.0]])
    >>> spots = bins(cells, um=55)
    >>> spots.id, spots.array_rc.tolist(), spots.spots.X.toarray().tolist()
    ('A-55um', [[0, 0], [0, 1]], [[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    """
    if isinstance(um, bool) or not (np.isfinite(um) and um > 0):
        raise ValueError(f"um={um!r}: the side of a bin has to be a positive number of µm, such as 55")
    if section.platform == "reference" or lattice(section.platform) is not None:
        raise ValueError(
            f"section {section.id!r} is of platform {section.platform!r}; bins are made of cells, so of a section of "
            "platform 'xenium'"
        )
    if section.um_per_px is None:
        raise ValueError(f"section {section.id!r} does not know its µm per px, so a bin has no size; give `um_per_px`")
    side = um / section.um_per_px  # px
    column, row = np.floor(section.xy / side).astype(np.int64).T
    cells, at = np.unique(np.column_stack([row, column]), axis=0, return_inverse=True)
    n, m = section.n, len(cells)
    member = sparse.csr_matrix((np.ones(n, dtype=np.float32), (at.ravel(), np.arange(n))), shape=(m, n))
    # Sums of float32 are exact up to 2^24 counts of one gene in one bin.
    summed = pd.DataFrame({K.CELLS: np.bincount(at.ravel(), minlength=m)})
    for name in _SUMMED:
        if name in section.spots.obs:
            totals = section.spots.obs[name].to_numpy(dtype=np.float64)
            summed[name] = np.bincount(at.ravel(), weights=totals, minlength=m)
    return make_section(
        id=f"{section.id}-{um:g}um",
        patient=section.patient,
        counts=member @ sparse.csr_matrix(section.spots.X),
        genes=section.genes.tolist(),
        xy=_centres(cells, side, section),
        platform="visium_hd",
        um_per_px=section.um_per_px,
        image=section.image,
        array_rc=cells,
        names=[f"{r}x{c}" for r, c in cells.tolist()],
        obs=summed,
    )


def _centres(cells: np.ndarray, side: float, section: Section) -> np.ndarray:
    """Centres (m, 2) of bins, (x, y) in px; a bin cut by the edge of the image has that of the part within."""
    low = cells[:, ::-1] * side
    high = low + side
    if section.image is not None:
        high = np.minimum(high, np.asarray(section.image.size, dtype=np.float64))
    return np.asarray((low + high) / 2)
