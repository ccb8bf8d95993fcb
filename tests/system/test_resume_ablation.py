"""An ablation that is killed, again and again, ends as the one that was not."""

import json
import signal

import pytest

from tests.ablation import small
from tests.system.conftest import finish, interrupt


@pytest.mark.slow
def test_killed_ablations_go_on(tmp_path, data_dir):
    tiny = [word for word in small.TINY if not word.startswith("train.steps")]
    words = ("interactions", *tiny, "train.steps=40", "choices=Sum,Concat", f"data_dir={data_dir}")
    finish("ablate", *words, f"run_dir={tmp_path / 'whole'}")
    killed = tmp_path / "killed"
    words = (*words, f"run_dir={killed}")
    # In the first cell, whose steps are quick; then in the second.
    code = interrupt(killed / "cells" / "Sum" / "seed_1", 0.1, signal.SIGKILL, "ablate", *words)
    assert code == -signal.SIGKILL
    assert interrupt(killed / "cells" / "Concat" / "seed_0", 0, signal.SIGTERM, "ablate", *words) == 75
    finish("ablate", *words)
    whole = {path.parent: path.read_text() for path in (tmp_path / "whole").glob("cells/*/*/answers.json")}
    assert len(whole) == 4
    for folder, answers in whole.items():
        assert (killed / folder.relative_to(tmp_path / "whole") / "answers.json").read_text() == answers
    first, second = (
        json.loads((tmp_path / name / "table.json").read_text())["summary"] for name in ("whole", "killed")
    )
    for choice, row in first.items():
        for figure in ("mean", "low", "high", "difference", "shapley", "information"):
            assert row[figure] == second[choice][figure], (choice, figure)
