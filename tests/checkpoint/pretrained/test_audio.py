"""Whisper's encoder, wav2vec 2.0 and their inputs against `transformers`, on randomly drawn weights."""

import json
from collections import defaultdict

import jax
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file

from mmjax.checkpoint.pretrained.architectures import read_architecture
from mmjax.checkpoint.pretrained.load import Pretrained, import_weights, read_pretrained
from mmjax.checkpoint.pretrained.safetensors_folder import SafetensorsFolder
from mmjax.checkpoint.pretrained.tensor_map import join_pieces
from mmjax.data.audio_inputs import WaveformInput
from mmjax.data.clean import decode_audio
from mmjax.data.whisper_input import WhisperInput
from mmjax.errors import UserError
from mmjax.layers import spectrogram
from mmjax.layers.settings import Settings
from mmjax.layers.tree import named_leaves
from mmjax.sharding.rules import PRESETS
from mmjax.types import Spectrogram, Waveform

# The most by which float32 outputs of magnitude 1 may differ.
TOLERANCE = 1e-4
WHISPER = transformers.WhisperConfig(
    **{"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 24, "num_mel_bins": 8},
    **{"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 8, "vocab_size": 20},
    **{"max_source_positions": 50, "max_target_positions": 4, "decoder_start_token_id": 1},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
)


def wav2vec2(kind: str) -> transformers.Wav2Vec2Config:
    """As the base model is built, or as the large one."""
    large = kind == "layer"
    return transformers.Wav2Vec2Config(
        **{"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24},
        **{"conv_dim": [8] * 3, "conv_kernel": [10, 3, 2], "conv_stride": [5, 2, 2], "vocab_size": 8},
        **{"num_conv_pos_embeddings": 8 if large else 7, "num_conv_pos_embedding_groups": 4},
        **{"feat_extract_norm": kind, "conv_bias": large, "do_stable_layer_norm": large},
    )


def save(model, folder):
    """The model with random weights, which it saves in the folder."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder)
    return model.eval()


def load(folder, feature):
    """The encoder with the folder's weights."""
    config = read_pretrained(str(folder)).encoders["audio"]
    settings = Settings(width=config.width, rules=PRESETS["data"])
    model = {"encoders": {"audio": config.build(feature, settings, nnx.Rngs(0))}}
    read = import_weights(model, Pretrained(path=str(folder), into="encoders.audio"), say=lambda _: None)
    return read["encoders"]["audio"]


def run(encoder, values, mask):
    """The values of the tokens and their mask."""
    tokens = jax.jit(lambda encoder, values, mask: encoder(values, mask, None)[0])(encoder, values, mask)
    return np.asarray(tokens.values), np.asarray(tokens.mask)


def reference(model, values, **options) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(values), **options).last_hidden_state.numpy()


def check_round_trip(folder, encoder):
    """What is written from the encoder's parameters are the tensors that were read, bit by bit."""
    there = SafetensorsFolder(folder)
    architecture = read_architecture(there.config, folder)
    there.strip(architecture.prefix)
    parameters, pieces = dict(named_leaves(encoder)), defaultdict(dict)
    for entry in architecture.parts["audio"].entries:
        entry.write(np.asarray(parameters[entry.ours]), pieces)
    for name, tensor in join_pieces(pieces).items():
        np.testing.assert_array_equal(tensor, there.read(name, [slice(None)] * tensor.ndim), err_msg=name)


@pytest.mark.parametrize("kind", ["WhisperModel", "WhisperForConditionalGeneration"])
def test_whisper(kind, tmp_path):
    model = save(getattr(transformers, kind)(WHISPER), tmp_path)
    frames = np.random.default_rng(0).normal(size=(2, 100, 8)).astype(np.float32)
    encoder = load(tmp_path, Spectrogram(100, 8, 0.01))
    expected = reference(model.get_encoder(), frames.swapaxes(1, 2))
    np.testing.assert_allclose(run(encoder, frames, np.ones((2, 100), bool))[0], expected, atol=TOLERANCE)
    check_round_trip(tmp_path, encoder)
    short = load(tmp_path, Spectrogram(40, 8, 0.01))
    np.testing.assert_array_equal(short.position[...], encoder.position[...][:20])


@pytest.mark.parametrize("kind", ["group", "layer"])
def test_wav2vec2(kind, tmp_path):
    """Also of a recording that is padded: as its model alone is, and of "layer" with an attention mask."""
    whole = save(transformers.Wav2Vec2ForCTC(wav2vec2(kind)), tmp_path)
    model = whole.wav2vec2
    samples = np.random.default_rng(0).normal(size=(2, 600)).astype(np.float32)
    encoder = load(tmp_path, Waveform(600, 16000))
    mask = np.ones((2, 600), bool)
    np.testing.assert_allclose(run(encoder, samples, mask)[0], reference(model, samples), atol=TOLERANCE)
    check_round_trip(tmp_path, encoder)
    mask[1, 433:] = False
    values, real = run(encoder, samples, mask)
    alone = reference(model, samples[1:, :433])[0]
    np.testing.assert_allclose(values[1][real[1]], alone, atol=TOLERANCE)
    if kind == "layer":
        padded = reference(model, np.where(mask, samples, 0), attention_mask=torch.tensor(mask.astype(int)))
        np.testing.assert_allclose(values[real], padded[real], atol=TOLERANCE)


def test_wav2vec2_without_a_head_and_with_older_names(tmp_path):
    save(transformers.Wav2Vec2Model(wav2vec2("group")), tmp_path)
    feature = Waveform(600, 16000)
    expected = load(tmp_path, feature)
    older = {".parametrizations.weight.original0": ".weight_g", ".parametrizations.weight.original1": ".weight_v"}
    tensors = load_file(tmp_path / "model.safetensors")
    for new, old in older.items():
        tensors |= {name.replace(new, old): tensors.pop(name) for name in [*tensors] if name.endswith(new)}
    assert sum(name.endswith((".weight_g", ".weight_v")) for name in tensors) == 2
    save_file(tensors, tmp_path / "model.safetensors")
    for one, other in zip(jax.tree.leaves(load(tmp_path, feature)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(one, other)


def write_config(folder, config, **changes):
    (folder / "config.json").write_text(json.dumps(config.to_dict() | changes))


@pytest.mark.parametrize(
    ("config", "changes", "says"),
    [
        (WHISPER, {"activation_function": "relu"}, "activation_function=relu in config.json must be gelu"),
        (wav2vec2("group"), {"add_adapter": True}, "wav2vec 2.0 with adapters is not read"),
        (wav2vec2("group"), {"feat_extract_norm": "batch"}, "feat_extract_norm=batch in config.json must be group"),
        (wav2vec2("group"), {"feat_extract_activation": "relu"}, "must be the same"),
        (wav2vec2("group"), {"conv_dim": [8, 8, 4]}, "conv_dim, conv_kernel and conv_stride"),
        (wav2vec2("group"), {"conv_kernel": [10, 3, 0]}, "conv_kernel in config.json must be a list of positive"),
    ],
)
def test_what_is_not_read(config, changes, says, tmp_path):
    write_config(tmp_path, config, **changes)
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=says):
        read_pretrained(str(tmp_path))


def test_inputs_are_read_from_the_preprocessor(tmp_path):
    save_file({}, tmp_path / "model.safetensors")
    write_config(tmp_path, WHISPER)
    assert read_pretrained(str(tmp_path)).inputs["audio"] == WhisperInput(seconds=1.0, bands=8)
    transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=0.5).save_pretrained(tmp_path)
    assert read_pretrained(str(tmp_path)).inputs["audio"] == WhisperInput(seconds=0.5, bands=8)
    transformers.WhisperFeatureExtractor(feature_size=8, hop_length=80).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"hop_length=80 in .*preprocessor_config.json must be 160"):
        read_pretrained(str(tmp_path))
    write_config(tmp_path, wav2vec2("group"))
    transformers.Wav2Vec2FeatureExtractor(do_normalize=False, sampling_rate=8000).save_pretrained(tmp_path)
    assert read_pretrained(str(tmp_path)).inputs["audio"] == WaveformInput(rate=8000, seconds=15.6, normalize="none")
    (tmp_path / "preprocessor_config.json").unlink()
    read = read_pretrained(str(tmp_path)).inputs["audio"]
    assert read == WaveformInput(rate=16000, seconds=15.6, normalize="standard")


@pytest.fixture(scope="module")
def recordings(shared_data) -> list[bytes]:
    """Spoken digits, among them some that are longer than a second."""
    paths = sorted((shared_data / "fsdd" / "recordings").glob("*.wav"))
    longest = max(paths, key=lambda path: path.stat().st_size)
    return [path.read_bytes() for path in (*paths[::300], longest)]


@pytest.mark.parametrize("bands", [80, 128])
def test_whisper_frames(bands, recordings):
    extractor = transformers.WhisperFeatureExtractor(feature_size=bands, chunk_length=1)
    filters = spectrogram.slaney_filters(16000, 400, bands)
    np.testing.assert_allclose(filters, extractor.mel_filters, atol=1e-7)
    for raw in recordings:
        samples = spectrogram.resample(*decode_audio(raw), 16000)
        expected = extractor(samples, sampling_rate=16000, return_tensors="np").input_features[0].T
        values, mask = WhisperInput(bands=bands, seconds=1.0).read(raw, None)
        np.testing.assert_allclose(values, expected, atol=TOLERANCE)
        assert mask.shape == (100,)
        assert mask.all()


def test_wav2vec2_samples(recordings):
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    for raw in recordings:
        samples = spectrogram.resample(*decode_audio(raw), 16000)[:16000]
        options = {"padding": "max_length", "max_length": 16000, "return_tensors": "np"}
        expected = extractor(samples, sampling_rate=16000, **options)
        values, mask = WaveformInput(rate=16000, normalize="standard").read(raw, None)
        np.testing.assert_allclose(values, expected.input_values[0], atol=1e-5)
        np.testing.assert_array_equal(mask, expected.attention_mask[0])
        plain = WaveformInput(rate=16000, normalize="none").read(raw, None)[0]
        np.testing.assert_array_equal(plain[mask], samples)
