"""The same real examples in every format, and a folder for their indexes."""

from pathlib import Path
from typing import Any

import pytest

from mmjax.data.formats.array_record import ArrayRecord, convert
from mmjax.data.formats.arrow import HuggingFace, Parquet
from mmjax.data.formats.folder import Folder
from mmjax.data.formats.manifest import Manifest
from mmjax.data.formats.splits import SplitByHash
from mmjax.data.formats.web_dataset import WebDataset
from mmjax.data.sources.base import Source
from tests.data.formats import examples as written


@pytest.fixture(scope="module")
def examples(shared_data: Path) -> list[dict[str, Any]]:
    return written.real_examples(shared_data, 300)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def sources(examples, tmp_path_factory, cache) -> dict[str, Source]:
    """Every format's source of the same examples."""
    return written_sources(tmp_path_factory.mktemp("formats"), examples, cache)


def written_sources(root: Path, examples: list[dict[str, Any]], cache: str) -> dict[str, Source]:
    """Writes examples in every format, each in a folder of its own."""
    split = SplitByHash(group="speaker", validation=0.25, test=0.25)
    options: dict[str, Any] = {"key": "id", "split": split}
    found: dict[str, Source] = {
        "jsonl": Manifest(path=str(written.write_json_lines(root / "jsonl", examples)), **options),
        "csv": Manifest(path=str(written.write_csv(root / "csv", examples)), **options),
        "tsv": Manifest(path=str(written.write_csv(root / "tsv", examples, ".tsv")), **options),
        "metadata": Folder(path=str(written.write_metadata_folder(root / "metadata", examples)), **options),
        "parquet": Parquet(path=str(written.write_parquet(root / "parquet", examples)), **options),
        "arrow": HuggingFace(path=str(written.write_arrow(root / "arrow", examples)), **options),
        "tar": WebDataset(path=str(written.write_tars(root / "tar", examples)), **options),
    }
    found["array_record"] = ArrayRecord(path=str(convert(found["jsonl"], cache, root / "converted")))
    return found
