"""Metrics of models and their images. Classes are torchmetrics metrics; functions work on one batch."""

from implicit_slate.metrics.code_usage import CodeUsage
from implicit_slate.metrics.segmentation import adjusted_rand_index, best_overlaps, segments

__all__ = ["CodeUsage", "adjusted_rand_index", "best_overlaps", "segments"]
