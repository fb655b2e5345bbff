"""Imputation: genes that a panel never measured; one paper, one file, and a line in the table of imputers.

Imputers are pure functions from a reference and a target (`histoweave.models.impute._imputed.Imputer`), written like
models: ``spage[n_pv=30]``.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from histoweave.models import check_against, nearest, read_spec
from histoweave.models.impute._imputed import Imputer

_IMPUTERS = {
    "gene-mean": "histoweave.models.impute.controls:GeneMean",
    "knn-expression": "histoweave.models.impute.controls:KnnExpression",
    "ridge-expression": "histoweave.models.impute.controls:RidgeExpression",
    "ridge-shares": "histoweave.models.impute.controls:RidgeShares",
    "pca-knn": "histoweave.models.impute.pca_knn:PcaKnn",
    "spage": "histoweave.models.impute.spage:SpaGE",
    "anchors": "histoweave.models.impute.anchors:Anchors",
    "gimvi": "histoweave.models.impute.gimvi:GimVI",
    "tangram": "histoweave.models.impute.tangram:Tangram",
}


def list_imputers() -> list[str]:
    """Names of all imputers, controls first."""
    return list(_IMPUTERS)


def imputer_class(name: str) -> type[Any]:
    """The class behind a name; an unknown name is a `ValueError` with the nearest match."""
    if name not in _IMPUTERS:
        raise ValueError(f"imputer {name!r} is unknown{nearest(name, list_imputers())}")
    module, _, attribute = _IMPUTERS[name].partition(":")
    return getattr(import_module(module), attribute)


def create_imputer(spec: str, /, **arguments: Any) -> Imputer:
    """The imputer that a text names, with checked arguments; those given by keyword come on top.

    Raises
    ------
    ValueError
        An unknown name or argument, with the nearest match, or a value that the argument cannot have.

    Examples
    --------
    >>> create_imputer("spage[n_pv=30]").n_pv
    30
    """
    name, written = read_spec(spec)
    arguments = written | arguments
    cls = imputer_class(name)
    check_against(cls, f"imputer {name!r}", arguments)
    return cls(**arguments)
