"""LightningModules, and how they are optimised."""

from implicit_slate.training.dvae_module import DVAEModule
from implicit_slate.training.optimization import Optimization
from implicit_slate.training.property_module import PropertyModule
from implicit_slate.training.slate_module import SLATEModule
from implicit_slate.training.spatial_broadcast_module import SpatialBroadcastModule

__all__ = ["DVAEModule", "Optimization", "PropertyModule", "SLATEModule", "SpatialBroadcastModule"]
