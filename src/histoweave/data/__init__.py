"""Containers and every byte of input and output. numpy, pandas, anndata; no torch."""
