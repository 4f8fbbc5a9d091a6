"""Metrics in the manner of torchmetrics: accumulated over batches, summed over processes."""

from implicit_slate.metrics.code_usage import CodeUsage

__all__ = ["CodeUsage"]
