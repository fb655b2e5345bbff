"""Further stains of a section, each a picture of its own: channels for models that read regions of the image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from histoweave.data._pixels import ImageReadError
from histoweave.data.image import SlideImage


class StainedImage(SlideImage):
    """A slide image with pictures of further stains, as fluorescence of more than three has.

    It is the image in all that looks at three channels: windows, embeddings, figures. Models that read regions get the
    first channel of each further stain behind them.

    Attributes
    ----------
    stains
        One picture each, of the image's size.

    Raises
    ------
    ImageReadError
        A stain of another size than the image.
    """

    def __init__(self, image: SlideImage, stains: Sequence[SlideImage]) -> None:
        super().__init__(image._source, image.um_per_px)
        self.stains = tuple(stains)
        for stain in self.stains:
            if stain.size != self.size:
                raise ImageReadError(
                    f"{stain} is a stain of {self}, which has another size; give pictures of one field at one resolution"
                )

    @classmethod
    def read(cls, image: SlideImage, paths: Sequence[str | Path]) -> StainedImage:
        """The image with the stains in these files, in their order; only headers are read."""
        return cls(image, [SlideImage.open(path, image.um_per_px) for path in paths])

    @property
    def digest(self) -> str:
        """BLAKE2b of the digests of the image and its stains, in hex."""
        if self._digest is None:
            every = [SlideImage(self._source, self.um_per_px), *self.stains]
            self._digest = hashlib.blake2b("".join(one.digest for one in every).encode(), digest_size=32).hexdigest()
        return self._digest


def pictures(image: SlideImage) -> list[tuple[SlideImage, int]]:
    """The image and its further stains, each with the number of its channels that count: 3, then 1 each."""
    return [(image, 3), *((stain, 1) for stain in (image.stains if isinstance(image, StainedImage) else ()))]
