"""Reads shards as micro-batches, in an order that does not depend on the number of ranks, on workers or on restarts."""

from sleeptrain.data.batch import Batch, check
from sleeptrain.data.config import Data, Source
from sleeptrain.data.evaluation import Evaluation
from sleeptrain.data.manifest import Manifest
from sleeptrain.data.reader import Reader

__all__ = ["Batch", "Data", "Evaluation", "Manifest", "Reader", "Source", "check"]
