"""Sentences spoken by espeak-ng, at 8 kHz.

espeak-ng's output depends on everything it has said before, so this file is also a program: it reads a list of
utterances as JSON and writes, for each, a 32-bit count and that many int16 samples. A new process gives the same output
for the same list. It imports nothing of mmjax, to start quickly.
"""

import ctypes
import json
import math
import sys
from typing import NamedTuple

import numpy as np

RATE = 8000
WORDS_A_MINUTE = 260
# None with breath (f2, f3, f5): what those say differs a little from process to process.
VOICES = ("en", "en-us", "en+f1", "en-us+m3")


class Utterance(NamedTuple):
    """A text, one of espeak-ng's voices, and the pitch: 50 is the voice's own."""

    text: str
    voice: str
    pitch: int


class Engine:
    """The part of espeak-ng's C interface (speak_lib.h) that makes samples."""

    _SYNCHRONOUS, _CHARACTERS, _UTF8, _RATE_PARAMETER, _PITCH_PARAMETER = 2, 1, 1, 1, 3

    def __init__(self) -> None:
        import espeakng_loader

        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path()
        self.rate: int = self._library.espeak_Initialize(self._SYNCHRONOUS, 0, data.encode(), 0)
        if self.rate <= 0:
            raise OSError(f"espeak-ng does not start with the data in {data}")
        self._parts: list[np.ndarray] = []
        pointer = ctypes.POINTER(ctypes.c_short)
        # Kept, because the library calls it for as long as it lives.
        self._callback = ctypes.CFUNCTYPE(ctypes.c_int, pointer, ctypes.c_int, ctypes.c_void_p)(self._take)
        self._library.espeak_SetSynthCallback(self._callback)

    def _take(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, events: int | None) -> int:
        if count > 0:
            self._parts.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(self, utterance: Utterance) -> np.ndarray:
        """int16[T] at `self.rate`."""
        self._parts.clear()
        text = utterance.text.encode()
        failed = (
            self._library.espeak_SetVoiceByName(utterance.voice.encode())
            or self._library.espeak_SetParameter(self._RATE_PARAMETER, WORDS_A_MINUTE, 0)
            or self._library.espeak_SetParameter(self._PITCH_PARAMETER, utterance.pitch, 0)
            or self._library.espeak_Synth(
                text, ctypes.c_size_t(len(text) + 1), 0, self._CHARACTERS, 0, self._UTF8, None, None
            )
            or self._library.espeak_Synchronize()
        )
        if failed or not self._parts:
            raise OSError(f"espeak-ng cannot say {utterance} (error {failed})")
        return np.concatenate(self._parts)


def resample(samples: np.ndarray, rate: int) -> np.ndarray:
    """int16[T] at `rate` to int16 at 8 kHz, by cutting the spectrum at 4 kHz.

    SciPy does the same, but importing it takes as long as a thousand sentences.
    """
    divisor = math.gcd(rate, RATE)
    before, after = rate // divisor, RATE // divisor
    periods = 16 * -(-len(samples) // (16 * before))  # a multiple of 16, because FFTs of large primes are slow
    spectrum = np.fft.rfft(samples, periods * before)[: periods * after // 2 + 1]
    resampled = np.fft.irfft(spectrum, periods * after)[: -(-len(samples) * after // before)] * (after / before)
    return np.clip(np.rint(resampled), -32768, 32767).astype("<i2")


def main() -> None:
    """The program: utterances from standard input, samples to standard output."""
    engine = Engine()
    for utterance in json.load(sys.stdin):
        samples = resample(engine.say(Utterance(*utterance)), engine.rate)
        sys.stdout.buffer.write(np.array(len(samples), "<i4").tobytes() + samples.tobytes())


if __name__ == "__main__":
    main()
