"""Figures: what is drawn where, how large, and in which colours."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import EllipseCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from PIL import Image

from histoweave import _keys as K
from histoweave.data.image import SlideImage
from histoweave.data.section import Section, make_section
from histoweave.pl import Plate, ceiling_scatter, error_map, marker_map, patient_dots
from histoweave.pl.maps import INK, LABELS, OTHER, shortened

UM = 10.0  # per px: 200 µm between spots are 20 px


def section(**given: object) -> Section:
    """A 4 × 3 lattice of ST spots on an image that is dark left of x = 60 and light right of it."""
    row, col = np.divmod(np.arange(12), 4)
    pixels = np.full((120, 160, 3), 230, dtype=np.uint8)
    pixels[:, :60] = 40
    shape = {"platform": "st", "um_per_px": UM, "image": SlideImage.from_array(pixels, um_per_px=UM), **given}
    return make_section(id="s", patient="p", counts=np.ones((12, 1)), genes=["G"], xy=np.c_[30 + 20 * col, 30 + 20 * row],
                        array_rc=np.c_[row, col], **shape)  # type: ignore[arg-type]


def drawn(figure: Figure, panel: int) -> list[EllipseCollection]:
    return [c for c in figure.axes[panel].collections if isinstance(c, EllipseCollection)]


def titles(figure: Figure) -> list[str]:
    return [ax.get_title() for ax in figure.axes]


def saved(figure: Figure, dpi: int = 50) -> bytes:
    """Drawing it is what finds most errors."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


@pytest.mark.parametrize(("platform", "um", "diameter"), [("st", 10.0, 100 / 10), ("visium", 5.0, 55 / 5)])
def test_spots_have_their_physical_size(platform: str, um: float, diameter: float) -> None:
    plate = Plate.of(section(platform=platform, um_per_px=um, image=None))
    assert plate.diameter == pytest.approx(diameter)
    np.testing.assert_allclose(drawn(marker_map(plate, "G", np.arange(12.0), {}), 0)[0].get_offsets(), plate.xy)
    # Measured on the drawn pixels: twelve discs of that diameter, whatever the size of the figure.
    figure = marker_map(plate, "G", np.arange(12.0), {})
    ax = figure.axes[0]
    ax.set_facecolor("#ff00ff")
    pixels = np.asarray(Image.open(BytesIO(saved(figure, dpi=100))).convert("RGB")).astype(int)
    height, width = pixels.shape[:2]
    box = ax.get_position()
    inside = pixels[round((1 - box.y1) * height) + 2 : round((1 - box.y0) * height) - 2, 2 : round(box.x1 * width) - 2]
    covered = np.abs(inside - [255, 0, 255]).sum(axis=2) > 255
    per_px = box.width * width / (plate.box[1] - plate.box[0])
    assert covered.sum() == pytest.approx(12 * np.pi / 4 * (diameter * per_px) ** 2, rel=0.04)


def test_y_grows_downwards_and_the_box_holds_every_disc() -> None:
    plate = Plate.of(section())
    figure = marker_map(plate, "G", np.arange(12.0), {"m": np.zeros(12)})
    for ax in figure.axes[:3]:
        bottom, top = ax.get_ylim()
        left, right = ax.get_xlim()
        assert bottom > top
        radius = plate.diameter / 2
        assert left <= plate.xy[:, 0].min() - radius
        assert right >= plate.xy[:, 0].max() + radius
        assert top <= plate.xy[:, 1].min() - radius
        assert bottom >= plate.xy[:, 1].max() + radius


def test_the_picture_lies_under_the_spots() -> None:
    plate = Plate.of(section())
    picture, (left, right, top, bottom) = plate.picture, plate.box
    assert picture is not None
    assert picture.shape[0] / picture.shape[1] == pytest.approx((bottom - top) / (right - left), rel=0.05)
    edge = (60 - left) / (right - left) * picture.shape[1]
    dark = picture[:, :, 0].mean(axis=0) < 135
    assert dark[: int(edge) - 2].all()
    assert not dark[int(edge) + 3 :].any()


def test_a_box_beyond_the_image_is_filled_with_white() -> None:
    image = SlideImage.from_array(np.full((72, 92, 3), 40, dtype=np.uint8), um_per_px=UM)
    plate = Plate.of(section(image=image))  # the last spots lie 2 px from the right and lower edges
    assert plate.picture is not None
    assert (plate.picture[-1] == 255).all()
    assert (plate.picture[:, -1] == 255).all()
    assert (plate.picture[: plate.picture.shape[0] // 2, : plate.picture.shape[1] // 2] < 60).all()


def test_all_panels_share_the_scale_of_the_truth() -> None:
    truth = np.linspace(2, 5, 12)
    figure = marker_map(Plate.of(section()), "G", truth, {"low": truth - 9, "high": truth + 9}, pcc={"low": 1.0}, units="log")
    norms = [drawn(figure, i)[0].norm for i in (1, 2, 3)]
    low, high = np.percentile(truth, [1, 99])
    assert all((n.vmin, n.vmax) == (low, high) for n in norms)
    assert titles(figure)[:4] == ["image", "measured", "low  PCC 1.00", "high  PCC –"]
    assert figure.axes[-1].get_title(loc="right") == "log"
    np.testing.assert_allclose(drawn(figure, 2)[0].get_array(), truth - 9)


def test_a_spot_without_a_measurement_is_an_empty_ring() -> None:
    truth = np.arange(12.0)
    truth[[3, 7]] = np.nan
    known, empty = drawn(marker_map(Plate.of(section()), "G", truth, {"m": np.zeros(12)}), 1)
    assert len(known.get_offsets()) == 10
    np.testing.assert_allclose(empty.get_offsets(), section().xy[[3, 7]])
    assert empty.get_facecolor().size == 0


def test_the_error_is_signed_and_centred_at_zero() -> None:
    truth = np.arange(12.0)
    figure = error_map(Plate.of(section()), "G", truth, truth + np.linspace(-1, 3, 12), model="m", pcc=0.5, units="log")
    spots = drawn(figure, 2)[0]
    assert isinstance(spots.norm, Normalize)
    assert spots.norm.vmin == -spots.norm.vmax  # type: ignore[operator]
    np.testing.assert_allclose(spots.get_array(), np.linspace(-1, 3, 12))
    assert titles(figure)[:3] == ["measured", "m  PCC 0.50", "predicted − measured"]
    saved(figure)


def test_a_perfect_prediction_has_an_error_map() -> None:
    truth = np.arange(12.0)
    assert saved(error_map(Plate.of(section()), "G", truth, truth, model="m"))


def test_the_scale_bar_has_its_length() -> None:
    plate = Plate.of(section())
    ax = marker_map(plate, "G", np.arange(12.0), {"m": np.zeros(12)}).axes[0]
    (bar,) = ax.lines
    (text,) = ax.texts
    left, right, *_ = plate.box
    length = np.ptp(np.asarray(bar.get_xdata(), dtype=float)) * (right - left) * UM
    assert text.get_text() == "200 µm"
    assert length == pytest.approx(200)


def test_a_plate_of_positions_has_neither_scale_bar_nor_image() -> None:
    figure = marker_map(Plate.bare(section().xy), "G", np.arange(12.0), {"m": np.zeros(12)})
    assert titles(figure)[:2] == ["measured", "m"]  # no correlation was given
    assert not figure.axes[0].texts


def test_the_annotation_is_a_panel_with_a_legend() -> None:
    labels = np.array(["tumour", "fat", None] * 4, dtype=object)
    figure = marker_map(Plate.of(section(obs={K.LABEL: labels})), "G", np.arange(12.0), {"m": np.zeros(12)})
    assert titles(figure)[:2] == ["image", "annotation"]
    legend = figure.axes[1].get_legend()
    assert legend is not None
    assert [t.get_text() for t in legend.get_texts()] == ["fat", "tumour"]
    assert [len(c.get_offsets()) for c in drawn(figure, 1)] == [4, 4, 4]
    saved(figure)


def test_rare_annotations_are_joined() -> None:
    labels = [f"kind {i}" for i in range(12)]
    plate = Plate.of(section(obs={K.LABEL: labels}))
    assert plate.labels is not None
    assert len(plate.labels.categories) == len(LABELS)
    assert plate.labels.categories[-1] == OTHER
    assert (plate.labels == OTHER).sum() == 12 - len(LABELS) + 1


@pytest.mark.parametrize("n", [1, 4, 5, 6, 9, 14])
def test_panels_do_not_overlap_and_stay_inside(n: int) -> None:
    figure = marker_map(Plate.of(section()), "G", np.arange(12.0), {f"model {i}": np.zeros(12) for i in range(n)})
    boxes = [ax.get_position() for ax in figure.axes]
    for i, a in enumerate(boxes):
        assert min(a.x0, a.y0) >= 0
        assert max(a.x1, a.y1) <= 1
        for b in boxes[i + 1 :]:
            assert a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0


def test_names_are_never_read_as_formulas_and_long_ones_are_cut() -> None:
    name = "net[a=$\\frac,b=$]" + "x" * 90
    figure = marker_map(Plate.of(section()), "G", np.arange(12.0), {name: np.zeros(12)}, pcc={name: 0.25}, units="$\\q$")
    assert titles(figure)[2].endswith("  PCC 0.25")
    assert "…" in titles(figure)[2]
    saved(figure)
    saved(patient_dots(pd.DataFrame({name: [0.1, 0.2]}), reference=name))
    pcc = pd.DataFrame({name: [0.1]}, index=["$\\q$"])
    saved(ceiling_scatter(pd.Series([0.5], index=["$\\q$"]), pcc, marked=["$\\q$"]))


def test_shortened() -> None:
    assert shortened("ridge", 5) == "ridge"
    assert shortened("abcdefghijkl", 9) == "abcde…jkl"
    assert len(shortened("x" * 99, 1)) == 4


def test_bad_values_are_refused() -> None:
    plate = Plate.of(section())
    with pytest.raises(ValueError, match=r"\(11,\) values were given for the 12 spots"):
        marker_map(plate, "G", np.arange(12.0), {"m": np.zeros(11)})
    with pytest.raises(ValueError, match="gene 'G' was measured in no spot"):
        marker_map(plate, "G", np.full(12, np.nan), {"m": np.zeros(12)})


def test_dots_lie_at_the_values_and_bars_at_the_mean() -> None:
    values = pd.DataFrame({"ridge": [0.1, 0.2, 0.6], "net": [0.3, np.nan, 0.5]}, index=["A", "B", "C"])
    ax = patient_dots(values, controls={"ridge"}, reference="ridge").axes[0]
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(np.asarray(dots[0].get_xdata()), [0.1, 0.2, 0.6])
    height = [np.asarray(d.get_ydata()) - i for i, d in enumerate(dots)]
    np.testing.assert_allclose(height[0], height[1])  # a patient keeps its height
    bars = [np.asarray(line.get_xdata())[0] for line in ax.lines if line.get_color() == INK]
    np.testing.assert_allclose(bars, [0.3, 0.4])
    assert [t.get_text() for t in ax.get_yticklabels()] == ["ridge", "net"]
    assert dots[0].get_markerfacecolor() != dots[1].get_markerfacecolor()


def test_dots_refuse_what_they_cannot_draw() -> None:
    with pytest.raises(ValueError, match="at least one patient"):
        patient_dots(pd.DataFrame())
    with pytest.raises(ValueError, match="reference 'lasso' is not among the models: ridge"):
        patient_dots(pd.DataFrame({"ridge": [0.1]}), reference="lasso")


def test_genes_lie_at_ceiling_and_pcc() -> None:
    ceiling = pd.Series({"B": 0.9, "A": 0.5, "C": np.nan})
    pcc = pd.DataFrame({"ridge": [0.2, 0.4, 0.1], "net": [0.3, 0.6, 0.2]}, index=["A", "B", "C"])
    figure = ceiling_scatter(ceiling, pcc, marked=["B", "unknown"], limit=0.55)
    assert titles(figure) == ["ridge", "net"]
    points = next(line for line in figure.axes[1].lines if line.get_marker() == "o")
    np.testing.assert_allclose(np.asarray(points.get_xydata()), [[0.5, 0.3], [0.9, 0.6], [np.nan, 0.2]])
    assert [t.get_text() for t in figure.axes[0].texts] == ["B"]
    saved(figure)
    with pytest.raises(ValueError, match="0 genes with a ceiling"):
        ceiling_scatter(ceiling * np.nan, pcc)


def test_names_of_near_genes_move_apart() -> None:
    genes = [f"G{i}" for i in range(4)]
    pcc = pd.DataFrame({"m": [0.5, 0.501, 0.502, 0.2]}, index=genes)
    figure = ceiling_scatter(pd.Series(0.8, index=genes), pcc, marked=genes)
    heights = sorted(t.get_position()[1] for t in figure.axes[0].texts)
    assert np.diff(heights).min() > 0.04
