"""How a run is spread over processes."""

from sleeptrain.parallel.config import Mesh

__all__ = ["Mesh"]
