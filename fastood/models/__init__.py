"""Networks by name, each a `Classifier` with features and a head."""

from fastood.models.classifier import Classifier
from fastood.models.densenet import DenseNet
from fastood.models.mnist_cnns import LeNet5, OutlierExposureCNN
from fastood.models.registry import MODEL_FAMILIES, MODEL_NAMES, ModelConfig, ModelFamily, build_model
from fastood.models.resnet import ResNet
from fastood.models.small_cnn import SmallCNN
from fastood.models.torchvision_classifier import TorchvisionClassifier
from fastood.models.wide_resnet import WideResNet

__all__ = [
    "MODEL_FAMILIES",
    "MODEL_NAMES",
    "Classifier",
    "DenseNet",
    "LeNet5",
    "ModelConfig",
    "ModelFamily",
    "OutlierExposureCNN",
    "ResNet",
    "SmallCNN",
    "TorchvisionClassifier",
    "WideResNet",
    "build_model",
]
