from __future__ import annotations

import io
import math

import cv2
import numpy as np
import pytest
import skimage.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, JpegImagePlugin

from lightning_robust.errors import InputError, ShardError
from lightning_robust.functional import alpha_for_psnr, laplacian_sharpen
from lightning_robust.shards import Sharpening, decode_image, robustify_image
from lightning_robust.shards.robustify_image import MEASURES, sharpen_encoded
from lightning_robust.shards.robustify_metadata import orientation, read_metadata

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'
CODECS = ("jpeg", "png", "webp")


def _smooth(height=24, width=32, seed=0):
    coarse = np.random.default_rng(seed).integers(30, 226, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _encode(pixels, codec, **options):
    buffer = io.BytesIO()
    if codec == "webp":
        options = {"lossless": True} | options
    Image.fromarray(pixels).save(buffer, codec, **options)
    return buffer.getvalue()


def _published(pixels, **options):
    planes = torch.from_numpy(pixels).permute(2, 0, 1)
    return laplacian_sharpen(planes, **options).permute(1, 2, 0).numpy()


def _run(data, **options):
    ((result, row),) = sharpen_encoded([("it", data)], Sharpening(**options))
    return result, dict(zip(MEASURES.names, row, strict=True))


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    seed=st.integers(0, 2**31),
    codec=st.sampled_from(CODECS),
    encode=st.sampled_from(["png", "webp"]),
    alpha=st.sampled_from([0.05, 0.15, 0.7]),
    neighbors=st.sampled_from([4, 8]),
)
def test_lossless_results_are_the_function_on_the_decoded_pixels(size, seed, codec, encode, alpha, neighbors):
    data = _encode(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8), codec)
    result, measures = _run(data, encode=encode, alpha=alpha, neighbors=neighbors, lossless=True)
    expected = _published(decode_image(data), alpha=alpha, neighbors=neighbors)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(result)).convert("RGB")), expected)
    assert measures["written_psnr"] == measures["psnr"]


@settings(max_examples=20, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([(3, 5), (5, 3), (8, 8)]), max_size=9),
    budget=st.sampled_from([1, 30, 1 << 21]),
    psnr=st.none() | st.just(25.0),
)
def test_images_that_are_sharpened_together_are_as_alone(sizes, budget, psnr):
    images = [_smooth(*size, seed=number) for number, size in enumerate(sizes)]
    named = [(str(number), _encode(image, CODECS[number % 3])) for number, image in enumerate(images)]
    options = Sharpening(psnr=psnr, measure_every=1)
    alone = [next(sharpen_encoded([image], options)) for image in named]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(robustify_image, "_GROUP_PIXELS", budget)
        together = list(sharpen_encoded(named, options))
    assert [data for data, _ in together] == [data for data, _ in alone]
    np.testing.assert_array_equal([row for _, row in together], [row for _, row in alone])


def test_an_image_that_cannot_be_decoded_is_named():
    good = _encode(_smooth(8, 8), "png")
    results = sharpen_encoded([("first", good), ("second", good), ("third", good[:60])], Sharpening())
    with pytest.raises(ShardError, match="image of third"):
        list(results)


@pytest.mark.parametrize("codec", CODECS)
def test_the_format_stays(codec):
    data = _encode(_smooth(), codec)
    result, _ = _run(data)
    assert Image.open(io.BytesIO(result)).format == codec.upper()
    if codec != "jpeg":
        np.testing.assert_array_equal(decode_image(result), _published(decode_image(data)))


@pytest.mark.parametrize("codec", CODECS)
def test_gray_stays_gray(codec):
    pixels = _smooth()[:, :, 0]
    data = _encode(pixels, "jpeg", quality=90)
    result, _ = _run(data, encode=codec, lossless=True)
    assert Image.open(io.BytesIO(result)).mode == ("RGB" if codec == "webp" else "L")
    if codec != "jpeg":
        np.testing.assert_array_equal(decode_image(result), _published(decode_image(data)))


@pytest.mark.parametrize(("subsampling", "code"), [("444", 0), ("422", 1), ("420", 2)])
def test_jpeg_options(subsampling, code):
    data = _encode(_smooth(), "png")
    sizes = []
    for quality in (60, 95):
        result, measures = _run(data, encode="jpeg", quality=quality, subsampling=subsampling)
        with Image.open(io.BytesIO(result)) as image:
            assert JpegImagePlugin.get_sampling(image) == code
            assert (
                image.quantization[0][0]
                == Image.open(io.BytesIO(_encode(_smooth(), "jpeg", quality=quality))).quantization[0][0]
            )
        sizes.append(len(result))
        assert measures["written_psnr"] < measures["psnr"]
    assert sizes[0] < sizes[1]


def test_measures_are_those_of_scikit_image():
    data = _encode(_smooth(40, 48), "png")
    result, measures = _run(data, encode="jpeg", ssim=True)
    original = decode_image(data)
    for prefix, other in (("", _published(original)), ("written_", decode_image(result))):
        assert measures[f"{prefix}psnr"] == pytest.approx(skimage.metrics.peak_signal_noise_ratio(original, other))
        assert measures[f"{prefix}linf"] == np.abs(original.astype(int) - other).max()
        gray = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (original, other)]
        expected = skimage.metrics.structural_similarity(
            *gray, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        assert measures[f"{prefix}ssim"] == pytest.approx(expected, abs=2e-3)


def test_what_is_not_measured_is_nan():
    data = _encode(_smooth(8, 8), "jpeg")
    _, (_, row), _ = sharpen_encoded([("it", data)] * 3, Sharpening(ssim=True, measure_every=2))
    measures = dict(zip(MEASURES.names, row, strict=True))
    assert [name for name, value in measures.items() if math.isnan(value)] == [
        "ssim",
        "written_psnr",
        "written_linf",
        "written_ssim",
    ]
    assert _run(_encode(np.full((8, 8, 3), 9, np.uint8), "png"))[1]["psnr"] == math.inf


def test_one_distance_for_all_images():
    for seed in range(3):
        data = _encode(_smooth(seed=seed), "png")
        result, measures = _run(data, psnr=32.0)
        original = decode_image(data)
        alpha = float(alpha_for_psnr(torch.from_numpy(original).permute(2, 0, 1), 32.0))
        assert measures["alpha"] == alpha
        np.testing.assert_array_equal(decode_image(result), _published(original, alpha=alpha))
        assert measures["psnr"] == pytest.approx(32.0, abs=0.05)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("encode", CODECS)
def test_metadata_is_kept_or_stripped_as_pillow_reads_it(codec, encode):
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "a maker", 6
    more = {"exif": exif.tobytes(), "icc_profile": SRGB}
    data = _encode(_smooth(), codec, **more | ({} if codec == "png" else {"xmp": XMP}))
    result, _ = _run(data, encode=encode)
    with Image.open(io.BytesIO(result)) as image:
        image.load()
        assert dict(image.getexif()) == {0x010F: "a maker", 0x0112: 6}
        assert image.info["icc_profile"] == SRGB
        assert image.info.get("xmp", b"") == (b"" if codec == "png" else XMP)
    stripped, _ = _run(data, encode=encode, metadata="strip")
    with Image.open(io.BytesIO(stripped)) as image:
        image.load()
        assert dict(image.getexif()) == {0x0112: 6}
        assert "icc_profile" not in image.info
        assert "xmp" not in image.info
    np.testing.assert_array_equal(decode_image(stripped), decode_image(result))


@pytest.mark.parametrize("metadata", ["keep", "strip"])
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("turned", "quarters"), [(1, 0), (3, 2), (6, -1), (8, 1)])
def test_the_picture_stays_the_same_way_up(turned, quarters, codec, metadata):
    exif = Image.Exif()
    exif[0x0112] = turned
    data = _encode(_smooth(), codec, exif=exif.tobytes())
    result, _ = _run(data, encode="png", metadata=metadata)
    # for the loader, which does not turn pictures, and for viewers, which do
    published = _published(decode_image(data))
    np.testing.assert_array_equal(decode_image(result), published)
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(result)))
    np.testing.assert_array_equal(np.asarray(shown), np.rot90(published, quarters))


def test_a_profile_for_other_channels_is_left_out():
    gray = SRGB[:16] + b"GRAY" + SRGB[20:]
    data = _encode(_smooth()[:, :, 0], "jpeg", icc_profile=gray)
    assert read_metadata(_run(data)[0]).icc == gray
    assert read_metadata(_run(data, encode="webp")[0]).icc == b""


def test_long_profiles_take_several_jpeg_segments():
    profile = SRGB[:200] + np.random.default_rng(0).bytes(200_000)
    data = _encode(_smooth(), "png", icc_profile=profile)
    with Image.open(io.BytesIO(_run(data, encode="jpeg")[0])) as image:
        assert image.info["icc_profile"] == profile


def test_exif_too_large_for_jpeg_is_said():
    exif = Image.Exif()
    exif[0x010F] = "m" * 70_000
    data = _encode(_smooth(), "webp", exif=exif.tobytes())
    with pytest.raises(ShardError, match=r"metadata of it cannot be kept.*strip"):
        _run(data, encode="jpeg")


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=60))
def test_damaged_metadata_is_no_metadata(data):
    assert 1 <= orientation(data) <= 8
    for start in (b"\xff\xd8", b"\x89PNG\r\n\x1a\n", b"RIFF\0\0\0\0WEBP"):
        read_metadata(start + data)


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.0},
        {"alpha": math.nan},
        {"psnr": -1.0},
        {"neighbors": 6},
        {"encode": "gif"},
        {"quality": 0},
        {"quality": 101},
        {"subsampling": "411"},
        {"metadata": "some"},
        {"measure_every": 0},
    ],
)
def test_bad_options(options):
    with pytest.raises(InputError, match=f"{next(iter(options))}=.*expected"):
        Sharpening(**options)


def test_extensions():
    assert Sharpening().extension("JPG") == "JPG"
    png = Sharpening(encode="png")
    assert [png.extension(old) for old in ("jpg", "PNG", "left.jpeg", "img")] == ["png", "PNG", "left.png", "img"]
    assert Sharpening(encode="jpeg").extension("jpeg") == "jpeg"
    assert Sharpening(encode="jpeg").extension("webp") == "jpg"
