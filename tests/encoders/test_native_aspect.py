"""A ViT on real pictures of different sizes and aspect ratios, packed, gives what it gives for each alone."""

import itertools
import sys
import tarfile
import zipfile
from pathlib import Path

import chz
import cloudpickle
import cv2
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mmjax.data.batching.packing import PackedRows, Packing
from mmjax.data.loader import Data, Loader
from mmjax.data.mixture import Mixture, MixtureSource
from mmjax.data.patches_input import PatchesInput
from mmjax.data.sources.base import Source
from mmjax.encoders import ViT
from mmjax.layers.packed import unpack_tokens
from mmjax.layers.settings import Settings
from mmjax.sharding.rules import PRESETS

cloudpickle.register_pickle_by_value(sys.modules[__name__])

COUNT, SIDE, MOST = 24, 8, 60


@chz.chz
class Pictures(Source):
    """The first pictures of an archive; some are cut, so that they are not square."""

    archive: str = chz.field(doc="a .tar.xz or .zip file")

    @property
    def splits(self):
        return ("train",)

    def open(self, data_dir, split):
        return Opened(self.archive)

    def prepare(self, data_dir, manual_dir=None):
        return Path(data_dir)


class Opened:
    def __init__(self, archive):
        self.fingerprint = Path(archive).name
        if archive.endswith(".zip"):
            with zipfile.ZipFile(archive) as file:
                names = sorted(name for name in file.namelist() if name.endswith(".png"))[:COUNT]
                self.pictures = [file.read(name) for name in names]
        else:
            with tarfile.open(archive) as file:
                members = itertools.islice((member for member in file if member.isfile()), COUNT)
                self.pictures = [file.extractfile(member).read() for member in members]

    def __len__(self):
        return COUNT

    def __getitem__(self, index):
        if index % 3 == 0:
            return {"image": self.pictures[index]}
        pixels = cv2.imdecode(np.frombuffer(self.pictures[index], np.uint8), cv2.IMREAD_COLOR)
        height, width = pixels.shape[:2]
        return {"image": pixels[: height // 2] if index % 3 == 1 else pixels[:, : width * 2 // 3]}

    def id(self, index):
        return str(index)


def test_pictures_in_their_own_aspect_ratio(shared_data, tmp_path):
    sources = {
        "cifar": MixtureSource(source=Pictures(archive=str(shared_data / "cifar10" / "cifar10_test_jpg.tar.xz"))),
        "emoji": MixtureSource(source=Pictures(archive=str(shared_data / "noto_emoji" / "noto_emoji_png72.zip"))),
    }
    input = PatchesInput(side=SIDE, length=MOST)
    data = Data(
        source=Mixture(sources=sources),
        inputs={"image": input},
        packing=Packing(features={"image": PackedRows(length=2 * MOST)}, window=3),
    ).fit_packing(str(tmp_path), 16, 3)
    loader = Loader(data, str(tmp_path), "train", 16, seed=0)
    host = loader.batch(1)
    batch = jax.tree.map(jnp.asarray, host.batch)
    rows = batch.values["image"].shape[0]
    assert rows * 2 * MOST < 0.6 * 16 * MOST * 2  # far fewer positions than padding has
    settings = Settings(width=32, rules=PRESETS["data"], unroll=True)
    config = ViT(patch=SIDE, depth=2, heads=4)
    assert config.packed_stride(input.feature) == 1
    encoder = config.build(input.feature, settings, nnx.Rngs(0))
    encode = jax.jit(lambda values, mask: encoder(values, mask, None)[0])
    packed = encode(batch.values["image"], batch.mask["image"])
    tokens = unpack_tokens(packed, batch.packed["image"], settings.rules)
    grids = set()
    for place, id in enumerate(host.ids):
        part, _, name = id.partition("/")
        values, mask = input.read(loader.data.source.parts(loader.records)[part][int(name)]["image"], None)
        alone = encode(jnp.asarray(values[None]), jnp.asarray(mask[None]))
        np.testing.assert_allclose(tokens.values[place, : mask.sum()], alone.values[0, : mask.sum()], atol=1e-5)
        assert tokens.mask[place].tolist() == mask.tolist()
        grids.add(input.to_raw({"values": values, "mask": mask}).shape[:2])
    assert len(grids) >= 5
