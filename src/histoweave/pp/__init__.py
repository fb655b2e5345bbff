"""Preprocessing in numpy and scipy: filters, targets, gene panels, neighbour tables, smoothing, tissue detection."""

from histoweave.pp.counts import PRESETS, NotInvertible, Target
from histoweave.pp.filter import gene_mask, spot_mask
from histoweave.pp.genes import GenePanel, morans_i, select_panel
from histoweave.pp.lattice import derive_array, lattice, lattice_pitch, pitch
from histoweave.pp.neighbors import edge_distance, grid8, grid_hops, hex_hops, knn, neighbours, radius
from histoweave.pp.smooth import mean_operator, smooth
from histoweave.pp.tissue import tile_centres, tissue_mask

__all__ = [
    "PRESETS",
    "GenePanel",
    "NotInvertible",
    "Target",
    "derive_array",
    "edge_distance",
    "gene_mask",
    "grid8",
    "grid_hops",
    "hex_hops",
    "knn",
    "lattice",
    "lattice_pitch",
    "mean_operator",
    "morans_i",
    "neighbours",
    "pitch",
    "radius",
    "select_panel",
    "smooth",
    "spot_mask",
    "tile_centres",
    "tissue_mask",
]
