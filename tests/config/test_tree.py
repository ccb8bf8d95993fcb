"""Trees of chz classes as plain data: what goes out comes back equal, and nothing else comes in."""

import abc
import json
import os
import subprocess
import sys
import types
from collections.abc import Mapping
from typing import Any, Literal

import chz
import pytest

from mmjax.config.overrides import resolve
from mmjax.config.schema import choices, class_path, coerce, describe
from mmjax.config.tree import tree_of_json, tree_of_value
from mmjax.errors import UserError


@chz.chz
class Part(abc.ABC):
    size: int = 1

    @abc.abstractmethod
    def build(self) -> int: ...


@chz.chz
class Small(Part):
    def build(self) -> int:
        return 1


@chz.chz
class Large(Small):
    shape: tuple[int, float] = (2, 0.5)
    inner: Part | None = None


class Undecorated(Small):
    """A subclass that is no chz class of its own."""


@chz.chz
class Rule:
    pattern: str = "."
    scale: float = 1.0


@chz.chz
class Tree:
    part: Part
    parts: Mapping[str, Part | None] = chz.field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    spans: tuple[tuple[str, float], ...] = ()
    weights: Mapping[str, float] = chz.field(default_factory=dict)
    rate: float = 1e-3
    limit: int | None = None
    flag: bool = False
    mode: Literal["a", "b", 3] = "a"
    text: str = ""
    bands: tuple[int, ...] = (1, 2)
    log_every: int = chz.field(default=10, metadata={"operational": True})

    @chz.validate
    def _rate(self) -> None:
        if self.rate < 0:
            raise ValueError("rate cannot be negative")


FULL = Tree(
    part=Large(size=3, shape=(4, 1 / 3), inner=Large(inner=Small(size=9))),
    parts={"z": Small(), "a": None, "left-eye": Large()},
    rules=(Rule(pattern='b"\\ü\n', scale=5e-324), Rule()),
    spans=(("x", 0.1), ("y", 1e38)),
    weights={"one": 1, "two": 0.2},
    rate=0.1 + 0.2,
    limit=2**31 - 1,
    flag=True,
    mode=3,
    text="None",
    bands=(),
    log_every=7,
)
OTHER = Tree(part=Small(), limit=0, mode="b", rate=3)


def data_of(tree: Tree) -> dict[str, Any]:
    return tree_of_value(tree, "", Tree, "given", final=True).data()


def back(data: Any) -> Tree:
    return tree_of_json(data, "", Tree, "file").make()


@pytest.mark.parametrize("tree", [FULL, OTHER])
def test_what_goes_out_as_json_comes_back_equal(tree: Tree):
    source = json.dumps(data_of(tree), allow_nan=False)
    again = back(json.loads(source))
    assert again == tree
    assert list(again.parts) == list(tree.parts)
    assert json.dumps(data_of(again)) == source
    assert (type(again.rate), type(again.bands), type(again.spans)) == (float, tuple, tuple)


def test_data_names_every_class_and_holds_every_value():
    module = Tree.__module__
    assert data_of(OTHER) == {
        "class": f"{module}:Tree",
        "part": {"class": f"{module}:Small", "size": 1},
        "parts": {},
        "rules": [],
        "spans": [],
        "weights": {},
        "rate": 3.0,
        "limit": 0,
        "flag": False,
        "mode": "b",
        "text": "",
        "bands": [1, 2],
        "log_every": 10,
    }
    assert json.dumps(tree_of_value(OTHER, "", Tree, "").data()["rate"]) == "3.0"


def test_what_is_operational_can_be_left_out():
    config_tree = tree_of_value(FULL, "", Tree, "given")
    assert config_tree.data(for_fingerprint=True) == {
        name: value for name, value in config_tree.data().items() if name != "log_every"
    }
    keys = {part.key for part in config_tree.walk()}
    assert keys - {part.key for part in config_tree.walk(for_fingerprint=True)} == {"log_every"}
    assert {"part.inner.inner.size", "rules.1.scale", "spans.0", "parts.left-eye.shape", "parts.a"} <= keys


def test_origins_tell_defaults_from_what_was_given():
    origins = {part.key: part.origin for part in tree_of_value(FULL, "", Tree, "given").walk()}
    assert {key for key, origin in origins.items() if origin == "default"} == {
        "parts.left-eye.inner",
        "parts.left-eye.shape",
        "parts.left-eye.size",
        "parts.z.size",
        "part.inner.size",
        "part.inner.shape",
        "rules.1.pattern",
        "rules.1.scale",
    }


def refused(change: dict[str, Any], drop: str = "") -> str:
    data = json.loads(json.dumps(data_of(FULL) | change))
    data.pop(drop, None)
    with pytest.raises(UserError) as caught:
        back(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("path", ["os.system", "subprocess.Popen", "builtins.eval", f"{__name__}.Small", "os:system"])
def test_a_class_from_elsewhere_is_refused_and_not_called(path: str, monkeypatch: pytest.MonkeyPatch):
    for module, name in ((os, "system"), (subprocess, "Popen")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("called"))
    line = f"parts.z names {path!r}, which is none of its classes: {class_path(Large)}, {class_path(Small)}"
    assert refused({"parts": {"z": {"class": path, "size": 1}}}) == line


@pytest.mark.parametrize("cls", [Part, Rule, Undecorated, Tree])
def test_a_class_that_cannot_stand_there_is_refused(cls: type):
    line = f"part names {class_path(cls)!r}, which is none of its classes: {class_path(Large)}, {class_path(Small)}"
    assert refused({"part": {"class": class_path(cls)}}) == line


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"part": {"size": 1}}, "part names no class, expected one of "),
        ({"part": {"class": 3}}, "part names no class, expected one of "),
        ({"part": None}, "part is None: expected Large | Small"),
        ({"part": 5}, "part is 5: expected Large | Small"),
        ({"part": {"class": class_path(Small)}}, "part.size is missing: Small needs it (int)"),
        ({"part": {"class": class_path(Small), "sise": 1}}, "part.sise is not a key of Small, which has size"),
        ({"rules": [{"class": class_path(Rule), "pattern": 3, "scale": 1.0}]}, "rules.0.pattern is 3: expected text"),
        ({"rules": {}}, "rules is {}: expected Rule,..."),
        ({"spans": [["x"]]}, "spans.0 is ['x']: expected text,float"),
        ({"spans": [["x", "y"]]}, "spans.0 is ['x', 'y']: expected text,float"),
        ({"weights": {"one": "1"}}, "weights.one is '1': expected float"),
        ({"weights": {"o.n": 1}}, "weights has an entry called 'o.n'; a name is made of letters, digits, _ and -"),
        ({"rate": None}, "rate is None: expected float"),
        ({"rate": True}, "rate is True: expected float"),
        ({"rate": 10**400}, "rate is 1000"),
        ({"limit": 1.0}, "limit is 1.0: expected int | None"),
        ({"flag": 1}, "flag is 1: expected true | false"),
        ({"mode": "c"}, "mode is 'c': expected a | b | 3"),
        ({"mode": True}, "mode is True: expected a | b | 3"),
        ({"bands": [1, 2.0]}, "bands is [1, 2.0]: expected int,..."),
        ({"text": ["a" * 100]}, "text is ['aaa"),
        ({"rate": -1.0}, "rate=-1.0: rate cannot be negative"),
        ({"extra": 1}, "extra is not a key of Tree, which has part, parts, "),
        ({"limit": 2**31}, "limit=2147483648: must lie between -2147483647 and 2147483647"),
        ({"bands": [1, -(10**23)]}, "bands=1,-100000000000000000000000: must lie between -2147483647 and"),
        ({"rate": 1e39}, "rate=1e+39: must lie between -3.4e+38 and 3.4e+38"),
        ({"text": "a\0b"}, "text=a\0b: must be text without NUL characters and bytes that are not UTF-8"),
        ({"text": "a\udcff"}, "text=a\udcff: must be text without NUL characters"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], line: str):
    assert refused(change).startswith(line)
    assert len(refused(change)) < 400


def test_a_missing_key_and_a_root_that_is_no_tree_are_named():
    assert refused({}, drop="rate") == "rate is missing: Tree needs it (float)"
    wrong: tuple[Any, ...] = (None, [], 3, "x", {})
    for data in wrong:
        with pytest.raises(UserError, match=r"^the configuration (is|names no class)"):
            back(data)


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("part", Rule(), f"part is of class {class_path(Rule)}, expected Large | Small"),
        ("rules", [Rule()], "rules is [Rule"),
        ("rate", "fast", "rate is 'fast': expected float"),
        ("rate", float("nan"), "rate is nan: expected float"),
        ("weights", {"a b": 1.0}, "weights has an entry called 'a b'"),
        ("bands", (1, True), "bands is [1, True]: expected int,..."),
    ],
)
def test_a_value_that_is_not_what_its_field_says_is_not_written(field: str, value: Any, line: str):
    with pytest.raises(UserError) as caught:
        tree_of_value(value, field, chz.chz_fields(Tree)[field].x_type, "given")
    assert str(caught.value).startswith(line)


def test_equal_numbers_have_equal_data():
    assert json.dumps(coerce(-0.0, float)) == "0.0"
    assert json.dumps(coerce(1, float)) == "1.0"
    assert json.dumps(coerce(1, float | int)) == "1"


def test_a_class_whose_module_is_not_imported_is_refused_and_nothing_is_imported(tmp_path, monkeypatch):
    (tmp_path / "never_imported.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert refused({"part": {"class": "never_imported:Small", "size": 1}}) == (
        "part is of class 'never_imported:Small', whose module is not imported; import it first, "
        "by modules=never_imported in a command"
    )


@chz.chz
class Root(abc.ABC):
    """A kind of node that only the tests of foreign classes extend."""

    @abc.abstractmethod
    def build(self) -> int: ...


@chz.chz
class Holder:
    root: Root | None = None


def foreign(module: str, name: str = "Leaf", builds: int = 1) -> type:
    """A concrete class of Root as that module defines it."""
    return chz.chz(type(name, (Root,), {"__module__": module, "build": lambda self: builds}))


def test_classes_of_any_imported_module_are_choices(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "mine.parts", types.ModuleType("mine.parts"))
    leaf = foreign("mine.parts")
    holder = resolve(Holder(), ["root=Leaf"])
    assert type(holder.root) is leaf
    data = tree_of_value(holder, "", Holder, "given", final=True).data()
    assert data["root"] == {"class": "mine.parts:Leaf"}
    assert tree_of_json(data, "", Holder, "file").make() == holder

    # Defining it once more, as a notebook does, replaces it.
    later = foreign("mine.parts", builds=2)
    assert type(resolve(Holder(), ["root=Leaf"]).root) is later


def test_a_class_in_a_file_of_experiments_is_no_class_of_mmjax(monkeypatch: pytest.MonkeyPatch):
    for module in ("mmjax.experiments.mine", "experiments.mine"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        assert class_path(foreign(module, "InExperiment")) == f"{module}:InExperiment"


def test_two_classes_of_one_short_name_are_refused_when_it_is_used(monkeypatch: pytest.MonkeyPatch):
    for module in ("mmjax.fusion.twin", "mine.other"):
        monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
    own, other = foreign("mmjax.fusion.twin", "Twin"), foreign("mine.other", "Twin")
    alone = foreign("mine.other", "Alone")
    line = "there are 2 classes called Twin: mine.other:Twin and mmjax.fusion.twin:Twin; rename one of them"
    assert choices(Root)["Twin"] is own
    assert "Twin" in describe(Root)
    assert resolve(Holder(), ["root=Alone"]) == Holder(root=alone())
    with pytest.raises(UserError) as caught:
        resolve(Holder(), ["root=Twin"])
    assert str(caught.value) == f"root=Twin: {line}"
    for cls in (own, other):
        with pytest.raises(UserError) as caught:
            tree_of_value(Holder(root=cls()), "", Holder, "given")
        assert str(caught.value) == f"root: {line}"
    data = {"class": class_path(Holder), "root": {"class": "mmjax.fusion.twin.Twin"}}
    with pytest.raises(UserError) as caught:
        tree_of_json(data, "", Holder, "file")
    assert str(caught.value) == f"root: {line}"


def test_choices_are_concrete_chz_classes():
    assert list(choices(Part | None)) == ["Large", "Small"]
    assert describe(Mapping[str, Part | None]) == "entries of Large | Small | None"
    assert describe(tuple[tuple[str, int | None], ...]) == "(text,(int | None)),..."


@chz.chz
class Calculated:
    """A class whose validator calculates."""

    seconds: float = 1.0
    parts: int = 1

    @chz.validate
    def _samples(self) -> None:
        if round(self.seconds * 1e300) // self.parts > 10**305:
            raise MemoryError


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"parts": 0}, "node cannot have these values: integer division or modulo by zero"),
        ({"seconds": 1e10}, "node cannot have these values: cannot convert float infinity to integer"),
        ({"seconds": 1e7}, "node cannot have these values: MemoryError"),
    ],
)
def test_what_a_validator_cannot_calculate_with_is_a_line(values: dict[str, Any], line: str):
    data = {"class": class_path(Calculated), "seconds": 1.0, "parts": 1} | values
    with pytest.raises(UserError) as caught:
        tree_of_json(data, "node", Calculated, "file").make()
    assert str(caught.value) == line
