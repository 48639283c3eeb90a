"""The decoding rule against an enumeration of every sequence of classes, written without numpy."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.decoding import decode, pack

DIGITS = "0123456789"
BLANK = 10


def probabilities_of(*slots: dict[int, float]) -> NDArray[np.float64]:
    """[1, S, 11] from {digit or BLANK: probability} per slot; what is left is shared by the other classes."""
    rows = []
    for slot in slots:
        rest = (1 - sum(slot.values())) / (11 - len(slot))
        row = [rest] * 11
        for key, probability in slot.items():
            row[key] = probability
        rows.append(row)
    return np.array([rows])


def number_of(classes: tuple[int, ...], alphabet: str) -> str | None:
    """What a sequence of classes spells, or None where its digits do not form one unbroken run."""
    spelt = "".join(" " if c == len(alphabet) else alphabet[c] for c in classes).strip()
    return None if " " in spelt else spelt


def enumerate_best(slots: NDArray[np.float64], alphabet: str) -> tuple[float, set[str]]:
    """The probability of the most probable sequence that is a number, and all numbers that reach it."""
    best, numbers = -1.0, set()
    rows = slots.tolist()
    for classes in itertools.product(range(len(alphabet) + 1), repeat=len(rows)):
        number = number_of(classes, alphabet)
        if number is None:
            continue
        probability = math.prod(row[c] for row, c in zip(rows, classes, strict=True))
        if probability > best * (1 + 1e-12):
            best, numbers = probability, {number}
        elif probability >= best * (1 - 1e-12):
            numbers.add(number)
    return best, numbers


@st.composite
def small_batches(draw: st.DrawFn) -> tuple[str, NDArray[np.float64]]:
    letters, slots, n = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(1, 3))
    weights = draw(
        st.lists(
            st.floats(0, 1) | st.sampled_from([0.0, 1e-30, 1.0]),
            min_size=n * slots * (letters + 1),
            max_size=n * slots * (letters + 1),
        )
    )
    raw = np.array(weights).reshape(n, slots, letters + 1) + 1e-9
    return DIGITS[:letters], raw / raw.sum(-1, keepdims=True)


@given(small_batches())
def test_reading_is_the_most_probable_number_of_all_sequences(batch: tuple[str, NDArray[np.float64]]) -> None:
    alphabet, probabilities = batch
    for slots, decoded in zip(probabilities, decode(probabilities, alphabet), strict=True):
        confidence, numbers = enumerate_best(slots, alphabet)
        assert decoded.confidence == pytest.approx(confidence, rel=1e-9)
        assert decoded.number in numbers


def test_reading_is_the_most_probable_number_at_real_size() -> None:
    logits = np.random.default_rng(3).normal(scale=3, size=(3, 5, 11))
    logits[:, :, BLANK] += 3
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    for slots, decoded in zip(probabilities, decode(probabilities), strict=True):
        confidence, numbers = enumerate_best(slots, DIGITS)
        assert {decoded.number} == numbers
        assert decoded.confidence == pytest.approx(confidence, rel=1e-12)


def test_blanks_in_front_are_packed_away() -> None:
    (reading,) = decode(probabilities_of({BLANK: 0.9}, {2: 0.9}, {6: 0.9}, {0: 0.9}, {BLANK: 0.9}))
    assert reading.number == "260"
    assert reading.confidence == pytest.approx(0.9**5)


def test_a_gap_is_no_number() -> None:
    gap = probabilities_of({1: 0.99}, {BLANK: 0.51, 2: 0.49}, {3: 0.99}, {BLANK: 0.99}, {BLANK: 0.99})
    (reading,) = decode(gap)
    assert reading.number == "123"
    assert reading.confidence == pytest.approx(0.99**4 * 0.49)


def test_all_blank_is_no_number_with_a_confidence_of_its_own() -> None:
    (reading,) = decode(probabilities_of(*[{BLANK: 0.8}] * 5))
    assert (reading.number, reading.digits) == ("", ())
    assert reading.confidence == pytest.approx(0.8**5)


def test_five_digits_fill_all_slots_and_leading_zeros_stay() -> None:
    (reading,) = decode(probabilities_of({0: 0.9}, {0: 0.8}, {7: 0.7}, {0: 0.9}, {1: 0.6}))
    assert reading.number == "00701"


def test_digits_carry_the_probabilities_of_their_slots_and_blanks_count_in_the_product() -> None:
    (reading,) = decode(probabilities_of({1: 0.9}, {9: 0.8}, {BLANK: 0.7}, {BLANK: 0.95}, {BLANK: 0.5}))
    assert [d.digit for d in reading.digits] == ["1", "9"]
    assert [d.confidence for d in reading.digits] == pytest.approx([0.9, 0.8])
    assert reading.confidence == pytest.approx(0.9 * 0.8 * 0.7 * 0.95 * 0.5)


def test_a_tie_goes_to_the_shorter_number_and_then_to_the_left() -> None:
    even = np.full((1, 2, 2), 0.5)
    assert decode(even, "0")[0].number == ""
    certain = np.array([[[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]]])  # "0" or "1" in front, "1" at the end or none
    assert decode(certain, "01")[0].number == "0"


def test_a_batch_reads_as_its_images_do_alone() -> None:
    probabilities = np.random.default_rng(4).dirichlet(np.ones(11), size=(7, 5)).astype(np.float32)
    assert decode(probabilities) == [decode(one[None])[0] for one in probabilities]


def test_products_do_not_underflow_in_float32() -> None:
    tiny = np.full((1, 5, 11), 1e-12, np.float32)
    (reading,) = decode(tiny)
    assert reading.confidence == pytest.approx(1e-60, rel=1e-3)


def test_an_empty_batch_has_no_readings() -> None:
    assert decode(np.empty((0, 5, 11))) == []


@pytest.mark.parametrize("shape", [(5, 11), (1, 5, 10), (1, 5, 12)])
def test_a_shape_that_does_not_fit_the_alphabet_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \[N, S, 11\]"):
        decode(np.zeros(shape))


@given(st.text(DIGITS, max_size=5))
def test_pack_is_what_decode_reads_back(number: str) -> None:
    classes = pack(number, 5, DIGITS)
    assert len(classes) == 5
    assert classes[len(number) :] == [BLANK] * (5 - len(number))
    (reading,) = decode(np.eye(11)[classes][None])
    assert (reading.number, reading.confidence) == (number, 1.0)


def test_pack_knows_other_alphabets() -> None:
    assert pack("ba", 3, "ab") == [1, 0, 2]


@pytest.mark.parametrize("number", ["123456", "12a", "-1", "1 2", "٣"])
def test_pack_refuses_what_the_slots_cannot_say(number: str) -> None:
    with pytest.raises(ValueError, match=r"slots|alphabet"):
        pack(number, 5, DIGITS)
