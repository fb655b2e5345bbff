"""What a section is, in one number, so that a finished cell is taken only for the data it was made of."""

from __future__ import annotations

import hashlib

import numpy as np

from histoweave import _keys as K
from histoweave._repro import digest
from histoweave.data.section import Section


def section_digest(section: Section) -> str:
    """Digest of everything in a section that a result can depend on."""
    counts = section.spots.X.tocsr().sorted_indices()
    arrays = [counts.data, counts.indices.astype(np.int64), counts.indptr.astype(np.int64), section.xy, section.library]
    if section.array_rc is not None:
        arrays.append(section.array_rc)
    if K.SIZE_FACTOR in section.spots.obs:
        arrays.append(section.spots.obs[K.SIZE_FACTOR].to_numpy(dtype=np.float64))
    return digest(
        {
            "id": section.id,
            "patient": section.patient,
            "platform": section.platform,
            "um_per_px": section.um_per_px,
            "genes": list(section.genes),
            "arrays": [digest_array(a) for a in arrays],
            "image": None if section.image is None else section.image.digest,
        }
    )


def digest_array(array: np.ndarray) -> str:
    """SHA-256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
