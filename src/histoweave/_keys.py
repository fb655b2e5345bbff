"""Every name under which histoweave writes into an AnnData object, in one place."""

SPATIAL = "spatial"  # obsm: level-0 pixel centres (x, y)
ROW, COL = "array_row", "array_col"  # obs: lattice coordinates
LIBRARY = "library"  # obs: total counts per spot over all genes
SIZE_FACTOR = "size_factor"  # obs: given size factors (targets with library="given")
LABEL = "label"  # obs: a pathologist's annotation
HIDDEN = "hidden"  # layers: which entries of X were hidden from a model

SECTION, PATIENT = "section", "patient"  # obs of predictions
FOLD, SPLIT = "fold", "split"  # obs of stored benchmark predictions
UNS = "histoweave"  # uns: units, card and provenance
CV_PCC, CV_PCC_SD, CV_PCC_N = "cv_pcc", "cv_pcc_sd", "cv_pcc_n"  # var: expected accuracy per gene
