"""Sounds of given magnitudes, on devices: against the same in NumPy, by SciPy's transforms, of real recordings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from mmjax.data import griffin_lim as reference
from mmjax.generators.phase_reconstruction import frequency_count, griffin_lim, istft, stft, unit_phases
from mmjax.generators.stft import spectral_distance
from mmjax.sharding.mesh import MeshShape
from mmjax.sharding.rules import PRESETS

HOP, FRAMES = 50, 30
WINDOW = 4 * HOP
ENERGY = np.sqrt(np.sum((0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)) ** 2))  # of NumPy's window it is 1
RULES = PRESETS["data"]


@pytest.fixture(scope="module", autouse=True)
def mesh():
    with jax.set_mesh(MeshShape(data=1).build()) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def recordings(shared_data) -> np.ndarray:
    """Two spoken digits, as many samples as 30 frames begin at."""
    folder = shared_data / "fsdd" / "recordings"
    sounds = [soundfile.read(folder / f"{name}.wav", dtype="float32")[0] for name in ("0_george_0", "7_jackson_3")]
    return np.stack([sound[: FRAMES * HOP] for sound in sounds])


def put(x):
    return jax.device_put(x, RULES.spec("batch"))


def by_numpy(x):
    return ENERGY * reference.stft(x.astype(np.float64), window=WINDOW, hop=HOP, size=WINDOW)


def test_the_transform_and_its_inverse_are_those_of_numpy(recordings):
    spectra = jax.jit(lambda x: stft(x, HOP))(recordings)
    expected = np.stack([by_numpy(row) for row in recordings])
    assert spectra.shape == expected.shape == (2, FRAMES, frequency_count(HOP))
    np.testing.assert_allclose(spectra, expected, atol=1e-4)
    rng = np.random.default_rng(0)
    any_spectra = (rng.normal(size=expected.shape) + 1j * rng.normal(size=expected.shape)).astype(np.complex64)
    samples = jax.jit(lambda z: istft(z, HOP))(any_spectra)
    expected = [reference.istft(row.astype(np.complex128) / ENERGY, WINDOW, HOP) for row in any_spectra]
    np.testing.assert_allclose(samples, expected, atol=1e-5)


def convergence(found, magnitudes):
    made = np.stack([np.abs(by_numpy(row)) for row in np.asarray(found)])
    return np.linalg.norm(made - magnitudes) / np.linalg.norm(magnitudes)


def test_phases_are_found_as_well_as_by_numpy(recordings):
    """From other random phases, so that the two are compared by how near they come."""
    magnitudes = np.stack([np.abs(by_numpy(row)) for row in recordings]).astype(np.float32)

    def apart(rounds):
        return convergence(jax.jit(lambda x: griffin_lim(x, HOP, rounds, rules=RULES))(put(magnitudes)), magnitudes)

    rows = (row.astype(np.float64) / ENERGY for row in magnitudes)
    expected = [reference.griffin_lim(row, window=WINDOW, hop=HOP, iterations=16) for row in rows]
    assert apart(16) < 0.5 * apart(0)
    np.testing.assert_allclose(apart(16), convergence(expected, magnitudes), rtol=0.15)


def test_gradients_go_through_magnitudes_alone(recordings):
    """With the phases fixed the sound is linear in the magnitudes: its change is the sound of their change."""
    magnitudes = put(np.stack([np.abs(by_numpy(row)) for row in recordings]).astype(np.float32))
    change = put(np.random.default_rng(0).normal(size=magnitudes.shape).astype(np.float32))
    sound = jax.jit(lambda x: griffin_lim(x, HOP, 4, rules=RULES))
    made, changed = jax.jvp(sound, (magnitudes,), (change,))
    more, change_of_more = jax.jvp(sound, (2 * magnitudes,), (change,))
    np.testing.assert_allclose(more, 2 * made, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(change_of_more, changed, rtol=1e-2, atol=1e-3)
    assert float(jnp.abs(changed).max()) > 0.01


def test_silence_is_silent():
    silent = put(np.zeros((2, FRAMES, frequency_count(HOP)), np.float32))
    made, slope = jax.value_and_grad(lambda x: griffin_lim(x, HOP, 3, rules=RULES).sum())(silent)
    assert float(made) == 0
    assert np.isfinite(slope).all()
    assert not unit_phases(silent.astype(jnp.complex64)).any()


def test_devices_do_not_talk():
    """Each transforms its own examples, in the sound and in the distance from another one, backward too."""
    with jax.set_mesh(MeshShape(data=8).build()):
        magnitudes = put(np.ones((8, 6, frequency_count(HOP)), np.float32))
        real = put(np.ones((8, 6 * HOP), bool))

        def total(x):
            made = griffin_lim(x, HOP, 3, rules=RULES)
            return spectral_distance(made, jnp.zeros_like(made), real, WINDOW, 8000, rules=RULES).sum()

        program = jax.jit(jax.grad(total)).lower(magnitudes).compile().as_text()
    assert "fft" in program
    assert "all-gather" not in program
