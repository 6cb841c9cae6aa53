"""Reading YAML into checked objects: overrides, values as YAML has them, and advice for every mistake.

Used by `fulltune.config` for recipes and by `ray_jobs.benchmark` for benchmarks: a mapping is read, overridden by
`dotted.key=value`, and validated by a pydantic schema. Unknown keys are errors that name the nearest known key.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.base import UserError

Schema = TypeVar("Schema", bound=BaseModel)


class Section(BaseModel):
    """A part of a configuration: nothing unknown, nothing changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def read_tree(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A YAML mapping with the overrides put over it, unchecked."""
    tree = _read_yaml(path)
    for override in overrides:
        _apply(tree, override)
    return tree


def checked(tree: Mapping[str, Any], schema: type[Schema], origin: str) -> Schema:
    """The mapping as an object of that schema; unknown keys and every other problem in one UserError."""
    _refuse_unknown_keys(tree, schema, prefix="", origin=origin, root=schema)
    try:
        return schema.model_validate(dict(tree))
    except ValidationError as error:
        raise _as_user_error(error, origin) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            got=f"recipe {path}: {error.strerror}", wanted="a readable YAML file", fix="check the path"
        ) from None
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(got=f"{path}: {error}", wanted="valid YAML", fix="mend the line named above") from None
    if not isinstance(tree, dict):
        raise UserError(
            got=f"{path} holds {type(tree).__name__}",
            wanted="a mapping of configuration keys",
            fix="see ray_jobs/recipes",
        )
    return tree


def _apply(tree: dict[str, Any], override: str) -> None:
    """Sets `a.b.c=value` in the tree; the value is read as YAML, so numbers, lists and null work."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(
            got=f"override {override!r}", wanted="dotted.key=value", fix="for example train.learning_rate=1e-5"
        )
    *parents, leaf = key.split(".")
    node = tree
    for part in parents:
        child = node.get(part)
        node[part] = dict(child) if isinstance(child, dict) else {}
        node = node[part]
    try:
        node[leaf] = _scalar(text)
    except yaml.YAMLError:
        raise UserError(
            got=f"override {override!r}", wanted="a value that YAML reads", fix="quote it: key='\"the value\"'"
        ) from None


def _scalar(text: str) -> Any:
    value = yaml.safe_load(text) if text else ""
    if isinstance(value, str):
        # YAML 1.1 reads 5e-4 as a string: take what Python takes for a number
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _refuse_unknown_keys(
    tree: Mapping[str, Any], section: type[BaseModel], prefix: str, origin: str, root: type[BaseModel]
) -> None:
    for key, value in tree.items():
        if key not in section.model_fields:
            raise _unknown_key(str(key), section, prefix, origin, root)
        child = _section_of(section.model_fields[key].annotation)
        if child is not None and isinstance(value, Mapping):
            _refuse_unknown_keys(value, child, f"{prefix}{key}.", origin, root)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section class behind `X` or `X | None`, if there is one."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _unknown_key(key: str, section: type[BaseModel], prefix: str, origin: str, root: type[BaseModel]) -> UserError:
    everywhere = list(all_keys(root))
    near = [prefix + k for k in difflib.get_close_matches(key, section.model_fields, n=1, cutoff=0.5)]
    near = near or [k for k in everywhere if k.rsplit(".", 1)[-1] == key][:1]
    near = near or difflib.get_close_matches(prefix + key, everywhere, n=1, cutoff=0.5)
    advice = f"did you mean {near[0]!r}?" if near else "see `fulltune train RECIPE --print-config` for all keys"
    known = ", ".join(section.model_fields)
    return UserError(got=f"unknown key {prefix + key!r} in {origin}", wanted=f"one of: {known}", fix=advice)


def all_keys(section: type[BaseModel], prefix: str = "") -> Iterable[str]:
    """Every dotted key of the configuration."""
    for name, field in section.model_fields.items():
        child = _section_of(field.annotation)
        if child is None:
            yield prefix + name
        else:
            yield from all_keys(child, f"{prefix}{name}.")


def _as_user_error(error: ValidationError, origin: str) -> UserError:
    problems = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"]) or "(whole recipe)"
        value = "" if item["type"] == "missing" or isinstance(item["input"], dict) else f" (came: {item['input']!r})"
        problems.append(f"{where}: {item['msg'].removeprefix('Value error, ')}{value}")
    return UserError(
        got=f"{origin}: " + "; ".join(problems),
        wanted="values as `fulltune train RECIPE --print-config` shows them",
        fix="change the key in the recipe or give key=value on the command line",
    )
