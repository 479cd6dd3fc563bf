"""A change is written and read again within the stated error; what a broken station sends is refused."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from agent.errors import BadInput
from agent.fl.compression import BLOCK, PLACES, SCALE, bytes_of, decode, encode, from_wire, kept, to_wire
from agent.fl.settings import Compression

SHAPES: dict[str, tuple[int, ...]] = {"a": (16, 96), "b": (128, 16), "bias": (7,)}
SIZE = 16 * 96 + 128 * 16 + 7


def change(seed: int = 0, size: float = 1e-3) -> dict[str, Any]:
    dice = np.random.default_rng(seed)
    return {name: (dice.standard_normal(shape) * size).astype(np.float32) for name, shape in SHAPES.items()}


def test_fp16_keeps_three_digits_of_every_number() -> None:
    made = change()
    read = decode(encode(made, Compression.NONE, 0.1), SHAPES, Compression.NONE, 0.1)
    for name in SHAPES:
        assert read[name].dtype == np.float32
        np.testing.assert_allclose(read[name], made[name], rtol=2**-10, atol=2**-24)


def test_a_byte_a_number_is_within_half_a_step_of_its_block() -> None:
    made = change()
    encoded = encode(made, Compression.INT8, 0.1)
    read = decode(encoded, SHAPES, Compression.INT8, 0.1)
    for name, value in made.items():
        flat, error = value.ravel(), np.abs(read[name] - value).ravel()
        for begin in range(0, flat.size, BLOCK):
            block = slice(begin, begin + BLOCK)
            assert error[block].max() <= np.abs(flat[block]).max() / 127 * 0.5001
    assert bytes_of(encoded) == SIZE + 4 * (12 + 16 + 1)


def test_top_k_sends_the_largest_numbers_and_nothing_else() -> None:
    made = change()
    encoded = encode(made, Compression.TOP_K, 0.1)
    read = decode(encoded, SHAPES, Compression.TOP_K, 0.1)
    for name, value in made.items():
        sent = read[name] != 0
        assert sent.sum() == kept(value.size, 0.1)
        assert np.abs(value[sent]).min() >= np.abs(value[~sent]).max()
    assert bytes_of(encoded) < SIZE * 2 * 0.31


@pytest.mark.parametrize("how", [Compression.INT8, Compression.TOP_K])
def test_what_is_left_out_comes_later(how: Compression) -> None:
    """The sum of what is sent over many rounds is the sum of what was learnt, within what is still held back."""
    late = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    wanted = {name: np.zeros(shape, np.float64) for name, shape in SHAPES.items()}
    got = {name: np.zeros(shape, np.float64) for name, shape in SHAPES.items()}
    for number in range(30):
        made = change(number)
        total = {name: made[name] + late[name] for name in SHAPES}
        read = decode(encode(total, how, 0.2), SHAPES, how, 0.2)
        late = {name: total[name] - read[name] for name in SHAPES}
        for name in SHAPES:
            wanted[name] += made[name]
            got[name] += read[name]
    for name in SHAPES:
        np.testing.assert_allclose(got[name] + late[name], wanted[name], atol=1e-6)
        assert np.linalg.norm(late[name]) < np.linalg.norm(wanted[name])


@example(float(np.finfo(np.float32).max), Compression.INT8)
@given(st.floats(width=32, allow_nan=True, allow_infinity=True), st.sampled_from(list(Compression)))
def test_any_number_is_either_sent_or_refused(number: float, how: Compression) -> None:
    made = {"a": np.full((2, 3), number, np.float32)}
    try:
        encoded = encode(made, how, 0.5)
    except BadInput:
        assert not np.isfinite(number) or abs(number) > 65504
        return
    read = decode(encoded, {"a": (2, 3)}, how, 0.5)["a"]
    assert np.isfinite(read).all()


@pytest.mark.parametrize("how", list(Compression))
@pytest.mark.parametrize(
    "spoil",
    [
        lambda sent: sent.pop("a"),
        lambda sent: sent.update(extra=np.zeros(3, np.float16)),
        lambda sent: sent.update(a=sent["a"][:-1]),
        lambda sent: sent.update(a=sent["a"].astype(np.float64)),
        lambda sent: sent.update(a=np.full(sent["a"].shape, "x")),
    ],
    ids=["missing", "too many", "another shape", "another type", "no numbers"],
)
def test_a_reply_of_another_shape_or_type_is_refused(how: Compression, spoil: Any) -> None:
    sent = encode(change(), how, 0.1)
    spoil(sent)
    with pytest.raises(BadInput):
        decode(sent, SHAPES, how, 0.1)


def test_what_is_no_number_is_refused() -> None:
    sent = encode(change(), Compression.NONE, 0.1)
    sent["a"][0, 0] = np.inf
    with pytest.raises(BadInput, match="no number"):
        from_wire(sent, SHAPES)
    sent = encode(change(), Compression.INT8, 0.1)
    sent["a" + SCALE][0] = np.nan
    with pytest.raises(BadInput, match="no number"):
        decode(sent, SHAPES, Compression.INT8, 0.1)


@pytest.mark.parametrize("scale", [1e6, 3e38, -0.5])
def test_a_scale_that_nobody_writes_is_refused(scale: float) -> None:
    """It would make the sum of everybody's changes no number."""
    sent = encode(change(), Compression.INT8, 0.1)
    sent["a" + SCALE][0] = scale
    with pytest.raises(BadInput, match="scales of a"):
        decode(sent, SHAPES, Compression.INT8, 0.1)


@pytest.mark.parametrize("places", [[5, 5], [9, 3], [0, 4_000_000_000]])
def test_places_that_are_none_are_refused(places: list[int]) -> None:
    sent = encode({"a": np.ones((4, 5), np.float32)}, Compression.TOP_K, 0.1)
    sent["a" + PLACES] = np.array(places, np.uint32)
    with pytest.raises(BadInput, match="not places"):
        decode(sent, {"a": (4, 5)}, Compression.TOP_K, 0.1)


def test_numbers_too_large_for_the_wire_are_not_sent_as_infinity() -> None:
    with pytest.raises(BadInput, match="beyond 65504"):
        to_wire({"a": np.array([7e4], np.float32)})
