"""Figures as SVG inside a page: its fonts and colours, ids of their own, raster layers as lean as they can be."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable

from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure

from histoweave.pl.maps import GROUND, INK, LINE, MUTED
from histoweave.pl.scores import CONTROL, METHOD

_DPI = 190  # of raster layers: about two image px per CSS px
_JPEG = 85
_THEME = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    LINE: "var(--line)",
    GROUND: "var(--ground)",
    METHOD: "var(--method)",
    CONTROL: "var(--control)",
}


def inline_svg(figure: Figure, name: str, alt: str) -> Markup:
    """A figure as an SVG element for the inside of a page.

    Parameters
    ----------
    name
        Put before every id, so that the figures of a page do not meet; the same name and figure give the same text.
    alt
        What the figure shows, for those who do not see it.
    """
    buffer = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "svg.image_inline": True}):
        figure.savefig(buffer, format="svg", dpi=_DPI, transparent=False, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    opening, _, body = text.partition(">")
    box = re.search(r'viewBox="[^"]+"', opening)
    # The style of a figure would be the style of the page; its two rules stand in the template.
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r'data:image/png;base64,([^"]+)', _lean, body)
    body = _in_tags(body, lambda tag: _themed(tag, name))
    assert box is not None
    wide = figure.get_figwidth() * 96
    return Markup(
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} '
        f'style="width:{wide:.0f}px" role="img" aria-label="{escape(alt)}">{body}'
    )


def _in_tags(text: str, change: Callable[[str], str]) -> str:
    """Text with its tags changed; what stands between them is left as it is."""
    return re.sub(r"<[^<>]+>", lambda match: change(match[0]), text)


def _themed(tag: str, name: str) -> str:
    """A tag with the page's colours and fonts in place of the figure's, and with ids of its own."""
    tag = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", tag)
    tag = re.sub(r"font: ([\d.]+px)[^;\"]*", r"font-size: \1", tag)
    return re.sub(r"#[0-9a-f]{6}", lambda match: _THEME.get(match[0], match[0]), tag)


def _lean(match: re.Match[str]) -> str:
    """An embedded PNG in fewer bytes: a photograph as JPEG, spots (which have transparency) as lossless WebP."""
    from PIL import Image

    raw = base64.b64decode(match[1])
    lean = io.BytesIO()
    with Image.open(io.BytesIO(raw)) as image:
        if "A" in image.getbands() and image.getchannel("A").getextrema() != (255, 255):
            kind = "webp"
            image.save(lean, "WEBP", lossless=True, quality=60, method=2)
        else:
            kind = "jpeg"
            image.convert("RGB").save(lean, "JPEG", quality=_JPEG, optimize=True)
    if lean.tell() >= len(raw):
        return match[0]
    return f"data:image/{kind};base64," + base64.b64encode(lean.getvalue()).decode("ascii")
