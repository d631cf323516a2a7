"""Sampling from a background pool whose weights change at every step (Li & Vasconcelos 2020)."""

from fastood.samplers.batch_sampler import BackgroundPoolSampler
from fastood.samplers.pool import BackgroundPool
from fastood.samplers.sharded import ShardedBackgroundPool
from fastood.samplers.state import AscentMode

__all__ = [
    "AscentMode",
    "BackgroundPool",
    "BackgroundPoolSampler",
    "ShardedBackgroundPool",
]
