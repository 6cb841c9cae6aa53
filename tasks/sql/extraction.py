"""Finds the query in what a model wrote: bare, in <SQL> tags, in a markdown fence, or somewhere in prose.

The first step of scoring in `tasks.sql_create_context`. A completion can be read in several ways (does the query end at
the blank line, or at the end of the text?), so the readings come in order of preference and the scorer takes the
first one that parses. Linear in the length of the text, of which the first `MAX_TEXT` characters are looked at.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from tasks.sql.query import WRITE_START

MAX_TEXT = 60_000
_MAX_READINGS = 8

_TAGS = re.compile(r"<sql>(.*?)(?:</sql>|\[/sql\]|\Z)", re.IGNORECASE | re.DOTALL)
_FENCE = re.compile(r"```(?:[ \t]*[\w+-]*[ \t]*\n|sql(?:ite3?)?\b)?(.*?)(?:```|\Z)", re.DOTALL | re.IGNORECASE)
_LABEL = re.compile(
    r"(?:(?:the )?(?:sql|sqlite|mysql|answer|query|sql query|output)\s*(?:is)?\s*:?\s+|[\[<]sql[\]>])", re.I
)
_WITH = r"with\s+(?:recursive\s+)?[\w`\"]{1,64}\s*(?:\([^()]{0,200}\)\s*)?as\s*\("
_QUERY = re.compile(rf"[\s(]*(?:select\b|{_WITH})", re.IGNORECASE)
_START = re.compile(rf"\bselect\b|\b{_WITH}", re.IGNORECASE)
_MARKER = re.compile(
    r"</?s>|</?(?:sql|answer|query|code|result|output)>|\[/(?:inst|sql)\]|<(?:START|END)_\w+>|<\|[^|\n]{0,40}\|>|```",
    re.IGNORECASE,
)
_PIECE = re.compile(r"/\*.*?(?:\*/|\Z)|--[^\n]*|'[^']*'|\"[^\"]*\"|;|\n", re.DOTALL)
_COMMENT = re.compile(r"/\*.*?(?:\*/|\Z)|--[^\n]*", re.DOTALL)
_CLAUSE = re.compile(
    r"[\s;]*(?:from|where|and|or|not|join|inner|left|right|full|cross|natural|on|using|group|order|having|limit|offset|"
    r"union|intersect|except|select|as|in|between|like|case|when|then|else|end|asc|desc|[(),=<>*])(?:\b|(?<=\W))",
    re.IGNORECASE,
)
_INLINE_END = re.compile(r"`(?![\w])")
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_NEXT_RECORD = re.compile(r"\n[ \t#*]*(?:tables|question|q)[ *]*:", re.IGNORECASE)
_ENGLISH = re.compile(
    r"select\s+(?:the|all\s+the|only|a|an|any|from|which|those|and|or|data|rows)\b(?!\s*[,.(])", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Reading:
    """A query as found in a text; `clean` if the text was the query (perhaps in tags) and nothing else."""

    sql: str
    clean: bool


def readings(text: str) -> Iterator[Reading]:
    """The queries that a completion may mean, the likeliest first; none if the text is white space."""
    thought, _, answer = text.rpartition("</think>")
    text = (answer if answer.strip() else text)[:MAX_TEXT].strip()
    seen: set[str] = set()
    for reading in _all_readings(text):
        for sql in (reading.sql, reading.sql.replace("\\_", "_")):  # markdown escapes underscores
            sql = sql.strip()
            if sql and sql not in seen:
                seen.add(sql)
                yield Reading(sql, reading.clean and not thought and sql == reading.sql.strip())
            if len(seen) >= _MAX_READINGS:
                return


def _all_readings(text: str) -> Iterator[Reading]:
    if (following := _NEXT_RECORD.search(text)) and _is_sql(text) and not _ENGLISH.match(text):
        yield from _from(text[: following.start()], clean=False)  # what the model asked and answered next is not ours
        return
    blocks = [match for match in _TAGS.finditer(text) if match[1].strip()]
    if blocks:
        block = next((b for b in blocks if _is_sql(b[1])), blocks[0])
        yield from _in_block(block[1], clean=block[0] == text)
        return
    fences = [match[1] for match in _FENCE.finditer(text) if match[1].strip()]
    if fences:
        fence = next((f for f in fences if _QUERY.match(f)), next(filter(_is_sql, fences), fences[0]))
        if _is_sql(fence) or _START.search(fence) or text.startswith("```"):
            yield from _in_block(fence, clean=False)
            return
    yield from _in_prose(text)


def _in_block(text: str, clean: bool) -> Iterator[Reading]:
    inner = text.strip()
    if fence := _FENCE.search(inner):
        inner, clean = fence[1].strip(), False
    if _is_sql(inner):
        yield Reading(inner, clean)
    yield from _in_prose(inner, clean)


def _in_prose(text: str, clean: bool = True) -> Iterator[Reading]:
    if _is_sql(text) and not _ENGLISH.match(text):
        yield from _from(text, clean)
        return
    label = _LABEL.match(text)
    if label and _is_sql(text[label.end() : label.end() + 400]):
        yield from _from(text[label.end() :], clean=False)
        return
    for start in _starts(text):
        yield from _quoted(text, start)
        yield from _from(text[start:], clean=False)
    yield Reading(text, clean)


def _quoted(text: str, start: int) -> Iterator[Reading]:
    """What stands between the marks around a query: `code`, **bold**, a string of JSON, quotes around the answer."""
    mark = text[max(0, start - 1) : start]
    if mark == "`" and (end := _INLINE_END.search(text, start)):
        yield Reading(text[start : end.start()], False)
    if mark == "*" and (stop := text.find("**", start)) >= 0:
        yield Reading(text[start:stop], False)
    if mark == '"' and (string := _JSON_STRING.match(text, start - 1)):
        yield Reading(_json_text(string[0]), False)
    if mark in ("'", '"') and text.endswith(mark):
        yield Reading(text[start:-1], False)


def _json_text(string: str) -> str:
    """What a JSON string says; "" if it is none. A lone surrogate, which can be escaped in JSON, becomes `?`."""
    try:
        return str(json.loads(string, strict=False)).encode("utf-8", errors="replace").decode("utf-8")
    except ValueError:
        return ""


def _is_sql(text: str) -> bool:
    """Whether a text begins like a statement, be it a query or not."""
    head = _COMMENT.sub("", text[:2000]).lstrip()[:400]
    return bool(_QUERY.match(head) or WRITE_START.match(head))


def _starts(text: str) -> list[int]:
    """Where a query may start: written in capitals first, English uses of the word last."""
    matches = [(m.start(), m.group()) for m, _ in zip(_START.finditer(text), range(50), strict=False)]
    rank = {at: (_ENGLISH.match(text, at) is not None, not word[:4].isupper(), at) for at, word in matches}
    return sorted(rank, key=rank.__getitem__)[:3]


def _from(text: str, clean: bool) -> Iterator[Reading]:
    """Readings of a text that starts with a query: all of it, or up to where prose may begin."""
    marker = _MARKER.search(text)
    if marker:
        text, clean = text[: marker.start()], False
    ends = list(_ends(text))
    for end in ends:
        if text[end : end + 1] == ";" and text[end:].strip(" \t\r\n;"):
            if not _is_sql(text[end + 1 : end + 2000].lstrip(" \t\r\n;")):  # what follows is not a second statement
                text, clean = text[:end], False
            break
    yield Reading(text, clean)
    if text.rstrip().endswith((".", ":")):
        yield Reading(text.rstrip().rstrip(".:"), False)
    lines = [end for end in ends if end < len(text) and not _CLAUSE.match(text, end)]
    for end in lines[:4]:  # prose may begin at a line that begins like no clause
        yield Reading(text[:end], False)


def _ends(text: str) -> Iterator[int]:
    """Offsets of semicolons and line ends that stand outside of quotes."""
    for piece in _PIECE.finditer(text):
        if piece.group()[0] in ";\n":
            yield piece.start()
    yield len(text)
