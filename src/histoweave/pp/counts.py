"""`Target`: what a model is asked to predict, as an object that is stored, printed and, where possible, inverted."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from types import MappingProxyType
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
from scipy import sparse

from histoweave.pp.neighbors import grid8, hex_hops
from histoweave.pp.smooth import smooth

_LN = MappingProxyType({"e": 1.0, "10": float(np.log(10)), "2": float(np.log(2)), "none": 0.0})
_LIBRARY_WORDS = MappingProxyType(
    {"panel": "panel total", "all": "total over all genes", "given": "given size factor", "none": "1"}
)


class NotInvertible(ValueError):
    """Counts cannot be computed back from these values; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Counts of the panel → values to predict.

    With c the count of a gene, L what `library` names, and G the number of genes of the cohort:

    - ``form="scaled"``: log(scale · c / L + pseudo)
    - ``form="additive"``: log(scale · (c + pseudo) / (L + pseudo · G)), defined for a spot without counts too

    Attributes
    ----------
    library
        ``panel``: the spot's sum over the panel, computed from the counts given; ``all``: its total over all genes;
        ``given``: a size factor that comes with the data; ``none``: nothing, counts stay as they are (``form="scaled"``).
    log
        Base of the logarithm: ``"10"``, ``"e"``, ``"2"``, or ``"none"``.
    smooth
        After the logarithm, the mean of a spot and its existing neighbours: ``grid8`` (3 × 3 in array coordinates; on
        Visium's staggered columns that is the spot and its 4 diagonal neighbours, as in the papers) or ``hex1`` (the
        spot and the 6 spots round it, for Visium). ``none``: no smoothing.
    empty
        What a spot is worth that has no counts to divide by. ``mask``: nothing: it is not scored and enters no
        neighbour's mean. ``zero``: 0 before smoothing, also in its neighbours' means; it is scored where only the panel
        is silent in it, and masked where the whole spot is empty (`library` = 0), because then nothing was measured.
    delta
        Models learn the difference from the training mean of each gene (Δ of SEPAL and SpaRED). What they predict has
        that mean added back, so predictions and scores keep their units.
    n_genes
        G, where `form` needs it; set by `bind` when a view is fitted.

    Notes
    -----
    ``empty="zero"`` is what scprep's library normalisation gives, which TRIPLEX, HisToGene and Hist2ST call, so the
    presets of these use it: published numbers count such spots as zeros.
    """

    library: Literal["panel", "all", "given", "none"] = "all"
    form: Literal["scaled", "additive"] = "scaled"
    scale: float = 1e4
    pseudo: float = 1.0
    log: Literal["10", "e", "2", "none"] = "e"
    smooth: Literal["none", "grid8", "hex1"] = "none"
    empty: Literal["mask", "zero"] = "mask"
    delta: bool = False
    n_genes: int | None = None

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name in ("library", "form", "log", "smooth", "empty"):
            value, allowed = getattr(self, name), get_args(hints[name])
            if value not in allowed:
                raise ValueError(f"target: {name}={value!r}; expected one of {', '.join(map(repr, allowed))}")
        if not (np.isfinite(self.scale) and self.scale > 0):
            raise ValueError(f"target: scale={self.scale!r}; expected a number above 0")
        if not (np.isfinite(self.pseudo) and self.pseudo >= 0):
            raise ValueError(f"target: pseudo={self.pseudo!r}; expected 0 or more")
        if self.library == "none" and self.form == "additive":
            raise ValueError("target: form='additive' divides by the library, and library='none' has none; use 'scaled'")
        if self.log != "none" and self.pseudo == 0:
            raise ValueError(
                "target: pseudo=0 under a logarithm makes counts of 0 minus infinity; use pseudo=1 or log='none'"
            )
        if self.log == "none" and self.form == "scaled" and self.pseudo != 0:
            raise ValueError(f"target: pseudo={self.pseudo:g} without a logarithm only shifts all values; use pseudo=0")
        if self.n_genes is not None and self.n_genes < 1:
            raise ValueError(f"target: n_genes={self.n_genes}; expected 1 or more")

    @classmethod
    def preset(cls, name: str) -> Target:
        """The target of a publication; an unknown name is a `ValueError` with the nearest match."""
        if name not in PRESETS:
            raise ValueError(f"target {name!r} is unknown; {_nearest(name, PRESETS)}")
        return PRESETS[name]

    @classmethod
    def parse(cls, text: str) -> Target:
        """A preset with changes, as it is written on a command line.

        Examples
        --------
        >>> Target.parse("triplex-paper[smooth=none,scale=1e6]").scale
        1000000.0
        """
        name, bracket, rest = text.strip().partition("[")
        target = cls.preset(name.strip())
        if not bracket:
            return target
        if not rest.endswith("]"):
            raise ValueError(f"target {text!r}: the bracket does not end in ']'; write preset[field=value,field=value]")
        changes: dict[str, Any] = {}
        for part in filter(None, (piece.strip() for piece in rest[:-1].split(","))):
            field, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or field in changes:
                raise ValueError(f"target {text!r}: {part!r} is not a first field=value")
            changes[field] = _read(field, value)
        return replace(target, **changes)

    def __str__(self) -> str:
        """The text that `parse` reads back: the nearest preset, and what differs from it."""
        mine = asdict(self)

        def differs(name: str) -> list[str]:
            theirs = asdict(PRESETS[name])
            return [f"{key}={mine[key]}" for key in mine if mine[key] != theirs[key]]

        name = min(PRESETS, key=lambda preset: len(differs(preset)))
        changes = ",".join(differs(name))
        return f"{name}[{changes}]" if changes else name

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-safe values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Target:
        """The target of `to_dict`; an unknown field is a `ValueError`."""
        for key in values:
            _check_field(key)
        return cls(**values)

    @property
    def units(self) -> str:
        """What a value is, in words."""
        word = _LIBRARY_WORDS[self.library]
        share = "count" if self.library == "none" else f"count / {word}"
        if self.form == "additive":
            total = "number of genes" if self.n_genes is None else str(self.n_genes)
            added = "" if self.pseudo == 1 else f"{self.pseudo:g} × "
            inner = f"(count + {self.pseudo:g}) / ({word} + {added}{total})"
            inner = inner if self.scale == 1 else f"{self.scale:g} × {inner}"
        else:
            inner = share if self.scale == 1 else f"{self.scale:g} × {share}"
            inner = inner if self.pseudo == 0 else f"{inner} + {self.pseudo:g}"
        if self.log != "none":
            inner = {"e": "ln", "10": "log10", "2": "log2"}[self.log] + f"({inner})"
        return inner + {"none": "", "grid8": ", mean over 3 × 3 spots", "hex1": ", mean over 7 spots"}[self.smooth]

    def bind(self, n_genes: int) -> Target:
        """The target with the number of genes of the training cohort, where its form needs one and has none."""
        return replace(self, n_genes=int(n_genes)) if self.form == "additive" and self.n_genes is None else self

    def neighbors(self, array_rc: np.ndarray | None) -> np.ndarray | None:
        """The neighbour table (n, k) that `transform` smooths over; None where it does not smooth.

        Raises
        ------
        ValueError
            Smoothing is asked for and there are no lattice coordinates.
        """
        if self.smooth == "none":
            return None
        if array_rc is None:
            raise ValueError(
                f"target '{self}' smooths over array coordinates, and there are none; use smooth=none, or "
                "derive them from the positions with `derive_array`"
            )
        return grid8(array_rc) if self.smooth == "grid8" else hex_hops(array_rc, 1)

    def transform(
        self, counts: Any, library: np.ndarray, nbr: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Values to predict, and which spots have one.

        Parameters
        ----------
        counts
            Raw counts of the panel (n, g), dense or sparse.
        library
            Total per spot over all genes (n,); the size factors with ``library="given"``. With ``library="panel"`` it
            only tells which spots are empty as a whole.
        nbr
            Neighbour table (n, k); read only where the target smooths.

        Returns
        -------
        y, ok
            (n, g) float32, finite everywhere, and (n,) bool. Where not `ok`, y is 0 and means nothing.

        Raises
        ------
        ValueError
            Shapes that do not agree, negative or missing counts, a missing library or neighbour table.
        """
        dense, library = _checked(counts, library)  # (n, g) float64 of our own, (n,)
        base = self._base(dense, library)
        if self.form == "additive":
            dense += self.pseudo
        filled = base > 0
        dense *= (self.scale / np.where(filled, base, 1.0))[:, None]
        if self.form == "scaled":
            dense += self.pseudo
        if self.log != "none":
            np.log(dense, out=dense)
            dense *= 1.0 / _LN[self.log]
        # A spot that only its pseudo counts fill has a value, but nothing was measured in it.
        silent = ~filled | (library == 0)
        dense[silent] = 0.0
        ok = library > 0 if self.empty == "zero" else ~silent
        if self.smooth != "none":
            if nbr is None:
                raise ValueError(f"target '{self}' needs a neighbour table; build it with `Target.neighbors(array_rc)`")
            dense = smooth(dense, nbr, use=None if self.empty == "zero" else ok)
            dense[~ok] = 0.0
        return dense.astype(np.float32), ok

    def inverse(self, y: np.ndarray, library: np.ndarray) -> np.ndarray:
        """Expected counts (n, g), float64, for spots whose divisor is known; below 0 is cut off.

        Parameters
        ----------
        y
            Values of this target (n, g).
        library
            What the counts were divided by (n,): the panel's own total with ``library="panel"``; not read with ``"none"``.

        Raises
        ------
        NotInvertible
            The target smooths.
        ValueError
            Shapes that do not agree.
        """
        if self.smooth != "none":
            raise NotInvertible(
                f"target '{self}' is a mean over neighbouring spots after the logarithm, from which "
                "the counts of one spot cannot be told. Train on smooth=none to get counts back"
            )
        y, library = np.asarray(y, dtype=np.float64), np.asarray(library, dtype=np.float64)
        if y.ndim != 2 or library.shape != (len(y),):
            raise ValueError(f"values have shape {y.shape} and the library {library.shape}; expected (n, g) and (n,)")
        counts = y if self.log == "none" else np.exp(y * _LN[self.log])
        if self.library == "none":
            library = np.ones(len(y))
        if self.form == "scaled":
            counts = (counts - self.pseudo) * (library / self.scale)[:, None]
        else:
            counts = counts * ((library + self._pseudo_total()) / self.scale)[:, None] - self.pseudo
        return np.maximum(counts, 0.0)

    def _base(self, counts: np.ndarray, library: np.ndarray) -> np.ndarray:
        """What each spot is divided by (n,)."""
        if self.library == "none":
            return np.ones(len(counts))
        base = counts.sum(axis=1) if self.library == "panel" else library
        return base + self._pseudo_total() if self.form == "additive" else base

    def _pseudo_total(self) -> float:
        if self.n_genes is None:
            raise ValueError(
                f"target '{self}' divides by total + number of genes, which is not known yet; set it with "
                "`bind(n_genes)`, from the training cohort"
            )
        return self.pseudo * self.n_genes


def _checked(counts: Any, library: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    library = np.asarray(library, dtype=np.float64)
    dense = counts.toarray() if sparse.issparse(counts) else np.asarray(counts)
    if dense.ndim != 2 or library.shape != (len(dense),):
        raise ValueError(f"counts have shape {dense.shape} and the library {library.shape}; expected (n, g) and (n,)")
    dense = dense.astype(np.float64)
    if dense.size and not (np.isfinite(dense).all() and dense.min() >= 0):
        raise ValueError("counts are negative, NaN or infinite; expected raw counts")
    if not (np.isfinite(library).all() and (library >= 0).all()):
        bad = np.flatnonzero(~(np.isfinite(library) & (library >= 0)))
        raise ValueError(
            f"the library is missing or negative for {len(bad)} of {len(library)} spots (first: "
            f"spot {bad[0]}); expected one total or size factor of 0 or more per spot. Spots whose counts "
            "are hidden have none"
        )
    return dense, library


def _nearest(name: str, among: Any) -> str:
    match = difflib.get_close_matches(name, list(among), n=1, cutoff=0.4)
    hint = f"did you mean {match[0]!r}? " if match else ""
    return f"{hint}there are {', '.join(map(repr, among))}"


def _check_field(name: str) -> None:
    known = [field.name for field in fields(Target)]
    if name not in known:
        raise ValueError(f"target: there is no field {name!r}; {_nearest(name, known)}")


def _read(field: str, value: str) -> Any:
    """The value of a field from its text."""
    _check_field(field)
    try:
        if field in ("scale", "pseudo"):
            return float(value)
        if field == "n_genes":
            return None if value == "None" else int(value)
        if field == "delta":
            return {"true": True, "on": True, "false": False, "off": False}[value.lower()]
    except KeyError:
        raise ValueError(f"target: {field}={value!r}; expected on or off") from None
    except ValueError:
        raise ValueError(f"target: {field}={value!r} is not a number") from None
    return value


PRESETS: Mapping[str, Target] = MappingProxyType(
    {
        # Chung et al. 2024 and the code of that year; log10 and the panel's own sum are what its numbers fit.
        "triplex-paper": Target(library="panel", log="10", smooth="grid8", empty="zero"),
        # The rewritten code of 2025: natural logarithm, else the same. MSE grows by ln(10)² = 5.30.
        "triplex-2025": Target(library="panel", log="e", smooth="grid8", empty="zero"),
        # He et al. 2020: ln((count + 1) / (total over all genes + number of genes)).
        "stnet": Target(library="all", form="additive", scale=1.0, log="e"),
        # Pang et al. 2021; also Hist2ST.
        "histogene": Target(library="panel", log="10", empty="zero"),
        # xMINT: counts over their sum over the genes to be imputed.
        "share": Target(library="panel", scale=1.0, pseudo=0.0, log="none"),
        "log1p-cpm": Target(library="all", scale=1e6, log="e"),
        # Size factors that are known, as in a simulation: ln(count / size factor + 1).
        "log1p-given": Target(library="given", scale=1.0, log="e"),
        # Anand et al.: ln(count + 1); whether counts were divided first is not said, and the size of its errors says not.
        "log1p-counts": Target(library="none", scale=1.0, log="e"),
    }
)
