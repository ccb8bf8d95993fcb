"""Sources that read the files people have: folders, manifests, Parquet, Arrow and tar shards."""

from mmjax.data.formats.array_record import ArrayRecord
from mmjax.data.formats.arrow import HuggingFace, Parquet
from mmjax.data.formats.folder import Folder
from mmjax.data.formats.manifest import Manifest
from mmjax.data.formats.tfds import Tfds
from mmjax.data.formats.web_dataset import WebDataset

FORMATS = (ArrayRecord, Folder, HuggingFace, Manifest, Parquet, Tfds, WebDataset)
