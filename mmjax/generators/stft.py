"""How far a waveform is from another one in the magnitudes of its spectra."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from mmjax.layers.mel import hann, mel_filters
from mmjax.layers.patches import cut_sequence
from mmjax.sharding.rules import Rules

# Of a full-scale signal's power; below it magnitudes are not told apart.
FLOOR = 1e-7
OVERLAP = 4  # frames that each sample lies in


def frame(x: Float[Array, "B T"], window: int, *, rules: Rules) -> Float[Array, "B F W"]:
    """All stretches of `window` samples that begin at a multiple of a quarter of it and touch x; zeros around x."""
    hop = window // OVERLAP
    padded = jnp.pad(x, ((0, 0), (window - hop, -x.shape[1] % hop + window - hop)))
    return join(cut_sequence(padded, hop, rules=rules))


def join(parts: Float[Array, "B N H"]) -> Float[Array, "B F W"]:
    """Every `OVERLAP` parts of a hop that follow each other as one frame: F = N - `OVERLAP` + 1."""
    count = parts.shape[1] - OVERLAP + 1
    return jnp.concatenate([parts[:, start : start + count] for start in range(OVERLAP)], -1)


def magnitudes(x: Float[Array, "B T"], window: int, *, rules: Rules) -> Float[Array, "B F K"]:
    """|STFT| with a periodic Hann window, at K = window / 2 + 1 frequencies, not less than sqrt(`FLOOR`)."""
    split = rules.spec("batch", None, None)
    # Left to itself, XLA gathers the whole batch for a Fourier transform.
    transform = jax.shard_map(jnp.fft.rfft, in_specs=split, out_specs=split)
    spectrum = transform(frame(x, window, rules=rules) * hann(window))
    power = jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    return jnp.sqrt(jnp.maximum(power, FLOOR))


def spectral_distance(
    said: Float[Array, "B T"],
    true: Float[Array, "B T"],
    real: Bool[Array, "B T"],
    window: int,
    rate: int,
    *,
    rules: Rules,
) -> Float[Array, "B"]:
    """How far spectra S' of `said` are from S of `true`, over the frames that touch real samples; 0 if there are none.

    Spectral convergence |S' - S| / |S| (Frobenius) plus the mean of |log S' - log S| (Yamamoto et al. 2020, equations 4
    and 5), plus that of |log M' - log M|, the powers in mel bands (Kong et al. 2020, equation 5). The bands, an eighth
    as many as the window has samples, tell the envelope, which single frequencies of noise hide.
    """
    said, true = (jnp.where(real, x.astype(jnp.float32), 0) for x in (said, true))
    made, wanted = (magnitudes(x, window, rules=rules) for x in (said, true))
    counts = frame(real.astype(jnp.float32), window, rules=rules).any(-1, keepdims=True)
    error = jnp.where(counts, jnp.square(made - wanted), 0).sum((1, 2))
    power = jnp.where(counts, jnp.square(wanted), 0).sum((1, 2))
    # The gradient of a root at 0 is not finite.
    apart = error > 0
    convergence = jnp.where(apart, jnp.sqrt(jnp.where(apart, error / jnp.maximum(power, FLOOR), 1)), 0)
    filters = mel_filters(rate, window, window // 8, 0.0, rate / 2)
    made_bands, wanted_bands = (jnp.square(x) @ filters + FLOOR for x in (made, wanted))
    return convergence + _apart(made, wanted, counts) + _apart(made_bands, wanted_bands, counts)


def _apart(
    made: Float[Array, "B F K"], wanted: Float[Array, "B F K"], counts: Bool[Array, "B F 1"]
) -> Float[Array, "B"]:
    """The mean difference of logarithms over the frames that count."""
    logs = jnp.where(counts, jnp.abs(jnp.log(made) - jnp.log(wanted)), 0).sum((1, 2))
    return logs / jnp.maximum(counts.sum((1, 2)) * made.shape[2], 1)
