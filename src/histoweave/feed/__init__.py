"""From sections to batches: the only place that turns a `Section` into a `Batch`."""

from histoweave.feed._feed import Feed, dense_rc
from histoweave.feed._sequences import Sequencing

__all__ = ["Feed", "Sequencing", "dense_rc"]
