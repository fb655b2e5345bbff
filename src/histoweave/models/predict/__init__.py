"""Histology → expression: one paper, one file."""
