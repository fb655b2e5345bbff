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
    "Cohort": "histoweave.data.section:Cohort",
    "Section": "histoweave.data.section:Section",
    "make_section": "histoweave.data.section:make_section",
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
