"""Soft clusters that mix two assays, and a shift of each assay within each cluster (Harmony, Korsunsky et al. 2019).

Letters: n cells of all assays, p dimensions, k clusters, s assays.
"""

from __future__ import annotations

import numpy as np

CLUSTERS_AT_MOST, CELLS_PER_CLUSTER = 100, 30
THETA, SIGMA, LAMBDA = 2.0, 0.1, 1.0  # diversity, softness and ridge penalty of the paper
ROUNDS, STEPS = 10, 20  # of correction, and of clustering in each
_BLOCKS = 20  # parts of the cells that are assigned at a time, 5 % each
_SETTLED = 1e-4  # relative change of the objective at which rounds end
_LLOYD = 10  # steps of the k-means that clustering starts from


def corrected(z: np.ndarray, assay: np.ndarray, *, seed: int, rounds: int) -> tuple[np.ndarray, int]:
    """Coordinates (n, p) after correction for the assay of each cell (n,), numbered from 0, and the rounds it took.

    Cells are assigned softly to clusters on the unit sphere; a cell is drawn to clusters in which its assay is rarer than
    among all cells. In each cluster a ridge regression of the coordinates on the assay, with a free intercept, says how
    the assays differ, and that is taken off, by membership. Both alternate until the objective settles.

    Parameters
    ----------
    seed
        Of the cells that clusters start from, and of the order in which cells are assigned.
    """
    rng = np.random.default_rng(seed)
    n, k = len(z), int(np.clip(round(len(z) / CELLS_PER_CLUSTER), 1, CLUSTERS_AT_MOST))
    share = np.bincount(assay) / n  # (s,)
    sphere = _unit(z)
    member = _softmax(sphere @ _centres(sphere, k, rng).T)  # (n, k)
    moved, done, before, settled = z, 0, np.inf, False
    while done < rounds and not settled:
        member, objective = _cluster(sphere, member, assay, share, rng)
        moved = _shifted(z, member, assay, len(share))
        sphere = _unit(moved)
        settled = abs(before - objective) <= _SETTLED * abs(objective)
        before, done = objective, done + 1
    return moved, done


def _cluster(
    sphere: np.ndarray, member: np.ndarray, assay: np.ndarray, share: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """Memberships (n, k) after clustering, and the objective."""
    before = np.inf
    observed = _by_assay(member, assay, len(share))  # (s, k)
    for _ in range(STEPS):
        centres = _unit(member.T @ sphere)  # (k, p)
        for block in np.array_split(rng.permutation(len(sphere)), _BLOCKS):
            observed = observed - _by_assay(member[block], assay[block], len(share))
            expected = share[:, None] * observed.sum(axis=0)
            balance = THETA * np.log((expected + 1) / (observed + 1))  # (s, k)
            member[block] = _softmax(sphere[block] @ centres.T, balance[assay[block]])
            observed = observed + _by_assay(member[block], assay[block], len(share))
        expected = share[:, None] * observed.sum(axis=0)
        apart = 2 * (len(sphere) - float((member * (sphere @ centres.T)).sum()))
        entropy = float((member * np.log(member.clip(min=1e-300))).sum())
        diverse = float((observed * np.log((observed + 1) / (expected + 1))).sum())
        objective = apart + SIGMA * entropy + SIGMA * THETA * diverse
        if abs(before - objective) <= _SETTLED / 10 * abs(objective):
            break
        before = objective
    return member, objective


def _shifted(z: np.ndarray, member: np.ndarray, assay: np.ndarray, s: int) -> np.ndarray:
    """Coordinates without what ridge regressions in each cluster say of the assay."""
    weight = _by_assay(member, assay, s)  # (s, k)
    sums = np.stack([member[assay == a].T @ z[assay == a] for a in range(s)])  # (s, k, p)
    out = z.copy()
    for cluster in range(member.shape[1]):
        w = weight[:, cluster]
        design = np.zeros((s + 1, s + 1))
        design[0, 0], design[0, 1:], design[1:, 0] = w.sum(), w, w
        design[1:, 1:] = np.diag(w + LAMBDA)  # the intercept is free
        right = np.concatenate([sums[:, cluster].sum(axis=0, keepdims=True), sums[:, cluster]])
        if w.sum() <= 0:
            continue
        shift = np.linalg.solve(design, right)[1:]  # (s, p)
        out -= member[:, cluster, None] * shift[assay]
    return out


def _by_assay(member: np.ndarray, assay: np.ndarray, s: int) -> np.ndarray:
    """Cells of each assay in each cluster (s, k)."""
    return np.stack([member[assay == a].sum(axis=0) for a in range(s)])


def _softmax(cosine: np.ndarray, balance: np.ndarray | float = 0.0) -> np.ndarray:
    """Memberships (n, k) from the cosines with the centres; rows sum to 1."""
    logits = -2 * (1 - cosine) / SIGMA + balance
    made = np.exp(logits - logits.max(axis=1, keepdims=True))
    return made / made.sum(axis=1, keepdims=True)


def _centres(sphere: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Centres (k, p) of k-means on the sphere, from k cells at random; a centre without cells stays."""
    centres = sphere[rng.choice(len(sphere), k, replace=False)]
    for _ in range(_LLOYD):
        nearest = (sphere @ centres.T).argmax(axis=1)
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, sphere)
        found = np.bincount(nearest, minlength=k) > 0
        centres[found] = _unit(sums[found])
    return centres


def _unit(x: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(length > 0, length, 1.0)
