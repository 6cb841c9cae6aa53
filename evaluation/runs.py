"""From what a user names on the command line to the rows of a report: run folders, predictions files, scored folders.

The front of `fulltune compare`: finds the predictions in run folders, reads beside them how they were made, settles
on task, split and source, loads the references and calls `compare`.

    <run>/config.yaml  provenance.json  metrics.jsonl  predictions/<label>.jsonl  predictions/<label>.meta.json
          leaks.json (optional: record id -> why it may have been seen in training)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from evaluation import jsonl, training
from evaluation.compare import Readers, compare, no_readers, role_of
from evaluation.comparison import Entry, LeakCheck
from evaluation.pool import TaskSpec
from fulltune import lineage
from tasks import sources
from tasks.base import Record, Task, UserError

LEAKS = "leaks.json"
_SHARED = ("task", "split", "source")  # what all rows of one report must agree on
_SETTINGS = {"task_options": "task", "columns": "source"}  # also, and what each of them is a setting of


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the named paths hold.

    Attributes:
        entries: rows for `compare`, labels unique.
        task, split, source: as the folders say; None where they do not.
        task_options, columns: of that task and that source, as the run folders say.
        loss_curve: logged steps of the last run folder that has any.
        provenance: of every run folder, by its name when there are several.
        leaks: of all run folders that have a leaks.json.
    """

    entries: tuple[Entry, ...]
    task: str | None = None
    split: str | None = None
    source: str | None = None
    task_options: Mapping[str, Any] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    loss_curve: tuple[Mapping[str, Any], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    leaks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Found:
    """One predictions file or scored folder: its group is what a repeated label is told apart by."""

    entry: Entry
    group: str
    facts: Mapping[str, Any]


def compare_paths(
    paths: Sequence[Path],
    *,
    out: Path,
    task: str | None = None,
    task_options: Mapping[str, Any] | None = None,
    references: Path | None = None,
    split: str | None = None,
    source: str | None = None,
    limit: int | None = None,
    title: str | None = None,
    leaks: Path | None = None,
    usd_per_worker_hour: float | None = None,
    processes: int | None = None,
    readers: Callable[[Task], Readers] = lambda task: no_readers,
) -> dict[str, Any]:
    """`fulltune compare`: resolve the paths, load the references, compare; returns the content of results.json.

    What is not given is taken from the folders, the column map of a source too; without a split there either it is
    "test". `leaks` is a JSON object
    of record ids with reasons, `usd_per_worker_hour` the price of a worker of training and prediction, `readers` gives
    the judge and the extractor once the task is known.

    Raises:
        UserError: a path that holds no predictions, rows of different tasks or splits, or no task or source anywhere.
    """
    inputs = resolve(paths, task=task, split=split, source=source)
    name = inputs.task
    if name is None:
        raise UserError(got="predictions that do not say their task", wanted="a task", fix="pass --task")
    spec = TaskSpec(name, dict(inputs.task_options if task_options is None else task_options))
    plugin = spec.load()
    records, origin, part = _references(plugin, inputs, references)
    return compare(
        inputs.entries,
        task=plugin,
        records=records,
        out=out,
        title=title,
        loss_curve=inputs.loss_curve,
        provenance=inputs.provenance,
        source=origin,
        split=part,
        limit=limit,
        leaks={**inputs.leaks, **(read_leaks(leaks) if leaks else {})},
        checked=_checked(paths, leaks),
        usd_per_worker_hour=usd_per_worker_hour,
        processes=processes,
        spec=spec,
        readers=readers(plugin),
    )


def _checked(paths: Sequence[Path], leaks: Path | None) -> LeakCheck:
    """The files that say which records leak; what those were compared with is not known here."""
    found = [f"leaks.json of {path.resolve().name}" for path in paths if _is_run(path) and (path / LEAKS).is_file()]
    return LeakCheck((*found, *([leaks.name] if leaks else [])))


def _references(task: Task, inputs: Inputs, references: Path | None) -> tuple[Sequence[Record], str, str]:
    """Records, where they came from, and their split."""
    if references is not None:
        records = sources.read_references(task, references, split=inputs.split)
        return records, references.name, inputs.split or references.stem
    if inputs.source is None:
        raise UserError(
            got="predictions that do not say where their records came from",
            wanted="the records they answer",
            fix="pass --references FILE, or --source bundled|hub|PATH",
        )
    split = inputs.split or "test"
    return sources.load(task, split, inputs.source, columns=inputs.columns or None), inputs.source, split


def resolve(
    paths: Sequence[Path], *, task: str | None = None, split: str | None = None, source: str | None = None
) -> Inputs:
    """Find the rows behind the paths and what they agree on.

    Args:
        paths: run folders, folders of predictions, predictions files or scored folders.
        task, split, source: what the user says; wins over the folders. A given split also selects: predictions that
            say they are of another one are left out.

    Raises:
        UserError: a path without predictions, or rows that disagree where the user does not say.
    """
    runs = [path for path in paths if _is_run(path)]
    found = [row for path in paths for row in _rows(path)]
    if split is not None:
        found = [row for row in found if row.facts.get("split") in (None, split)]
        if not found:
            raise UserError(got=f"no predictions of split {split!r}", wanted="some", fix="check --split")
    given = {"task": task, "split": split, "source": source}
    shared = {name: given[name] or _agreed(name, found) for name in _SHARED}
    curves = [curve for run in runs if (curve := read_steps(run))]
    return Inputs(
        entries=_unique(found),
        loss_curve=tuple(curves[-1]) if curves else (),
        provenance=_provenance(runs),
        leaks={name: why for run in runs for name, why in read_leaks(run / LEAKS, required=False).items()},
        task_options=_setting("task_options", found, task, shared["task"]),
        columns=_setting("columns", found, source, shared["source"]),
        **shared,
    )


def _setting(name: str, found: Sequence[_Found], said: str | None, agreed: str | None) -> dict[str, Any]:
    """What the run folders say of a task's options or a source's columns; nothing of a task or source of others.

    A user who names the task or the source gets it plain where the folders disagree.
    """
    of = _SETTINGS[name]
    values: list[dict[str, Any]] = []
    for row in found:
        if name in row.facts and row.facts.get(of) == agreed and row.facts[name] not in values:
            values.append(row.facts[name])
    if len(values) > 1 and said is None:
        raise UserError(
            got=f"predictions with different {name}: {' and '.join(map(str, values))}",
            wanted="one setting: rows of a report answer the same records",
            fix=f"compare them apart, or pass --{of} for its defaults",
        )
    return values[0] if len(values) == 1 else {}


def _agreed(name: str, found: Sequence[_Found]) -> str | None:
    values = sorted({str(row.facts[name]) for row in found if row.facts.get(name) is not None})
    if len(values) > 1:
        raise UserError(
            got=f"predictions of different {name}s: {', '.join(values)}",
            wanted=f"one {name}: rows of a report answer the same records",
            fix=f"compare them apart, or pass --{name}",
        )
    return values[0] if values else None


def _is_run(path: Path) -> bool:
    return (path / "predictions").is_dir()


def _rows(path: Path) -> list[_Found]:
    if path.is_file():
        return [_row(path, group=path.resolve().parent.name, defaults={})]
    if (path / "scores.jsonl").is_file():
        return [_scored(path)]
    folder = path / "predictions" if _is_run(path) else path
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        what = "holds no predictions" if path.is_dir() else "no such file or folder"
        raise UserError(
            got=f"{path}: {what}",
            wanted="a run folder (with predictions/*.jsonl), a predictions file, or a folder with scores.jsonl",
            fix="run `fulltune predict` or `fulltune score --out` first, or check the path",
        )
    if not _is_run(path):
        return [_row(file, group=path.resolve().name, defaults={}) for file in files]
    defaults = _config_facts(path)
    return [_with_training(_row(file, group=path.resolve().name, defaults=defaults), path) for file in files]


def _with_training(row: _Found, run: Path) -> _Found:
    """The row with what its run says: workers that answered, and for tuned rows what made the model."""
    known = training_facts(run) if role_of(row.entry) == "tuned" else {}
    ray = read_config(run).get("ray")
    if isinstance(ray, Mapping) and isinstance(ray.get("num_workers"), int):  # a range says nothing of who answered
        known["workers"] = ray["num_workers"]
    return replace(row, entry=replace(row.entry, details=known | dict(row.entry.details)))


def training_facts(run: Path) -> dict[str, Any]:
    """What made the model of a run folder, as `training.facts`: the run and the stages it continues.

    Empty for a folder that is none.
    """
    stages = [
        training.Stage(read_config(folder), read_steps(folder), _read_provenance(folder))
        for folder in lineage.folders(run)
    ]
    return training.facts(stages)


def _row(file: Path, *, group: str, defaults: Mapping[str, Any]) -> _Found:
    beside = file.with_name(f"{file.stem}.meta.json")
    meta = jsonl.read_object(beside) if beside.is_file() else {}
    details = {name: value for name, value in meta.items() if name not in (*_SHARED, "label", "note")}
    entry = Entry(str(meta.get("label", file.stem)), file, note=str(meta.get("note", "")), details=details)
    facts = {**defaults, **{name: meta[name] for name in _SHARED if meta.get(name)}}
    foreign = {name for name, of in _SETTINGS.items() if facts.get(of) != defaults.get(of)}
    return _Found(entry, group, {name: value for name, value in facts.items() if name not in foreign})


def _scored(folder: Path) -> _Found:
    beside = folder / "metrics.json"
    facts = {"task": jsonl.read_object(beside).get("task")} if beside.is_file() else {}
    path = folder.resolve()
    return _Found(Entry(path.name, folder), path.parent.name, facts)


def _config_facts(run: Path) -> dict[str, Any]:
    """Task and source of a run's config.yaml with their settings; predictions that say otherwise win."""
    config = read_config(run)
    data = config.get("data")
    data = data if isinstance(data, Mapping) else {}
    named = {"task": config.get("task"), "source": data.get("source")}
    settings = {"task_options": config.get("task_options"), "columns": data.get("columns")}
    facts = {name: value for name, value in named.items() if isinstance(value, str)}
    return facts | {name: dict(value or {}) for name, value in settings.items() if isinstance(value, Mapping | None)}


def read_config(run: Path) -> dict[str, Any]:
    """The resolved configuration of a run folder; empty without one, UserError when it is not a YAML mapping."""
    import yaml

    path = run / "config.yaml"
    if not path.is_file():
        return {}
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(got=f"{path}: {error}", wanted="YAML", fix="restore the file `train` wrote") from error
    if not isinstance(config, dict):
        raise UserError(got=f"{path}: a {type(config).__name__}", wanted="a mapping", fix="restore the file")
    return config


def read_steps(run: Path) -> list[dict[str, Any]]:
    """The logged steps of a run, metrics.jsonl being a file or (on object stores) a folder of segments."""
    path = run / "metrics.jsonl"
    segments = sorted(path.iterdir()) if path.is_dir() else [path] if path.is_file() else []
    return [row for segment in segments for _, row in jsonl.read_objects(segment)]


def _provenance(runs: Sequence[Path]) -> Mapping[str, Any]:
    facts = {run.resolve().name: _run_provenance(run) for run in runs}
    return next(iter(facts.values())) if len(facts) == 1 else facts


def read_leaks(path: Path, *, required: bool = True) -> dict[str, str]:
    """Record id -> reason of a leaks.json; empty for a file that may be missing and is."""
    if not required and not path.is_file():
        return {}
    found = jsonl.read_object(path)
    for name, why in found.items():
        if not isinstance(why, str):
            raise UserError(
                got=f"{path}: {name!r} has {why!r}"[:200],
                wanted='{"record id": "why it leaks", ...}',
                fix="write one text per record",
            )
    return found


def _read_provenance(run: Path) -> dict[str, Any]:
    path = run / "provenance.json"
    return jsonl.read_object(path) if path.is_file() else {}


def _run_provenance(run: Path) -> dict[str, Any]:
    facts = _read_provenance(run)
    config = read_config(run)
    return {**facts, "config": config} if config else facts


def _unique(found: Iterable[_Found]) -> tuple[Entry, ...]:
    """Entries whose repeated labels are told apart by their folder's name, and by a number if that is not enough."""
    rows = list(found)
    plain = Counter(row.entry.label for row in rows)
    named = [f"{r.group}/{r.entry.label}" if plain[r.entry.label] > 1 else r.entry.label for r in rows]
    seen: Counter[str] = Counter()
    entries = []
    for row, label in zip(rows, named, strict=True):
        seen[label] += 1
        entries.append(replace(row.entry, label=label if seen[label] == 1 else f"{label} ({seen[label]})"))
    return tuple(entries)
