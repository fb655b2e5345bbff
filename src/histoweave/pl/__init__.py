"""Figures: maps over a section, and scores of models. Every function returns a matplotlib `Figure` and shows nothing."""

from histoweave.pl.maps import Plate, error_map, marker_map
from histoweave.pl.scores import ceiling_scatter, patient_dots

__all__ = ["Plate", "ceiling_scatter", "error_map", "marker_map", "patient_dots"]
