"""The page: complete, escaped, self-contained, deterministic."""

from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from histoweave.bench.metrics import per_unit
from histoweave.bench.summary import Report
from histoweave.data.phantom import Phantom, phantom
from histoweave.data.section import Cohort
from histoweave.pl.maps import INK
from histoweave.report import svg as svg_room
from histoweave.report import tables, write_html
from histoweave.report.html import inline_svg

MakeRun = Callable[..., Report]
VOID = {"meta", "br", "img", "link", "hr", "input"}
HEADINGS = ["Before reading the numbers", "Results", "Against ridge", "Accuracy against the ceiling of each gene",
            "Marker maps", "Where the prediction errs", "Biology", "Folds", "Genes", "Fingerprint"]  # fmt: skip


class Page(HTMLParser):
    """Elements, attributes and text of a page; whether its tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append((self.open[-1] if self.open else "", data.strip()))

    def texts(self, tag: str) -> list[str]:
        return [text for within, text in self.words if within == tag and text]


@pytest.fixture(scope="module")
def page(run: Report, six: Phantom) -> str:
    return write_html(run, six.cohort).read_text(encoding="utf-8")


def test_every_part_is_there_in_order(page: str) -> None:
    parsed = Page(page)
    assert not parsed.open
    assert parsed.texts("h1") == ["phantom"]
    assert parsed.texts("h2") == HEADINGS
    assert len([tag for tag, _ in parsed.tags if tag == "details"]) == 2


def test_nothing_is_asked_of_the_network_and_nothing_runs(page: str) -> None:
    for tag, attributes in Page(page).tags:
        assert tag not in {"script", "link", "iframe", "object", "embed", "base"}
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "srcset", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:image/")), value
    assert not re.search(r"url\((?!#)|@import", page)
    assert "default-src 'none'" in page


def test_light_and_dark_use_the_same_variables(page: str) -> None:
    light, dark = re.search(r":root \{(.*?)\}.*?prefers-color-scheme: dark\) \{\s*:root \{(.*?)\}", page, re.DOTALL).groups()  # type: ignore[union-attr]
    names = [set(re.findall(r"(--[\w-]+):", block)) for block in (light, dark)]
    assert names[0] == names[1]
    assert set(re.findall(r"var\((--[\w-]+)\)", page)) <= names[0]


def test_figures_and_tables_say_what_they_are(page: str) -> None:
    tags = Page(page).tags
    drawings = [attributes for tag, attributes in tags if tag == "svg"]
    assert len(drawings) == 9  # dots, ceiling, three genes, error; biology: variance, one gene over its mean, histogram
    assert all(attributes["role"] == "img" and len(attributes["aria-label"] or "") > 40 for attributes in drawings)
    assert sum(tag == "table" for tag, _ in tags) == sum(tag == "caption" for tag, _ in tags) == 6
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in tags:  # every reference inside the page has its target
        for name in ("xlink:href", "aria-labelledby"):
            value = (attributes.get(name) or "").removeprefix("#")
            assert not value or value.startswith("data:") or value in ids, value
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(ids)


def test_images_inside_the_figures_can_be_read_and_the_page_is_small(page: str) -> None:
    found = re.findall(r"data:image/(\w+);base64,([^\"]+)", page)
    kinds = set()
    for kind, data in found:
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            image.load()
            kinds.add((kind, str(image.format).lower()))
    assert ("webp", "webp") in kinds
    assert all(kind == real for kind, real in kinds)
    assert len(page) < 6e6


def test_photographs_become_jpeg_and_spots_stay_exact() -> None:
    photograph = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    figure = Figure(figsize=(2, 2))
    figure.add_axes((0, 0, 1, 1)).imshow(photograph)
    assert "data:image/jpeg;base64," in inline_svg(figure, "a", "a photograph")
    spots = np.zeros((200, 200, 4), dtype=np.uint8)
    spots[20:180:2, 20:180] = np.random.default_rng(0).integers(1, 255, (80, 160, 4))
    png = io.BytesIO()
    Image.fromarray(spots).save(png, "PNG", compress_level=0)
    svg = "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
    kind, data = re.findall(r"data:image/(\w+);base64,(.+)", re.sub(r"data:image/png;base64,(.+)", svg_room._lean, svg))[0]
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert (kind, image.format) == ("webp", "WEBP")
        seen = np.asarray(image.convert("RGBA"))
    np.testing.assert_array_equal(seen[spots[..., 3] > 0], spots[spots[..., 3] > 0])


def test_text_between_tags_is_left_alone() -> None:
    figure = Figure(figsize=(2, 1))
    figure.text(0.1, 0.5, f'{INK} id="x" url(#y)', color=INK)
    svg = str(inline_svg(figure, "n", "a < b"))
    assert f'{INK} id="x" url(#y)' in svg.replace("&quot;", '"')
    assert "fill: var(--ink)" in svg
    assert 'aria-label="a &lt; b"' in svg


def test_numbers_are_those_of_the_run(run: Report, page: str) -> None:
    text = Page(page).texts("span")
    for model in run.models:
        mean, sd = run.summary.set_index(["model", "metric"]).loc[(model, "pcc"), ["mean", "sd"]]
        assert tables.number(mean) in text
        assert f"± {tables.number(sd)}" in text
    assert "0.0312" in Page(page).texts("td")  # 2 / 2**6: all six patients agree


def test_means_over_patients_and_genes_agree_with_the_benchmark(run: Report) -> None:
    mine = tables.by_patient(run)
    theirs = per_unit(run.rows[run.rows["metric"] == "pcc"]).set_index(["model", "unit"])["value"]
    for model in run.models:
        np.testing.assert_allclose(mine[model], [theirs[model, patient] for patient in mine.index], rtol=1e-12)
    rows = run.rows[(run.rows["metric"] == "pcc") & (run.rows["model"] == "ridge")]
    gene = rows["gene"].iloc[0]
    assert tables.by_gene(run).loc[gene, "ridge"] == pytest.approx(rows.loc[rows["gene"] == gene, "value"].mean())


def test_pcc_over_a_map_is_that_of_the_table(run: Report, six: Phantom) -> None:
    text = write_html(run, six.cohort, genes=["LOCAL001"]).read_text(encoding="utf-8")
    address = run.rows.set_index(["metric", "gene", "section", "model"])["value"]
    assert f"ridge  PCC {address['pcc', 'LOCAL001', six.cohort.ids[0], 'ridge']:.2f}" in text
    assert Page(text).texts("h3") == ["LOCAL001"]


def test_the_best_is_marked_where_the_test_can_be_made(run: Report, page: str) -> None:
    best = [row.model for row in tables.main_rows(run) if row.scores[0].best]
    assert best == ["net[depth=2]"]
    assert 'class="best"' in page
    lowest = tables.metrics(run).index("mse")
    assert [row.model for row in tables.main_rows(run) if row.scores[lowest].best] == ["net[depth=2]"]


def test_few_patients_are_not_ranked(make_run: MakeRun) -> None:
    truth = phantom(n_patients=3, spots=(5, 5), genes={"local": 2, "neighbourhood": 0, "global": 0, "noise": 1},
                    um_per_px=200 / 16)
    text = write_html(make_run(truth), truth.cohort).read_text(encoding="utf-8")
    assert "Not testable." in text
    assert 'class="best"' not in text
    assert "no ranking is meant" in text


def test_controls_and_shortened_recipes_are_marked(run: Report, page: str) -> None:
    rows = {row.model: row for row in tables.main_rows(run)}
    assert [rows[m].control for m in run.models] == [True, True, False]
    assert [rows[m].partial for m in run.models] == [False, False, True]
    assert "29 031 640" in page
    assert page.count('<span class="tag">control</span>') == 5  # two in the results, one against ridge, two in biology


EVIL = '<script>alert("1")</script>&amp;\'$x$'


def test_names_are_escaped_wherever_they_stand(make_run: MakeRun, six: Phantom) -> None:
    gene, model = f"{EVIL}gene", f"{EVIL}model"
    cohort = Cohort(replace(s, spots=s.spots.copy()) for s in six.cohort)
    for section in cohort:
        section.spots.obs["label"] = f"{EVIL}label"
    report = make_run(six, rename={"LOCAL001": gene, "net[depth=2]": model}, name=f"{EVIL}name")
    path = write_html(report, cohort, genes=[gene])
    text = path.read_text(encoding="utf-8")
    parsed = Page(text)
    assert not parsed.open
    assert not [tag for tag, _ in parsed.tags if tag == "script"]
    assert "<script" not in text
    assert parsed.texts("h1") == [f"{EVIL}name"]
    assert parsed.texts("h3") == [gene]
    assert f"{EVIL}label" in parsed.texts("text")  # inside a figure
    assert any(gene in (attributes.get("aria-label") or "") for tag, attributes in parsed.tags if tag == "svg")


def test_an_unknown_gene_is_an_error_with_the_nearest_one(run: Report, six: Phantom) -> None:
    with pytest.raises(ValueError, match="gene 'LOCAL01' was not scored in this run; did you mean 'LOCAL001'"):
        write_html(run, six.cohort, genes=["LOCAL01"])


def test_another_cohort_is_an_error(run: Report, six: Phantom) -> None:
    other = Cohort([replace(six.cohort[0], id="elsewhere")])
    with pytest.raises(ValueError, match=r"no test section of this run.*P1-1.*elsewhere"):
        write_html(run, other)


def test_without_a_cohort_the_maps_have_positions_only(run: Report) -> None:
    text = write_html(run, None).read_text(encoding="utf-8")
    assert "H&amp;E" not in text
    assert "because the cohort was not given" in text
    assert len(re.findall("<svg", text)) == 9
    assert "No labels: the cohort was not given" in text


def test_the_section_shown_is_the_first_with_an_image(run: Report, six: Phantom) -> None:
    cohort = Cohort(replace(s, image=None) if i < 2 else s for i, s in enumerate(six.cohort))
    assert f"Section {six.cohort.ids[2]} of patient" in write_html(run, cohort).read_text(encoding="utf-8")


def test_default_genes_are_reliable_and_well_predicted(run: Report) -> None:
    reliable = run.genes.index[run.genes["reliable"]]
    mean = tables.by_gene(run).mean(axis=1)[reliable].sort_values(ascending=False)
    assert tables.default_genes(run) == list(mean.index[:3])


def test_a_gene_outside_the_panel_of_every_shown_fold_is_named(run: Report, six: Phantom) -> None:
    cells = [cell | {"panel": {"genes": [g for g in cell["panel"]["genes"] if g != "LOCAL001"]}} for cell in run.cells]
    text = write_html(replace(run, cells=cells), six.cohort, genes=["LOCAL001", "LOCAL002"]).read_text(encoding="utf-8")
    assert "Not in the gene panel of this fold: LOCAL001." in text
    assert Page(text).texts("h3") == ["LOCAL002"]


def test_the_same_run_gives_the_same_bytes(run: Report, six: Phantom) -> None:
    first = write_html(run, six.cohort).read_bytes()
    assert write_html(run, six.cohort).read_bytes() == first


def test_a_page_that_fails_leaves_the_old_one(
    run: Report, six: Phantom, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_html(run, six.cohort)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_html(run, None)
    assert path.read_bytes() == before
    assert [p.name for p in Path(run.folder).iterdir() if p.is_file()] == ["report.html"]


def test_predictions_are_read_once_each(run: Report, six: Phantom, monkeypatch: pytest.MonkeyPatch) -> None:
    import anndata

    read: list[str] = []
    real = anndata.read_h5ad
    monkeypatch.setattr(anndata, "read_h5ad", lambda path: (read.append(str(path)), real(path))[1])
    write_html(run, six.cohort)
    assert len(read) == len(set(read)) == len(run.models)


def test_a_run_without_ridge_says_so(run: Report, six: Phantom) -> None:
    alone = replace(
        run, rows=run.rows[run.rows["model"] == "mean"], summary=run.summary[run.summary["model"] == "mean"],
        cells=[cell for cell in run.cells if cell["model"] == "mean"], tests=pd.DataFrame({"model": ["mean"]}),
    )  # fmt: skip
    text = write_html(alone, six.cohort).read_text(encoding="utf-8")
    assert "There is no test: it needs ridge" in text
    assert Page(text).texts("h2") == HEADINGS


@pytest.mark.parametrize(("value", "text"), [(0.12345, "0.123"), (-0.5, "−0.500"), (-0.0001, "0.000"), (np.nan, "–")])
def test_numbers_are_written_plainly(value: float, text: str) -> None:
    assert tables.number(value) == text
