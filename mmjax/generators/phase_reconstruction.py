"""Griffin-Lim under jit: waveforms from magnitudes of short-time Fourier transforms."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, Int

from mmjax.generators.stft import OVERLAP, overlapping_frames
from mmjax.layers.spectrogram import hann
from mmjax.sharding.rules import Rules, shard_map

MOMENTUM = 0.99  # alpha of Perraudin et al. (2013)
TINY = 1e-9


def griffin_lim(magnitudes: Float[Array, "B T K"], hop: int, rounds: int, *, rules: Rules) -> Float[Array, "B T*{hop}"]:
    """Samples whose short-time Fourier transform has about these magnitudes.

    Griffin & Lim (1984), from fixed random phases, accelerated as by Perraudin et al. (2013). No gradient goes through
    the phases, so the samples are linear in the magnitudes.
    """
    find = functools.partial(_griffin_lim, hop=hop, rounds=rounds)
    # Left to itself, XLA gathers the whole batch for every Fourier transform.
    return shard_map(find, in_specs=rules.spec("batch", None, None), out_specs=rules.spec("batch", None))(magnitudes)


def _griffin_lim(magnitudes: Float[Array, "b T K"], hop: int, rounds: int) -> Float[Array, "b S"]:
    """The same for the examples of one device."""
    fixed = jax.lax.stop_gradient(magnitudes)
    begun = fixed * jnp.exp(2j * jnp.pi * jax.random.uniform(jax.random.key(0), magnitudes.shape[1:]))

    def project(_: Int[Array, ""], state: tuple[Array, Array]) -> tuple[Array, Array]:
        guess, before = state
        projected = stft(istft(fixed * unit_phases(guess), hop), hop)
        return projected + MOMENTUM * (projected - before), projected

    guess, _ = jax.lax.fori_loop(0, rounds, project, (begun, jnp.zeros_like(begun)))
    return istft(magnitudes * unit_phases(guess), hop)


def frequency_count(hop: int) -> int:
    """K, the number of frequencies of a frame."""
    return OVERLAP * hop // 2 + 1


def unit_phases(spectra: Complex[Array, "B T K"]) -> Complex[Array, "B T K"]:
    """The spectra divided by their magnitudes, 0 where these are 0."""
    return spectra / jnp.maximum(jnp.abs(spectra), TINY)


def stft(x: Float[Array, "B S"], hop: int) -> Complex[Array, "B S/{hop} K"]:
    """The DFT of Hann windows of 4 hop samples, one starting every hop, with zeros after the end."""
    parts = jnp.pad(x, ((0, 0), (0, (OVERLAP - 1) * hop))).reshape(len(x), -1, hop)
    return jnp.fft.rfft(overlapping_frames(parts) * hann(OVERLAP * hop))


def istft(spectra: Complex[Array, "B T K"], hop: int) -> Float[Array, "B T*{hop}"]:
    """The samples whose `stft` is nearest in squares (Griffin & Lim 1984, equation 6)."""
    taper = hann(OVERLAP * hop)
    framed = jnp.fft.irfft(spectra, OVERLAP * hop) * taper
    weights = _overlap(jnp.broadcast_to(taper**2, (1, *framed.shape[1:])), hop)
    # At the very beginning, where windows rise from zero, samples are undetermined.
    samples = _overlap(framed, hop) / jnp.maximum(weights, 0.01 * weights.max())
    return samples.reshape(len(samples), -1)


def _overlap(framed: Float[Array, "B T W"], hop: int) -> Float[Array, "B T {hop}"]:
    """Overlap-add of frames `hop` samples apart, cut `hop` samples after the last one starts."""
    count = framed.shape[1]
    padded = jnp.pad(framed, ((0, 0), (OVERLAP - 1, 0), (0, 0)))
    parts = [padded[:, OVERLAP - 1 - part :][:, :count, part * hop : (part + 1) * hop] for part in range(OVERLAP)]
    return sum(parts[1:], parts[0])
