"""Boundary aware learning (Pei et al. 2022): a classifier, and a GAN on its frozen features."""

from fastood.train.methods.bal.method import BALConfig

__all__ = ["BALConfig"]
