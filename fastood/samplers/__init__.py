"""Sampling from a background pool whose weights change at every step (Li & Vasconcelos 2020)."""

from fastood.samplers.batch_sampler import BackgroundPoolSampler
from fastood.samplers.pool import AscentMode, BackgroundPool
from fastood.samplers.sharded import ShardedBackgroundPool
from fastood.samplers.softplus import OMEGA_MAX, OMEGA_MIN, inverse_softplus, softplus

__all__ = [
    "OMEGA_MAX",
    "OMEGA_MIN",
    "AscentMode",
    "BackgroundPool",
    "BackgroundPoolSampler",
    "ShardedBackgroundPool",
    "inverse_softplus",
    "softplus",
]
