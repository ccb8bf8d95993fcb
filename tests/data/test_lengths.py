"""Positions by example: what inputs count without reading is what they give, and is kept."""

import chz
import numpy as np
import pytest

import mmjax.data.batching.lengths
from mmjax.data.audio_inputs import SpectrogramInput, WaveformInput
from mmjax.data.augment import SpectrogramAugment
from mmjax.data.batching.lengths import feature_lengths
from mmjax.data.clean import BadInput
from mmjax.data.formats.manifest import Manifest
from mmjax.data.inputs import ImageInput, Input, LabelInput, TextInput, VectorInput
from mmjax.data.sources.base import Recording
from mmjax.data.tokenize import Bpe, Corpus
from mmjax.errors import UserError
from tests.data.examples import DAMAGE, Memory, samples
from tests.data.test_audio_inputs import HUGE, flac, wav, with_rate

TEXTS = ["a", "", " \n", "a text", "é" * 9, b"bytes", b"\xff\xfe", 7, ["one", "of several"], ["", "x"], []]
RECORDINGS = [
    Recording(samples(), 8000),
    Recording(samples(3.0), 8000),
    Recording(samples(0.01), 8000),
    Recording(samples(2.0)[:15999].reshape(-1, 3), 16000),
    Recording(np.zeros(10**5, np.float32), 999_983),
    Recording(np.zeros(10**6, np.float32), 2_000_000),
    Recording(np.zeros(0, np.int16), 8000),
    Recording(np.zeros((), np.float32), 8000),
    Recording(samples(), 0),
    wav(samples()),
    wav(samples(0.3), 11025, subtype="PCM_16"),
    wav(np.stack([samples(), samples()], 1), 44100),
    wav(samples())[:-1],
    with_rate(wav(samples()), 2**31 - 1),
    with_rate(wav(samples()), 7),
    flac(4000, 4000),
    b"RIFF",
    b"",
    samples(),
]


def given(input: Input, raw, rng=None) -> int:
    """The positions that an input gives."""
    try:
        return int(input.read(raw, rng)[1].sum())
    except BadInput:
        return 0


@pytest.mark.parametrize("raw", TEXTS, ids=repr)
def test_texts(raw):
    input = TextInput(length=8)
    found = input.count_positions(raw)
    each = [given(input, text) for text in (raw if isinstance(raw, list) else [raw])]
    assert found == max(each, default=0)
    for seed in range(5):
        assert given(input, raw, np.random.default_rng(seed)) <= found


@pytest.mark.parametrize(
    "input", [SpectrogramInput(), SpectrogramInput(rate=11025, hop=0.013), WaveformInput(rate=6000)]
)
def test_recordings_are_counted_by_their_headers(input, monkeypatch):
    expected = [given(input, raw) for raw in RECORDINGS]
    assert len({*expected}) > 5
    monkeypatch.setattr("soundfile.SoundFile.read", None)
    assert [input.count_positions(raw) for raw in RECORDINGS] == expected
    small = chz.replace(input, max_samples=3999)
    assert small.count_positions(wav(samples())) == given(small, wav(samples())) == 0


def test_a_recording_that_only_its_samples_show_to_be_bad_has_its_positions():
    assert given(SpectrogramInput(), HUGE) == 0
    assert SpectrogramInput().count_positions(Recording(HUGE, 8000)) == 50
    assert given(SpectrogramInput(), flac(4000, 2**31)) == 0
    assert SpectrogramInput().count_positions(flac(4000, 2**31)) == 100


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.7, 3.0])
def test_augmentation_adds_no_more_than_is_counted(shift, shared_data):
    paths = sorted((shared_data / "fsdd" / "recordings").glob("*_jackson_*.wav"))[::25]
    raws = [*(path.read_bytes() for path in paths), *RECORDINGS]
    augment = SpectrogramAugment(shift=shift, gain=6, noise=0.1, time_masks=2)
    largest = 0
    for seconds in (0.5, 1.0, 2.5):
        plain = SpectrogramInput(seconds=seconds)
        input = chz.replace(plain, augment=augment)
        for number, raw in enumerate(raws):
            assert plain.count_positions(raw) == given(plain, raw)
            bound = input.count_positions(raw)
            found = max(given(input, raw, np.random.default_rng([number, draw])) for draw in range(6))
            assert found <= bound
            largest = max(largest, found - plain.count_positions(raw))
        assert input.count_positions(b"") == 0
    assert (largest > 0) == (shift > 0)


def test_other_sequences_are_read():
    labels, vectors = LabelInput(names=("a", "b"), slots=3), VectorInput(size=2, slots=4)
    assert [labels.count_positions(raw) for raw in (1, ["a", "b"], 2, "c")] == [1, 2, 0, 0]
    assert [vectors.count_positions(raw) for raw in ([1, 2], [[1, 2]] * 3, [1], "x")] == [1, 3, 0, 0]


def test_an_image_is_not_a_sequence():
    with pytest.raises(UserError, match="ImageInput makes no sequence: its values have no mask"):
        ImageInput(size=8).count_positions(b"")


class Counted(Memory):
    """Damaged examples, of which one cannot be read at all; counts what is read."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        if index == 2:
            raise ValueError("broken")
        return super().__getitem__(index)


def test_the_lengths_of_a_split(tmp_path):
    records = Counted("train", 23, DAMAGE | {5: {"speech": None}})
    speech = feature_lengths(records, "speech", SpectrogramInput(), str(tmp_path))
    assert speech.tolist() == [0 if index in (2, 5, 11) else 10 for index in range(23)]
    text = TextInput(field="caption", length=24)
    captions = feature_lengths(records, "text", text, str(tmp_path))
    assert captions.tolist() == [0 if index in (2, 9, 11) else 17 + (index > 9) for index in range(23)]
    assert (captions.dtype, captions.flags.writeable) == (np.int32, False)
    assert isinstance(captions, np.memmap)


def test_lengths_are_counted_once(tmp_path):
    def reads(input, fingerprint="one"):
        records = Counted("train", 5, {})
        records.fingerprint = fingerprint
        feature_lengths(records, "text", input, str(tmp_path))
        return records.reads

    text = TextInput(field="caption", length=24)
    assert reads(text) == 5
    assert reads(text) == 0
    assert reads(text, "another") == 5
    assert reads(chz.replace(text, length=8)) == 5
    assert len(list(tmp_path.glob("lengths/text-*/lengths.npy"))) == 3
    assert not [*tmp_path.glob("lengths/.*")]


def test_a_bucket_keeps_them_for_other_machines(tmp_path, monkeypatch):
    data_dir, text = "memory://lengths/data", TextInput(field="caption", length=24)
    for machine, reads in (("a", 23), ("b", 0)):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / machine))
        records = Counted("train", 23, {})
        assert feature_lengths(records, "text", text, data_dir)[3] == 17
        assert records.reads == reads


def test_a_tokenizer_counts_by_its_content(tmp_path):
    """In a run's directory it is the same as where it was trained."""
    records = Counted("train", 23, {})
    corpus = Corpus(lambda: records, "caption", tmp_path / "tokenizers")
    text = TextInput(field="caption", length=24, tokenizer=Bpe(vocabulary=270)).fit_tokenizers(corpus, None)
    first = feature_lengths(records, "text", text, str(tmp_path))
    moved = tmp_path / "run.json"
    moved.write_bytes(text.tokenizer_file.read_bytes())
    records.reads = 0
    bpe = chz.replace(text.tokenizer, file=str(moved))
    assert (feature_lengths(records, "text", chz.replace(text, tokenizer=bpe), str(tmp_path)) == first).all()
    assert records.reads == 0
    other = Bpe(vocabulary=265).fit_tokenizers(corpus, None)
    moved.write_bytes(other.tokenizer_file.read_bytes())
    records.reads = 0
    feature_lengths(records, "text", chz.replace(text, tokenizer=bpe), str(tmp_path))
    assert records.reads == 23


def test_texts_of_a_manifest_are_read_without_its_files(tmp_path, monkeypatch):
    for name in "abc":
        (tmp_path / f"{name}.wav").write_bytes(wav(samples(0.2 + 0.1 * (name == "b"))))
    rows = [f'{{"speech": "{name}.wav", "text": "{name * 3}"}}' for name in "abc"]
    (tmp_path / "train.jsonl").write_text("\n".join([*rows, '{"speech": "d.wav"}', '{"text": ""}']))
    records = Manifest(path=str(tmp_path / "train.jsonl")).open(str(tmp_path), "train")
    assert feature_lengths(records, "speech", SpectrogramInput(), str(tmp_path)).tolist() == [20, 30, 20, 0, 0]
    monkeypatch.setattr(mmjax.data.batching.lengths, "read_example", None)
    assert feature_lengths(records, "text", TextInput(length=8), str(tmp_path)).tolist() == [4, 4, 4, 0, 0]
