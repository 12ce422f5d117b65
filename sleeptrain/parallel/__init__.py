"""Data, pipeline and tensor parallelism: process groups, and how a model is divided over them."""

from sleeptrain.parallel.config import Mesh

__all__ = ["Mesh"]
