"""Cost of the solvers against the number of spots, which are read from a file chunk by chunk; one process per job.

    python -m benchmarks.solvers_stream JOB FOLDER

prints one line of JSON: seconds, and the largest memory of the process before the job and in it. `benchmarks.solvers`
makes the folder and calls this.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.clock import peak_mib
from histoweave.models._glm import alpha_from_moments, fit_counts
from histoweave.models._lasso import lasso_path
from histoweave.models._linear import Moments, ridge_path
from histoweave.models.predict.linear import LASSO_GRID, RIDGE_GRID

JOBS = ("ridge", "lasso", "nb")
CHUNK = 4096  # spots held at a time
SECTION = 500  # spots that share a shift, as those of a section do
WIDTH = 256  # of the embeddings before their principal components
ROUGH = 20_000  # spots that the principal components are fitted on


class Spots:
    """Principal component scores of made-up embeddings, and counts that depend on them, in pieces.

    Embeddings are mixed from factors whose variance falls with a power law, and shifted by section; components are fitted
    on other spots of the same kind, so that scores are correlated a little, as those of a fold, or of new sections, are.
    """

    def __init__(self, features: int, genes: int) -> None:
        self.rng = np.random.default_rng(0)
        self.mix = self.rng.normal(size=(WIDTH, WIDTH)) * np.arange(1, WIDTH + 1)[:, None] ** -0.7
        made = self._embeddings(ROUGH)
        self.mean = made.mean(axis=0)
        self.axes = np.linalg.svd(made - self.mean, full_matrices=False)[2][:features].T  # (WIDTH, d)
        sd = ((made - self.mean) @ self.axes).std(axis=0)
        self.beta = self.rng.normal(size=(features, genes)) * 0.5 * (self.rng.random((features, genes)) < 0.3)
        self.beta /= sd[:, None] * np.sqrt(0.3 * features)
        self.level = self.rng.normal(-0.5, 1.2, size=genes)
        self.alpha = self.rng.lognormal(-0.5, 0.7, size=genes)

    def _embeddings(self, n: int) -> np.ndarray:
        shift = np.repeat(self.rng.normal(size=(-(-n // SECTION), WIDTH)), SECTION, axis=0)[:n]
        return (self.rng.normal(size=(n, WIDTH)) + 0.7 * shift) @ self.mix

    def draw(self, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Features (n, d) float32 and counts (n, g) uint16."""
        x = ((self._embeddings(n) - self.mean) @ self.axes).astype(np.float32)
        mean = np.exp(np.clip(x @ self.beta + self.level, None, 8))
        return x, np.minimum(self.rng.poisson(self.rng.gamma(1 / self.alpha, self.alpha * mean)), 65535).astype(
            np.uint16
        )


def write(folder: Path, spots: Spots, n: int) -> None:
    """n spots into a folder, piece by piece."""
    with (folder / "x").open("wb") as features, (folder / "y").open("wb") as counts:
        for begin in range(0, n, CHUNK):
            x, y = spots.draw(min(CHUNK, n - begin))
            x.tofile(features)
            y.tofile(counts)
    (folder / "shape").write_text(json.dumps([n, x.shape[1], y.shape[1]]))


def chunks(folder: Path) -> Iterator[tuple[Tensor, Tensor]]:
    """Features (b, d) and counts (b, g), float32, read as they are needed."""
    n, d, g = json.loads((folder / "shape").read_text())
    with (folder / "x").open("rb") as features, (folder / "y").open("rb") as counts:
        for begin in range(0, n, CHUNK):
            b = min(CHUNK, n - begin)
            x = np.fromfile(features, np.float32, b * d).reshape(b, d)
            y = np.fromfile(counts, np.uint16, b * g).reshape(b, g)
            yield torch.from_numpy(x), torch.from_numpy(y.astype(np.float32))


def work(job: str, folder: Path) -> str:
    """Does a job, and says what it made of it."""
    if job not in JOBS:
        raise ValueError(f"job {job!r}; expected one of {', '.join(JOBS)}")
    logs = ((x, y.log1p()) for x, y in chunks(folder))
    if job == "ridge":
        path = ridge_path(Moments.stream(logs), torch.tensor(RIDGE_GRID))
        return "finite" if bool(path.coef.isfinite().all()) else "NOT finite"
    if job == "lasso":
        done = lasso_path(Moments.stream(logs), torch.tensor(LASSO_GRID)).converged
        return f"{done.double().mean():.0%} converged"
    sums = Moments.stream(chunks(folder))
    mean = sums.y[0] / sums.n
    alpha = alpha_from_moments(mean, (sums.yy[0] / sums.n - mean**2) * sums.n / (sums.n - 1))  # type: ignore[index]
    fit = fit_counts(lambda: ((x, y, None) for x, y in chunks(folder)), alpha=alpha)
    return f"{fit.converged.double().mean():.0%} converged, {fit.passes + 1} passes"


def measured(job: str, folder: Path, n: int) -> dict[str, Any]:
    """The job in a process of its own, which has seen no other size."""
    line = subprocess.run(
        [sys.executable, "-m", "benchmarks.solvers_stream", job, str(folder)],
        check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1],
    ).stdout  # fmt: skip
    return {"job": job, "spots": n, **json.loads(line)}


def main() -> None:
    """The command line."""
    job, folder = sys.argv[1], Path(sys.argv[2])
    x = torch.randn(CHUNK, 8)  # what libraries set up at their first product is not the job's
    torch.linalg.eigh(x.T @ x)
    before = peak_mib()
    begin = time.perf_counter()
    said = work(job, folder)
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "before_mib": before, "peak_mib": peak_mib(), "said": said}))



if __name__ == "__main__":
    main()
