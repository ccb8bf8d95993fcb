"""The same real examples, emoji with their names and spoken digits, written in every format."""

import csv
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet


def real_examples(shared: Path, count: int) -> list[dict[str, Any]]:
    """Pictures of emoji, their names and groups, each with the recording of a spoken digit and its speaker."""
    emoji = [json.loads(line) for line in (shared / "noto_emoji/emoji.jsonl").read_text().splitlines()]
    with (shared / "fsdd/metadata.csv").open() as file:
        recordings = list(csv.DictReader(file))
    examples = []
    with zipfile.ZipFile(shared / "noto_emoji/noto_emoji_png72.zip") as archive:
        names = {Path(name).name: name for name in archive.namelist()}
        for number, each in enumerate(emoji[:: len(emoji) // count][:count]):
            recording = recordings[number % len(recordings)]
            examples.append(
                {
                    "id": f"{number:05d}",
                    "image": archive.read(names[each["file"]]),
                    "audio": (shared / "fsdd/recordings" / recording["file"]).read_bytes(),
                    "text": each["name"],
                    "label": each["group"],
                    "speaker": recording["speaker"],
                }
            )
    return examples


def write_files(folder: Path, examples: list[dict[str, Any]]) -> None:
    """Pictures and recordings as files."""
    folder.mkdir(parents=True, exist_ok=True)
    for each in examples:
        (folder / f"{each['id']}.png").write_bytes(each["image"])
        (folder / f"{each['id']}.wav").write_bytes(each["audio"])


def row(each: dict[str, Any]) -> dict[str, str]:
    """An example as a manifest has it."""
    return {
        "id": each["id"],
        "image": f"{each['id']}.png",
        "audio": f"{each['id']}.wav",
        "text": each["text"],
        "label": each["label"],
        "speaker": each["speaker"],
    }


def write_json_lines(folder: Path, examples: list[dict[str, Any]]) -> Path:
    write_files(folder, examples)
    path = folder / "all.jsonl"
    path.write_text("".join(json.dumps(row(each)) + "\n" for each in examples))
    return path


def write_csv(folder: Path, examples: list[dict[str, Any]], suffix: str = ".csv") -> Path:
    write_files(folder, examples)
    path = folder / f"all{suffix}"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*row(examples[0])], delimiter="\t" if suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(map(row, examples))
    return path


def write_folder(folder: Path, examples: list[dict[str, Any]]) -> Path:
    """A subfolder a class, files of one stem, and a JSON file with the rest."""
    for each in examples:
        below = folder / each["label"]
        below.mkdir(parents=True, exist_ok=True)
        (below / f"{each['id']}.png").write_bytes(each["image"])
        (below / f"{each['id']}.wav").write_bytes(each["audio"])
        (below / f"{each['id']}.txt").write_text(each["text"])
        (below / f"{each['id']}.json").write_text(json.dumps({"id": each["id"], "speaker": each["speaker"]}))
    return folder


def write_metadata_folder(folder: Path, examples: list[dict[str, Any]]) -> Path:
    write_files(folder, examples)
    with (folder / "metadata.jsonl").open("w") as file:
        for each in examples:
            found = row(each)
            names = {"file_name": found.pop("image"), "audio_file_name": found.pop("audio")}
            file.write(json.dumps({**names, **found}) + "\n")
    return folder


def table(examples: list[dict[str, Any]]) -> pa.Table:
    """As `datasets` writes them: pictures and sounds as {bytes, path}, labels as numbers with names."""
    names = sorted({each["label"] for each in examples})
    columns: dict[str, Any] = {
        "id": [each["id"] for each in examples],
        "image": [{"bytes": each["image"], "path": f"{each['id']}.png"} for each in examples],
        "audio": [{"bytes": each["audio"], "path": f"{each['id']}.wav"} for each in examples],
        "text": [each["text"] for each in examples],
        "label": [names.index(each["label"]) for each in examples],
        "speaker": [each["speaker"] for each in examples],
    }
    features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    found = pa.table(columns)
    return found.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_parquet(folder: Path, examples: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    half = len(examples) // 2
    pa.parquet.write_table(table(examples).slice(0, half), folder / "a.parquet", row_group_size=16)
    pa.parquet.write_table(table(examples).slice(half), folder / "b.parquet", row_group_size=50)
    return folder


def write_arrow(folder: Path, examples: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    found = table(examples)
    with pa.ipc.new_stream(folder / "data-00000-of-00001.arrow", found.schema) as writer:
        writer.write_table(found, max_chunksize=33)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]}))
    return folder


def write_tars(folder: Path, examples: list[dict[str, Any]], shard: int = 100) -> Path:
    folder.mkdir(parents=True)
    for start in range(0, len(examples), shard):
        with tarfile.open(folder / f"shard-{start // shard:05d}.tar", "w") as archive:
            for each in examples[start : start + shard]:
                rest = {"id": each["id"], "label": each["label"], "speaker": each["speaker"]}
                members = {
                    "png": each["image"],
                    "wav": each["audio"],
                    "txt": each["text"].encode(),
                    "json": json.dumps(rest).encode(),
                }
                for suffix, content in members.items():
                    member = tarfile.TarInfo(f"{each['id']}.{suffix}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    return folder
