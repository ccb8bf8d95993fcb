"""Users' files in buckets: the same batches as from the disk, and what a bucket does not give."""

import json
import pickle
from pathlib import Path

import chz
import fsspec
import pytest

from mmjax.buckets import RETRIES, find_files
from mmjax.data.formats.folder import Folder
from mmjax.data.formats.manifest import Manifest
from mmjax.data.formats.recognise import recognise
from mmjax.data.formats.web_dataset import WebDataset
from mmjax.data.inputs import ImageInput, LabelInput
from mmjax.data.loader import Data, Loader
from mmjax.data.mirror import data_root, download
from mmjax.data.sources.base import Unreadable
from mmjax.errors import UserError
from mmjax.files import to_path, write_atomic
from tests.data.formats import examples as written
from tests.data.formats.batches import digest
from tests.data.formats.conftest import written_sources
from tests.servers import gcs_server, s3_server
from tests.slow import slow_but

SERVERS = {"gs": gcs_server, "s3": s3_server}


@pytest.fixture(scope="module", params=slow_but(SERVERS, "gs"))
def bucket(request):
    """The URL of a bucket on loopback."""
    with SERVERS[request.param]("bucket") as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        fsspec.filesystem(request.param).clear_instance_cache()
        yield f"{request.param}://bucket"
        fsspec.filesystem(request.param).clear_instance_cache()


def put(folder: Path, url: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            write_atomic(to_path(url) / file.relative_to(folder).as_posix(), file.read_bytes())


def test_every_format_gives_the_batches_of_the_disk(bucket, shared_data, tmp_path):
    examples = written.real_examples(shared_data, 300)[::5]
    cache = str(tmp_path / "cache")
    sources = written_sources(tmp_path / "formats", examples, cache)
    expected = digest(sources["jsonl"], cache)
    for name, source in sources.items():
        path = Path(source.path)
        url = f"{bucket}/{name}"
        put(path if path.is_dir() else path.parent, url)
        remote = chz.replace(source, path=url if path.is_dir() else f"{url}/{path.name}")
        assert digest(remote, cache) == expected, name
        assert type(recognise(remote.path)) is type(source)


def test_files_must_lie_in_the_folder_of_the_manifest(bucket, tmp_path):
    rows = ["a.png", "../secret.png", "/secret.png", f"{bucket}/secret.png", f"{bucket}/m/a.png", "none.png"]
    write_atomic(to_path(f"{bucket}/secret.png"), b"secret")
    write_atomic(to_path(f"{bucket}/m/a.png"), b"picture")
    write_atomic(to_path(f"{bucket}/m/rows.jsonl"), "".join(json.dumps({"image": row}) + "\n" for row in rows))
    source = Manifest(path=f"{bucket}/m/rows.jsonl", split=None)
    values = {}
    for split in ("train", "validation", "test"):
        records = source.open(str(tmp_path), split)
        values |= {records.id(index): records[index]["image"] for index in range(len(records))}
    found = [values[f"rows.jsonl:{number}"] for number in range(1, 7)]
    assert [value if isinstance(value, bytes) else type(value) for value in found] == [
        b"picture",
        *[Unreadable] * 3,
        b"picture",
        Unreadable,
    ]
    assert "leads out of" in found[1].reason


def test_what_is_not_there_or_changes_is_named(bucket, shared_data, tmp_path):
    with pytest.raises(UserError, match="nothing: there is no such file or folder"):
        recognise(f"{bucket}/nothing")
    written.write_tars(tmp_path / "tars", written.real_examples(shared_data, 12))
    put(tmp_path / "tars", f"{bucket}/changes")
    source = WebDataset(path=f"{bucket}/changes")
    records = pickle.dumps(source.open(str(tmp_path), "train"))
    assert pickle.loads(records)[0]["image"]
    shard = next(iter(find_files(to_path(source.path))))
    write_atomic(to_path(f"{source.path}/{shard}"), b"another")
    with pytest.raises(UserError, match="was changed since it was indexed; start the command again"):
        pickle.loads(records)[0]


def test_a_data_dir_in_a_bucket_is_built_once(bucket, shared_data, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "one"))
    path = written.write_json_lines(tmp_path / "files", written.real_examples(shared_data, 24))
    source, data_dir = Manifest(path=str(path), key="id"), f"{bucket}/data"
    data = Data(source=source, inputs={"label": LabelInput()}, threads=0)
    first = Loader(data.fit_tokenizers(data_dir), data_dir, "train", 8, seed=0).batch(0)
    names = find_files(to_path(data_dir))
    assert any(name.startswith("indexes/") for name in names)
    assert any(name.startswith("tokenizers/") for name in names)

    # Another machine downloads what was built: the files of the data set are not read for it again.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
    monkeypatch.setattr(Manifest, "entries", lambda self, root, files: pytest.fail("read again"))
    again = Loader(data.fit_tokenizers(data_dir), data_dir, "train", 8, seed=0).batch(0)
    assert again.ids == first.ids
    assert (again.batch.values["label"] == first.batch.values["label"]).all()
    assert data_root(data_dir).is_relative_to(tmp_path / "two")


def test_an_upload_names_no_file_outside(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data_dir = f"{bucket}/evil"
    folder = data_root(data_dir) / "indexes" / "x"
    write_atomic(to_path(f"{data_dir}/indexes/x/.files.json"), json.dumps(["../../../evil"]))
    with pytest.raises(UserError, match="leads out of its folder"):
        download(folder)
    assert not folder.exists()


def test_reads_that_were_tried_again_are_counted(bucket, shared_data, tmp_path, monkeypatch):
    written.write_files(tmp_path / "pictures", written.real_examples(shared_data, 8))
    put(tmp_path / "pictures", f"{bucket}/pictures")
    data = Data(source=Folder(path=f"{bucket}/pictures"), inputs={"image": ImageInput(size=24)}, threads=0)
    loader = Loader(data, str(tmp_path), "train", 4, seed=0)
    assert loader.batch(0).retries == 0
    filesystem = type(to_path(bucket).fs)
    read, failures = filesystem._cat_file, [OSError("reset"), OSError("reset")]

    async def sometimes(self, *words, **options):
        if failures:
            raise failures.pop()
        return await read(self, *words, **options)

    monkeypatch.setattr(filesystem, "_cat_file", sometimes)
    monkeypatch.setattr("mmjax.buckets.time.sleep", lambda seconds: None)
    before = RETRIES.count
    assert loader.batch(1).retries == 2
    assert RETRIES.count == before + 2
