"""A frame says which tick it shows, also after what recording does to it."""

import io

import cv2
import numpy as np
import pytest

from agent.virtual.stamp import read_stamp, write_stamp


def picture(height: int = 480, width: int = 640) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("count", "ms"), [(0, 0), (1, 2**32 - 1), (123_456, 987_654_321), (2**32 - 1, 5)])
def test_a_stamp_survives_jpeg(count: int, ms: int) -> None:
    image = picture()
    write_stamp(image, count, ms)
    ok, jpeg = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, 60))
    assert ok
    assert read_stamp(cv2.imdecode(jpeg, cv2.IMREAD_COLOR)) == (count, ms)


def test_stamps_survive_video_compression() -> None:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=30, options={"crf": "30"})
        stream.width, stream.height, stream.pix_fmt = 640, 480, "yuv420p"
        for index in range(20):
            image = picture()
            write_stamp(image, index * 7919, index * 33 + 10_000)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    file.seek(0)
    with av.open(file) as container:
        stamps = [read_stamp(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert stamps == [(index * 7919, index * 33 + 10_000) for index in range(20)]


def test_small_images_carry_a_stamp_and_tiny_ones_say_that_they_cannot() -> None:
    small = picture(128, 160)
    write_stamp(small, 5, 6)
    assert read_stamp(small) == (5, 6)
    with pytest.raises(ValueError, match="too small"):
        write_stamp(picture(48, 64), 5, 6)


def test_an_image_without_a_stamp_is_refused() -> None:
    with pytest.raises(ValueError, match="no readable stamp"):
        read_stamp(picture())
