"""Completion: what an assay dropped of the genes that it measures; one paper, one file."""
