"""The model card of an export: inputs, outputs, facts, metrics, and how to call it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mmjax.checkpoint.exported import CONFIG, MANIFEST, PARAMETERS, TOKENIZERS
from mmjax.formatting import count, number
from mmjax.inference import TrainedRun
from mmjax.reports.curves import PRIMARY

CARD = "README.md"
# Of more metrics than this only the main ones are listed.
MOST_METRICS = 30
# So many classes of an output are named.
MOST_CLASSES = 20
# So many ids that differ from those of a tokenizer's file are named.
MOST_IDS = 20


def write_card(run: TrainedRun, manifest: Mapping[str, Any]) -> str:
    """The card as Markdown, with the front matter that model hubs read."""
    license = manifest["license"]
    front = ["---", *([f"license: {json.dumps(license)}"] if license else []), "library_name: mmjax", "---", ""]
    names = ", ".join(run.model.encoders)
    parts = [
        *front,
        f"# {manifest['name']}",
        "",
        f"A model of {names}, trained with mmjax and exported at step {run.step:,}.",
        "",
        *_facts(run, manifest),
        *_inputs(run, manifest),
        *_functions(manifest["functions"], manifest["classes"]),
        *_metrics(manifest["metrics"]),
        *_usage(manifest),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _facts(run: TrainedRun, manifest: Mapping[str, Any]) -> list[str]:
    average = ", the moving average of training" if manifest["average"] else ""
    rounded = ", the large ones rounded to int8, which the metrics below do not count" if manifest["quantize"] else ""
    facts = {
        "licence": manifest["license"] or "not stated",
        "parameters": f"{count(sum(leaf.size for leaf in run.params.values()))}{average}{rounded}",
        "fingerprint of the experiment": f"`{manifest['fingerprint']}`",
        "SHA-256 of the parameters": f"`{manifest['parameters_digest']}`",
    }
    facts |= {f"fingerprint of the data, {split}": f"`{text}`" for split, text in manifest["data"].items()}
    return [*_table(["", ""], [[name, text] for name, text in facts.items()]), ""]


def _inputs(run: TrainedRun, manifest: Mapping[str, Any]) -> list[str]:
    """A row for every modality."""
    rows = []
    for name in run.model.encoders:
        feature = run.data.features[name]
        about = (type(feature).__doc__ or "").strip().partition("\n")[0]
        shape = ", ".join(map(str, ("batch", *feature.shape)))
        mask = f"bool [batch, {feature.shape[0]}]" if feature.has_mask else ""
        rows.append([name, f"{feature.dtype.__name__} [{shape}]", mask, f"{about} Here {_sizes(feature)}."])
    return [
        "## Inputs",
        "",
        *_table(["modality", "values", "mask", "about"], rows),
        "",
        "`mask` says which positions are real, `present` (bool [batch]) whether an example has the modality at all.",
        "The values of an absent one do not matter. How raw files become these arrays is in",
        f"`{CONFIG}`, under `data.inputs`; what was learned for it, such as tokenizers, is in `{TOKENIZERS}`.",
        "",
        *_token_ids(manifest["token_ids"]),
    ]


def _token_ids(moved: Mapping[str, Mapping[int, int]]) -> list[str]:
    """By modality, how ids differ from those of the tokenizer's file."""
    lines = []
    for name, ids in moved.items():
        pairs = ", ".join(f"{there} is {here}" for there, here in [*ids.items()][:MOST_IDS])
        more = f" and {len(ids) - MOST_IDS} more, see `{MANIFEST}`" if len(ids) > MOST_IDS else ""
        lines += [
            f"Ids of {name} are not those that `{TOKENIZERS}/{name}.json` gives: {pairs}{more}. The others are the",
            "same. A text ends with id 1.",
            "",
        ]
    return lines


def _sizes(feature: Any) -> str:
    """The fields of a feature, of long ones only the number of entries."""
    fields = vars(feature).items()
    return ", ".join(f"{name} {len(value) if isinstance(value, tuple) else value}" for name, value in fields)


def _functions(functions: Mapping[str, Any], classes: Mapping[str, list[str]]) -> list[str]:
    lines = ["## Outputs", ""] if functions else []
    for name, entry in functions.items():
        files = ", ".join(f"`{file}`" for file in entry["files"].values())
        platforms = f" for {', '.join(entry['platforms'])}" if "platforms" in entry else ""
        rows = [
            [f"`{output}`", f"{each['dtype']} [{', '.join(map(str, each['shape']))}]"]
            for output, each in entry["outputs"].items()
        ]
        fixed = ", the latter for one example" if entry.get("onnx", {}).get("batch") == 1 else ""
        lines += [f"`{name}` is {entry['about']}: {files}{platforms}{fixed}.", "", *_table(["name", "type"], rows), ""]
    for output, names in classes.items() if functions else ():
        more = f" and {len(names) - MOST_CLASSES} more, see `{MANIFEST}`" if len(names) > MOST_CLASSES else ""
        lines += [f"The classes of `{output}` are {', '.join(names[:MOST_CLASSES])}{more}.", ""]
    return lines


def _metrics(metrics: Mapping[str, Any]) -> list[str]:
    if not metrics:
        return ["## Metrics", "", "None: `launch.evaluate` was not run on this checkpoint before the export.", ""]
    main = {name: each for name, each in metrics.items() if PRIMARY.fullmatch(name.split("/", 2)[-1])}
    shown = main if main and len(metrics) > MOST_METRICS else metrics
    rows = [
        [name, *("" if each[key] is None else number(each[key]) for key in ("value", "low", "high", "examples"))]
        for name, each in sorted(shown.items())
    ]
    table = _table(["metric", "value", "95% from", "to", "examples"], rows)
    rest = [f"{len(metrics) - len(shown)} more are in `{MANIFEST}`.", ""] if len(shown) < len(metrics) else []
    return ["## Metrics", "", *table, "", *rest]


def _usage(manifest: Mapping[str, Any]) -> list[str]:
    lines = [
        "## Use",
        "",
        "With mmjax, from raw files, texts and arrays:",
        "",
        "```",
        "import mmjax as mm",
        "",
        'run = mm.load("this/folder")  # then run.embed, run.predict, run.generate',
        "```",
    ]
    written = {
        "stablehlo": ("With JAX alone (`pip install jax flatbuffers safetensors`)", _jax_example),
        "onnx": ("With ONNX Runtime (`pip install onnxruntime`), in float32", _onnx_example),
    }
    for format, (about, example) in written.items():
        able = [(name, entry) for name, entry in manifest["functions"].items() if format in entry["files"]]
        if able:
            lines += ["", f"{about}, in this folder:", "", "```python", *example(*able[0]), "```"]
    return lines


def _onnx_example(name: str, entry: Mapping[str, Any]) -> list[str]:
    """Python that calls a function on an example of zeros, by ONNX Runtime."""
    batch = [
        f'    "{path}": np.{_fill(path)}({[1, *each["shape"][1:]]}, "{each["dtype"]}"),'
        for path, each in entry["inputs"].items()
    ]
    return [
        "import numpy as np",
        "import onnxruntime",
        "",
        f'session = onnxruntime.InferenceSession("{entry["files"]["onnx"]}")',
        "batch = {",
        *batch,
        "}",
        "names = [output.name for output in session.get_outputs()]",
        "print({name: array.shape for name, array in zip(names, session.run(names, batch))})",
    ]


def _fill(path: str) -> str:
    return "zeros" if path.startswith("values/") else "ones"


def _jax_example(name: str, entry: Mapping[str, Any]) -> list[str]:
    """Python that calls a function on two examples of zeros."""
    word, file = name.partition("-")[0], entry["files"]["stablehlo"]
    key = ", jax.random.key_data(jax.random.key(0))" if entry["draws"] else ""
    batch: dict[str, list[str]] = {"values": [], "mask": [], "present": []}
    for path, each in entry["inputs"].items():
        part, _, modality = path.partition("/")
        shape = [2, *each["shape"][1:]]
        batch[part].append(f'"{modality}": np.{_fill(path)}({shape}, "{each["dtype"]}")')
    return [
        "import jax",
        "import numpy as np",
        "from jax import export",
        "from safetensors.numpy import load_file",
        "",
        f'parameters = load_file("{PARAMETERS}")',
        f'with open("{file}", "rb") as file:',
        f"    {word} = jax.jit(export.deserialize(bytearray(file.read())).call)",
        "batch = {",
        *(f'    "{part}": {{{", ".join(arrays)}}},' for part, arrays in batch.items()),
        "}",
        f"print(jax.tree.map(np.shape, {word}(parameters, batch{key})))",
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
