"""What the commands do, as functions of a cohort and settings; the command line only parses and prints."""

from histoweave.commands._bench import bench, make_benchmark
from histoweave.commands._fit import fit, predict
from histoweave.commands._spared import SparedRun, run_spared
from histoweave.commands._suite import SuiteRun, run_suite
from histoweave.commands._tonsil import TonsilRun, run_tonsil

__all__ = [
    "SparedRun",
    "SuiteRun",
    "TonsilRun",
    "bench",
    "fit",
    "make_benchmark",
    "predict",
    "run_spared",
    "run_suite",
    "run_tonsil",
]
