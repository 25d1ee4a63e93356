# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Images of any kind in, class-id masks and overlays out."""

import functools
import io
import os
import warnings
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import torch
import torch.nn.functional as F
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import load_image, logging

from ..jobs.errors import UserError
from .channels import LUMA, InputChannels, to_rgb


logger = logging.get_logger(__name__)

ImageInput: TypeAlias = str | os.PathLike | PIL.Image.Image | np.ndarray | torch.Tensor

ORIENTATION = "applied_orientation"  # where `decode_image` keeps it, in the `info` of an image

# Okabe and Ito's colours for colour-blind readers; class 0 is the background as a rule, hence black.
_OKABE_ITO = [(0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0)]
_OKABE_ITO += [(204, 121, 167)]


def default_palette(num_classes: int) -> list[list[int]]:
    """Distinct colours `[red, green, blue]`, 0 to 255: Okabe and Ito's eight, then each as far from all as can be."""
    colors = [list(c) for c in _OKABE_ITO[:num_classes]]
    levels = np.linspace(30, 255, 8).round().astype(int)
    candidates = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3)  # [512,3]
    distance = np.linalg.norm(candidates[:, None] - np.array(_OKABE_ITO), axis=2).min(1)
    while len(colors) < num_classes:
        color = candidates[distance.argmax()]
        colors.append(color.tolist())
        distance = np.minimum(distance, np.linalg.norm(candidates - color, axis=1))
    return colors


def unnamed_classes(number: int) -> list[str]:
    """Default class names: "class 0", "class 1", …."""
    return [f"class {i}" for i in range(number)]


def is_address(name: object) -> bool:
    """Whether this is a URL (`http://…` or `https://…`) rather than a path."""
    return isinstance(name, str) and name.startswith(("http://", "https://"))


def open_image(name: str | os.PathLike) -> PIL.Image.Image:
    """Opens and decodes an image, with its EXIF orientation applied.

    Args:
        name (`str` or path): A file, or an address (`https://…`), which is fetched as [`load_image`] of diffusers does.

    Returns:
        `PIL.Image.Image` in its own mode.

    Raises:
        UserError: There is no such file, or it cannot be read as an image; names it.
    """
    if is_address(name):
        try:
            return load_image(name, convert_method=lambda image: image)  # which would make it RGB
        except Exception as error:  # of the network, of the server, or of what is no image: of many kinds
            raise UserError(f"{name} cannot be fetched as an image ({_reason(error)}); check the address.") from error
    if not os.path.isfile(name):
        raise UserError(f"There is no file {name}.")
    return decode_image(name, str(name))


def decode_image(file: str | os.PathLike | io.BytesIO | PIL.Image.Image, where: str) -> PIL.Image.Image:
    """Decodes an image file, with its EXIF orientation applied; of several pages the first, with a warning.

    Its `info` has the orientation that was applied, 1 to 8, at the key `ORIENTATION`.

    Args:
        file (path, `io.BytesIO` or `PIL.Image.Image`): What to decode; an open image is only read, and stays as it is.
        where (`str`): What to call it in messages.

    Raises:
        UserError: It cannot be read as an image.
    """
    try:
        if isinstance(file, PIL.Image.Image):
            file.load()
            return file
        with PIL.Image.open(file) as image:
            return _upright(first_page(image, where))
    except PIL.Image.DecompressionBombError as error:
        raise UserError(
            f"{where} has more than {2 * PIL.Image.MAX_IMAGE_PIXELS:,} pixels, the limit that guards against crafted "
            f"files; raise it with --max_pixels if you trust this one, or store it as a tiled TIFF."
        ) from error
    except Exception as error:  # nothing but Pillow is called here, and broken files make it raise errors of all kinds
        raise UserError(f"{where} cannot be read as an image ({_reason(error)}); repair or remove it.") from error


def _upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """A copy of an open image as viewers show it, decoded."""
    orientation = image.getexif().get(PIL.ExifTags.Base.Orientation, 1) if image.format == "TIFF" else 1
    if orientation > 4:
        image.filename = ""  # type: ignore[attr-defined]  # else Pillow maps it into memory, height and width exchanged
    image.load()  # turns TIFFs, and only then are all chunks of a PNG read
    orientation = image.getexif().get(PIL.ExifTags.Base.Orientation, orientation)
    upright = image.copy() if orientation == 1 else PIL.ImageOps.exif_transpose(image)
    if image.format == "TIFF" and image.mode.startswith("I;16") and image.tag_v2.get(262) == 0:  # type: ignore
        upright = PIL.Image.fromarray(65535 - np.asarray(upright))  # MinIsWhite, which Pillow inverts in 8 bits only
    upright.info[ORIENTATION] = orientation
    return upright


def first_page(image: PIL.Image.Image, where: str) -> PIL.Image.Image:
    """The image at its first page; warns once per file if there are more."""
    for line in left_out_pages(image, where):
        warn_once(line)
    return image


def left_out_pages(image: PIL.Image.Image, where: str) -> list[str]:
    """A line if an open image has pages beyond the first."""
    pages = getattr(image, "n_frames", 1)
    if pages == 1 or image.format == "MPO":  # cameras put previews of the same photograph into those
        return []
    return [f"{where} has {pages} pages; the first is read and the others are left out."]


def limit_pixels(number: int | None) -> None:
    """Sets Pillow's limit on the pixels of a decoded image; `None` keeps Pillow's default."""
    if number is not None:
        PIL.Image.MAX_IMAGE_PIXELS = max(1, number // 2)  # Pillow warns from there on, and refuses twice as many
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)


@functools.cache
def warn_once(message: str) -> None:
    """Logs a warning, the first time that it is given."""
    logger.warning(message)


def _reason(error: Exception) -> str:
    return "its format is not known" if isinstance(error, PIL.UnidentifiedImageError) else str(error) or repr(error)


def to_eight_bit(image: PIL.Image.Image) -> PIL.Image.Image:
    """Brings an image of any mode to "L" or "RGB"; 16-bit scans keep their full range, 65,535 becoming white.

    Raises:
        UserError: A floating-point image outside [0, 1], or an integer one outside 16 bits.
    """
    if image.mode in ("L", "RGB"):
        return image
    if image.mode in ("1", "LA", "La"):
        return image.convert("L")
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image, dtype=np.float32)
        top = 1.0 if image.mode == "F" else 65535.0
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= top):
            raise UserError(f'An image of mode "{image.mode}" must lie in 0 to {top:g}, found {low:g} to {high:g}.')
        if image.mode != "F" and 0 < high < 65535 / 8:
            logger.warning(
                f"A 16-bit image uses only 0 to {high:g} of 0 to 65535 and becomes almost black in eight bits; if it "
                f"holds 12 bits or less, scale it to the full range first, all images alike."
            )
        return PIL.Image.fromarray((values * (255 / top)).round().astype(np.uint8))
    return image.convert("RGB")


def mask_to_pil(mask: np.ndarray, palette: Sequence[Sequence[int]]) -> PIL.Image.Image:
    """A palette image (mode "P") whose pixel values are the class ids.

    Args:
        mask (`np.ndarray`): `[H, W]` uint8.
        palette (sequence of `[red, green, blue]`): Colour of each class, 0 to 255; ids beyond it are black.
    """
    image = PIL.Image.fromarray(mask)
    # Saved as PNG, pixels have as many bits as the palette needs: without colours of their own, 255 would become 15.
    beyond = max(0, int(mask.max(initial=0)) + 1 - len(palette))
    image.putpalette([x for color in [*palette, *[(0, 0, 0)] * beyond] for x in color])
    return image


def paints_first_class(palette: Sequence[Sequence[int]]) -> bool:
    """Whether overlays paint class 0: they leave it unpainted if it is black."""
    return len(palette) > 0 and any(palette[0])


def overlay(
    image: PIL.Image.Image, mask: np.ndarray, palette: Sequence[Sequence[int]], alpha: float = 0.5
) -> PIL.Image.Image:
    """The image with its classes blended over it in their colours, their outlines opaque.

    A first class that is black, the background as a rule, is left unpainted: it would hide dark images.

    Args:
        image (`PIL.Image.Image`): Image of size `W` × `H`.
        mask (`np.ndarray`): `[H, W]` uint8 class ids; ids beyond the palette (ignored pixels) leave the image as is.
        palette (sequence of `[red, green, blue]`): Colour of each class, 0 to 255.
        alpha (`float`, defaults to 0.5): Opacity of the colours, 0 to 1.

    Returns:
        `PIL.Image.Image` in mode "RGB".
    """
    pixels = np.asarray(to_eight_bit(image).convert("RGB"), dtype=np.float32)
    colors = np.zeros((256, 3), np.float32)
    colors[: len(palette)] = palette
    painted = np.arange(256) < len(palette)
    painted[0] = paints_first_class(palette)
    shown = painted[mask]  # [H,W]
    border = np.zeros(mask.shape, bool)
    for here, before in (((slice(None), slice(1, None)), (slice(None), slice(-1))), (slice(1, None), slice(-1))):
        differ = mask[here] != mask[before]
        border[here] |= differ
        border[before] |= differ & ~shown[here]  # outlines lie in what is painted
    opacity = np.where(border, 1.0, alpha) * shown
    blended = pixels + (colors[mask] - pixels) * opacity[..., None]
    return PIL.Image.fromarray(blended.round().astype(np.uint8))


class DiffuseSegImageProcessor(VaeImageProcessor):
    """[`VaeImageProcessor`] for pixel-space U-Nets: takes images of mixed types and sizes and keeps their sizes.

    Args:
        in_channels (`int`): The channels that the U-Net takes.
        channels ([`InputChannels`], *optional*): Which those are, and between which values; files of pictures have 1 or
            3 alone, arrays as many as there are.
    """

    def __init__(self, in_channels: int, channels: InputChannels | None = None):
        super().__init__(
            vae_scale_factor=1,
            resample="bilinear",
            do_convert_grayscale=in_channels == 1,
            do_convert_rgb=in_channels == 3,
        )
        self.in_channels, self.channels = in_channels, channels or InputChannels()

    def load(self, images: ImageInput | Sequence[ImageInput]) -> list[PIL.Image.Image | torch.Tensor]:
        """Splits an image, a batch, or a list of either into single images.

        Args:
            images:
                Paths, addresses (`https://…`), PIL images, arrays `[H, W]`, `[H, W, C]` or `[N, H, W, C]`, tensors
                `[H, W]`, `[C, H, W]` or `[N, C, H, W]`; uint8, or floating point in [0, 1].

        Returns:
            list of `PIL.Image.Image` (eight bits, `in_channels` channels) and, for arrays of another type or number of
            channels, `torch.Tensor` (`[in_channels, H, W]` float32 in [0, 1]).

        Raises:
            UserError: An image cannot be read, or has values or channels that an image cannot have.
        """
        if not isinstance(images, (list, tuple)):
            images = [images]
        loaded = []
        for image in images:
            if isinstance(image, (str, os.PathLike)):
                image = open_image(image)
            if isinstance(image, PIL.Image.Image):
                loaded.append(self._picture(decode_image(image, "An image")))
            elif isinstance(image, np.ndarray):
                batch = image[None, ..., None] if image.ndim == 2 else image[None] if image.ndim == 3 else image
                loaded += [self._single(x.movedim(-1, 0)) for x in torch.from_numpy(np.array(batch))]
            elif isinstance(image, torch.Tensor):
                batch = image[None, None] if image.ndim == 2 else image[None] if image.ndim == 3 else image
                loaded += [self._single(x) for x in batch]
            else:
                raise UserError(f"An image is a path, PIL image, array or tensor, got {type(image).__name__}.")
        return loaded

    def _picture(self, image: PIL.Image.Image) -> PIL.Image.Image | torch.Tensor:
        """An image in the model's channels; 8-bit images stay PIL images."""
        if self.channels.windows is None and self.in_channels in (1, 3):
            return to_eight_bit(image).convert("L" if self.in_channels == 1 else "RGB")
        if image.mode not in ("L", "RGB", "I", "F") and not image.mode.startswith("I;"):
            image = to_eight_bit(image)
        values = np.asarray(image)
        return self._encoded(values[None] if values.ndim == 2 else values.transpose(2, 0, 1))

    def _encoded(self, values: np.ndarray) -> torch.Tensor:
        """An array `[C, H, W]` of any type as the model takes it, `[in_channels, H, W]` float32 in [0, 1]."""
        return torch.from_numpy(self.channels.encode(values, self.in_channels))

    def _single(self, x: torch.Tensor) -> PIL.Image.Image | torch.Tensor:
        """One array `[C, H, W]`: eight bits become a PIL image, so that they are resized as a file would be."""
        usual = x.dtype == torch.uint8 or x.is_floating_point()
        if self.channels.windows is not None or self.in_channels not in (1, 3) or not usual:
            return self._encoded(x.cpu().numpy())
        if x.ndim != 3 or x.shape[0] not in (1, 3, 4):
            raise UserError(f"An image has 1, 3 or 4 channels; got an array that reads as {tuple(x.shape)} (C, H, W).")
        x = x[:3]  # drops alpha
        if x.dtype == torch.uint8:
            pixels = x.movedim(0, -1).cpu().numpy()
            image = PIL.Image.fromarray(pixels[..., 0] if len(x) == 1 else np.ascontiguousarray(pixels))
            return image.convert("L" if self.in_channels == 1 else "RGB")
        x = x.float()
        low, high = x.aminmax()
        if not (low >= 0 and high <= 1):
            raise UserError(f"Pixels must be uint8 or lie in 0 to 1, found {low:g} to {high:g}; rescale the image.")
        if self.in_channels == 1 and len(x) == 3:
            return (x * x.new_tensor(LUMA)[:, None, None]).sum(0, keepdim=True)
        return x.expand(self.in_channels, -1, -1)

    def preprocess(self, images: Sequence[PIL.Image.Image | torch.Tensor], height: int, width: int) -> torch.Tensor:
        """Resizes loaded images with antialiasing and normalises them.

        Args:
            images: As returned by [`~DiffuseSegImageProcessor.load`]; sizes may differ.
            height, width (`int`): Size for the U-Net, in pixels.

        Returns:
            `torch.Tensor` `[N, in_channels, height, width]` float32 in [-1, 1].
        """
        batch = []
        for image in images:
            if isinstance(image, PIL.Image.Image):
                batch.append(super().preprocess(image, height, width)[0])
            else:
                if image.shape[1:] != (height, width):
                    image = F.interpolate(image[None], (height, width), mode="bilinear", antialias=True)[0].clamp(0, 1)
                batch.append(self.normalize(image.cpu()))
        return torch.stack(batch)

    @staticmethod
    def sizes(images: Sequence[PIL.Image.Image | torch.Tensor]) -> list[tuple[int, int]]:
        """Height and width of loaded images, in pixels."""
        return [(x.height, x.width) if isinstance(x, PIL.Image.Image) else (x.shape[1], x.shape[2]) for x in images]

    def convert(
        self, image: PIL.Image.Image | torch.Tensor, output_type: str
    ) -> PIL.Image.Image | np.ndarray | torch.Tensor:
        """A loaded image as `output_type` says: `"pil"`, `"np"` `[H, W, C]` or `"pt"` `[C, H, W]`, in [0, 1]."""
        if isinstance(image, PIL.Image.Image):
            if output_type == "pil":
                return image
            image = self.numpy_to_pt(self.pil_to_numpy(image))[0]  # [C,H,W]
        if output_type == "pt":
            return image
        array = self.pt_to_numpy(image[None])  # [1,H,W,C]
        return self.numpy_to_pil(array)[0] if output_type == "pil" else array[0]

    @staticmethod
    def numpy_to_pil(images: np.ndarray) -> list[PIL.Image.Image]:
        """As in diffusers; pictures `[N, H, W, C]` of other than 1 or 3 channels are shown as [`to_rgb`] does."""
        if images.shape[-1] not in (1, 3):
            return [PIL.Image.fromarray(to_rgb(image.transpose(2, 0, 1))) for image in images]
        return VaeImageProcessor.numpy_to_pil(images)
