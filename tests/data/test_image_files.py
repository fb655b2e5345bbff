"""Slides: every kind of colour that a file can hold, and files that are bad."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image
from tests.data.slides import HEIGHT, TILE, WIDTH, make_picture, slide_of, somewhere, write_tiff

from histoweave.data._pixels import to_u8
from histoweave.data.image import ImageReadError, SlideImage, Window


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return make_picture()


# --- colours


def shown(path: Path) -> np.ndarray:
    return SlideImage.open(path).thumbnail(10_000)


def test_jpeg_of_each_kind(tmp_path, picture):
    for mode in ("RGB", "L", "CMYK"):
        path = tmp_path / f"{mode}.jpg"
        Image.fromarray(picture).convert(mode).save(path, quality=95)
        np.testing.assert_array_equal(shown(path), np.asarray(Image.open(path).convert("RGB")))
    progressive = tmp_path / "p.jpeg"
    Image.fromarray(picture).save(progressive, progressive=True, restart_marker_rows=1)
    np.testing.assert_array_equal(shown(progressive), np.asarray(Image.open(progressive)))


def test_an_exif_orientation_is_not_applied(tmp_path, picture):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(picture).save(tmp_path / "a.jpg", exif=exif)
    slide = SlideImage.open(tmp_path / "a.jpg")
    assert slide.size == (WIDTH, HEIGHT)
    assert slide.thumbnail().shape == (HEIGHT, WIDTH, 3)


def on_white(picture: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    share = alpha[..., None] / 255
    return np.rint(picture * share + 255 * (1 - share))


def test_png_of_each_kind(tmp_path, picture):
    alpha = np.linspace(0, 255, WIDTH).astype(np.uint8)[None].repeat(HEIGHT, axis=0)
    grey = picture[..., 0]
    wide = picture.astype(np.uint16) * 257 + np.random.default_rng(0).integers(-90, 90, picture.shape)
    wide = np.clip(wide, 0, 65535).astype(np.uint16)
    pillow = {"grey": grey, "one": grey > 99, "rgba": np.dstack([picture, alpha]), "la": np.dstack([grey, alpha])}
    for name, array in pillow.items():
        Image.fromarray(array).save(tmp_path / f"{name}.png")
    for name, array in {
        "grey16": wide[..., 0],
        "rgb16": wide,
        "rgba16": np.dstack([wide, alpha * np.uint16(257)]),
    }.items():
        (tmp_path / f"{name}.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(array)))
    palette = Image.fromarray(picture).quantize(20)
    palette.save(tmp_path / "palette.png")
    palette.save(tmp_path / "clear.png", transparency=3)
    clear = np.where((np.asarray(palette) == 3)[..., None], 255, np.asarray(palette.convert("RGB")))

    def thrice(a: np.ndarray) -> np.ndarray:
        return a[..., None].repeat(3, axis=2)

    narrow = np.rint(wide / 257)
    expected = {
        "grey": thrice(grey), "one": thrice((grey > 99) * 255), "rgba": on_white(picture, alpha),
        "la": on_white(thrice(grey), alpha), "grey16": thrice(narrow[..., 0]), "rgb16": narrow,
        "rgba16": on_white(narrow, alpha), "palette": np.asarray(palette.convert("RGB")), "clear": clear,
    }  # fmt: skip
    for name, array in expected.items():
        np.testing.assert_array_equal(shown(tmp_path / f"{name}.png"), array, err_msg=name)


def test_tiff_of_each_kind(tmp_path, picture):
    grey, alpha = picture[..., 0], np.tile(np.arange(256, dtype=np.uint8), 422)[: WIDTH * HEIGHT].reshape(HEIGHT, WIDTH)
    colours = np.random.default_rng(0).integers(0, 65536, (3, 256), dtype=np.uint16)
    rgba = np.dstack([picture, alpha])
    thinned = np.dstack([(picture * (alpha[..., None] / 255)).astype(np.uint8), alpha])
    kinds = {
        "black": (grey, {"photometric": "minisblack"}, grey[..., None].repeat(3, 2)),
        "white": (grey, {"photometric": "miniswhite"}, 255 - grey[..., None].repeat(3, 2)),
        "wide": (grey * np.uint16(257), {"photometric": "minisblack"}, grey[..., None].repeat(3, 2)),
        "signed": (
            (grey.astype(int) * 257 - 32768).astype(np.int16),
            {"photometric": "minisblack"},
            grey[..., None].repeat(3, 2),
        ),
        "palette": (grey, {"photometric": "palette", "colormap": colours}, np.rint(colours / 257).T[grey]),
        "rgba": (rgba, {"extrasamples": ["unassalpha"]}, on_white(picture, alpha)),
        "thin": (
            thinned,
            {"extrasamples": ["assocalpha"]},
            np.minimum(thinned[..., :3] + (255.0 - alpha)[..., None], 255),
        ),
        "planes": (np.moveaxis(picture, 2, 0), {"planarconfig": "separate"}, picture),
        "strips": (picture, {"tile": None, "rowsperstrip": 7, "compression": None}, picture),
    }
    for name, (array, options, expected) in kinds.items():
        path = write_tiff(tmp_path / f"{name}.tif", [array], **options)
        np.testing.assert_array_equal(shown(path), expected, err_msg=name)
    planes = write_tiff(
        tmp_path / "c.ome.tif", [np.moveaxis(picture, 2, 0)], photometric="minisblack", metadata={"axes": "CYX"}
    )
    np.testing.assert_array_equal(shown(planes), picture)


def test_a_jpeg_tile_is_decoded_to_rgb(tmp_path, picture):
    path = write_tiff(tmp_path / "a.tif", [picture], compression="jpeg", compressionargs={"level": 95})
    np.testing.assert_array_equal(shown(path), tifffile.imread(path))


def test_a_tile_left_out_by_the_file_is_background(tmp_path, picture):
    path = write_tiff(tmp_path / "a.tif", [picture])
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tags = tiff.pages[0].tags
        for name in ("TileOffsets", "TileByteCounts"):
            tags[name].overwrite([0, *tags[name].value[1:]])
    expected = picture.copy()
    expected[:TILE, :TILE] = 255
    np.testing.assert_array_equal(shown(path), expected)


@pytest.mark.parametrize("bits", [1, 4, 12])
def test_whole_numbers_of_few_bits_use_their_range(bits):
    values = np.arange(1 << bits, dtype=np.uint16)
    np.testing.assert_array_equal(to_u8(values, bits), np.rint(values * 255.0 / ((1 << bits) - 1)))


def test_wide_whole_numbers_use_their_range():
    assert to_u8(np.array([0, 2**31, 2**32 - 1], np.uint32)).tolist() == [0, 128, 255]
    assert to_u8(np.array([-128, 127], np.int8)).tolist() == [0, 255]


@pytest.mark.parametrize(
    "shape,dtype,options,named",
    [
        ((70, 80, 3), "float32", {}, "float32"),
        ((5, 70, 80), "uint16", {"photometric": "minisblack", "metadata": {"axes": "CYX"}}, "5 channels"),
        ((4, 70, 80), "uint8", {"photometric": "minisblack", "metadata": {"axes": "CYX"}}, "4 channels"),
        ((2, 70, 80), "uint8", {"photometric": "minisblack", "metadata": {"axes": "CYX"}}, "2 channels"),
        ((3, 70, 80), "uint8", {"photometric": "minisblack", "metadata": {"axes": "ZYX"}}, "stack"),
        ((70, 80, 4), "uint8", {"photometric": "separated"}, "CMYK"),
        ((70, 80, 3), "uint8", {"photometric": "cielab"}, "CIELAB"),
    ],
)
def test_what_cannot_be_shown_as_rgb_is_refused_by_name(shape, dtype, options, named, tmp_path):
    path = write_tiff(
        tmp_path / ("a.ome.tif" if "metadata" in options else "a.tif"), [np.zeros(shape, dtype)], **options
    )
    with pytest.raises(ImageReadError, match=named):
        SlideImage.open(path)


# --- bad files


def test_files_that_are_not_there_or_not_images(tmp_path, monkeypatch, picture):
    with pytest.raises(FileNotFoundError, match=r"none\.svs'.*\.ndpi"):
        SlideImage.open(tmp_path / "none.svs")
    with pytest.raises(ImageReadError, match="is a folder"):
        SlideImage.open(tmp_path)
    for name, content, message in (
        ("a.gif", b"GIF89a", r"suffix '\.gif'; supported are \.jpg.*\.tif.*\.mrxs"),
        ("noend", b"x", "suffix ''"),
        ("b.jpg", b"", "0 bytes"),
        ("c.jpg", b"hello, I am text", "neither JPEG nor PNG"),
        ("d.png", b"\x89PNG\r\n\x1a\nrubbish rubbish", r"d\.png"),
        ("e.jpg", b"\xff\xd8\xff\xe0\x00", r"e\.jpg"),
        ("f.tif", b"not a tiff at all", r"no reader understands.*f\.tif': Tiff: .*; OpenSlide: .*"),
        ("g.svs", b"not a slide at all", r"OpenSlide: .*; Tiff: .*"),
        ("h.mrxs", b"nothing of the kind", r"OpenSlide: "),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageReadError, match=message):
            SlideImage.open(tmp_path / name)

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "denied")

    Image.fromarray(picture).save(tmp_path / "mine.png")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError, match=r"no permission to read.*mine\.png"):
        SlideImage.open(tmp_path / "mine.png")


@pytest.mark.parametrize("kept", [0.5, 0.9, "just the end gone"])
@pytest.mark.parametrize("kind", ["jpg", "progressive.jpg", "cmyk.jpg", "png", "16.png"])
def test_a_plain_image_cut_short_is_an_error_and_never_grey(kind, kept, tmp_path, picture):
    path, stream = tmp_path / f"cut.{kind}", io.BytesIO()
    if kind == "16.png":
        stream.write(imagecodecs.png_encode(picture * np.uint16(257)))
    elif kind == "png":
        Image.fromarray(picture).save(stream, "PNG")
    else:
        image = Image.fromarray(picture).convert("CMYK" if "cmyk" in kind else "RGB")
        image.save(stream, "JPEG", progressive="progressive" in kind)
    data = stream.getvalue()
    cut = len(data) - 1 if isinstance(kept, str) else int(len(data) * kept)
    path.write_bytes(data[:cut] if "png" not in kind or not isinstance(kept, str) else data[:-40])
    slide = SlideImage.open(path)
    with pytest.raises(ImageReadError, match=rf"cut\.{kind}.*truncated or corrupt"):
        list(slide.windows(somewhere(3), Window(px=20)))
    with pytest.raises(ImageReadError, match="copy or download it again"):
        slide.thumbnail()


def test_bytes_after_the_end_of_a_jpeg_do_no_harm(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "a.jpg")
    expected = shown(tmp_path / "a.jpg")
    with (tmp_path / "a.jpg").open("ab") as file:
        file.write(b"\0" * 100 + b"some scanner's notes")
    np.testing.assert_array_equal(shown(tmp_path / "a.jpg"), expected)


@pytest.mark.parametrize("suffix", [".tif", ".svs"])
@pytest.mark.parametrize("compression", ["zlib", "jpeg", None])
def test_a_tiled_slide_cut_short_is_an_error(suffix, compression, tmp_path, picture):
    path = write_tiff(tmp_path / f"cut{suffix}", [picture], compression=compression)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    with pytest.raises(ImageReadError, match=r"cut\..*truncated"):
        SlideImage.open(path).thumbnail()


@pytest.mark.parametrize("suffix", [".tif", ".svs"])
@pytest.mark.parametrize("compression", ["zlib", "jpeg"])
def test_a_spoilt_tile_is_an_error(suffix, compression, tmp_path, picture):
    path = write_tiff(tmp_path / f"spoilt{suffix}", [picture], compression=compression)
    with tifffile.TiffFile(path) as tiff:
        start, count = tiff.pages[0].dataoffsets[8], tiff.pages[0].databytecounts[8]
    data = bytearray(path.read_bytes())
    data[start : start + count] = b"\x55" * count
    path.write_bytes(data)
    slide = SlideImage.open(path)
    with pytest.raises(ImageReadError, match=r"cannot decode.*spoilt.*truncated or corrupt"):
        slide.thumbnail()


def test_a_jpeg_tile_without_its_end_is_an_error(tmp_path, picture):
    path = write_tiff(tmp_path / "a.tif", [picture], compression="jpeg")
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        counts = tiff.pages[0].tags["TileByteCounts"]
        counts.overwrite([counts.value[0] // 2, *counts.value[1:]])
    with pytest.raises(ImageReadError, match="end-of-image"):
        SlideImage.open(path).thumbnail()


def test_decompression_is_bounded(tmp_path, picture, recwarn):
    Image.fromarray(picture).save(tmp_path / "a.png")
    with pytest.raises(ImageReadError, match=r"108,000 px.*bound of 100,000 px.*pyramidal TIFF.*max_px"):
        SlideImage.open(tmp_path / "a.png", max_px=100_000)
    assert SlideImage.open(tmp_path / "a.png", max_px=108_000).size == (WIDTH, HEIGHT)
    one = write_tiff(tmp_path / "a.tif", [picture], tile=None, rowsperstrip=HEIGHT)
    with pytest.raises(ImageReadError, match=r"bound of 100,000 px"):
        SlideImage.open(one, max_px=100_000)
    assert SlideImage.open(write_tiff(tmp_path / "b.tif", [picture]), max_px=TILE * TILE).size == (WIDTH, HEIGHT)
    data = bytearray((tmp_path / "a.png").read_bytes())
    for sides, refused in (((20_000, 20_000), False), ((60_000, 60_000), True)):  # PIL would warn of both
        data[16:24] = struct.pack(">II", *sides)
        data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
        (tmp_path / "bomb.png").write_bytes(data)
        if refused:
            with pytest.raises(ImageReadError, match="3,600,000,000 px"):
                SlideImage.open(tmp_path / "bomb.png")
        else:
            assert SlideImage.open(tmp_path / "bomb.png").size == sides
    assert not recwarn.list


def test_a_file_replaced_by_another_size_is_noticed(tmp_path, picture):
    slide = slide_of("png", tmp_path, picture)
    Image.fromarray(picture[:200]).save(slide.path)
    with pytest.raises(ImageReadError, match=r"360 × 300 px when it was opened.*360 × 200"):
        slide.thumbnail()
