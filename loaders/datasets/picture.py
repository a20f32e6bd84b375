"""One picture as it is seen: upright, on white where it is transparent, in sRGB; what would be misread is refused."""

import os
import struct
import warnings
from functools import cache, lru_cache
from io import BytesIO
from typing import BinaryIO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from apart_fast.errors import UserError
from apart_fast.loaders.datasets.listing import shown
from apart_fast.loaders.datasets.reading import Resizing
from apart_fast.loaders.datasets.resizing import enlarges, resize

# what is done to a picture without being asked; the words follow "N of M pictures "
TRANSPARENT = "have transparency: shown on white"
PROFILE = "have a colour profile: converted to sRGB"
BAD_PROFILE = "have a colour profile that cannot be used: taken as sRGB"
SEVERAL = "hold further pictures (MPO): the first is taken"
ENLARGED = "are smaller than the size asked for: enlarged"

_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "AVIF", "PPM")
_ALPHA = {"LA", "PA", "RGBA", "RGBa"}
# Pillow's modes that are 8-bit gray or RGB; others would lose depth, or need to know how their ink looks
_MODES = _ALPHA | {"1", "L", "P", "RGB", "RGBX", "YCbCr"}
_ORIENTATION = 0x0112  # EXIF
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS, _SAMPLES = 258, 339  # tags of TIFF: bits of each channel, and what they mean
_AT_ONCE = 2**22  # pixels that are blended together
_SAME = 2  # levels by which a colour profile may differ from sRGB to be taken for it


class Picture(NamedTuple):
    """A decoded picture.

    Attributes:
        pixels: uint8 [H, W, 3].
        colored: whether it holds colour: an opaque file that is RGB does; of others the pixels decide.
        notes: what was done to it that is worth a line (constants of this module).
    """

    pixels: NDArray[np.uint8]
    colored: bool
    notes: tuple[str, ...]


class Encoded(NamedTuple):
    """A picture file that lies in memory: what messages call it, and its bytes."""

    name: str
    data: bytes


def read_picture(source: str | Encoded, to: Resizing | None = None) -> Picture:
    """Decode a file; `to`: and bring the picture, as it is seen, to one size.

    Raises:
        UserError: it cannot be read, is animated, has more than 8 bits a channel, or is CMYK or of another kind that
            is neither gray nor RGB; or it is larger than any picture of a data set, by far.
    """
    path = source if isinstance(source, str) else source.name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd metadata, which would not name the file
            if to is None:  # at twice as many pixels comes the error, which nothing turns off
                warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _open(source) as file, Image.open(file, formats=_formats()) as image:
                _check(path, image, file)
                return _as_seen(image, file, to)
    except UserError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        advice = "resize it or remove it" if to else "resize it (--image-size takes twice as many pixels) or remove it"
        raise UserError(f"{shown(path)} is too large to be an image of a data set: {advice}") from error
    except Exception as error:  # a damaged file can make Pillow raise almost anything
        if (bits := _jpeg_bits(source)) > 8:
            raise _deep(path, "JPEG", bits) from error
        reason = type(error).__name__
        if str(error) and not isinstance(error, Image.UnidentifiedImageError):
            reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise UserError(f"{shown(path)} cannot be read as an image ({reason}): replace it or remove it") from error


def _open(source: str | Encoded) -> BinaryIO:
    return open(source, "rb") if isinstance(source, str) else BytesIO(source.data)


@cache
def _formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _check(path: str, image: Image.Image, file: BinaryIO) -> None:
    """Refuse what would not be loaded as it is seen."""
    bits = _bits(image, file)
    if bits > 8:
        raise _deep(path, image.mode, bits)
    if image.mode not in _MODES:
        raise UserError(f"{shown(path)} has pixels of type {image.mode}: convert it to 8-bit gray or RGB")
    if image.format == "TIFF" and any(kind != 1 for kind in _tag(image, _SAMPLES)):
        raise UserError(f"{shown(path)} has pixels that are not unsigned: convert it to 8-bit gray or RGB")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":
        raise UserError(
            f"{shown(path)} is animated or has pages ({frames} frames): give each picture a file of its own"
        )


def _deep(path: str, kind: str, bits: int) -> UserError:
    return UserError(
        f"{shown(path)} has pixels of type {kind}: convert it to 8-bit gray or RGB (it has {bits} bits a channel)"
    )


def _bits(image: Image.Image, file: BinaryIO) -> int:
    """Bits of a channel, as the file's own header has them: Pillow shows some deep pictures as if they had 8."""
    place = file.tell()
    try:
        if image.format == "PNG":
            file.seek(24)  # of IHDR, the first chunk
            return file.read(1)[0]
        if image.format == "TIFF":
            return max(_tag(image, _BITS), default=1)
        if image.format == "PPM":
            args = vars(image)["tile"][0][3]
            last = args[-1] if isinstance(args, tuple) else None
            return last.bit_length() if isinstance(last, int) else 16 if image.mode == "I" else 8
        if image.format == "AVIF":
            file.seek(0)
            return _av1_bits(file.read(1 << 20))
        return 8
    finally:
        file.seek(place)


def _tag(image: Image.Image, number: int) -> tuple[int, ...]:
    value = getattr(image, "tag_v2", {}).get(number, ())
    return value if isinstance(value, tuple) else (value,)


def _av1_bits(data: bytes) -> int:
    """The most that an `av1C` box tells of: bit 6 of its third byte says more than 8, bit 5 then 12."""
    bits, at = 8, data.find(b"av1C\x81")
    while at >= 0 and at + 6 < len(data):
        if data[at + 6] & 0x40:
            bits = max(bits, 12 if data[at + 6] & 0x20 else 10)
        at = data.find(b"av1C\x81", at + 4)
    return bits


def _jpeg_bits(source: str | Encoded) -> int:
    """Of a JPEG's first frame header; 0 if there is none."""
    try:
        with _open(source) as file:
            if file.read(2) != b"\xff\xd8":
                return 0
            while (head := file.read(4))[:1] == b"\xff" and len(head) == 4:
                marker, length = struct.unpack(">xBH", head)
                if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
                    return (file.read(1) or b"\0")[0]
                file.seek(length - 2, os.SEEK_CUR)
    except (OSError, struct.error):
        pass
    return 0


def _as_seen(image: Image.Image, file: BinaryIO, to: Resizing | None) -> Picture:
    notes = [SEVERAL] if image.format == "MPO" and getattr(image, "n_frames", 1) > 1 else []
    bits = _bits(image, file)
    image.load()
    profile, turn = image.info.get("icc_profile"), _UPRIGHT.get(_orientation(image))
    gray = image.mode in ("1", "L")
    declared = image.mode in ("RGB", "RGBX", "YCbCr")
    transparent = _has_alpha(image)
    if gray and bits < 8 and isinstance(key := image.info.get("transparency"), int):
        # Pillow scales the pixels, and leaves the colour that is transparent as it was (but for 1 bit)
        image = image.convert("L")
        image.info["transparency"] = key * 255 // (2**bits - 1) if key < 2**bits else key
    pixels = image.convert("RGBA" if transparent else "L" if gray else "RGB")
    if profile and image.mode not in ("1", "L", "LA"):  # gray has no colour to be off; viewers differ on its tone
        pixels, note = _to_srgb(pixels, profile)
        notes += [note] if note else []
    if turn is not None:
        pixels = pixels.transpose(turn)
    if transparent:
        if cast(tuple[tuple[int, int], ...], pixels.getextrema())[3][0] < 255:
            notes.append(TRANSPARENT)
        pixels = _on_white(pixels)
    if to is not None and enlarges(pixels.size, to):
        notes.append(ENLARGED)
    array = np.asarray(pixels.convert("RGB")) if to is None else resize(pixels, to)
    colored = not gray and ((declared and not transparent) or not _is_gray(array))
    return Picture(array, colored, tuple(notes))


def _on_white(picture: Image.Image) -> Image.Image:
    """RGBA as RGB, some rows at a time."""
    pixels = np.asarray(picture)
    seen = np.ascontiguousarray(pixels[..., :3])
    rows = max(1, _AT_ONCE // picture.width)
    for first in range(0, picture.height, rows):
        part = slice(first, first + rows)
        alpha = pixels[part, :, 3:].astype(np.uint16)
        seen[part] = (seen[part] * alpha + 255 * (255 - alpha) + 127) // 255
    return Image.fromarray(seen)


def _has_alpha(image: Image.Image) -> bool:
    palette = image.palette.mode if image.mode == "P" and image.palette is not None else ""
    return image.mode in _ALPHA or "transparency" in image.info or palette.endswith("A")


def _is_gray(pixels: NDArray[np.uint8]) -> bool:
    return bool((pixels == pixels[..., :1]).all())


def _orientation(image: Image.Image) -> int:
    """1 where the file does not say, or what it says cannot be read: viewers show it as it lies then."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged metadata can make Pillow raise almost anything
        return 1


def _to_srgb(pixels: Image.Image, profile: bytes) -> tuple[Image.Image, str | None]:
    """RGB or RGBA pixels as sRGB, and what is to be said of it."""
    try:
        transform = _transform(profile, pixels.mode)
    except (OSError, ValueError, ImportError, ImageCms.PyCMSError):  # ImportError: a Pillow without LittleCMS
        return pixels, BAD_PROFILE
    return (pixels, None) if transform is None else (transform.apply(pixels), PROFILE)


@lru_cache(8)  # the pictures of a data set share theirs
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile to sRGB; None if it is that, by another name or with other rounding."""
    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, mode)
    assert isinstance(transform, ImageCms.ImageCmsTransform)
    steps = np.arange(0, 256, 17, dtype=np.uint8)
    colors = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(64, 64, 3)
    made = np.asarray(transform.apply(Image.fromarray(colors).convert(mode)))[..., :3]
    return None if np.abs(made.astype(int) - colors).max() <= _SAME else transform
