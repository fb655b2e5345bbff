"""Figures: maps over a section, cells on their image, scores of models, and the biology of a prediction.

Every function returns a matplotlib `Figure` and shows nothing.
"""

from histoweave.pl.bio import cluster_maps, cluster_scatter, de_dots, normalised_maps, oversmoothing, value_histogram
from histoweave.pl.maps import Plate, error_map, marker_map
from histoweave.pl.overlay import overlay
from histoweave.pl.scores import ceiling_scatter, patient_dots

__all__ = [
    "Plate",
    "ceiling_scatter",
    "cluster_maps",
    "cluster_scatter",
    "de_dots",
    "error_map",
    "marker_map",
    "normalised_maps",
    "overlay",
    "oversmoothing",
    "patient_dots",
    "value_histogram",
]
