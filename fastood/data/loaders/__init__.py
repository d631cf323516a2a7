"""Loaders: three ways from images and the indices that a sampler chose to augmented batches, with the same pixels."""

from fastood.data.images.encoded import EncodedImages
from fastood.data.loaders.choice import LoaderName, LoaderPlan, open_loader, plan_loader
from fastood.data.loaders.loader import ImageLoader

__all__ = ["EncodedImages", "ImageLoader", "LoaderName", "LoaderPlan", "open_loader", "plan_loader"]
