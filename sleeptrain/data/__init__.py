"""Reading shards: batches of micro-batches in an order that ranks, workers and restarts do not change."""

from sleeptrain.data.batch import Batch, check
from sleeptrain.data.config import Data, Source
from sleeptrain.data.evaluation import Evaluation
from sleeptrain.data.manifest import Manifest
from sleeptrain.data.reader import Reader

__all__ = ["Batch", "Data", "Evaluation", "Manifest", "Reader", "Source", "check"]
