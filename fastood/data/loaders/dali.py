"""Loader by NVIDIA DALI: one pipeline decodes, fits, crops, flips and normalises, on the CPU or on a GPU."""

import os
from collections import deque
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, math, pipeline_def, types
from nvidia.dali.plugin.pytorch import feed_ndarray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fastood.console.names import printable
from fastood.data.images.augment import Augment, AugmentDraws
from fastood.data.images.decoding import UNREADABLE, require_decodable
from fastood.data.images.encoded import EncodedImages
from fastood.data.loaders.batch_checks import check_batch, check_depth, check_room, check_waiting

_JPEG_MAGIC = b"\xff\xd8\xff"
_DECODED_FORMATS = ("JPEG", "JPEG2000", "PNG", "BMP", "TIFF", "WEBP", "PPM")


class DaliLoader:
    """Loader of a DALI pipeline that is fed with the submitted batches.

    DALI's readers take no sampler, so every batch is fed as an external source: paths, file contents or pixels, with a
    crop and a flip for each image. A batch is scheduled when it is submitted; DALI's queue is as long as the prefetch
    queue. Batches of decoded images equal those of `ResidentLoader` bit for bit. Encoded images are decoded by DALI: on
    the CPU the pixels are equal for colour images that are not resized; resizing, conversion to grey and decoding on a
    GPU round differently from Pillow and `fit_images`.

    Args:
        images: uint8 `[N, C, H, W]`, in memory or mapped from a file, or encoded images.
        augment: Augmentation and normalisation of the images.
        batch_size: Largest number of images of a batch.
        device: Device of the batches; it also decodes JPEGs.
        prefetch_depth: Batches prepared ahead, 0 or larger; see `ImageLoader`.
        threads: CPU threads of the pipeline, at least 1.
    """

    name = "dali"

    def __init__(
        self,
        images: Tensor | EncodedImages,
        augment: Augment,
        *,
        batch_size: int,
        device: torch.device,
        prefetch_depth: int = 2,
        threads: int = 2,
    ) -> None:
        check_depth(prefetch_depth)
        for name, value in (("batch_size", batch_size), ("threads", threads)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.prefetch_depth = prefetch_depth
        self._images = images
        self._batch_size = batch_size
        self._device = device
        if isinstance(images, EncodedImages):
            self._shape = (images.channels, images.size, images.size)
        else:
            self._shape = (images.shape[1], images.shape[2], images.shape[3])
        self._padding = augment.padding_of(self._shape[1])
        self._waiting: deque[Tensor | ValueError] = deque()
        self._checked = bytearray(len(images) if isinstance(images, EncodedImages) else 0)
        values = torch.arange(256, dtype=torch.uint8).view(-1, 1, 1, 1)
        self._pipeline = _pipeline(
            batch_size=batch_size,
            num_threads=threads,
            device_id=(device.index or 0) if device.type == "cuda" else None,
            prefetch_queue_depth=prefetch_depth + 1,
            # A pipelined first run would start a whole queue of batches and need input for all of them.
            exec_pipelined=False,
            kind=_kind(images),
            shape=self._shape,
            # A table instead of a formula, so that pixels equal those of Augment bit for bit.
            normalized=augment.normalize(values).flatten().tolist(),
            gpu=device.type == "cuda",
        )
        self._pipeline.build()

    def submit(self, index: Tensor, draws: AugmentDraws) -> None:
        """Feed a batch to the pipeline and schedule its run."""
        check_room(len(self._waiting), self.prefetch_depth)
        check_batch(index, draws, num_images=len(self._images), padding=self._padding)
        if len(index) > self._batch_size:
            raise ValueError(f"index must have at most batch_size {self._batch_size} images, got {len(index)}")
        refused = self._refused(index)
        self._waiting.append(index if refused is None else refused)
        if len(index) == 0 or refused is not None:
            # DALI has no empty batches; with a sharded pool the part of one process may be empty.
            return
        corner = torch.stack([draws.rows, draws.columns], dim=1).cpu() - self._padding
        self._pipeline.feed_input("image", self._pixels_or_files(index.cpu()))
        self._pipeline.feed_input("corner", corner.to(torch.int32).numpy())
        self._pipeline.feed_input("flip", draws.flip.cpu().to(torch.int32).numpy())
        self._pipeline.schedule_run()

    def _pixels_or_files(self, index: Tensor) -> "np.ndarray[Any, Any] | Sequence[np.ndarray[Any, Any]]":
        images = self._images
        if isinstance(images, Tensor):
            return images[index.to(images.device)].cpu().numpy()
        files = [images.files[chosen] for chosen in index.tolist()]
        return [np.frombuffer(os.fsencode(file) if isinstance(file, str) else file, np.uint8) for file in files]

    def _refused(self, index: Tensor) -> ValueError | None:
        """Return the error of the first file that the other loaders refuse or DALI cannot read; each is read once."""
        if isinstance(self._images, Tensor):
            return None
        for chosen in index.tolist():
            if not self._checked[chosen]:
                try:
                    _require_served(self._images, chosen)
                except ValueError as error:
                    return error
                self._checked[chosen] = 1
        return None

    def collect(self) -> Tensor:
        """Wait for the oldest batch and copy it out of DALI's buffers."""
        check_waiting(len(self._waiting))
        index = self._waiting.popleft()
        if isinstance(index, ValueError):
            raise index
        batch = torch.empty(len(index), *self._shape, device=self._device)
        if len(index) == 0:
            return batch
        try:
            (served,) = self._pipeline.share_outputs()
        except RuntimeError as error:
            if isinstance(self._images, EncodedImages):
                self._images.decode(index)  # Raises an error that names the image if Pillow cannot read it either.
            raise ValueError(f"DALI cannot serve images {index.tolist()}: {error}") from error
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        feed_ndarray(served.as_tensor(), batch, cuda_stream=stream)
        if stream is not None:
            # The copy reads a buffer that is released to DALI below.
            stream.synchronize()
        self._pipeline.release_outputs()
        return batch

    def close(self) -> None:
        """End the pipeline and its threads."""
        self._waiting.clear()
        # DALI frees threads and buffers with the last reference.
        del self._pipeline


def _decode_and_fit(encoded: Any, *, size: int, channels: int, gpu: bool) -> Any:
    """Decode and fit images as `fit_images` does: with equal sizes and crops, and a filter that rounds differently."""
    # With the EXIF orientation, as `upright` does.
    shape = fn.peek_image_shape(encoded, adjust_orientation=True, dtype=types.INT32)
    rows, columns = shape[0], shape[1]
    shorter = math.min(rows, columns)
    fitted = fn.stack(size * rows // shorter, size * columns // shorter)
    half = (fitted - size) // 2
    # Half of an odd margin is rounded to even, as torchvision's centre crop does with Python's round.
    margin_is_odd, half_is_odd = fitted - size - 2 * half, half - 2 * (half // 2)
    images = fn.decoders.image(
        encoded,
        device="mixed" if gpu else "cpu",
        output_type=types.GRAY if channels == 1 else types.RGB,
        adjust_orientation=True,
    )
    images = fn.resize(images, size=fn.cast(fitted, dtype=types.FLOAT), interp_type=types.INTERP_LINEAR, antialias=True)
    return fn.slice(images, start=half + margin_is_odd * half_is_odd, shape=(size, size), axis_names="HW")


def _require_served(images: EncodedImages, chosen: int) -> None:
    """Check that Pillow accepts a file and that DALI decodes its format.

    Raises:
        ValueError: If the file is unreadable or its format unsupported; the message names it.
    """
    file = images.files[chosen]
    name = printable(file) if isinstance(file, str) else images.place_of(chosen)
    try:
        if isinstance(file, bytes):
            head = file[: len(_JPEG_MAGIC)]
        else:
            with Path(file).open("rb") as opened:
                head = opened.read(len(_JPEG_MAGIC))
        if head == _JPEG_MAGIC:
            return  # Always of 8 bits: no more of the file need be read.
        with Image.open(file if isinstance(file, str) else BytesIO(file)) as image:
            require_decodable(image)
            if image.format not in _DECODED_FORMATS:
                raise ValueError(f"DALI does not decode {image.format}: choose data.loader dataloader")
    except UnidentifiedImageError as error:
        raise ValueError(f"unreadable image {name}: its format is unknown to Pillow") from error
    except UNREADABLE as error:
        raise ValueError(f"unreadable image {name}: {error}") from error


def _kind(images: Tensor | EncodedImages) -> str:
    if isinstance(images, Tensor):
        return "pixels"
    return "paths" if len(images) and isinstance(images.files[0], str) else "contents"


def _graph(*, kind: str, shape: tuple[int, int, int], normalized: list[float], gpu: bool) -> Any:
    """Define the pipeline from the inputs of `submit` to float32 `[C, H, W]`, on the GPU if `gpu`."""
    channels, height, width = shape
    images = fn.external_source(name="image", dtype=types.UINT8, **({"layout": "CHW"} if kind == "pixels" else {}))
    corner = fn.external_source(name="corner", dtype=types.INT32, ndim=1)
    flip = fn.external_source(name="flip", dtype=types.INT32, ndim=0)
    if kind == "pixels":
        images = images.gpu() if gpu else images
    else:
        if kind == "paths":
            images = fn.io.file.read(images)
        images = _decode_and_fit(images, size=height, channels=channels, gpu=gpu)
        images = fn.transpose(images, perm=[2, 0, 1], output_layout="CHW")
    # The crop may extend beyond the image, into the zeros of the padding.
    images = fn.slice(
        images, start=corner, shape=(height, width), axis_names="HW", out_of_bounds_policy="pad", fill_values=0
    )
    images = fn.flip(images, horizontal=flip)
    return fn.lookup_table(images, keys=list(range(256)), values=normalized, dtype=types.FLOAT)


_pipeline = pipeline_def(_graph)
