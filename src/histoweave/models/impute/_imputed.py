"""What an imputer is given and gives back: `Imputer`, `Pair` (checked counts of both sides), `Imputed`.

Letters: n reference cells, c target cells, m shared genes, h imputed genes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from scipy import sparse

from histoweave.batch import Card

PER_CELL = 1e4  # counts that a cell is scaled to before its logarithm
LOG_SCALE = "ln(1 + counts per 10,000), of the total over all genes of the reference"
EMPTY = "target cells without counts"  # key of the notes: how many got the mean of the reference


@dataclass(frozen=True, slots=True)
class Imputed:
    """What was imputed.

    Attributes
    ----------
    values
        (c, h) float32, finite, in the unit that the imputer's `scale` states.
    spread
        (c, h) float32 in the same unit, or None: standard deviation over what was averaged, the neighbours of a cell.
    notes
        What happened on the way, in words and numbers: cells that were filled otherwise, sizes that were found.
    """

    values: np.ndarray
    spread: np.ndarray | None
    notes: dict[str, float]


class Imputer(Protocol):
    """A pure function from a reference and the shared genes of a target to the genes that the target lacks.

    The classes are frozen dataclasses whose fields are the method's arguments.
    """

    scale: ClassVar[str]  # unit of the output, in words
    logarithmic: ClassVar[bool]  # whether that is ln(1 + expression), else expression
    card: ClassVar[Card]

    def __call__(
        self,
        reference: sparse.csr_matrix,
        seen: sparse.csr_matrix,
        *,
        seed: int = 0,
        groups: np.ndarray | None = None,
    ) -> Imputed:
        """Imputes.

        Parameters
        ----------
        reference
            Raw counts (n, m + h); the first m columns are the genes of `seen`, in its order.
        seen
            Raw counts (c, m).
        seed
            Of whatever is drawn.
        groups
            (n,) cell type of each reference cell, for methods that use it.
        """
        ...


@dataclass(frozen=True, slots=True)
class Pair:
    """Checked counts of both sides, without the cells that have none.

    Attributes
    ----------
    reference
        (n, m + h) float64 CSR of the reference cells with a count of any gene.
    seen
        (c, m) float64 CSR of the target cells with a count of a shared gene.
    kept, filled
        Which of the reference cells and target cells given these are, bool.
    """

    reference: sparse.csr_matrix
    seen: sparse.csr_matrix
    kept: np.ndarray
    filled: np.ndarray

    @classmethod
    def of(cls, reference: sparse.csr_matrix, seen: sparse.csr_matrix) -> Pair:
        """Checks and copies; the matrices given are not changed.

        Raises
        ------
        ValueError
            No shared gene, nothing to impute, no cell with counts on a side, or values that are no counts.
        """
        both = {"reference": _counts("reference", reference), "target": _counts("target", seen)}
        m, all_genes = both["target"].shape[1], both["reference"].shape[1]
        if m < 1:
            raise ValueError(
                "the target has no gene of the reference (m = 0), so nothing can be imputed from it; match the genes "
                "of both by one kind of identifier, in one spelling"
            )
        if all_genes <= m:
            raise ValueError(
                f"the reference has {all_genes} genes and the target {m} of them; expected at least one more in the "
                "reference, behind the shared ones, to impute"
            )
        has = {side: np.asarray(counts.sum(axis=1)).ravel() > 0 for side, counts in both.items()}
        for side, cells in has.items():
            if not cells.any():
                genes = "any gene" if side == "reference" else f"the {m} shared genes"
                raise ValueError(f"none of the {len(cells)} {side} cells has a count of {genes}; give raw counts")
        return cls(both["reference"][has["reference"]], both["target"][has["target"]], has["reference"], has["target"])

    @property
    def m(self) -> int:
        """How many genes are shared."""
        return self.seen.shape[1]

    @property
    def h(self) -> int:
        """How many genes are imputed."""
        return self.reference.shape[1] - self.m

    def shared(self) -> sparse.csr_matrix:
        """Counts (n, m) of the shared genes in the reference."""
        return self.reference[:, : self.m]

    def expression(self, per_cell: float = PER_CELL) -> sparse.csr_matrix:
        """`log_normalised` values (n, h) of the genes to impute, over the total of all genes of the reference."""
        return log_normalised(self.reference, per_cell)[:, self.m :]

    def shares(self) -> tuple[sparse.csr_matrix, np.ndarray]:
        """Counts of the genes to impute over their sum (n', h), and which (n,) of the reference cells have any."""
        counts = self.reference[:, self.m :]
        total = np.asarray(counts.sum(axis=1)).ravel()
        has = total > 0
        if not has.any():
            raise ValueError(
                f"none of the {len(has)} reference cells has a count of a gene that is not shared, so none can be imputed; "
                "give a reference in which these genes were measured"
            )
        return sparse.csr_matrix(sparse.diags_array(1 / total[has]) @ counts[has]), has

    def finish(
        self,
        values: np.ndarray,
        spread: np.ndarray | None,
        mean: np.ndarray,
        sd: np.ndarray,
        **notes: float,
    ) -> Imputed:
        """Puts the rows of `seen` (c, h) back among all target cells; those without counts get `mean`, `sd` (h,)."""
        named = {key.replace("_", " "): float(value) for key, value in notes.items()}
        return Imputed(
            self._all_cells(values, mean),
            None if spread is None else self._all_cells(spread, sd),
            {EMPTY: float((~self.filled).sum()), **named},
        )

    def _all_cells(self, table: np.ndarray, rest: np.ndarray) -> np.ndarray:
        whole = np.empty((len(self.filled), self.h), dtype=np.float32)
        whole[self.filled] = table
        whole[~self.filled] = rest
        return whole


def log_normalised(
    counts: sparse.csr_matrix, per_cell: float = PER_CELL, total: np.ndarray | None = None
) -> sparse.csr_matrix:
    """ln(1 + per_cell · count / total) of counts (n, g), CSR float64; a cell without counts stays 0.

    Parameters
    ----------
    total
        (n,); the sum over the genes given if left out.
    """
    made = sparse.csr_matrix(counts, dtype=np.float64, copy=True)
    total = np.asarray(made.sum(axis=1)).ravel() if total is None else total
    factor = per_cell / np.where(total > 0, total, 1.0)
    made.data = np.log1p(made.data * np.repeat(factor, np.diff(made.indptr)))
    return made


def moments(values: sparse.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation (not n - 1) of each column (g,) over all rows."""
    mean = np.asarray(values.mean(axis=0)).ravel()
    n, columns = values.shape[0], values.shape[1]
    centred = (values.data - mean[values.indices]) ** 2
    square = np.bincount(values.indices, weights=centred, minlength=columns)
    absent = n - np.bincount(values.indices, minlength=columns)  # cells in which the gene is 0 and not stored
    return mean, np.sqrt((square + absent * mean**2) / n)


def _counts(side: str, given: sparse.csr_matrix) -> sparse.csr_matrix:
    if not sparse.issparse(given):
        raise ValueError(f"the {side} is a {type(given).__name__}; expected raw counts as a scipy sparse matrix")
    made = sparse.csr_matrix(given, dtype=np.float64)
    if made.nnz and not (np.isfinite(made.data).all() and made.data.min() >= 0):
        raise ValueError(f"counts of the {side} are negative, NaN or infinite; expected raw counts")
    if not made.has_canonical_format:
        made = made.copy()
        made.sum_duplicates()
    return made
