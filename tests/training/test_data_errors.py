"""data_errors.jsonl over a restart, whole and damaged."""

import json

from mmjax.data.batching.host_batch import BadValue
from mmjax.training.data_errors import DataErrorsLog


def log(run_dir, step, said):
    return DataErrorsLog(run_dir, step, warn=said.append, writer=True)


def test_unreadable_lines_are_dropped_with_a_warning(tmp_path):
    said = []
    first = log(tmp_path, 0, said)
    for step in range(4):
        first.add(step, "train", (BadValue(step, f"id {step}", "image", "é is no picture"),))
    first.add(3, "validation", (BadValue(1, "1", "image", "no picture"),))
    first.flush()
    path = tmp_path / "data_errors.jsonl"
    good = path.read_bytes().splitlines(keepends=True)
    whole = json.loads(good[0])
    wrong = [json.dumps(whole | change) for change in ({"step": "1"}, {"step": None}, {"split": 3}, {"index": [1]})]
    wrong += [json.dumps({name: whole[name] for name in whole if name != left}) for left in whole]
    garbage = [b"\xff\xfe", b"{", b"[]", b"5", b"null", b"[" * 100_000, b'{"step": ' + b"9" * 5000 + b"}", b""]
    garbage += [line.encode() for line in wrong]
    path.write_bytes(b"".join(good[:2] + [line + b"\n" for line in garbage] + good[2:]) + good[0][:20])
    second = log(tmp_path, 3, said)
    assert path.read_bytes() == b"".join(good[:3] + good[4:])
    assert said == [f"{len(garbage)} unreadable lines of {path} are dropped"]
    second.add(3, "train", (BadValue(3, "id 3", "image", "é is no picture"),))
    second.add(6, "validation", (BadValue(1, "1", "image", "no picture"),))
    second.flush()
    assert path.read_bytes() == b"".join(good[:3] + good[4:] + good[3:4])
    log(tmp_path, 7, said)
    assert len(said) == 1
