"""Benchmarks: metrics, statistics over patients, and how far a number can be trusted."""
