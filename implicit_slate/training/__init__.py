"""LightningModules, and the optimiser's settings."""

from implicit_slate import lazy

HOMES = {
    "DVAEModule": "dvae_module",
    "Optimization": "optimization",
    "PropertyModule": "property_module",
    "SLATEModule": "slate_module",
    "SpatialBroadcastModule": "spatial_broadcast_module",
}
__all__ = list(HOMES)
__getattr__ = lazy.attributes(__name__, HOMES)
