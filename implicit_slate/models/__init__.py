"""Models and their parts; nothing here depends on training."""

from implicit_slate.models.dvae import DiscreteVAE
from implicit_slate.models.portable import load_pretrained
from implicit_slate.models.property_predictor import PropertyPredictor, PropertyReadout
from implicit_slate.models.public_checkpoint import load_public_checkpoint
from implicit_slate.models.slate import SLATE, Losses
from implicit_slate.models.slot_attention import SlotAttention
from implicit_slate.models.slot_model import SlotModel, Views
from implicit_slate.models.spatial_broadcast import SpatialBroadcast
