"""Reject classes (Mohseni et al. 2020): extra outputs of a classifier, trained on background images."""

from fastood.train.methods.reject.method import RejectConfig

__all__ = ["RejectConfig"]
