"""The biology of a prediction: does it keep the clusters, the differences and the spatial structure of the truth?"""

from histoweave.bio._part import Part, fdr, parts
from histoweave.bio.clusters import (
    adjusted_rand,
    cluster_error,
    cluster_means,
    leiden,
    log_normalised,
    normalised_mutual_information,
)
from histoweave.bio.de import Agreement, Contrast, agreement, auc, combined, contrast, differential, differential_of
from histoweave.bio.signatures import Signature, read_signatures, score, signature_table, signatures
from histoweave.bio.spatial import (
    autocorrelation,
    rv_coefficient,
    spatial_summary,
    spatial_table,
    spotwise,
    ssim,
    structure,
    variance_ratio,
)
from histoweave.bio.torus import toroidal_test

__all__ = [
    "Agreement",
    "Contrast",
    "Part",
    "Signature",
    "adjusted_rand",
    "agreement",
    "auc",
    "autocorrelation",
    "cluster_error",
    "cluster_means",
    "combined",
    "contrast",
    "differential",
    "differential_of",
    "fdr",
    "leiden",
    "log_normalised",
    "normalised_mutual_information",
    "parts",
    "read_signatures",
    "rv_coefficient",
    "score",
    "signature_table",
    "signatures",
    "spatial_summary",
    "spatial_table",
    "spotwise",
    "ssim",
    "structure",
    "toroidal_test",
    "variance_ratio",
]
