"""Text that others wrote, made safe to show: in HTML, in Markdown, in a script's data.

Used by report. Everything a model or a data set brought in is hostile: it may hold tags, fences, letters that reorder
what stands around them, lone surrogates. Jinja escapes HTML; what it does not know is here.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup

CLIP_CHARS = 1_500  # of a text in the list of worst examples; results.json has all of it

# Letters a reader cannot see or that reorder the text around them: controls, lone surrogates, bidirectional overrides.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")


def visible(text: str) -> str:
    """The text with unseen letters written out as escapes, so that nothing hides in a report or reorders it."""
    return _UNSEEN.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def clip(text: str) -> str:
    """The first CLIP_CHARS characters, saying how many were cut."""
    return text if len(text) <= CLIP_CHARS else f"{text[:CLIP_CHARS]} ... ({len(text) - CLIP_CHARS:,} more characters)"


def soft(name: str) -> Markup:
    """A name that may be broken after its underscores, escaped for HTML."""
    from markupsafe import Markup, escape

    return Markup("_<wbr>").join(escape(part) for part in visible(name).split("_"))


def markdown_text(text: object) -> str:
    """Text for a line or table cell of Markdown: one line, nothing in it taken for markup."""
    line = " ".join(str(text).split()).replace("&", "&amp;")
    line = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", line)
    return re.sub(r"([\\`*\[\]|])", r"\\\1", line)


def fence(text: str) -> str:
    """A fenced block that the text cannot close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    ticks = "`" * max(3, longest + 1)
    return f"{ticks}text\n{text}\n{ticks}"


def script_data(value: Any) -> Markup:
    """JSON for a <script type="application/json"> block: nothing in it can close the block or open a comment."""
    from jinja2.utils import htmlsafe_json_dumps

    return htmlsafe_json_dumps(value, dumps=json.dumps, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
