"""Keys and names of other versions, translated in one place before a file is validated.

Keys that the reference toolkit has in other places than this package are moved without a warning.  Names that
earlier versions of this package used (`docs/old_names.md`) are replaced, with one warning each.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ensemblehub import registry
from ensemblehub.builtin import SHIPPED
from ensemblehub.errors import ConfigError, did_you_mean

log = logging.getLogger(__name__)
Place = tuple[str | int, ...]

NO_EFFECT = {"padding_side": "nothing is padded", "low_cpu_mem": "weights are always loaded so"}
MOVED = {  # keys of the reference toolkit, by section, that the validated file does not have
    "": ("model_stats",),
    "ensemble": ("max_rounds", "score_threshold", "progressive", "reward_specs"),
    "debug": ("enable_thinking",),
}
STATISTICS = ("stats_file", "stats")


@dataclass(frozen=True)
class OldName:
    """A renamed value or word.

    Attributes:
        kind: What it names: a YAML key, or what the command line calls it.
        read: Whether the old one is still understood; what is only written has its new name at once.
    """

    kind: str
    old: str
    new: str
    read: bool = True


OLD_NAMES = (
    OldName("path", "studio:NAME", "builtin:NAME"),
    OldName("profile", "studio", "builtin"),
    OldName("template", "studio", "builtin"),
    OldName("task", "studio_math", "builtin_math"),
    OldName("task", "studio_code", "builtin_code"),
    OldName("pair", "studio", "builtin"),
    OldName("pair", "studio-guest", "builtin-guest"),
    OldName("key of `ask --json` and of the rows of `infer`", "spent", "usage", read=False),
    OldName("example", "examples/studio_tandem.yaml", "examples/builtin_tandem.yaml", read=False),
    OldName("page", "docs/studio.md", "docs/builtin.md", read=False),
)
_OLD_PATH = re.compile(f"studio:({'|'.join(map(re.escape, SHIPPED))})")


def renamed(kind: str, name: str) -> str | None:
    """Return the current name for an old `name`, or None if it is not an old name.

    Args:
        kind: The YAML key whose value it is; a built-in model (`studio:mentor`) is known under every key.
    """
    if path := _OLD_PATH.fullmatch(name):
        return f"builtin:{path[1]}"
    return next((old.new for old in OLD_NAMES if old.read and (old.kind, old.old) == (kind, name)), None)


def current(kind: str, name: str) -> str:
    """Return the current name for a `name` given outside a file; warns once if it is an old one."""
    if (new := renamed(kind, name)) is None:
        return name
    warn_once(f"{kind} {name!r} is now called {new!r}")
    return new


@lru_cache(maxsize=1024)
def warn_once(text: str) -> None:
    """Log a warning the first time that it comes."""
    log.warning(text)


@dataclass
class Translation:
    """A file's data with present names and keys.

    Attributes:
        notes: Places in the file, and what to say about them.
        moved: Where what stands at a present place stands in the file.
    """

    notes: list[tuple[Place, str]] = field(default_factory=list)
    moved: dict[Place, Place] = field(default_factory=dict)

    def origin(self, place: Place) -> Place:
        """Return the position in the original file of the value at `place`."""
        for end in range(len(place), 0, -1):
            if place[:end] in self.moved:
                return (*self.moved[place[:end]], *place[end:])
        return place

    def move(self, options: dict[str, Any], to: Place, key: str, value: Any, place: Place) -> None:
        """Set `options[key]`, at `to` in the file's shape, unless it is given there."""
        if key not in options:
            options[key] = value
            self.moved[*to, key] = place

    def ineffective(self, place: Place, why: str) -> None:
        """Note a key that does nothing."""
        self.notes.append((place, f"{_dotted(place)} has no effect: {why}"))


def translate(data: dict[str, Any], done: Translation) -> None:
    """Replace the old keys and names in a file's data, in place, and record the changes in `done`.

    Malformed parts are left for the validation to refuse.

    Raises:
        ConfigError: An old key has a value of the wrong form; its `option` is the place.
    """
    for place, old, new in list(_old_names(data)):
        inner = data
        for part in place[:-1]:
            inner = inner[part]  # type: ignore[index]
        inner[place[-1]] = new  # type: ignore[index]
        if not any(text.startswith(f"{_kind(place)} {old!r}") for _, text in done.notes):
            done.notes.append((place, f"{_kind(place)} {old!r} is now called {new!r}"))
    _models(done, data)
    statistics = _taken(data, "model_stats", ("model_stats",))
    for key in statistics:
        if key not in STATISTICS:
            raise ConfigError(did_you_mean(str(key), STATISTICS, "key"), ("model_stats", key))
    _scorers(done, data)
    if data.get("ensemble") is None:
        data["ensemble"] = {}
    sections: dict[Place, Any] = {("ensemble",): data["ensemble"]}
    if isinstance(data.get("ensembles"), dict):
        sections |= {("ensembles", name): section for name, section in data["ensembles"].items()}
    for place, section in sections.items():
        if isinstance(section, dict):
            _selection(done, section, place, statistics)
            _aggregation(done, section, place)


def _old_names(value: Any, place: Place = ()) -> Iterator[tuple[Place, str, str]]:
    """Every old name among the values, with its place and its present name."""
    if isinstance(value, str) and place and (new := renamed(_kind(place), value)):
        yield place, value, new
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in parts:
        yield from _old_names(inner, (*place, key))


def _kind(place: Place) -> str:
    return next((part for part in reversed(place) if isinstance(part, str)), "")


def _models(done: Translation, data: dict[str, Any]) -> None:
    """Options of models, of engines and of `debug` that the reference has and an engine has not."""
    specs = {
        index: spec for index, spec in enumerate(_list(data.get("model_specs"))) if isinstance(spec, dict)
    }
    for key, why in NO_EFFECT.items():
        having = [index for index, spec in specs.items() if key in spec]
        if having:
            done.ineffective(("model_specs", having[0], key), why)
        for index in having:
            del specs[index][key]
    shared = data.get("engine_options")
    for engine, options in (shared if isinstance(shared, dict) else {}).items():
        for key in [key for key in NO_EFFECT if isinstance(options, dict) and key in options]:
            done.ineffective(("engine_options", engine, key), NO_EFFECT[key])
            del options[key]
    debug = data.get("debug")
    thinking = debug.pop("enable_thinking", None) if isinstance(debug, dict) else None
    if any(_engine(spec) == "hf" for spec in specs.values()) and (thinking is not None or shared):
        _hf_options(done, data, thinking)


def _engine(spec: dict[str, Any]) -> Any:
    return spec.get("engine") or registry.engine_for(str(spec.get("path", "")))


def _hf_options(done: Translation, data: dict[str, Any], thinking: Any) -> None:
    where: Place = ("engine_options", "hf")
    shared = data["engine_options"] = data.get("engine_options") or {}
    options = shared.get("hf") or {} if isinstance(shared, dict) else None
    if not isinstance(options, dict):
        return
    if thinking is not None:
        done.move(options, where, "enable_thinking", thinking, ("debug", "enable_thinking"))
    if options.pop("use_eager_attention", False):
        done.move(options, where, "attn_implementation", "eager", (*where, "use_eager_attention"))
    if options:
        shared["hf"] = options


def _scorers(done: Translation, data: dict[str, Any]) -> None:
    """Scorers under `ensemble` join those at top level."""
    section, outer = data.get("ensemble"), data.get("reward_specs")
    inner = section.pop("reward_specs", None) if isinstance(section, dict) else None
    if inner is None:
        return
    if not isinstance(inner, list):
        raise ConfigError("ensemble.reward_specs: Input should be a valid list", ("ensemble", "reward_specs"))
    for index in range(len(inner)):
        done.moved["reward_specs", len(_list(outer)) + index] = ("ensemble", "reward_specs", index)
    data["reward_specs"] = [*_list(outer), *inner]


def _selection(
    done: Translation, section: dict[str, Any], place: Place, statistics: Mapping[str, Any]
) -> None:
    """`model_stats` become options of a selection that has them and names none of its own."""
    method = section.get("model_selection_method") or "all"
    known = _options(registry.SELECTIONS, method) if statistics else set()
    params = _params(section, "model_selection_params")
    own = params is None or bool(params.keys() & set(STATISTICS))
    for key, value in statistics.items():
        origin = ("model_stats", key)
        if value is not None and key not in known:
            done.ineffective(origin, f"the selection {method!r} has no such option")
        elif value is not None and params is not None and not own:
            done.move(params, (*place, "model_selection_params"), str(key), value, origin)


def _aggregation(done: Translation, section: dict[str, Any], place: Place) -> None:
    """Options of the aggregation that the reference writes beside its method."""
    method = section.get("output_aggregation_method") or "single"
    wide = {key: section.pop(key, None) for key in ("max_rounds", "score_threshold")}
    wide = {key: value for key, value in wide.items() if value is not None}
    nested = _taken(section, "progressive", (*place, "progressive"))
    params = _params(section, "output_aggregation_params")
    if params is None:
        return
    to: Place = (*place, "output_aggregation_params")
    known = _options(registry.AGGREGATIONS, method) if wide else set()
    if method == "progressive":
        for key, value in nested.items():
            done.move(params, to, key, value, (*place, "progressive", key))
    elif nested:
        done.ineffective((*place, "progressive"), f"the aggregation is {method!r}")
    for key, value in wide.items():
        if key in known:
            done.move(params, to, key, value, (*place, key))
        else:
            done.ineffective((*place, key), f"the aggregation {method!r} has no such option")


def _params(section: dict[str, Any], key: str) -> dict[str, Any] | None:
    """The options of a strategy, to add to; None where they are malformed."""
    if section.get(key) is None:
        section[key] = {}
    return section[key] if isinstance(section[key], dict) else None


def _options(table: Mapping[str, str], method: Any) -> set[str]:
    """The options of a strategy; none of an unknown one, which is refused when it is built."""
    try:
        return {option.name for option in dataclasses.fields(registry.lookup(table, method, "method"))}
    except (ConfigError, TypeError, AttributeError):
        return set()


def _taken(data: dict[str, Any], key: str, place: Place) -> dict[str, Any]:
    """Remove the mapping at `key`; empty where there is none."""
    value = data.pop(key, None)
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"{_dotted(place)}: Input should be a valid dictionary", place)
    return value or {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dotted(place: Place) -> str:
    return ".".join(map(str, place))


def table() -> str:
    """The Markdown table of `docs/old_names.md`."""
    rows = [
        f"| {name.kind} | `{name.old}` | `{name.new}` | {'yes' if name.read else 'no'} |"
        for name in OLD_NAMES
    ]
    return "\n".join(["| what | old name | new name | old one still read |", "|---|---|---|---|", *rows])
