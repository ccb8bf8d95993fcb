"""The TFDS builder of the scenes' spoken sentences."""

import concurrent.futures
import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from mmjax.data.sources import espeak
from mmjax.data.sources.constants import SCENES_VERSION as VERSION
from mmjax.data.sources.espeak import Utterance
from mmjax.errors import UserError
from mmjax.formatting import duration

FILE = 2048  # utterances
MEASURED = 100  # utterances after which the remaining time is estimated


class ScenesSpeechBuilder(tfds.core.ShardBasedBuilder):
    """The sentences of scenes spoken by espeak-ng at 8 kHz, in the order of the examples."""

    name = "scenes_speech"
    VERSION = tfds.core.Version(VERSION)

    def __init__(self, *, utterances: Mapping[str, list[Utterance]], **kwargs: Any):
        """`utterances` are those of each split, in order."""
        super().__init__(file_format="array_record", **kwargs)
        self._utterances = utterances

    def _info(self) -> tfds.core.DatasetInfo:
        speech = tfds.features.Tensor(shape=(None,), dtype=np.int16, encoding="bytes")
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            homepage="https://github.com/espeak-ng/espeak-ng",
            features=tfds.features.FeaturesDict({"speech": speech}),
            metadata=tfds.core.MetadataDict(),
        )

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        # Each file is spoken by a process of its own, so what it holds depends on nothing else.
        self._pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
        self._digest = hashlib.sha256()
        total = sum(map(len, self._utterances.values()))
        print(f"making speech for {total:,} sentences before anything else; this is done once", file=sys.stderr)
        with tqdm(
            desc="speaking the scenes' sentences", total=total, unit=" sentences", mininterval=1
        ) as self._progress:
            try:
                super()._download_and_prepare(dl_manager, download_config)
            finally:
                self._pool.shutdown(cancel_futures=True)
        self.info.metadata["digest"] = self._digest.hexdigest()

    def _shard_iterators_per_split(self, dl_manager: tfds.download.DownloadManager) -> Mapping[str, list[Callable]]:
        return {
            split: [
                functools.partial(
                    self._examples, start, self._pool.submit(speak, rows[start : start + FILE], self._said)
                )
                for start in range(0, len(rows), FILE)
            ]
            for split, rows in self._utterances.items()
        }

    def _said(self) -> None:
        with self._progress.get_lock():
            self._progress.update()
            made, total = self._progress.n, self._progress.total
            if made == 1:
                self._start = time.perf_counter()  # without the time that the first process takes to begin
            if made == MEASURED + 1:
                rate = MEASURED / (time.perf_counter() - self._start)
                left = duration((total - made) / rate)
                tqdm.write(f"at {rate:.0f} sentences a second, speech takes {left} more", file=sys.stderr)

    def _examples(self, start: int, recordings: concurrent.futures.Future) -> Iterator:
        for row, samples in enumerate(recordings.result(), start):
            self._digest.update(samples.tobytes())
            yield row, {"speech": samples.astype(np.int16, copy=False)}


def speak(utterances: list[Utterance], on_progress: Callable[[], object]) -> list[np.ndarray]:
    """int16[T] at 8 kHz for each utterance; calls `on_progress` after each.

    The result is deterministic for the whole list.
    """
    # -P keeps this folder's modules from being taken for others of the same name.
    command = [sys.executable, "-P", espeak.__file__]
    recordings: list[np.ndarray] = []
    with tempfile.TemporaryFile() as request, tempfile.TemporaryFile() as errors:
        request.write(json.dumps(utterances).encode())
        request.seek(0)
        with subprocess.Popen(command, stdin=request, stdout=subprocess.PIPE, stderr=errors) as process:
            assert process.stdout is not None
            while header := process.stdout.read(4):
                recordings.append(np.frombuffer(process.stdout.read(2 * int.from_bytes(header, "little")), "<i2"))
                on_progress()
        errors.seek(0)
        reason = errors.read().decode(errors="replace").strip().rpartition("\n")[2]
    if process.returncode in (-signal.SIGTERM, -signal.SIGINT):
        raise KeyboardInterrupt  # it was meant for all of this
    if process.returncode or len(recordings) != len(utterances):
        raise UserError(
            f"espeak-ng ended with code {process.returncode} ({reason}): scenes need it unless speech=false"
        )
    return recordings
