"""Networks for small images, each a `Classifier` of features and head."""

from fastood.models.classifier import Classifier
from fastood.models.registry import MODEL_NAMES, ModelConfig, build_model
from fastood.models.small_cnn import SmallCNN
from fastood.models.wide_resnet import WideResNet

__all__ = ["MODEL_NAMES", "Classifier", "ModelConfig", "SmallCNN", "WideResNet", "build_model"]
