"""Options that had another word before: they still work, and say so in one line."""

import sys
from collections.abc import Mapping, Sequence

#: By command: what an option was called, and is called now.
EDGE = {
    "calibrate": {"--output": "--out", "--columns": "--column"},
    "score": {"--output": "--out", "--columns": "--column"},
    "encode": {"--output": "--out", "--columns": "--column"},
    "stream": {"--output": "--report", "--columns": "--column"},
    "provision": {"--name": "--model"},
}
#: Words whose value was a list with commas, and which are repeated now.
_LISTS = ("--columns",)


def renewed(words: Sequence[str], renamed: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The words of a command line with old options by their names of now.

    Each old one is told on standard error.

    Args:
        words: without the program's name.
        renamed: by command, such as "data describe": the new word of each old one.
    """
    command = next((one for one in _commands(words) if one in renamed), None)
    if command is None:
        return [*words]
    found, rest = list[str](), iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if word == "--":
            return [*found, word, *rest]
        new = renamed[command].get(name)
        if new is None:
            found.append(word)
            continue
        sys.stderr.write(f"note: {name} of {command!r} is now {new}; {name} works until 0.2.\n")
        if name in _LISTS:
            listed = value if equals else next(rest, None)
            if listed is None:  # the parser says that a value is missing
                return [*found, new]
            for one in listed.split(","):
                found += [new, one]
        else:
            found.append(f"{new}{equals}{value}")
    return found


def _commands(words: Sequence[str]) -> list[str]:
    """What the command may be: its first two words, or the first."""
    return [" ".join(words[:2]), *words[:1]]
