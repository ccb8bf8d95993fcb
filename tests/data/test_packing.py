"""Packing: every example once, in rows that fit, with as many positions in each part of each step."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import chz
import numpy as np
import pytest
import soundfile

from mmjax.data.batching.packing import PackedRows, PackedStep, Packing, arrange, rows_for
from mmjax.errors import UserError
from mmjax.types import Image, Spectrogram, Text

BATCH = 64
FEATURES = {"text": Text(64, 258), "speech": Spectrogram(200, 40, 0.01)}
ROWS = {"text": PackedRows(length=128), "speech": PackedRows(length=256, multiple=4)}


def some_lengths(count: int, seed: int, longest: int = 100) -> dict[str, np.ndarray]:
    """Of captions that are all there, and of recordings of which a third is absent."""
    rng = np.random.default_rng(seed)
    text, speech = (rng.integers(1, longest + 1, count) ** power // longest ** (power - 1) for power in (2, 1))
    return {
        "text": np.maximum(text, 1).astype(np.int32),
        "speech": (speech * (rng.random(count) > 0.3)).astype(np.int32),
    }


def check(steps: list[PackedStep], lengths: dict[str, np.ndarray], packing: Packing, batch_size: int = BATCH) -> int:
    """Checks that nothing is lost and nothing overlaps; returns how many sequences are cut."""
    cuts, parts = 0, packing.parts
    assert len(steps) == packing.window
    every = np.concatenate([step.places for step in steps])
    assert sorted(every[every >= 0]) == list(range(len(lengths["text"])))
    for step in steps:
        real = step.places >= 0
        for slots in step.places.reshape(parts, -1):  # in the order of places, empty slots at the end
            used = slots[slots >= 0]
            assert (np.diff(used) > 0).all()
            assert (slots[len(used) :] == -1).all()
        for name, packed in packing.features.items():
            found, starts, rows = step.lengths[name], step.starts[name], step.rows[name]
            assert found.shape == starts.shape == rows.shape == (batch_size,)
            asked = np.where(real, lengths[name][step.places], 0)
            assert ((found > 0) == (asked > 0)).all()
            assert (found <= asked).all()
            cuts += int((found < asked).sum())
            assert (starts % packed.multiple == 0).all()
            assert ((rows >= 0) & (rows < packed.rows // parts)).all()
            taken = np.zeros((parts, packed.rows // parts, packed.length), int)
            for slot in np.flatnonzero(found):
                stretch = slice(starts[slot], starts[slot] + found[slot])
                assert stretch.stop <= packed.length
                taken[slot * parts // batch_size, rows[slot], stretch] += 1
            assert taken.max(initial=0) <= 1
    return cuts


def share_of_positions(steps, packing):
    """The share of the positions of all rows that hold a part of a sequence, by packed feature."""
    return {
        name: sum(int(step.lengths[name].sum()) for step in steps) / (len(steps) * (packed.rows or 0) * packed.length)
        for name, packed in packing.features.items()
    }


def rows_for_examples(lengths, packing, batch_size):
    """The rows that random windows of examples of these lengths need."""
    count, size = len(next(iter(lengths.values()))), packing.window_examples(batch_size)
    rng = np.random.RandomState(0)
    order = np.concatenate([rng.permutation(count) for _ in range(-(-16 * size // count))])[: 16 * size]
    return rows_for({name: each[order].reshape(16, size) for name, each in lengths.items()}, packing, batch_size)


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("examples", [None, 48])
@pytest.mark.parametrize("seed", range(3))
def test_every_example_is_in_one_place(parts, examples, seed):
    packing = Packing(features=ROWS, parts=parts, examples=examples)
    packing = rows_for_examples(some_lengths(3000, seed), packing, BATCH)
    lengths = some_lengths(packing.window_examples(BATCH), 100 + seed)
    steps = arrange(lengths, packing, BATCH)
    assert check(steps, lengths, packing) == 0
    counts = np.array([(step.places.reshape(parts, -1) >= 0).sum(1) for step in steps])
    assert (counts == BATCH // parts).all() if examples is None else counts.mean() == examples / parts


@pytest.mark.parametrize("seed", range(40))
def test_any_lengths_in_any_rows(seed):
    """Also where much has to be cut, and where features are absent."""
    rng = np.random.default_rng(seed)
    parts = int(rng.integers(1, 4))
    batch = parts * int(rng.integers(1, 9))
    row, multiple = int(rng.integers(8, 60)), int(rng.integers(1, 6))
    rows = parts * max(int(rng.integers(1, 12)), -(-(batch // parts) // (row // multiple)))
    features = {
        "text": PackedRows(length=row, rows=rows, multiple=multiple),
        "speech": PackedRows(length=99, rows=rows),
    }
    examples = int(rng.integers(1, batch + 1))
    packing = Packing(features=features, parts=parts, window=int(rng.integers(1, 6)), examples=examples)
    lengths = some_lengths(packing.window_examples(batch), seed, int(rng.integers(1, 150)))
    check(arrange(lengths, packing, batch), lengths, packing, batch)


def test_steps_have_the_same_number_of_positions():
    packing = rows_for_examples(some_lengths(5000, 0), Packing(features=ROWS, parts=2), BATCH)
    lengths = some_lengths(packing.window_examples(BATCH), 1)
    steps = arrange(lengths, packing, BATCH)
    for name in ROWS:
        totals = np.array([step.lengths[name].reshape(2, -1).sum(1) for step in steps])
        assert np.ptp(totals) < 0.06 * totals.mean()
    shuffled = np.array([part.sum() for part in np.split(lengths["text"], 32)])
    assert np.ptp(shuffled) > 0.3 * shuffled.mean()


def test_a_step_of_short_examples_has_more_of_them():
    """Where there are more slots than examples; the long ones have a step almost to themselves."""
    packing = Packing(features={"text": PackedRows(length=200, rows=1)}, window=4, examples=10)
    lengths = {"text": np.array([180] + [10] * 39)}
    steps = arrange(lengths, packing, 16)
    check(steps, lengths, packing, 16)
    assert sorted(int((step.places >= 0).sum()) for step in steps) == [1, 13, 13, 13]


def test_the_longest_are_cut_and_only_where_they_must_be():
    packing = Packing(features={"text": PackedRows(length=10, rows=2)}, window=1)
    fits = {"text": np.array([7, 3, 6, 4])}
    assert check(arrange(fits, packing, 4), fits, packing, 4) == 0
    (step,) = arrange({"text": np.array([9, 3, 6, 4])}, packing, 4)
    assert step.lengths["text"].tolist() == [7, 3, 6, 4]
    (step,) = arrange({"text": np.array([10, 10, 10, 2])}, packing, 4)
    assert step.lengths["text"].tolist() == [5, 5, 5, 2]
    (step,) = arrange({"text": np.array([10] * 20)}, packing, 20)
    assert step.lengths["text"].tolist() == [1] * 20
    long = Packing(features={"text": PackedRows(length=12, rows=1, multiple=4)}, window=1)
    (step,) = arrange({"text": np.array([5, 5])}, long, 2)
    assert step.lengths["text"].tolist() == [4, 4]


def test_a_sequence_without_any_room_is_absent():
    packing = Packing(features={"text": PackedRows(length=8, rows=1, multiple=4)}, window=1)
    (step,) = arrange({"text": np.array([3, 1, 2])}, packing, 3)
    assert step.lengths["text"].tolist() == [3, 0, 2]


@pytest.mark.parametrize("examples", [None, 48])
def test_rows_are_the_fewest(examples):
    """In windows of the training examples nothing is cut, and with one row less of a part something is."""
    count = 16 * (examples or BATCH)
    lengths = some_lengths(count, 5)
    packing = rows_for_examples(lengths, Packing(features=ROWS, parts=2, examples=examples), BATCH)
    order = np.random.RandomState(0).permutation(count)  # the first of the windows that are tried
    window = {name: each[order] for name, each in lengths.items()}
    assert check(arrange(window, packing, BATCH), window, packing) == 0
    for name, packed in packing.features.items():
        fewer = chz.replace(packed, rows=packed.rows - 2)
        less = chz.replace(packing, features={**packing.features, name: fewer})
        assert check(arrange(window, less, BATCH), window, less) > 0


def test_rows_that_are_given_stay():
    features = {"text": PackedRows(length=128, rows=40), "speech": PackedRows(length=256)}
    filled = rows_for_examples(some_lengths(2000, 3), Packing(features=features), BATCH).features
    assert filled["text"].rows == 40
    assert filled["speech"].rows < 20


def test_real_captions_and_recordings_fill_the_rows(shared_data):
    """At least 0.95 of all positions hold a sequence, on examples that the number of rows was not chosen for."""
    lines = (shared_data / "noto_emoji" / "emoji.jsonl").read_text().splitlines()
    captions = np.array([min(64, len(json.loads(line)["name"].encode()) + 1) for line in lines], np.int32)
    paths = sorted((shared_data / "fsdd" / "recordings").glob("*.wav"))
    frames = np.array([min(100, -(-soundfile.info(str(path)).frames // 80)) for path in paths], np.int32)
    rng = np.random.default_rng(0)
    lengths = {"text": rng.permutation(captions), "speech": rng.choice(frames, len(captions))}
    features = {"text": PackedRows(length=128), "speech": PackedRows(length=256, multiple=2)}
    packing = rows_for_examples(lengths, Packing(features=features, window=32), 256)
    shares, cuts, padded = [], 0, {"text": 64, "speech": 100}
    for seed in range(5):
        order = np.random.default_rng(seed).integers(0, len(captions), packing.window_examples(256))
        window = {name: each[order] for name, each in lengths.items()}
        steps = arrange(window, packing, 256)
        cuts += check(steps, window, packing, 256)
        shares.append(share_of_positions(steps, packing))
    for name, packed in packing.features.items():
        found = np.mean([share[name] for share in shares])
        assert found >= 0.95, (name, found)
        assert packed.rows * packed.length < 0.6 * 256 * padded[name]
    assert cuts <= 2


def digest() -> str:
    """Of all that is decided for one window."""
    packing = rows_for_examples(some_lengths(2000, 0), Packing(features=ROWS, parts=2), BATCH)
    found = hashlib.sha256(repr(packing).encode())
    for step in arrange(some_lengths(packing.window_examples(BATCH), 1), packing, BATCH):
        for arrays in ({"": step.places}, step.rows, step.starts, step.lengths):
            for name, array in arrays.items():
                found.update(name.encode() + array.astype(np.int64).tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("seed", ["1", "77"])
def test_every_process_arranges_alike(seed):
    code = "from tests.data.test_packing import digest; print(digest())"
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    found = subprocess.run([sys.executable, "-c", code], env=environment, cwd=root, capture_output=True, text=True)
    assert found.stdout.strip() == digest(), found.stderr


@pytest.mark.parametrize(
    "make",
    [
        lambda: PackedRows(length=0),
        lambda: PackedRows(length=8, rows=0),
        lambda: PackedRows(length=8, multiple=9),
        lambda: PackedRows(length=8, multiple=0),
        lambda: Packing(features=ROWS, window=0),
        lambda: Packing(features=ROWS, parts=0),
        lambda: Packing(features=ROWS, examples=0),
        lambda: Packing(features={"text": PackedRows(length=8, rows=3)}, parts=2),
    ],
)
def test_settings_that_make_no_sense(make):
    with pytest.raises(ValueError, match="must"):
        make()


@pytest.mark.parametrize(
    ("packing", "batch_size", "reason"),
    [
        (Packing(), 64, "data.packing.features is empty"),
        (Packing(features=ROWS, parts=3), 64, "parts=3 does not divide batch_size=64"),
        (Packing(features=ROWS, examples=65), 64, "examples=65 is above batch_size=64"),
        (Packing(features={"image": PackedRows(length=8)}), 64, "a feature of the kind Image is not a sequence"),
        (Packing(features={"speach": PackedRows(length=8)}), 64, "no such feature; there are text, speech, image"),
    ],
)
def test_packing_that_does_not_suit_the_model(packing, batch_size, reason):
    Packing(features=ROWS, parts=2).check(FEATURES, 64)
    with pytest.raises(UserError, match=reason):
        packing.check({**FEATURES, "image": Image(8, 8, 3)}, batch_size)


def test_rows_that_are_too_few_or_too_short():
    lengths = some_lengths(2000, 3)
    few = Packing(features={"text": PackedRows(length=128, rows=4)}, parts=2)
    with pytest.raises(
        UserError, match=r"a batch takes \d+ positions of text on average, .* has 4 rows of 128"
    ) as raised:
        rows_for_examples(lengths, few, BATCH)
    needed = int(str(raised.value).split("set rows to ")[1].split()[0])
    assert needed % 2 == 0
    enough = Packing(features={"text": PackedRows(length=128)}, parts=2)
    assert needed == rows_for_examples(lengths, enough, BATCH).features["text"].rows
    short = Packing(features={"text": PackedRows(length=64)})
    with pytest.raises(UserError, match="length=64 is shorter than an example of 100 positions"):
        rows_for_examples(lengths, short, BATCH)
