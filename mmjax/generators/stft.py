"""Spectral distance of waveforms."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmjax.layers.patches import group_sequence
from mmjax.layers.spectrogram import hann, mel_filters
from mmjax.sharding.rules import Rules, shard_map

# Relative to a full-scale signal's power; smaller magnitudes are not distinguished.
FLOOR = 1e-7
OVERLAP = 4  # frames per sample


def frames(x: Float[Array, "B T"], window: int, *, rules: Rules) -> Float[Array, "B F W"]:
    """All frames of `window` samples, a quarter apart, that overlap x, which is padded with zeros."""
    hop = window // OVERLAP
    padded = jnp.pad(x, ((0, 0), (window - hop, -x.shape[1] % hop + window - hop)))
    return overlapping_frames(group_sequence(padded, hop, rules=rules))


def overlapping_frames(parts: Float[Array, "B N H"]) -> Float[Array, "B F W"]:
    """Frames of `OVERLAP` consecutive parts of a hop each: F = N - `OVERLAP` + 1."""
    count = parts.shape[1] - OVERLAP + 1
    return jnp.concatenate([parts[:, start : start + count] for start in range(OVERLAP)], -1)


def stft_magnitudes(x: Float[Array, "B T"], window: int, *, rules: Rules) -> Float[Array, "B F K"]:
    """|STFT| with a periodic Hann window at K = window / 2 + 1 frequencies, at least sqrt(`FLOOR`)."""
    split = rules.spec("batch", None, None)
    # Left to itself, XLA gathers the whole batch for a Fourier transform.
    transform = shard_map(jnp.fft.rfft, in_specs=split, out_specs=split)
    spectrum = transform(frames(x, window, rules=rules) * hann(window))
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    return jnp.sqrt(jnp.maximum(power, FLOOR))


def spectral_distance(
    predicted: Float[Array, "B T"],
    target: Float[Array, "B T"],
    mask: Bool[Array, "B T"],
    window: int,
    rate: int,
    *,
    rules: Rules,
) -> Float[Array, "B"]:
    """Multi-resolution STFT loss at one window size, over frames that overlap real samples.

    Spectral convergence |S' - S| / |S| (Frobenius) plus the mean of |log S' - log S| (Yamamoto et al. 2020, equations 4
    and 5), plus that of |log M' - log M|, the powers in mel bands (Kong et al. 2020, equation 5). The mel bands, an
    eighth as many as the window has samples, compare the envelope, which the noise in single frequencies hides. 0
    without real frames.
    """
    predicted, target = (jnp.where(mask, x.astype(jnp.float32), 0) for x in (predicted, target))
    predicted_magnitudes, target_magnitudes = (stft_magnitudes(x, window, rules=rules) for x in (predicted, target))
    counts = frames(mask.astype(jnp.float32), window, rules=rules).any(-1, keepdims=True)
    error = jnp.where(counts, jnp.square(predicted_magnitudes - target_magnitudes), 0).sum((1, 2))
    power = jnp.where(counts, jnp.square(target_magnitudes), 0).sum((1, 2))
    # The gradient of a root at 0 is not finite.
    apart = error > 0
    convergence = jnp.where(apart, jnp.sqrt(jnp.where(apart, error / jnp.maximum(power, FLOOR), 1)), 0)
    filters = mel_filters(rate, window, window // 8, 0.0, rate / 2)
    made_bands, wanted_bands = (jnp.square(x) @ filters + FLOOR for x in (predicted_magnitudes, target_magnitudes))
    return (
        convergence
        + _log_distance(predicted_magnitudes, target_magnitudes, counts)
        + _log_distance(made_bands, wanted_bands, counts)
    )


def _log_distance(
    predicted_magnitudes: Float[Array, "B F K"], target_magnitudes: Float[Array, "B F K"], counts: Bool[Array, "B F 1"]
) -> Float[Array, "B"]:
    """The mean absolute difference of logarithms over the frames that count."""
    logs = jnp.where(counts, jnp.abs(jnp.log(predicted_magnitudes) - jnp.log(target_magnitudes)), 0).sum((1, 2))
    return logs / jnp.maximum(counts.sum((1, 2)) * predicted_magnitudes.shape[2], 1)
