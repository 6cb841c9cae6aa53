"""Makes the bundled records of ViGGO: our own games, studios and sentences in ViGGO's functions and attributes.

Source `bundled` of `tasks.viggo`, for a first run without downloads. A representation is drawn first; its sentence is
then put together from clauses in an order of its own, so a model has to learn the order of precedence. The splits
share neither a sentence nor a representation, hence the answer to a test sentence cannot be looked up in train.

Equal on every platform and Python version: chance comes from `random.Random(seed).random()` alone, whose sequence
Python guarantees.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from typing import TypeVar

from tasks.viggo_form import ATTRIBUTES, Representation

SIZES = {"train": 5600, "valid": 500, "test": 500}

_SEED = 20230811

# fmt: off
_FIRST = (
    "Amber", "Brass", "Cedar", "Cobalt", "Copper", "Crimson", "Dapper", "Distant", "Drowsy", "Ember", "Feather",
    "Frosted", "Gentle", "Hidden", "Ivory", "Lantern", "Marble", "Mellow", "Nimble", "Opal", "Paper", "Quiet",
    "Restless", "Rusty", "Saffron", "Silent", "Thistle", "Velvet", "Wandering", "Willow",
)
_SECOND = (
    "Alchemist", "Archive", "Bakery", "Caravan", "Carnival", "Compass", "Courier", "Depot", "Engine", "Falcon",
    "Ferry", "Garden", "Harbor", "Island", "Jackal", "Kettle", "Lagoon", "Meridian", "Mosaic", "Observatory",
    "Orchard", "Parade", "Pilgrim", "Quarry", "Railway", "Sparrow", "Teapot", "Turnpike", "Voyage", "Windmill",
)
# fmt: on
_DEVELOPERS = (
    "Blue Ferry Studio",
    "Clockmoth",
    "Dunebarrow Interactive",
    "Fernhill Works",
    "Hollow Crown Softworks",
    "Juniper Loop",
    "Kitebridge Games",
    "Late Bus Collective",
    "Northgable",
    "Pocket Heron",
    "Tin Umbrella Games",
    "Two Lighthouses",
)
_YEARS = tuple(str(year) for year in range(1998, 2018))
_MONTHS = ("January", "March", "April", "June", "August", "October", "November")
_ESRB = {
    "E (for Everyone)": "E",
    "E 10+ (for Everyone 10 and Older)": "E 10+",
    "T (for Teen)": "T",
    "M (for Mature)": "M",
}
_GENRES = ("adventure", "card", "fighting", "platformer", "puzzle", "racing", "simulation", "strategy")
_PERSPECTIVES = ("bird view", "first person", "side view", "third person")
_PLATFORMS = ("PlayStation", "Xbox", "Nintendo", "Nintendo Switch", "PC")
# fmt: off
_SPECIFIERS = (
    "addictive", "boring", "challenging", "charming", "clever", "colorful", "famous", "forgettable", "funny",
    "odd", "relaxing", "scary", "short", "stunning",
)
# fmt: on

_CLAUSES = {
    "exp_release_date": ("comes out on {}", "is due on {}"),
    "release_year": ("came out in {}", "was released in {}", "dates from {}"),
    "developer": ("was made by {}", "comes from {}"),
    "esrb": ("is rated {}", "has the rating {}"),
    "genres": ("is a kind of {} game", "belongs to the {} genre"),
    "player_perspective": ("is played in {}", "uses a {} camera"),
    "platforms": ("runs on {}", "can be played on {}"),
}
_YES_NO_CLAUSES = {
    "has_multiplayer": {"yes": ("has a multiplayer mode", "lets friends join in"), "no": ("is for one player only",)},
    "available_on_steam": {"yes": ("is sold on Steam", "is on Steam"), "no": ("is not on Steam",)},
    "has_linux_release": {"yes": ("supports Linux", "works on Linux"), "no": ("does not support Linux",)},
    "has_mac_release": {"yes": ("supports Mac", "works on Mac"), "no": ("does not support Mac",)},
}
_RATED = {
    "excellent": ("excellent", "superb"),
    "good": ("good", "enjoyable"),
    "average": ("average", "nothing special"),
    "poor": ("poor", "a letdown"),
}

# Sentence frames; {that} is a clause list after "that", {it} one or more sentences about "it".
_FRAMES = {
    "inform": ("{name} {clauses}. {it}", "{name} is a video game that {that}. {it}", "The game {name} {clauses}. {it}"),
    "give_opinion": ("I think {name} is {rating}. {it}", "For me {name} was {rating}, a game that {that}. {it}"),
    "verify_attribute": (
        "You said that {name} is {rating}. Is that your view of any game that {that}?",
        "I remember you found {name} {rating}. Is it because it {that}?",
    ),
    "confirm": ("Do you mean {name}, the game that {that}?", "Just to be sure, is {name} the one that {that}?"),
    "recommend": ("You should try {name}. {it}", "May I point you to {name}, a game that {that}?"),
    "suggest": (
        "Do you like to play a game that {that}, such as {name}?",
        "Are you fond of something like {name}, which {that}?",
    ),
    "request": ("What is the most {specifier} game you know that {that}?", "Name a {specifier} game that {that}."),
    "request_explanation": (
        "Why is a game that {that} {rating} in your eyes?",
        "What makes a game {rating} to you when it {that}?",
    ),
    "request_attribute": (
        "When a game {that}, do you care about {asked}?",
        "How much does {asked} matter to you in a game that {that}?",
    ),
}
_ASKED = {
    "release_year": "its age",
    "developer": "the studio behind it",
    "esrb": "its age rating",
    "genres": "its genre",
    "player_perspective": "its point of view",
    "has_multiplayer": "playing with others",
    "platforms": "the console it needs",
    "available_on_steam": "Steam",
    "has_linux_release": "Linux",
    "has_mac_release": "Mac",
}
# function: (share, attributes that are always there, fewest and most further ones)
_SHAPES = {
    "inform": (0.40, ("name",), 2, 4),
    "give_opinion": (0.11, ("name", "rating"), 1, 3),
    "verify_attribute": (0.11, ("name", "rating"), 1, 2),
    "confirm": (0.08, ("name",), 1, 3),
    "recommend": (0.08, ("name",), 1, 3),
    "suggest": (0.07, ("name",), 1, 2),
    "request": (0.06, ("specifier",), 1, 2),
    "request_explanation": (0.06, ("rating",), 1, 2),
    "request_attribute": (0.03, (), 1, 2),
}
_FURTHER = tuple(name for name in ATTRIBUTES if name not in ("name", "exp_release_date", "rating", "specifier"))

_T = TypeVar("_T")


def generate(split: str) -> list[dict[str, str]]:
    """Rows with `mr` and `ref` of a split; KeyError for a split that is not in `SIZES`."""
    return list(_all_splits()[split])


@functools.cache
def _all_splits() -> dict[str, tuple[dict[str, str], ...]]:
    """All splits at once: what one holds is kept out of the others."""
    rng = random.Random(_SEED)
    seen: set[str] = set()
    return {split: tuple(_new_row(rng, seen) for _ in range(size)) for split, size in SIZES.items()}


def _new_row(rng: random.Random, seen: set[str]) -> dict[str, str]:
    while True:
        representation, sentence = _draw(rng)
        mr = str(representation)
        if mr not in seen and sentence not in seen:
            seen.update((mr, sentence))
            return {"mr": mr, "ref": sentence}


def _draw(rng: random.Random) -> tuple[Representation, str]:
    function = _pick_function(rng)
    _, always, fewest, most = _SHAPES[function]
    further = _sample(rng, _FURTHER, fewest + int(rng.random() * (most - fewest + 1)))
    if function in ("inform", "confirm") and "release_year" in further and rng.random() < 0.15:
        further[further.index("release_year")] = "exp_release_date"
    values = {name: _value(rng, name) for name in (*always, *further)}
    clauses = [_clause(rng, name, values[name]) for name in further]
    asked = ""
    if function == "request_attribute":
        asked = _pick(rng, [name for name in _ASKED if name not in values])
        values[asked] = ""
    slots = tuple((name, values[name]) for name in ATTRIBUTES if name in values)
    return Representation(function, slots), _sentence(rng, function, values, clauses, asked)


def _sentence(rng: random.Random, function: str, values: dict[str, str], clauses: list[str], asked: str) -> str:
    """A frame of the function filled with all clauses: those it has no place for follow as sentences about "it"."""
    frame = _pick(rng, _FRAMES[function])
    leads = "{that}" in frame or "{clauses}" in frame
    lead = clauses
    if "{it}" in frame:
        cut = 1 + int(rng.random() * min(2, len(clauses))) if leads else 0
        lead, clauses = clauses[:cut], clauses[cut:]
    rating = _pick(rng, _RATED[values["rating"]]) if "rating" in values else ""
    text = frame.format(
        name=values.get("name"),
        that=_listed(lead),
        clauses=_listed(lead),
        it=" ".join(f"It {_listed(clauses[i : i + 2])}." for i in range(0, len(clauses), 2)),
        rating=rating,
        specifier=values.get("specifier"),
        asked=_ASKED.get(asked),
    )
    return text.strip()


def _value(rng: random.Random, attribute: str) -> str:
    if attribute == "name":
        return f"{_pick(rng, _FIRST)} {_pick(rng, _SECOND)}"
    if attribute == "exp_release_date":
        return f"{_pick(rng, _MONTHS)} {1 + int(rng.random() * 28)}, {2021 + int(rng.random() * 3)}"
    if attribute == "genres":
        return ", ".join(_in_order(_GENRES, _sample(rng, _GENRES, 1 + int(rng.random() * 2))))
    if attribute == "platforms":
        return ", ".join(_in_order(_PLATFORMS, _sample(rng, _PLATFORMS, 1 + int(rng.random() * 3))))
    return _pick(rng, _CHOICES[attribute])


_CHOICES: dict[str, Sequence[str]] = {
    "release_year": _YEARS,
    "developer": _DEVELOPERS,
    "esrb": tuple(_ESRB),
    "rating": tuple(_RATED),
    "player_perspective": _PERSPECTIVES,
    "specifier": _SPECIFIERS,
    **{name: ("yes", "no") for name in _YES_NO_CLAUSES},
}


def _clause(rng: random.Random, attribute: str, value: str) -> str:
    if attribute in _YES_NO_CLAUSES:
        return _pick(rng, _YES_NO_CLAUSES[attribute][value])
    said = _ESRB[value] if attribute == "esrb" else value
    if attribute in ("genres", "platforms"):
        said = _listed(_sample(rng, value.split(", "), value.count(", ") + 1))
    return _pick(rng, _CLAUSES[attribute]).format(said)


def _listed(items: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(items[:-1]), *items[-1:])))


def _in_order(order: Sequence[str], items: Sequence[str]) -> list[str]:
    return [item for item in order if item in items]


def _pick_function(rng: random.Random) -> str:
    at = rng.random()
    for function, (share, *_) in _SHAPES.items():
        at -= share
        if at < 0:
            return function
    return "inform"


def _pick(rng: random.Random, items: Sequence[_T]) -> _T:
    return items[int(rng.random() * len(items))]


def _sample(rng: random.Random, items: Sequence[_T], count: int) -> list[_T]:
    """`count` different items in random order."""
    rest = list(items)
    return [rest.pop(int(rng.random() * len(rest))) for _ in range(count)]
