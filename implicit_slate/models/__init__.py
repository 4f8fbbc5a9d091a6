"""The parts of SLATE, as modules that know nothing of training."""

from implicit_slate.models.dvae import DiscreteVAE
from implicit_slate.models.public_checkpoint import load_public_checkpoint
from implicit_slate.models.slate import SLATE, Losses
from implicit_slate.models.slot_attention import SlotAttention

__all__ = ["SLATE", "DiscreteVAE", "Losses", "SlotAttention", "load_public_checkpoint"]
