"""Cost of xMINT: the rows of its paper's Table 1, and its image tokenizer over occupied patches against whole regions.

    python -m benchmarks.xmint table1 [--device cuda] [--quick]
    python -m benchmarks.xmint tokenizer [--device cuda] [--quick]

Each writes its part of ``benchmarks/results/xmint-cost.json`` and both parts that are there into ``xmint-cost.md``. Every
row is a process of its own, so that its peak memory is its own. Data are random; only shapes matter to cost.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.clock import Disagreement
from benchmarks.speed import RESULTS, machine
from benchmarks.xmint_report import markdown
from histoweave._repro import versions
from histoweave.batch import Batch, Dims
from histoweave.models.impute._tokenizer import PATCH, Tokenizer
from histoweave.models.impute.xmint import XMINT

PARTS = ("table1", "tokenizer")
BATCHES = 1234  # in an epoch of the paper: 36 h for 100 epochs at 1.05 s
TOLERANCE = {"values": 1e-5, "gradients": 1e-4}


@dataclass(frozen=True, slots=True)
class Row:
    """A configuration, and what the paper says of it: parameters, seconds per batch of 4 sequences on an A6000."""

    width: int
    expansion: int
    heads: int
    layers: int
    parameters: int
    paper: float


TABLE = (
    Row(256, 4, 4, 4, 16_799_760, 1.03), Row(256, 8, 8, 8, 53_564_432, 1.09), Row(128, 4, 4, 4, 4_338_064, 0.56),
    Row(128, 8, 8, 8, 13_545_360, 0.60), Row(256, 8, 8, 4, 27_297_808, 1.05),
)  # fmt: skip
# the last row is that of the published results and always run in full; its parameters are not printed in the paper


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How large the jobs are; the defaults are the paper's."""

    side: int = 1024  # px of a region
    cells: int = 1024  # of a sequence
    sequences: int = 4
    shared: int = 200
    genes: int = 176
    shrink: int = 1  # divides the width f
    part: int = 256  # patches of which the tokenizer is timed where the whole step would take longer than
    limit: float = 120.0  # s


QUICK = Sizes(side=64, cells=16, sequences=2, shared=10, genes=6, shrink=16, part=8, limit=2.0)


def cells_of(sizes: Sizes, sequences: int) -> Batch:
    """Cells that lie anywhere in one region, in sequences; all values are random."""
    g = torch.Generator().manual_seed(0)
    n, patches = sequences * sizes.cells, sizes.side // PATCH
    return Batch(
        spot=torch.arange(n),
        section=torch.zeros(n, dtype=torch.long),
        y=torch.rand(n, sizes.genes, generator=g).softmax(-1),
        y_mask=torch.ones(n, sizes.genes, dtype=torch.bool),
        shared=torch.rand(n, sizes.shared, generator=g).softmax(-1),
        region=torch.randn(1, 3, sizes.side, sizes.side, generator=g),
        region_of=torch.zeros(n, dtype=torch.long),
        patch_rc=torch.randint(0, patches, (n, 2), generator=g),
        seq=torch.arange(sequences).repeat_interleave(sizes.cells),
    )


# -- arithmetic ---------------------------------------------------------------------------------------------------


def tokenizer_macs(tokenizer: Tokenizer, px: int) -> int:
    """Multiplications and additions of the convolutions, each over so many px."""
    return px * sum(m.weight.numel() for m in tokenizer.modules() if isinstance(m, nn.Conv2d))


def transformer_macs(model: XMINT, tokens: int) -> int:
    """The same of all linear maps, and of attention, for one sequence."""
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))
    attention = sum(2 * m.out.in_features for part in (model.gene, model.joint) for m in part.layers)  # type: ignore
    return tokens * (linear + tokens * attention)


def step_flop(row: Row, sizes: Sizes, patches: int) -> dict[str, float]:
    """FLOP of a training step (forward once, backward twice) that nobody can leave out, and of whole regions."""
    with torch.device("meta"):
        model = XMINT(Dims(genes=sizes.genes, shared=sizes.shared), **arguments(row, sizes))
    assert model.tokenizer is not None
    transformers = 6.0 * sizes.sequences * transformer_macs(model, sizes.cells)
    needed = 6.0 * tokenizer_macs(model.tokenizer, patches * PATCH**2)
    dense = 6.0 * sizes.sequences * tokenizer_macs(model.tokenizer, sizes.side**2)  # the authors': for every sequence
    return {"transformers": transformers, "patches": needed, "dense": dense}


def arguments(row: Row, sizes: Sizes) -> dict[str, int]:
    """Arguments of the model of a row."""
    return {
        "width": row.width // sizes.shrink, "expansion": row.expansion, "heads": row.heads, "layers": row.layers,
    }  # fmt: skip


# -- jobs, each in a process of its own -----------------------------------------------------------------------------


def timed(run: Callable[[], Any], device: str) -> float:
    """Seconds of a run: the median of three after a first one, or that one if it took more than 5 s."""

    def once() -> float:
        begin = time.perf_counter()
        run()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    first = once()
    return first if first > 5 else median(once() for _ in range(3))


def rate(device: str) -> dict[str, float]:
    """FLOP per second of this machine, in a convolution as the ResNet's largest and in a product of matrices."""
    x = torch.randn(64, 256, 18, 18, device=device).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3, device=device).contiguous(memory_format=torch.channels_last)
    square = torch.randn(2048, 2048, device=device)
    with torch.no_grad():
        conv = 2 * 64 * 16**2 * weight.numel() / timed(lambda: F.conv2d(x, weight), device)
        product = 2 * 2048**3 / timed(lambda: square @ square, device)
    return {"convolution": conv, "matrices": product}


def step_bf16(sizes: Sizes, device: str, row: int) -> dict[str, Any]:
    """The whole of a training step in bf16: seconds, and the most memory."""
    torch.manual_seed(0)
    batch = cells_of(sizes, sizes.sequences).to(device)
    dims = Dims(genes=sizes.genes, shared=sizes.shared)
    model = XMINT(dims, **arguments(TABLE[row], sizes)).to(device)  # type: ignore[arg-type]
    return {"whole": timed(stepping(model, batch, device, half=True), device), "peak": peak(device)}


def stepping(model: nn.Module, batch: Batch, device: str, *, half: bool = False) -> Callable[[], None]:
    """A training step to be timed."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=half):
            value = model.loss(batch)[0]  # type: ignore[operator]
        value.backward()
        optimizer.step()

    return run


def step(sizes: Sizes, device: str, row: int) -> dict[str, Any]:
    """One training step: the whole of it where it fits the limit, and its two halves, the tokenizer on a part."""
    torch.manual_seed(0)
    configuration, dims = TABLE[row], Dims(genes=sizes.genes, shared=sizes.shared)
    batch = cells_of(sizes, sizes.sequences).to(device)
    assert batch.region is not None and batch.region_of is not None and batch.patch_rc is not None
    patches = len(batch.patch_rc.unique(dim=0))

    genes = XMINT(dims, **arguments(configuration, sizes), image=False).to(device)  # type: ignore[arg-type]
    transformers = timed(stepping(genes, batch, device), device)
    del genes
    model = XMINT(dims, **arguments(configuration, sizes)).to(device)  # type: ignore[arg-type]
    tokenizer, region, of, rc = model.tokenizer, batch.region, batch.region_of, batch.patch_rc.unique(dim=0)
    assert tokenizer is not None
    some = rc[torch.randperm(patches, generator=torch.Generator().manual_seed(0))[: sizes.part]]
    part = timed(lambda: tokenizer(region, of[: len(some)], some).sum().backward(), device)
    guess = transformers + part * patches / len(some)
    in_full = guess < sizes.limit or configuration is TABLE[-1]
    whole = timed(stepping(model, batch, device), device) if in_full else None
    top = peak(device)
    return {
        "patches": patches,
        "transformers": transformers,
        "guess": guess,
        "whole": whole,
        "peak": top,
        "rate": rate(device),
    }


def way(sizes: Sizes, device: str, folder: Path, name: str) -> dict[str, Any]:
    """The tokenizer on one region: forward, then forward and backward; results go into the folder."""
    torch.manual_seed(0)
    mode, _, kind = name.partition(", ")
    batch = cells_of(sizes, 1).to(device)
    assert batch.region is not None and batch.region_of is not None and batch.patch_rc is not None
    region, of, rc = batch.region, batch.region_of, batch.patch_rc
    made = Tokenizer(3, 256 // sizes.shrink, mode=mode).to(device)  # type: ignore[arg-type]
    weight = torch.randn(len(rc), 256 // sizes.shrink, generator=torch.Generator().manual_seed(1)).to(device)
    kept: dict[str, Tensor] = {}

    def forward() -> None:
        kept["values"] = made(region, of, rc).float()

    def both() -> None:
        made.zero_grad()
        (made(region, of, rc).float() * weight).sum().backward()

    made.train("training" in kind)
    seconds = {}
    with torch.autocast(device, torch.bfloat16, enabled="bf16" in kind):
        with torch.no_grad():
            seconds["forward"] = timed(forward, device)
        seconds["both"] = timed(both, device)
    found = kept | {name: p.grad for name, p in made.named_parameters() if p.grad is not None}
    save_file({key: value.detach().cpu().contiguous() for key, value in found.items()}, folder / f"{name}.safetensors")
    top = peak(device)
    patches = len(rc.unique(dim=0))
    flop = 2.0 * tokenizer_macs(made, sizes.side**2 if mode == "dense" else patches * PATCH**2)
    with torch.autocast(device, torch.bfloat16, enabled="bf16" in kind):  # the floor is in the precision of the row
        found_rate = rate(device)
    return {"way": name, **seconds, "patches": patches, "flop": flop, "peak": top, "rate": found_rate}


def peak(device: str) -> int:
    """Most bytes that this process has held: of the GPU's memory, or resident."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def in_its_own(job: str, sizes: Sizes, device: str, *given: str) -> Any:
    """What a job gives that runs in a new process."""
    line = subprocess.run(
        [sys.executable, "-m", "benchmarks.xmint", job, json.dumps(asdict(sizes)), device, *given],
        check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    return json.loads(line.stdout.splitlines()[-1])


# -- parts ----------------------------------------------------------------------------------------------------------


def table1(sizes: Sizes, device: str, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Every row of the table: what the model has, and what a step costs."""
    rows = []
    for i, row in enumerate(TABLE):
        with torch.device("meta"):
            model = XMINT(Dims(genes=176, shared=200), **arguments(row, Sizes()))  # type: ignore[arg-type]
            parameters = sum(p.numel() for p in model.parameters())
        if parameters != row.parameters:
            raise Disagreement(f"{row} has {parameters:,} parameters here")
        found = in_its_own("step", sizes, device, str(i))
        rows.append(asdict(row) | found | {"flop": step_flop(row, sizes, found["patches"])})
        say(f"{row.width}, {row.expansion}, {row.layers}: {found['whole'] or found['guess']:.2f} s")
    return {"rows": rows, "bf16": in_its_own("bf16", sizes, device, str(len(TABLE) - 1))}


WAYS = (
    "restricted, fixed statistics",
    "dense, fixed statistics",
    "restricted, training",
    "restricted, training in bf16",
)


def tokenizer(sizes: Sizes, device: str, say: Callable[[str], None] = print) -> dict[str, Any]:
    """The tokenizer both ways, their errors and costs."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in WAYS:
            rows.append(in_its_own("way", sizes, device, folder, name))
            say(f"{name}: {rows[-1]['forward']:.2f} s, {rows[-1]['both']:.2f} s with backward")
        ours, theirs = (load_file(Path(folder) / f"{name}.safetensors") for name in WAYS[:2])
    errors = {"values": float((ours.pop("values") - theirs.pop("values")).abs().max())}
    largest = max(float(value.abs().max()) for value in theirs.values())
    errors["gradients"] = max(float((ours[key] - theirs[key]).abs().max()) for key in theirs) / largest
    for key, error in errors.items():
        if not error <= TOLERANCE[key]:
            raise Disagreement(f"{key} of occupied patches and whole regions differ by {error:.2g}")
    return {"rows": rows, "errors": errors}


def run(part: str, out: Path, *, sizes: Sizes, device: str, command: str) -> str:
    """Measure a part, write it into ``xmint-cost.json`` and all parts into ``xmint-cost.md``, and give the Markdown."""
    load = os.getloadavg()[0]
    found = {"table1": table1, "tokenizer": tokenizer}[part](sizes, device)
    name = torch.cuda.get_device_name() if device == "cuda" else None
    card = {"command": command, "date": date.today().isoformat(), "machine": machine(load), "gpu": name}
    out.mkdir(parents=True, exist_ok=True)
    path = out / "xmint-cost.json"
    parts = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    parts[part] = {**card, "versions": versions(), "sizes": asdict(sizes), "batches": BATCHES, **found}
    path.write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")
    text = markdown(parts)
    (out / "xmint-cost.md").write_text(text, encoding="utf-8")
    return text


def main(given: Sequence[str] | None = None) -> None:
    """The command line; a job in a process of its own prints one line of JSON."""
    words = list(sys.argv[1:] if given is None else given)
    jobs: dict[str, Callable[..., Any]] = {
        "step": lambda sizes, device, row: step(sizes, device, int(row)),
        "bf16": lambda sizes, device, row: step_bf16(sizes, device, int(row)),
        "way": lambda sizes, device, folder, name: way(sizes, device, Path(folder), name),
    }
    if words and words[0] in jobs:
        print(json.dumps(jobs[words[0]](Sizes(**json.loads(words[1])), *words[2:])))
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks.xmint", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not how fast")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args(words)
    command = f"python -m benchmarks.xmint {asked.part}" + f" --device {asked.device}" * (asked.device != "cpu")
    command += " --quick" * asked.quick
    sizes = QUICK if asked.quick else Sizes()
    print(run(asked.part, asked.out, sizes=sizes, device=asked.device, command=command))


if __name__ == "__main__":
    main()
