"""What a data set holds, as text and as a page: fields, lengths, values, faults and examples."""

from collections.abc import Mapping, Sequence
from typing import Any

from mmjax.data import clean
from mmjax.data.clean import BadInput
from mmjax.data.sources.base import Recording, Records, Unreadable
from mmjax.data.survey import Field
from mmjax.formatting import number
from mmjax.reports.gallery import show_raw
from mmjax.reports.page import Card, Picture, Section, Table

SHOWN = 12  # examples of each split
LISTED = 5  # values, and reasons, of a field in a line
LONGEST_TEXT = 300  # characters of a value in a card
COLUMNS = ("field", "kind", "missing", "undecodable", "unit", "min", "5%", "median", "95%", "max", "values")


def field_rows(fields: Sequence[Field]) -> list[list[str]]:
    """A row for each field and each unit of its lengths; see `COLUMNS`."""
    rows = []
    for field in fields:
        about = [field.name, field.kind, _share(field.missing, field), _share(field.unreadable, field)]
        values = ", ".join(f"{name} ({count})" for name, count in field.values.items())
        values = values or (f"{field.distinct} different" if field.distinct else "")
        units = [unit for unit in field.sizes if len(field.sizes[unit])] or [""]
        for place, unit in enumerate(units):
            lengths = [number(value) for value in field.percentiles(unit)] if unit else [""] * 5
            rows.append([*(about if place == 0 else [""] * 4), unit, *lengths, values if place == 0 else ""])
    return rows


def field_lines(fields: Sequence[Field]) -> list[str]:
    """Lines about each field: its kind and faults, its lengths, and its most frequent values."""
    lines = []
    for field in fields:
        faults = [f"{_share(count, field)} {what}" for count, what in _faults(field) if count]
        values = ", ".join(f"{name} ({count})" for name, count in list(field.values.items())[:LISTED])
        more = f" and {field.distinct - LISTED} more" if field.distinct > LISTED and field.values else ""
        known = [f"{values}{more}"] if values else [f"{field.distinct} different"] if field.distinct else []
        lines.append(f"  {field.name}: " + ", ".join([field.kind, *faults, *known]))
        for unit, sizes in field.sizes.items():
            if len(sizes):
                low, _, median, _, high = map(number, field.percentiles(unit))
                lines.append(f"      {unit} {low} to {high}, median {median}")
        lines += [f"      {reason} ({count})" for reason, count in list(field.reasons.items())[:LISTED]]
    return lines


def _faults(field: Field) -> list[tuple[int, str]]:
    return [(field.missing, "missing"), (field.unreadable, "undecodable")]


def _share(part: int, field: Field) -> str:
    return f"{part / field.examples:.1%}" if part else "0"


def inspection_sections(surveys: Mapping[str, Sequence[Field]], records: Mapping[str, Records]) -> list[Section]:
    """A section for each split: its fields, why values could not be read, and examples."""
    sections = []
    for split, fields in surveys.items():
        looked = fields[0].examples if fields else 0
        count = len(records[split])
        about = f"{count:,} examples" + (f"; {looked:,} of them, evenly spread, were read." if looked < count else ".")
        tables = [Table(COLUMNS, field_rows(fields))]
        reasons = [
            [field.name, reason, str(count)] for field in fields for reason, count in list(field.reasons.items())[:20]
        ]
        if reasons:
            tables.append(Table(("field", "why it cannot be read", "values"), reasons))
        kinds = {field.name: field.kind for field in fields}
        cards = [_card(records[split], index, kinds) for index in _spread(len(records[split]), SHOWN)]
        sections.append(Section(split, about, tables, cards=cards))
    return sections


def _spread(count: int, wanted: int) -> list[int]:
    return [place * count // min(count, wanted) for place in range(min(count, wanted))]


def _card(records: Records, index: int, kinds: Mapping[str, str]) -> Card:
    """One example: pictures and sounds as such, all else as text."""
    pictures: list[Picture] = []
    lines: list[str] = []
    try:
        example = clean.read_example(records, index)
    except BadInput as error:
        return Card(records.id(index), lines=[str(error)])
    for name, value in example.items():
        try:
            pictures.append(_picture(name, kinds.get(name, ""), clean.take(example, name)))
        except BadInput as error:
            lines.append(f"{name}: {error}")
        except TypeError:
            lines.append(f"{name}: {_text(value)}")
    return Card(records.id(index), pictures, lines=lines)


def _picture(name: str, kind: str, value: Any) -> Picture:
    """A picture or a sound to see and hear; TypeError for anything else."""
    if kind == "image" and value is not None:
        return show_raw(clean.decode_image(value, 3)).picture(name)
    if kind == "audio" and value is not None:
        return show_raw(Recording(*clean.decode_audio(value))).picture(name)
    raise TypeError(kind)


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    text = value.reason if isinstance(value, Unreadable) else str(value)
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 3] + "..."
