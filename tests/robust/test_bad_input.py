"""Bad input through the public commands: one message that says what was given and what to do, and nothing left behind."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from scipy import sparse
from tests.data.fixtures import st_truth, write_counts, write_selection

from histoweave.bench.summary import Report
from histoweave.cli import main
from histoweave.embed import create_encoder

PX, SIDE = 32, 7  # pixels between spots, and spots along a side of a section
UM_PER_PX = 200 / PX
QUICK = ["--encoder", "tiny", "--out-px", "32", "--window-um", "200", "--panel", "top-mean:5", "--recipe", "tiny"]
QUICK += ["--controls", "ridge"]
FIT = QUICK[:-2]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """A command: its exit status, output and errors. The store and the working folder are the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HISTOWEAVE_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["histoweave", *map(str, words)])
        try:
            main()
            code = 0
        except SystemExit as left:
            code = int(left.code or 0)
        found = capsys.readouterr()
        return code, found.out, found.err

    return call


def refused(found: tuple[int, str, str], *says: str, folder: Path = Path("out")) -> None:
    """The command failed with one message that holds these words, and left no results."""
    code, _, err = found
    assert code in (1, 2), err
    flat = " ".join(err.split())
    for word in says:
        assert word in flat, flat
    assert "Traceback" not in err and not folder.exists()


def table(seed: int, *, genes: int = 8) -> anndata.AnnData:
    """A section of 49 spots on a square lattice."""
    rng = np.random.default_rng(seed)
    row, column = np.divmod(np.arange(SIDE * SIDE), SIDE)
    made = anndata.AnnData(
        X=sparse.csr_matrix(rng.poisson(3, (SIDE * SIDE, genes)).astype(np.float32)),
        obs=pd.DataFrame({"array_row": row, "array_col": column}, index=[f"p{i}" for i in range(SIDE * SIDE)]),
        var=pd.DataFrame(index=[f"G{i}" for i in range(genes)]),
    )
    made.obsm["spatial"] = np.column_stack([column, row]) * float(PX) + PX / 2
    return made


def tissue(seed: int) -> np.ndarray:
    """A picture of the section, pink enough to be tissue."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(-30, 30, (SIDE * PX, SIDE * PX, 3))
    return np.clip(np.array([190, 90, 160]) + noise, 0, 255).astype(np.uint8)


def write(
    folder: Path,
    *,
    change: Callable[[anndata.AnnData], anndata.AnnData | None] = lambda _: None,
    patients: tuple[str, ...] = ("a", "b", "c"),
    images: tuple[int, ...] = (0, 1, 2),
    mpp: str = str(UM_PER_PX),
) -> Path:
    """A cohort of one section per patient; `change` alters (or replaces) the table of the first one."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["id,patient,path,image,mpp"]
    for i, patient in enumerate(patients):
        made = table(i)
        changed = change(made) if i == 0 else None
        made = made if changed is None else changed
        made.write_h5ad(folder / f"s{i}.h5ad")
        if i in images:
            Image.fromarray(tissue(i)).save(folder / f"s{i}.png")
        lines.append(f"s{i},{patient},s{i}.h5ad,{f's{i}.png' if i in images else ''},{mpp if i in images else ''}")
    path = folder / "samples.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort without a fault."""
    return write(tmp_path_factory.mktemp("cohort"))


def _outside(made: anndata.AnnData) -> None:
    made.obsm["spatial"] = made.obsm["spatial"] + 5 * PX


def _with(value: float) -> Callable[[anndata.AnnData], None]:
    def change(made: anndata.AnnData) -> None:
        counts = made.X.toarray()
        counts[3, 2] = value
        made.X = sparse.csr_matrix(counts)

    return change


@pytest.mark.filterwarnings("ignore:.*names are not unique")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_outside, ("'s0'", "lie outside the image of 224 × 224 px", "full-resolution image")),
        (_with(-2), ("'s0'", "negative", "expected raw counts")),
        (_with(1.5), ("'s0'", "not integers", "1.5", "raw counts")),
        (_with(np.nan), ("'s0'", "NaN or infinite")),
        (lambda t: t[:0].copy(), ("'s0'", "empty", "no spots")),
        (lambda t: setattr(t, "var_names", ["G0", *t.var_names[:-1]]), ("'s0'", "duplicate gene", "'G0'")),
        (lambda t: setattr(t, "obs_names", ["p1", *t.obs_names[1:]]), ("'s0'", "duplicate spot", "'p1'")),
    ],
)
def test_a_faulty_section(
    run: Run, tmp_path: Path, change: Callable[[anndata.AnnData], anndata.AnnData | None], says: tuple[str, ...]
) -> None:
    found = run("bench", write(tmp_path / "in", change=change), "--models", "mean", "--out", "out", *QUICK)
    refused(found, *says)
    assert not (tmp_path / "store").exists()


def test_counts_and_spots_that_do_not_join(run: Run, tmp_path: Path) -> None:
    mine, other = st_truth(0), st_truth(1)
    other.array_xy += 100
    write_counts(tmp_path / "ST-cnts" / "A1.tsv.gz", mine)
    write_selection(tmp_path / "ST-spotfiles" / "A1_selection.tsv", other)
    code, _, err = run("data", "show", tmp_path)
    assert code == 1 and "0 of 48" in err and "A1" in err and "Traceback" not in err


def test_a_spot_without_counts_is_kept_and_masked(run: Run, tmp_path: Path) -> None:
    def empty(made: anndata.AnnData) -> None:
        counts = made.X.toarray()
        counts[5] = 0
        made.X = sparse.csr_matrix(counts)

    models = "mean,ridge,knn,shuffled,triplex[width=16,heads=2,depth=1,trunk=frozen]"
    found = run("bench", write(tmp_path / "in", change=empty), "--models", models, "--out", "out", *QUICK)
    assert found[0] == 0, found[2]
    report = Report.read("out")
    for model in report.models:
        made = report.prediction(model, "a")
        truth = np.asarray(made.layers["truth"])
        assert made.n_obs == SIDE * SIDE and np.isfinite(made.X).all()
        assert np.isnan(truth[5]).all() and np.isnan(truth).sum() == truth.shape[1]
    assert report.rows.loc[report.rows["metric"] == "mse", "value"].notna().all()
    trained = [row for card in report.cells for row in card["history"]]
    assert trained and all(value is not None for row in trained for value in row.values())


def test_one_patient_only(run: Run, tmp_path: Path) -> None:
    samples = write(tmp_path / "in", patients=("a", "a"), images=(0, 1))
    refused(run("bench", samples, "--out", "out", *QUICK), "one patient only ('a')", "`fit` and `predict`")


def test_a_patient_on_both_sides(run: Run, tmp_path: Path, cohort: Path) -> None:
    other = write(tmp_path / "in", patients=("z", "c"), images=(0, 1))
    text = other.read_text(encoding="utf-8").replace("s0,z", "t0,z").replace("s1,c", "t1,c")
    other.write_text(text, encoding="utf-8")
    refused(run("bench", "--train", cohort, "--test", other, "--out", "out", *QUICK), "'c'", "both cohorts")


def test_an_external_benchmark_of_chosen_sections(run: Run, tmp_path: Path, cohort: Path) -> None:
    """What `--sections` leaves out goes from both sides of the one fold."""
    other = write(tmp_path / "in", patients=("y", "z"), images=(0,))
    text = other.read_text(encoding="utf-8").replace("s0,y", "t0,y").replace("s1,z", "t1,z")
    other.write_text(text, encoding="utf-8")
    found = run("bench", "--train", cohort, "--test", other, "--sections", "with-image", "--out", "out", *QUICK)
    assert found[0] == 0, found[2]
    assert set(Report.read("out").rows["section"]) == {"t0"}


def test_sections_without_an_image(run: Run, tmp_path: Path) -> None:
    samples = write(tmp_path / "in", images=(0,))
    words = ("bench", samples, "--models", "ridge", "--out", "out", *QUICK)
    refused(run(*words), "ridge", "2 of 3 sections have none (s1, s2)", "--sections with-image")
    refused(run("fit", samples, "--model", "ridge", "--out", "out", *FIT), "s1, s2", "--sections with-image")


def test_unknown_scale(run: Run, tmp_path: Path, cohort: Path) -> None:
    def off_lattice(made: anndata.AnnData) -> None:
        del made.obs["array_row"], made.obs["array_col"]

    samples = write(tmp_path / "in", change=off_lattice, mpp="")
    refused(run("bench", samples, "--out", "out", *QUICK), "'s0'", "µm per px", "--mpp", "samples.csv")
    assert run("fit", cohort, "--model", "mean", "--out", "model", *FIT)[0] == 0
    slide = cohort.parent / "s0.png"
    refused(run("predict", "model", slide, "--out", "out/p.h5ad"), "µm per px", "--mpp 0.5")
    refused(run("predict", "model", slide, "--out", "out/p.h5ad", "--mpp", "0"), "um_per_px=0", "positive")
    refused(run("predict", "model", slide, "--out", "out/p.h5ad", "--mpp", "6.25", "--pitch", "0"), "pitch_um=0")
    refused(run("predict", "model", slide, "--out", "out/p.h5ad", "--mpp", "6.25", "--pitch", "1e-3"), "than a pixel")
    refused(run("predict", "model", slide, "--out", "out/p.csv", "--mpp", "6.25"), "not a .h5ad")
    for mpp in ("0", "-2", "abc", "nan"):
        found = run("data", "show", write(tmp_path / "in", mpp=mpp))
        assert found[0] == 1 and "line 2: mpp is" in found[2]


def test_damaged_images(run: Run, tmp_path: Path) -> None:
    samples = write(tmp_path / "in")
    image = samples.parent / "s1.png"
    whole = image.read_bytes()
    image.write_bytes(whole[: len(whole) // 2])
    words = ("bench", samples, "--models", "ridge", "--out", "out", *QUICK)
    refused(run(*words), "s1.png", "truncated or corrupt", folder=Path("out/run.json"))
    assert not [path for path in Path("out").rglob("*") if path.is_file()]
    image.write_bytes(b"not an image")
    refused(run(*words), "s1.png", "neither JPEG nor PNG", folder=Path("out/run.json"))


def test_images_of_other_kinds(run: Run, tmp_path: Path, cohort: Path) -> None:
    """Predicted on as they are, or refused by name."""
    assert run("fit", cohort, "--model", "colour", "--out", "model", *FIT)[0] == 0
    pixels = tissue(0)
    opaque = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    Image.fromarray(pixels).save("rgb.png")
    Image.fromarray(opaque).save("rgba.png")
    Image.fromarray(pixels[..., 1]).save("grey.png")
    Image.fromarray(pixels[..., 1].astype(np.uint16) * 257).save("grey16.png")
    Image.fromarray(pixels).convert("CMYK").save("cmyk.jpg", quality=95)
    Image.fromarray(pixels).convert("CMYK").save("cmyk.tif")
    made = {}
    for name in ("rgb.png", "rgba.png", "grey.png", "grey16.png", "cmyk.jpg"):
        found = run("predict", "model", name, "--mpp", UM_PER_PX, "--min-tissue", "0", "--out", "p.h5ad")
        grey_slide = name.startswith("grey") and found[0] == 1 and "tissue" in found[2]
        assert found[0] == 0 or grey_slide, found[2]
        if found[0] == 0:
            made[name] = np.asarray(anndata.read_h5ad("p.h5ad").X)
            assert np.isfinite(made[name]).all()
    assert np.array_equal(made["rgb.png"], made["rgba.png"])
    refused(run("predict", "model", "cmyk.tif", "--mpp", UM_PER_PX, "--out", "out/p.h5ad"), "cmyk.tif", "CMYK")


def test_weights_of_another_network(run: Run, tmp_path: Path, cohort: Path) -> None:
    save_file({"conv1.weight": torch.zeros(3, 3)}, "other.safetensors")
    torch.save({"state_dict": Path("code")}, "code.pt")
    words = ("embed", cohort, "--encoder", "resnet18", "--out-px", "32", "--weights")
    refused(run(*words, "other.safetensors"), "not those of encoder 'resnet18'", "Give the file")
    refused(run(*words, "code.pt"), "run code from the file", "safetensors")
    refused(run(*words, "nowhere.pt"), "no weights at 'nowhere.pt'")
    assert not (tmp_path / "store").exists()


def test_a_model_refuses_embeddings_of_other_weights(run: Run, cohort: Path) -> None:
    """The store keeps both apart; a saved model takes only those that it was fitted on."""
    state = create_encoder("resnet18", weights="random", px=32).trunk.net.state_dict()
    state = {key: value.contiguous() for key, value in state.items()}
    save_file(state, "first.safetensors")
    save_file(state | {"bn1.weight": state["bn1.weight"] * 1.5}, "b.safetensors")
    fit = ("--encoder", "resnet18", "--weights", "first.safetensors", "--out-px", "32", "--window-um", "200")
    found = run("fit", cohort, "--model", "ridge", "--panel", "top-mean:5", "--out", "model", *fit)
    assert found[0] == 0, found[2]
    slide, out = cohort.parent / "s0.png", ("--mpp", str(UM_PER_PX), "--min-tissue", "0", "--out")
    shutil.copy("first.safetensors", "moved.safetensors")
    refused(
        run("predict", "model", slide, *out, "out/p.h5ad", "--weights", "b.safetensors"),
        "fitted on encoder 'resnet18'",
        "give the same weights",
    )
    assert run("predict", "model", slide, *out, "p.h5ad", "--weights", "moved.safetensors")[0] == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--models", "rigde"], "did you mean 'ridge'?"),
        (["--models", "ridge[components=x]"], "expected a value of type int"),
        (["--models", "knn[k=0]"], "expected a whole number of 1 or more"),
        (["--encoder", "resnet19"], "did you mean 'resnet18'?"),
        (["--recipe", "cpuu"], "did you mean 'cpu'?"),
        (["--target", "triplex-papr"], "did you mean 'triplex-paper'?"),
        (["--panel", "top-men:5"], "did you mean 'top-mean'?"),
        (["--panel", "top-mean:99"], "more genes than the 8 candidates"),
        (["--panel", "list:NOPE"], "'NOPE' are not among the 8 candidates"),
        (["--split", "k-fold:9"], "expected 2 to 3"),
        (["--sections", "s9"], "no section 's9'"),
        (["--seeds", "0"], "--seeds 1"),
        (["--ensemble", "1"], "expected 0 (one fit), or 2 to 2"),
        (["--ensemble", "2", "--protocol", "paper"], "drop one"),
        (["--standardize", "section"], "at least 50 spots in every section; 3 have fewer (s0, s1, s2)"),
        (["--standardize", "sectoin"], "'section'"),
        (["--window-um", "0"], "has to be positive"),
        (["--window-px", "0"], "has to be positive"),
        (["--device", "cuba"], "device 'cuba' cannot be used"),
        (["--threads", "0"], "expected 1 or more"),
        (["--max-hours", "0"], "--max-hours"),
    ],
)
def test_wrong_settings_write_nothing(run: Run, cohort: Path, words: list[str], says: str) -> None:
    refused(run("bench", cohort, "--models", "ridge", "--out", "out", *QUICK, *words), says)


def test_an_output_that_is_in_the_way(run: Run, tmp_path: Path, cohort: Path) -> None:
    taken = tmp_path / "taken"
    taken.write_text("mine", encoding="utf-8")
    refused(run("bench", cohort, "--out", taken, *QUICK), "is a file")
    refused(run("fit", cohort, "--model", "mean", "--out", taken, *FIT), "is not a saved model")
    refused(run("fit", cohort, "--model", "mean", "--out", ".", *FIT), "is not a saved model")
    assert taken.read_text(encoding="utf-8") == "mine"


def test_what_cannot_be_expected_is_said_before_the_fit(run: Run, cohort: Path) -> None:
    words = ("fit", cohort, "--model", "ridge", "--out", "out", *FIT)
    refused(run(*words, "--cv", "1"), "expected 2 to 3")
    refused(run(*words, "--from-bench", "nowhere"), "not a finished run")
    assert run("bench", cohort, "--models", "ridge", "--out", "run", *QUICK)[0] == 0
    refused(run(*words, "--from-bench", "run", "--cv", "2"), "use one of them")
    refused(run(*words, "--from-bench", "run", "--window-um", "100"), "window", "100.0", "200.0", "same options")
    assert run(*words, "--from-bench", "run")[0] == 0


def test_a_damaged_model(run: Run, cohort: Path) -> None:
    assert run("fit", cohort, "--model", "mean", "--out", "model", *FIT)[0] == 0
    predict = ("predict", "model", cohort.parent / "s0.png", "--mpp", UM_PER_PX, "--out", "out/p.h5ad")
    card = Path("model/model.json").read_text(encoding="utf-8")
    for text, says in (("{", "is damaged"), ('{"format": 1}', "lacks model"), ('{"format": 9}', "format 9")):
        Path("model/model.json").write_text(text, encoding="utf-8")
        refused(run(*predict), says)
    Path("model/model.json").write_text(card, encoding="utf-8")
    save_file({"module/other": torch.zeros(1)}, "model/weights.safetensors")
    refused(run(*predict), "do not fit the model")
    Path("model/weights.safetensors").write_bytes(b"nothing")
    refused(run(*predict), "weights.safetensors is damaged")
