"""Preprocessing in numpy and scipy: filters, targets, gene panels, neighbour tables, smoothing, tissue detection."""

from histoweave.pp.bins import bins
from histoweave.pp.combat import Combat
from histoweave.pp.counts import PRESETS, NotInvertible, Target
from histoweave.pp.filter import gene_mask, spot_mask
from histoweave.pp.genes import GenePanel, morans_i, select_panel
from histoweave.pp.lattice import derive_array, lattice, lattice_pitch, pitch
from histoweave.pp.median import median_fill, median_tables
from histoweave.pp.neighbors import edge_distance, grid8, grid_hops, hex_hops, knn, neighbours, radius
from histoweave.pp.real_data import real_data_genes, spared_filter
from histoweave.pp.smooth import mean_operator, smooth
from histoweave.pp.spared import spared
from histoweave.pp.spared_result import SparedResult, add_completed, shared_ranking
from histoweave.pp.tissue import tile_centres, tissue_mask
from histoweave.pp.tpm import log2p1, per_million

__all__ = [
    "PRESETS",
    "Combat",
    "GenePanel",
    "NotInvertible",
    "SparedResult",
    "Target",
    "add_completed",
    "bins",
    "derive_array",
    "edge_distance",
    "gene_mask",
    "grid8",
    "grid_hops",
    "hex_hops",
    "knn",
    "lattice",
    "lattice_pitch",
    "log2p1",
    "mean_operator",
    "median_fill",
    "median_tables",
    "morans_i",
    "neighbours",
    "per_million",
    "pitch",
    "radius",
    "real_data_genes",
    "select_panel",
    "shared_ranking",
    "smooth",
    "spared",
    "spared_filter",
    "spot_mask",
    "tile_centres",
    "tissue_mask",
]
