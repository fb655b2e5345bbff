"""histoweave fills in the spatial gene expression that a tissue section does not show.

It predicts expression from histology, completes what an assay dropped, and imputes genes that a panel never measured.
Public names are loaded when they are first used, so that ``import histoweave`` stays cheap and loads no torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> where it lives: "module" for a namespace, "module:name" for an object.
_PUBLIC = {
    "bench": "histoweave.bench",
    "data": "histoweave.data",
    "embed": "histoweave.embed",
    "models": "histoweave.models",
    "pl": "histoweave.pl",
    "pp": "histoweave.pp",
    # data
    "Cohort": "histoweave.data.section:Cohort",
    "Section": "histoweave.data.section:Section",
    "SlideImage": "histoweave.data.image:SlideImage",
    "Store": "histoweave.data.store:Store",
    "Window": "histoweave.data.image:Window",
    "load_dataset": "histoweave.data.catalog:load",
    "make_section": "histoweave.data.section:make_section",
    "phantom": "histoweave.data.phantom:phantom",
    "read_cohort": "histoweave.data.io:read_cohort",
    "read_reference": "histoweave.data.io:read_reference",
    # splits and what is hidden
    "Holdout": "histoweave.data.holdout:Holdout",
    "Split": "histoweave.data.split:Split",
    "external_split": "histoweave.bench.external:external_split",
    "prefixed": "histoweave.bench.external:prefixed",
    "from_table": "histoweave.data.split:from_table",
    "k_fold": "histoweave.data.split:k_fold",
    "leave_one_out": "histoweave.data.split:leave_one_out",
    # how a cohort is looked at
    "GenePanel": "histoweave.pp.genes:GenePanel",
    "Target": "histoweave.pp.counts:Target",
    "View": "histoweave.view:View",
    "create_encoder": "histoweave.embed.encoders:create_encoder",
    "list_encoders": "histoweave.embed.encoders:list_encoders",
    "list_models": "histoweave.models:list_models",
    "select_panel": "histoweave.pp.genes:select_panel",
    # the verbs; the function behind `histoweave bench` is called benchmark, because bench is a namespace
    "BenchSettings": "histoweave.settings:BenchSettings",
    "FitSettings": "histoweave.settings:FitSettings",
    "PredictSettings": "histoweave.settings:PredictSettings",
    "benchmark": "histoweave.commands:bench",
    "fit": "histoweave.commands:fit",
    "predict": "histoweave.commands:predict",
    "CompleteSettings": "histoweave.settings:CompleteSettings",
    "ImputeSettings": "histoweave.settings:ImputeSettings",
    "complete": "histoweave.filling:complete",
    "impute": "histoweave.filling:impute",
    "run_spared": "histoweave.commands:run_spared",
    "run_suite": "histoweave.commands:run_suite",
    # what they are made of
    "Benchmark": "histoweave.bench.benchmark:Benchmark",
    "Learner": "histoweave.train:Learner",
    "Recipe": "histoweave.train:Recipe",
    "Report": "histoweave.bench.summary:Report",
    "load_predictor": "histoweave.train:load_predictor",
    "predict_section": "histoweave.inference:predict_section",
    "predict_slide": "histoweave.inference:predict_slide",
    "write_html": "histoweave.report:write_html",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    """Load a public name on first use; an unknown one is an error with the nearest match."""
    if name not in _PUBLIC:
        raise AttributeError(_unknown(name))
    module, _, attribute = _PUBLIC[name].partition(":")
    loaded = importlib.import_module(module)
    value = getattr(loaded, attribute) if attribute else loaded
    globals()[name] = value  # the next use does not come here
    return value


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *_PUBLIC})


def _unknown(name: str) -> str:
    """Say which public name was probably meant."""
    import difflib

    near = difflib.get_close_matches(name, _PUBLIC, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else f"; it has: {', '.join(sorted(_PUBLIC))}"
    return f"module 'histoweave' has no '{name}'{hint}"
