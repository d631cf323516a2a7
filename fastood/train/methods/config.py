"""What every method's configuration has: a name, a line of help, presets, and the method it builds."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

from fastood.data import Augment, DataConfig, DetectionTask
from fastood.models import ModelConfig
from fastood.train.method import Method

PresetName = Literal["embedded", "paper"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A starting point for the command line: a method's hyper-parameters, and the images and network to go with it."""

    method: "MethodConfig"
    data: DataConfig = field(default_factory=DataConfig)
    augment: Augment = field(default_factory=Augment)
    model: ModelConfig = field(default_factory=ModelConfig)


@dataclass(frozen=True, kw_only=True)
class MethodConfig(ABC):
    """Hyper-parameters of a method; the defaults of every one are its paper's, where that says."""

    name: ClassVar[str]
    """First word of the command line."""
    summary: ClassVar[str]
    """A line that says what it is and whose."""
    ignores_background: ClassVar[bool] = False
    """Flag: no arm of the method ever trains with background images."""

    @property
    def needs_background(self) -> bool:
        """Tell whether an arm trains with background images, so that data.background must name some."""
        return not self.ignores_background

    @abstractmethod
    def build(self, model: ModelConfig, *, task: DetectionTask, seed: int) -> Method:
        """The method with these hyper-parameters.

        Args:
            model: The network.
            task: What to train on.
            seed: Seed of the run.

        Raises:
            ValueError: If network, images and hyper-parameters do not go together.
        """

    @classmethod
    def embedded(cls) -> Self:
        """Hyper-parameters for the embedded digits; the paper's unless a method says otherwise."""
        return cls()

    @classmethod
    def presets(cls) -> dict[PresetName, Preset]:
        """embedded: a minute or so on two CPU cores, without a download; paper: the paper's network and image size."""
        return {
            "embedded": Preset(method=cls.embedded(), model=ModelConfig(name="small-cnn")),
            "paper": Preset(method=cls(), data=DataConfig(image_size=32), augment=Augment(flip=True)),
        }
