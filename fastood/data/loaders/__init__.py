"""Loaders that turn images and sampled indices into augmented batches: three implementations with equal pixels."""

from fastood.data.images.encoded import EncodedImages
from fastood.data.loaders.choice import LoaderName, LoaderPlan, open_loader, plan_loader
from fastood.data.loaders.loader import ImageLoader

__all__ = ["EncodedImages", "ImageLoader", "LoaderName", "LoaderPlan", "open_loader", "plan_loader"]
