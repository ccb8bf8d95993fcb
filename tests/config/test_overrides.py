"""`key=value` on a command line: what it sets, and the one line that every mistake gets."""

import abc
import itertools
import time
from collections.abc import Mapping
from typing import Literal

import chz
import pytest

from mmjax.config.overrides import parse_pairs, resolve
from mmjax.config.schema import field_docs
from mmjax.config.tree import tree_of_json, tree_of_value
from mmjax.errors import UserError
from tests.config.test_experiment import EXPERIMENT


@chz.chz
class Fusion(abc.ABC):
    width: int = 64

    @abc.abstractmethod
    def build(self) -> str: ...


@chz.chz
class Concat(Fusion):
    def build(self) -> str:
        return "concat"


@chz.chz
class CrossAttention(Fusion):
    depth: int = 2
    heads: int = 4

    def build(self) -> str:
        return "cross"

    @chz.validate
    def _heads(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"heads={self.heads} must divide the width {self.width}")
        if self.depth < 1:
            raise ValueError(f"fusion.depth must be at least 1, not {self.depth}")
        if self.depth > 9:
            raise ValueError("so much depth cannot be afforded")


@chz.chz
class Encoder:
    depth: int = 2


@chz.chz
class ViT(Encoder):
    patch: tuple[int, int] = (4, 4)


@chz.chz
class Rule:
    pattern: str
    rate: float = 1.0


@chz.chz
class Average:
    decay: float = 0.99


@chz.chz
class Train:
    steps: int = chz.field(default=100, validator=chz.validators.gt(0))
    rate: float = 1e-3
    limit: int | None = None
    best: str | None = None
    shuffle: bool = True
    mode: Literal["fast", "exact"] = "fast"
    sizes: tuple[int, ...] = (1, 2)
    ema: Average | None = None


@chz.chz
class Tree:
    encoders: Mapping[str, Encoder | None]
    fusion: Fusion = CrossAttention(depth=3)
    outputs: Mapping[str, Rule] = chz.field(default_factory=dict)
    weights: Mapping[str, float] = chz.field(default_factory=dict)
    train: Train = Train()
    rules: tuple[Rule, ...] = ()
    spans: tuple[tuple[str, float], ...] = ()
    name: str = "tree"
    folder: str = chz.field(
        default=None, x_type=str | None, converter=chz.mungers.if_none(lambda tree: f"runs/{tree.name}")
    )


TREE = Tree(
    encoders={"image": ViT(depth=5), "text": Encoder(), "sound": None},
    outputs={"label": Rule(pattern="x")},
    weights={"a": 1.0},
    rules=(Rule(pattern="bias", rate=0.5), Rule(pattern="gain")),
)


def changed(*pairs: str) -> Tree:
    return resolve(TREE, pairs)


def refused(*pairs: str) -> str:
    with pytest.raises(UserError) as caught:
        changed(*pairs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_nothing_given_changes_nothing():
    assert changed() == TREE


@pytest.mark.parametrize(
    ("pair", "value"),
    [
        ("steps=7", 7),
        ("rate=3e-4", 3e-4),
        ("rate=2", 2.0),
        ("limit=12", 12),
        ("limit=None", None),
        ("best=None", None),
        ("best=a=b, c", "a=b, c"),
        ("shuffle=false", False),
        ("shuffle=True", True),
        ("mode=exact", "exact"),
        ("sizes=3,4,5", (3, 4, 5)),
        ("sizes=(3, 4)", (3, 4)),
        ("sizes=3", (3,)),
        ("sizes=()", ()),
    ],
)
def test_values_are_read_as_their_types(pair: str, value: object):
    key = pair.partition("=")[0]
    expected = chz.replace(TREE, train=chz.replace(TREE.train, **{key: value}))
    made = changed(f"train.{pair}")
    assert made == expected
    assert type(getattr(made.train, key)) is type(value)


def test_a_new_class_starts_from_its_defaults_and_the_same_one_keeps_its_values():
    assert changed("fusion=Concat").fusion == Concat()
    assert changed("fusion=CrossAttention").fusion == CrossAttention(depth=3)
    assert changed("fusion=CrossAttention", "fusion.heads=2").fusion == CrossAttention(depth=3, heads=2)
    assert changed("encoders.image=Encoder", "encoders.image.depth=1").encoders["image"] == Encoder(depth=1)
    assert changed("encoders.image=Encoder").encoders["image"] == Encoder(depth=2)


def test_mappings_gain_lose_and_replace_entries():
    made = changed(
        "encoders.image=None", "encoders.sound=ViT", "encoders.sound.patch=2,8", "encoders.depth-map=Encoder",
        "outputs.label=None", "weights.b=2",
    )  # fmt: skip
    assert made.encoders == {"image": None, "text": Encoder(), "sound": ViT(patch=(2, 8)), "depth-map": Encoder()}
    assert made.outputs == {}
    assert made.weights == {"a": 1.0, "b": 2.0}


def test_tuples_are_set_by_index_and_grow_at_their_end():
    added = [f"rules.{index}=Rule" for index in range(2, 12)]
    patterns = [f"rules.{index}.pattern=p{index}" for index in range(2, 12)]
    made = changed("rules.0.rate=0.1", *patterns[::-1], *added[::-1], "spans.0=head,0.5")
    assert made.rules[:2] == (Rule(pattern="bias", rate=0.1), Rule(pattern="gain"))
    assert [rule.pattern for rule in made.rules[2:]] == [f"p{index}" for index in range(2, 12)]
    assert made.spans == (("head", 0.5),)
    assert changed("rules=()").rules == ()


def test_order_does_not_matter():
    pairs = ["fusion=CrossAttention", "fusion.depth=8", "encoders.b=ViT", "encoders.a=ViT", "encoders.b.depth=9"]
    made = [changed(*order) for order in itertools.permutations(pairs)]
    assert all(each == made[0] and list(each.encoders) == list(made[0].encoders) for each in made)


def test_an_absent_node_of_one_class_is_made_by_its_keys():
    assert changed("train.ema.decay=0.5").train.ema == Average(decay=0.5)
    assert changed("train.ema=Average").train.ema == Average()


@chz.chz
class Start:
    first: Average | Rule | tuple[Average | Rule, ...] | None = None


def test_a_field_may_hold_one_of_several_classes_or_a_tuple_of_them():
    def first(*pairs):
        return resolve(Start(), pairs).first

    assert first("first=Average") == Average()
    assert first("first.decay=0.5") == Average(decay=0.5), "the only class with that key"
    assert first("first.0=Rule", "first.1.decay=0.5", "first.0.pattern=x", "first.1=Average") == (
        Rule(pattern="x"),
        Average(decay=0.5),
    )
    assert first("first=()") == ()
    for made in (None, Average(decay=0.5), (Rule(pattern="x"), Average())):
        start = Start(first=made)
        data = tree_of_value(start, "", Start, "given").data()
        assert tree_of_json(data, "", Start, "a file").make() == start
    with pytest.raises(UserError, match=r"first is None; set first=Average \| Rule \| .* first"):
        first("first.depth=1")
    with pytest.raises(UserError, match=r"unknown key first\.1; "):
        first("first.1=Rule")
    with pytest.raises(UserError, match=r"unknown key first\.0; "):
        resolve(Start(first=Average()), ["first.0=Rule"])


def test_a_derived_value_follows_what_it_is_derived_from_until_it_is_set():
    assert changed("name=other").folder == "runs/other"
    assert changed("name=other", "folder=here").folder == "here"


@pytest.mark.parametrize(
    ("pairs", "line"),
    [
        (
            ["train.stpes=3"],
            "unknown key train.stpes; the nearest is train.steps; "
            "train has steps, rate, limit, best, shuffle, mode, sizes, ema",
        ),
        (
            ["steps=3"],
            "unknown key steps; the nearest is train.steps; the top level has "
            "encoders, fusion, outputs, weights, train, rules, spans, name, folder",
        ),
        (
            ["fusion=Concat", "fusion.depth=3"],
            "unknown key fusion.depth; the nearest is encoders.image.depth; fusion has width",
        ),
        (
            ["train.steps.now=3"],
            "unknown key train.steps.now; the nearest is train.steps; train.steps is a single value (int)",
        ),
        (
            ["encoders.imgae=None"],
            "unknown key encoders.imgae; the nearest is encoders.image; "
            "encoders has image, text, sound, and NAME=Encoder | ViT | None adds one",
        ),
        (
            ["encoders.sound.depth=1"],
            "unknown key encoders.sound.depth; the nearest is encoders.text.depth; "
            "encoders.sound is None; set encoders.sound=Encoder | ViT | None first",
        ),
        (
            ["rules.5.rate=1"],
            "unknown key rules.5.rate; the nearest is rules.0.rate; rules has 2 items, and rules.2=... adds one",
        ),
        (["...depth=1"], "unknown key ...depth; the nearest is fusion.depth; the top level has "),
        (["train.ema=None", "train.ema.decay=0.5"], "unknown key train.ema.decay; the nearest is "),
        ([f"rules.{'9' * 4301}.rate=1"], f"unknown key rules.{'9' * 4301}.rate; the nearest is "),
        ([f"rules.{'9' * 4301}=Rule"], f"unknown key rules.{'9' * 4301}; the nearest is "),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest_and_the_choices(pairs: list[str], line: str):
    assert refused(*pairs).startswith(line)
    if not line.endswith(" "):
        assert refused(*pairs) == line


@pytest.mark.parametrize(
    ("pairs", "line"),
    [
        (["train.steps=many"], "train.steps=many: expected int"),
        (["train.steps=1.5"], "train.steps=1.5: expected int"),
        (["train.rate=nan"], "train.rate=nan: expected float"),
        (["train.rate=1e999"], "train.rate=1e999: expected float"),
        (["train.limit=none"], "train.limit=none: expected int | None"),
        (["train.shuffle=1"], "train.shuffle=1: expected true | false"),
        (["train.mode=slow"], "train.mode=slow: expected fast | exact"),
        (["train.sizes=1,b"], "train.sizes=1,b: expected int,..."),
        (["encoders.image.patch=1,2,3"], "encoders.image.patch=1,2,3: expected int,int"),
        (["spans.0=head"], "spans.0=head: expected text,float"),
        (["encoders=ViT"], "encoders=ViT: set what is in it one by one, such as encoders.image=..."),
        (["rules=a,b"], "rules=a,b: set what is in it one by one, such as rules.0=..."),
        (
            ["fusion=CrossAtention"],
            "fusion=CrossAtention: no such class; the nearest is CrossAttention; choose from Concat | CrossAttention",
        ),
        (
            ["encoders.new=Vit"],
            "encoders.new=Vit: no such class; the nearest is ViT; choose from Encoder | ViT | None",
        ),
        (["train.steps=-1"], "train.steps=-1: Expected steps to be greater than 0, got -1"),
        (["fusion.heads=7"], "fusion.heads=7: must divide the width 64"),
        (["fusion.depth=0"], "fusion.depth=0: fusion.depth must be at least 1, not 0"),
        (["fusion.depth=10"], "fusion: so much depth cannot be afforded"),
        (["rules.2=Rule"], "rules.2.pattern is not given: set rules.2.pattern=text"),
        (["train.steps=3", "train.steps=3"], "train.steps is given twice: 3 and 3; give it once"),
        (["train.steps"], "'train.steps' is not key=value; write for example seed=1"),
        (["=3"], "'=3' is not key=value; write for example seed=1"),
        (["train.steps="], "train.steps= has no value; write train.steps=VALUE"),
        (["--steps=3"], "--steps=3 is not key=value; keys are written without dashes, such as seed=1 (or --help)"),
        (["encoders.a b=ViT"], "encoders has an entry called 'a b'; a name is made of letters, digits, _ and -"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_expected(pairs: list[str], line: str):
    assert refused(*pairs) == line


def test_a_key_of_any_length_is_answered_at_once():
    start = time.process_time()
    assert refused(f"train.{'steps.' * 4000}=3").startswith("unknown key train.steps.")
    assert refused(f"fusion={'Concat' * 4000}").startswith("fusion=Concat")
    assert time.process_time() - start < 2


@pytest.mark.parametrize("value", ["os:system", "subprocess.Popen", "lambda: 1", "tests:Concat", "Fusion", "object"])
def test_classes_are_never_looked_up_outside_the_table(value: str):
    assert f"fusion={value}: no such class" in refused(f"fusion={value}")


def test_a_class_that_is_no_experiment_is_read_alike():
    assert parse_pairs(["steps=4", "ema=Average"], Train) == Train(steps=4, ema=Average())
    with pytest.raises(UserError, match=r"^pattern is not given: set pattern=text$"):
        parse_pairs([], Rule)
    with pytest.raises(
        UserError, match=r"^unknown key paterns; the nearest is pattern; the top level has pattern, rate$"
    ):
        parse_pairs(["paterns=a"], Rule)


@chz.chz
class Request:
    from_: str | None = chz.field(default=None, doc="what is given")
    n: int = 8

    @chz.validate
    def _given(self) -> None:
        if self.from_ == "":
            raise ValueError("from must say something")


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("lr", "optimizer.learning_rate"),
        ("optimizer.lr", "optimizer.learning_rate"),
        ("wd", "optimizer.weight_decay"),
        ("bs", "train.batch_size"),
        ("batch_size", "train.batch_size"),
        ("epochs", "train.steps"),
        ("train.max_steps", "train.steps"),
        ("num_workers", "data.workers"),
        ("precision", "model.dtype"),
        ("warmup_steps", "optimizer.schedule.warmup"),
        ("grad_clip", "optimizer.clip"),
        ("output_dir", "run_dir"),
    ],
)
def test_a_common_name_or_initials_are_answered_with_the_key(word: str, key: str):
    with pytest.raises(UserError, match=rf"^unknown key {word}; the nearest is {key}; "):
        resolve(EXPERIMENT, [f"{word}=1"])


def test_a_key_may_be_a_word_that_python_keeps():
    assert parse_pairs(["from=text:a = b", "n=2"], Request) == Request(from_="text:a = b", n=2)
    assert resolve(Request(from_="a"), ["n=3"]) == Request(from_="a", n=3)
    assert field_docs(Request)["from"] == "what is given"
    for final in (False, True):
        tree = tree_of_value(Request(from_="a"), "", Request, "given", final=final)
        assert [part.key for part in tree.walk()] == ["", "from", "n"]
        assert tree_of_json(tree.data(), "", Request, "a file").make() == Request(from_="a")
    with pytest.raises(UserError, match=r"^unknown key form; the nearest is from; the top level has from, n$"):
        parse_pairs(["form=a"], Request)
