"""What `benchmarks.xmint` found, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def markdown(parts: Mapping[str, Any]) -> str:
    """The report of the parts that are there."""
    lines = ["# Cost of xMINT"]
    for part, write in (("table1", _table1), ("tokenizer", _tokenizer)):
        if part in parts:
            lines += ["", *write(parts[part])]
    return "\n".join(lines) + "\n"


def _about(found: Mapping[str, Any]) -> list[str]:
    about = found["machine"]
    where = found["gpu"] or f"{about['processor']}, {about['cores']} cores, {about['torch_threads']} torch threads"
    return [
        f"`{found['command']}`, {found['date']}: {where}, load before the run {about['load_before']}. "
        + ", ".join(f"{name} {number}" for name, number in found["versions"].items())
        + ".",
        "",
    ]


def _table1(found: Mapping[str, Any]) -> list[str]:
    sizes, batches = found["sizes"], found["batches"]
    lines = [
        "## The rows of Table 1",
        "",
        *_about(found),
        f"A training step on {sizes['sequences']} sequences of {sizes['cells']:,} cells that lie anywhere in one region of "
        f"{sizes['side']} px, float32, with recomputing. *Extrapolated*: the step would take more than {sizes['limit']:.0f} s; "
        f"its transformers were timed in full and its tokenizer on {sizes['part']} patches. The floor is the arithmetic of "
        "occupied patches without their frames, and of the transformers, forward and backward without recomputing, at the "
        f"rate of this machine in the same process. Hours are for 100 epochs of {batches:,} batches.",
        "",
        "| f | exp. | heads | layers | parameters | s per batch | floor, s | over floor | GFLOP/s | transformers' share | "
        "peak GiB | hours | paper, s (A6000) | paper, hours |",
        "| --- " * 14 + "|",
    ]
    for row in found["rows"]:
        seconds, flop = row["whole"] or row["guess"], row["flop"]
        floor = (flop["transformers"] + flop["patches"]) / _rate(row)
        cells = [
            *(str(row[key]) for key in ("width", "expansion", "heads", "layers")), f"{row['parameters']:,}",
            f"{seconds:,.2f}" + ("" if row["whole"] else " (extrapolated)"), f"{floor:,.2f}", f"{seconds / floor:.2f} ×",
            f"{_rate(row) / 1e9:,.0f}", f"{row['transformers'] / seconds:.0%}",
            f"{row['peak'] / 2**30:.2f}" if row["whole"] else "", f"{_hours(seconds, batches):,.0f}",
            f"{row['paper']:.2f}", f"{_hours(row['paper'], batches):,.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    row = found["rows"][-1]
    whole = (row["flop"]["dense"] + row["flop"]["transformers"]) / 1e12
    ours = (row["flop"]["patches"] + row["flop"]["transformers"]) / 1e12
    return [
        *lines,
        "",
        f"The last row is the configuration of the published results. Its step over whole regions is {whole:.1f} TFLOP, over "
        f"the {row['patches']:,} occupied patches {ours:.1f} TFLOP. In bf16 the step takes {found['bf16']['whole']:,.1f} s, and "
        f"the process holds {found['bf16']['peak'] / 2**30:.2f} GiB at most.",
    ]


def _hours(seconds: float, batches: int) -> float:
    """For 100 epochs of so many batches."""
    return seconds * batches * 100 / 3600


def _rate(row: Mapping[str, Any]) -> float:
    """FLOP per second of the machine, as the row's own process measured it: the better of convolution and product."""
    return max(row["rate"].values())


def _tokenizer(found: Mapping[str, Any]) -> list[str]:
    sizes, rows = found["sizes"], found["rows"]
    dense = next(row for row in rows if row["way"].startswith("dense"))
    lines = [
        "## The tokenizer: occupied patches against whole regions",
        "",
        *_about(found),
        f"One region of {sizes['side']} px, f = {256 // sizes['shrink']}, {sizes['cells']:,} cells in {rows[0]['patches']:,} "
        f"patches. Between the first two rows, values differ by at most {found['errors']['values']:.1g}, gradients by "
        f"{found['errors']['gradients']:.1g} of the largest. The floor is the arithmetic of the px that are asked for, at the "
        "rate of this machine in the same process; backward counts twice, recomputing not.",
        "",
        "| way | forward, s | than dense | over floor | with backward, s | than dense | over floor | GFLOP/s | peak GiB |",
        "| --- " * 9 + "|",
    ]
    for row in rows:
        floor = row["flop"] / _rate(row)
        lines.append(
            f"| {row['way']} | {row['forward']:,.2f} | {dense['forward'] / row['forward']:.2f} × faster | "
            f"{row['forward'] / floor:.2f} × | {row['both']:,.2f} | {dense['both'] / row['both']:.2f} × faster | "
            f"{row['both'] / (3 * floor):.2f} × | {_rate(row) / 1e9:,.0f} | {row['peak'] / 2**30:.2f} |"
        )
    return lines
