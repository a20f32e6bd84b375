"""A picture is loaded as it is seen, or refused."""

import struct
import warnings
import zlib
from io import BytesIO

import numpy as np
import pytest
from image_folders import make_folder, refuse
from PIL import Image, ImageCms, ImageDraw, features

from apart_fast.loaders import load_dataset

needs_avif = pytest.mark.skipif("AVIF" not in features.get_supported_codecs() and not features.check("avif"), reason="")


def noise(seed, h, w, c=3):
    return np.random.default_rng(seed).integers(0, 256, (h, w, c), dtype=np.uint8)


def load(root, file, data):
    """Images of a folder of 6x5 pictures whose first training picture is `data` (bytes) in `file`, and the notes."""
    make_folder(root)
    (root / "train" / "a" / "0.png").unlink()
    (root / "train" / "a" / file).write_bytes(data)
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        dataset = load_dataset("folder", root, progress=False)
    return dataset.train.images, [str(note.message) for note in notes]


def refuse_file(root, file, data, message):
    make_folder(root)
    (root / "train" / "b" / file).write_bytes(data)
    refuse("folder", root, message)


def encode(pixels, kind, mode=None, **options):
    stream = BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, kind, **options)
    return stream.getvalue()


def png(kind, depth, rows, extra=b""):
    """A PNG of the colour type `kind`; `rows` are packed bytes [H, bytes of a row], width 6."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", 6, len(rows), depth, kind, 0, 0, 0)
    body = b"".join(b"\0" + bytes(row) for row in rows)
    extra = b"".join(chunk(*part) for part in extra)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    )


# what a viewer does to the stored pixels (EXIF 2.3, tag 274)
UPRIGHT = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: x[::-1].swapaxes(0, 1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: x[:, ::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_pictures_that_lie_on_their_side(kind, orientation, tmp_path):
    stored = noise(1, *((6, 5) if orientation > 4 else (5, 6)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(stored, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    images, notes = load(tmp_path, f"0.{kind.lower()}", data)
    assert np.array_equal(images[0].numpy(), UPRIGHT[orientation](stored)) and not notes


def test_a_photo_that_lies_on_its_side(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.kron(noise(1, 3, 5).mean(2, keepdims=True).astype(np.uint8), np.ones((2, 1, 3), np.uint8))
    images, _ = load(tmp_path, "0.jpg", encode(stored, "JPEG", exif=exif, quality=100))
    assert np.abs(images[0].numpy().astype(int) - UPRIGHT[6](stored)).max() < 12


def test_damaged_metadata_is_as_good_as_none(tmp_path):
    stored = noise(1, 5, 6)
    data = encode(stored, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff nothing")
    images, notes = load(tmp_path, "0.png", data)
    assert np.array_equal(images[0].numpy(), stored) and not notes


def on_white(pixels, alpha):
    share = alpha[..., None] / 255
    return np.rint(pixels * share + 255 * (1 - share))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparent_pixels_are_white(kind, tmp_path):
    stored = noise(1, 5, 6, 4)
    stored[:2, ..., 3], stored[2, ..., 3] = 0, 255
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    images, notes = load(tmp_path, f"0.{kind.lower()}", encode(stored, kind, **options))
    expected = on_white(stored[..., :3], stored[..., 3])
    assert np.array_equal(images[0].numpy(), expected) and (images[0, :2] == 255).all()
    assert notes == [f"{tmp_path}: 1 of 8 pictures have transparency: shown on white"]


def test_the_note_is_given_also_where_the_decoded_images_are_kept(tmp_path):
    load(tmp_path, "0.png", encode(noise(1, 5, 6, 4), "PNG"))
    with pytest.warns(UserWarning, match="1 of 8 pictures have transparency: shown on white"):
        load_dataset("folder", tmp_path, progress=False)


def test_opaque_alpha_is_left_out(tmp_path):
    stored = noise(1, 5, 6, 4)
    stored[..., 3] = 255
    images, notes = load(tmp_path, "0.png", encode(stored, "PNG"))
    assert np.array_equal(images[0].numpy(), stored[..., :3]) and not notes


@pytest.mark.parametrize("how", ["gif", "palette", "gray", "gray 1", "gray 2", "color"])
def test_a_transparent_colour_is_white(how, tmp_path):
    value = np.arange(30).reshape(5, 6) % 4  # value 1 is transparent
    color = [(0, 0, 0), (200, 10, 30), (9, 99, 199), (70, 80, 90)]
    if how in ("gif", "palette"):
        image = Image.fromarray(value.astype(np.uint8), "P")
        image.putpalette([c for one in color for c in one])
        data = encode(image, "GIF" if how == "gif" else "PNG", transparency=1)
        expected = np.array(color)[value]
    elif how == "color":
        expected = np.array(color)[value]
        data = png(2, 8, expected.astype(np.uint8).reshape(5, 18), [(b"tRNS", struct.pack(">3H", *color[1]))])
    else:
        depth = {"gray": 8, "gray 1": 1, "gray 2": 2}[how]
        value = value % 2**depth
        bits = ((value[..., None] >> np.arange(depth)[::-1]) & 1).reshape(5, -1)
        data = png(0, depth, np.packbits(bits.astype(np.uint8), 1), [(b"tRNS", b"\0\1")])
        expected = (value * (255 // (2**depth - 1)))[..., None].repeat(3, 2)
    expected = np.where(value[..., None] == 1, 255, expected)
    images, notes = load(tmp_path, "0.gif" if how == "gif" else "0.png", data)
    assert np.array_equal(images[0].numpy(), expected)
    assert notes == [f"{tmp_path}: 1 of 8 pictures have transparency: shown on white"]


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_images_are_gray_if_they_look_gray(mode, tmp_path):
    """What is hidden under transparent pixels, and how the file is coded, does not matter."""
    stored = noise(1, 5, 6, 1).repeat(4, 2)
    stored[..., 3] = 255
    stored[0, 0] = (250, 3, 7, 0) if mode == "RGBA" else (9, 9, 9, 0 if mode == "LA" else 255)
    for path in make_folder(tmp_path):
        path.unlink()
        path.write_bytes(encode(Image.fromarray(stored).convert("RGB" if mode == "P" else mode), "PNG", mode))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = load_dataset("folder", tmp_path, progress=False).train.images
    expected = np.where(stored[..., 3] == 255, stored[..., 0], 255)
    assert images.shape == (6, 5, 6, 1)
    if mode != "P":  # fewer than 256 values there
        assert np.array_equal(images[0, ..., 0].numpy(), expected)


@pytest.mark.parametrize(("kind", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_deep_png(kind, channels, untouched):
    rows = np.zeros((5, 12 * channels), np.uint8)
    rows[:, 1::2] = 77  # 16-bit values of 77: dim, and 0 as their upper 8 bits
    refuse_file(untouched, "deep.png", png(kind, 16, rows), r"deep.png has pixels of type .* 8-bit .*16 bits a channel")


def tiff(bits, samples, sample_format=1):
    """An uncompressed little-endian TIFF of 6 x 5 pixels."""
    data = bytes(6 * 5 * samples * bits // 8)
    count = samples
    tags = [
        (256, 4, 1, 6),
        (257, 4, 1, 5),
        (258, 3, count, bits if count == 1 else 300),
        (259, 3, 1, 1),
        (262, 3, 1, 1 if count == 1 else 2),
        (273, 4, 1, 400),
        (277, 3, 1, samples),
        (278, 4, 1, 5),
        (279, 4, 1, len(data)),
        (339, 3, count, sample_format if count == 1 else 320),
    ]
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    head = head.ljust(300, b"\0") + struct.pack(f"<{samples}H", *[bits] * samples)
    return head.ljust(320, b"\0") + struct.pack(f"<{samples}H", *[sample_format] * samples) + bytes(74) + data


@pytest.mark.parametrize(("bits", "samples"), [(16, 1), (16, 3), (16, 4)])
def test_deep_tiff(bits, samples, untouched):
    data = tiff(bits, samples)
    refuse_file(untouched, "deep.tif", data, "deep.tif (has pixels of type .*16 bits a channel|cannot be read)")


def test_float_tiff(untouched):
    data = encode(Image.fromarray(np.ones((5, 6), np.float32)), "TIFF")
    refuse_file(untouched, "deep.tiff", data, r"deep.tiff has pixels of type F.*\(it has 32 bits a channel\)")


@pytest.mark.parametrize(
    "data", [b"P6 6 5 65535\n" + bytes(180), b"P5 6 5 1023\n" + bytes(60), b"P2 6 5 300\n" + b"7 " * 30]
)
def test_deep_ppm(data, untouched):
    refuse_file(
        untouched, "deep.ppm", data, r"deep.ppm has pixels of type .* 8-bit .*\((it has (16|10|9) bits a channel)\)"
    )


def test_deep_jpeg(untouched):
    data = bytearray(encode(noise(1, 5, 6), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 1], data[at + 4] = 0xC1, 12
    refuse_file(untouched, "deep.jpg", bytes(data), r"deep.jpg has pixels of type JPEG: .*\(it has 12 bits a channel\)")


@needs_avif
@pytest.mark.parametrize(("flags", "bits"), [(0x40, 10), (0x60, 12)])
def test_deep_avif(flags, bits, untouched):
    data = bytearray(encode(noise(1, 16, 16), "AVIF"))
    data[data.index(b"av1C") + 6] |= flags
    refuse_file(untouched, "deep.avif", bytes(data), f"deep.avif (has pixels.*{bits} bits a channel|cannot be read)")


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "TIFF"])
def test_animated(kind, untouched):
    frames = [Image.fromarray(noise(i, 5, 6)) for i in range(3)]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    refuse_file(
        untouched, f"moving.{kind.lower()}", data, r"moving.\w+ is animated or has pages \(3 frames\): give each"
    )


def test_one_frame_of_a_gif(tmp_path):
    image = Image.fromarray(noise(1, 5, 6)).quantize()
    images, notes = load(tmp_path, "0.gif", encode(image, "GIF"))
    assert np.array_equal(images[0].numpy(), np.asarray(image.convert("RGB"))) and not notes


def test_a_photo_with_a_second_one_in_it(tmp_path):
    """What phones and 3D cameras write: viewers show the first."""
    first, second = (Image.fromarray(noise(i, 5, 6)) for i in range(2))
    images, notes = load(tmp_path, "0.jpg", encode(first, "MPO", save_all=True, append_images=[second]))
    assert np.array_equal(images[0].numpy(), np.asarray(Image.open(tmp_path / "train" / "a" / "0.jpg")))
    assert notes == [f"{tmp_path}: 1 of 8 pictures hold further pictures (MPO): the first is taken"]


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "CMYK"), ("TIFF", "CMYK"), ("TIFF", "LAB")])
def test_ink_and_lab(kind, mode, untouched):
    data = encode(Image.new(mode, (6, 5)), kind)
    refuse_file(
        untouched, f"ink.{kind.lower()}".replace("jpeg", "jpg"), data, f"ink.* has pixels of type {mode}: convert"
    )


def profile(swap):
    """sRGB's profile, or one whose red is sRGB's green and the other way round."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    if swap:
        red, green = data.index(b"rXYZ"), data.index(b"gXYZ")
        data[red : red + 4], data[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(data)


def test_colours_of_another_space(tmp_path):
    stored = noise(1, 5, 6)
    images, notes = load(tmp_path, "0.png", encode(stored, "PNG", icc_profile=profile(swap=True)))
    assert np.abs(images[0].numpy().astype(int) - stored[..., [1, 0, 2]]).max() <= 2
    assert notes == [f"{tmp_path}: 1 of 8 pictures have a colour profile: converted to sRGB"]


@pytest.mark.parametrize(
    ("data", "said"), [(profile(swap=False), []), (b"nonsense", ["cannot be used: taken as sRGB"])]
)
def test_colours_that_stay(data, said, tmp_path):
    stored = noise(1, 5, 6)
    images, notes = load(tmp_path, "0.png", encode(stored, "PNG", icc_profile=data))
    assert np.array_equal(images[0].numpy(), stored)
    assert [note.split("profile that ")[-1] for note in notes] == said


def test_a_bomb(untouched):
    image = Image.new("L", (12_000, 12_000))
    ImageDraw.Draw(image).point((0, 0), 255)
    refuse_file(
        untouched, "bomb.png", encode(image, "PNG"), "bomb.png is too large to be an image of a data set: resize"
    )
