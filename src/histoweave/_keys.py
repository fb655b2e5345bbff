"""Every name under which histoweave writes into an AnnData object, in one place."""

SPATIAL = "spatial"  # obsm: level-0 pixel centres (x, y)
ROW, COL = "array_row", "array_col"  # obs: lattice coordinates
LIBRARY = "library"  # obs: total counts per spot over all genes
SIZE_FACTOR = "size_factor"  # obs: given size factors (targets with library="given")
LABEL = "label"  # obs: a pathologist's annotation
GROUP = "group"  # obs of a reference: type or cluster of each cell
CELLS = "cells"  # obs of pseudo-spots: how many cells were summed
CONTROL_COUNTS = "control_counts"  # obs: total counts of the negative controls, which are never among the genes
CONTROLS = "controls"  # uns of sections: names of the negative controls
HIDDEN = "hidden"  # layers: which entries of X were hidden from a model
COUNTS, MEASURED = "counts", "measured"  # layers of what was completed: raw counts, and which entries were measured

SECTION, PATIENT = "section", "patient"  # obs of predictions
FOLD, SPLIT = "fold", "split"  # obs of stored benchmark predictions
UNS = "histoweave"  # uns: units, card and provenance
OWN = "own"  # layer of a benchmark's predictions: what an imputer gave, before it was brought to the common scale
SPREAD = "spread"  # layers of what was imputed: standard deviation over neighbours, or over occurrences of a cell
CV_PCC, CV_PCC_SD, CV_PCC_N = "cv_pcc", "cv_pcc_sd", "cv_pcc_n"  # var: expected accuracy per gene

# Layers of the SpaRED pipeline: a base, and in front of it what was done to it, outermost first ("c_d_log1p").
TPM, CPM, LOG1P, DELTAS, MASK = "tpm", "cpm", "log1p", "deltas", "mask"  # mask: True where a value is measured
FILLED, COMPLETED, ADJUSTED, NOISY = "d_", "t_", "c_", "noisy_"  # by medians; by a model; by ComBat; gaps put back
AVERAGE, MORAN = "_avg_exp", "_moran"  # var, after the name of a layer: mean over training spots; mean Moran's I
LEAST_SEEN, SEEN = "exp_frac", "glob_exp_frac"  # var: share of spots with a count, in the worst section and in all
EXON_LENGTH = "merged_exon_length"  # var: base pairs that the exons of a gene cover
