"""The manual and the completions, made from the parsers and the table of keys; tools/write-manual writes them.

A page says what the parser says, and in more words what `man/details/COMMAND.roff` says; an option that stands there is
not explained twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mtunnel_tx.cli.completion import make_script
from mtunnel_tx.cli.main import COMMANDS, SHELLS, all_places
from mtunnel_tx.cli.words import CommandPlace, Option, Value
from mtunnel_tx.config.keys import KEYS

COMMON = ("-h", "--help", "--config", "--quiet", "--verbose")
"""Options of every command, which mtunnel(1) explains."""
_START, _END = '.\\" written by tools/write-manual\n', '.\\" end of what is written\n'
_COMPLETIONS = {"bash": "bash/mtunnel", "fish": "fish/mtunnel.fish", "zsh": "zsh/_mtunnel"}
_SEE_ALSO = ".SH SEE ALSO\n.BR mtunnel (1),\n.BR mtunnel.toml (5),\n.BR mtunnel (8)\n"


def generated_files(tree: Path) -> dict[str, str]:
    """Every file that is written, by its path in the tree. Args: tree: where `man/details` is."""
    places = all_places()
    files = {f"man/mtunnel-{name}.1": command_page(name, places, _details(tree, name)) for name in COMMANDS}
    files["man/mtunnel.1"] = _with_commands((tree / "man/mtunnel.1").read_text("utf-8"))
    files["man/mtunnel.toml.5"] = keys_page()
    scripts = {f"etc/completion/{_COMPLETIONS[shell]}": make_script(shell, places) for shell in SHELLS}
    return {**files, **scripts}


def _details(tree: Path, name: str) -> str:
    file = tree / "man" / "details" / f"{name}.roff"
    return file.read_text("utf-8") if file.exists() else ""


def _with_commands(page: str) -> str:
    head, start, rest = page.partition(_START)
    _, end, tail = rest.partition(_END)
    entries = [f".TP\n.BR mtunnel\\-{_escape(name)} (1)\n{_sentence(text)}\n" for name, text in COMMANDS.items()]
    return f"{head}{start}{''.join(entries)}{end}{tail}"


def command_page(name: str, places: Sequence[CommandPlace], details: str) -> str:
    """A command's page. Args: details: hand-written text in roff, or nothing."""
    own = [place for place in places if place.words[:1] == (name,)]
    leaves = [place for place in own if not place.commands]
    return "".join(
        [
            f'.TH MTUNNEL\\-{_escape(name.upper())} 1 "" "mtunnel\\-tx" "User Commands"\n',
            f".SH NAME\nmtunnel\\-{_escape(name)} \\- {_escape(COMMANDS[name])}\n",
            ".SH SYNOPSIS\n.nf\n",
            *(f"{_escape(_synopsis(place))}\n" for place in leaves),
            ".fi\n.SH DESCRIPTION\n",
            details or _paragraphs(own[0].description),
            *_options(leaves, details),
            ".SH EXIT STATUS\nSee\n.BR mtunnel (1);\noptions of every command are explained there, too.\n",
            _SEE_ALSO,
        ]
    )


def _synopsis(place: CommandPlace) -> str:
    options = any(name not in COMMON for option in place.options for name in option.names)
    words = [option.metavar for option in place.arguments]
    return " ".join(["mtunnel", place.path, *words, *(["[options]"] if options else [])])


def _options(leaves: Sequence[CommandPlace], details: str) -> Iterator[str]:
    """What the details leave out: once, where several actions have it."""
    told = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", details.replace("\\-", "-")))
    left: dict[tuple[str, ...], Option] = {}
    for place in leaves:
        for option in place.options:
            if not {*option.names} & {*COMMON, *told}:
                left.setdefault(option.names, option)
    if left:
        yield ".SH OPTIONS\n"
    for option in left.values():
        yield f".TP\n{_heading(option)}\n{_sentence(option.help)}\n"


def _heading(option: Option) -> str:
    names = ", ".join(option.names)
    if option.value is Value.NOTHING:
        return f".B {_escape(names)}"
    return f'.BI {_escape(names)} " {_escape(option.metavar)}"'


def keys_page() -> str:
    """mtunnel.toml(5)."""
    keys = (f".TP\n.B {_escape(key.name)}\n{_sentence(key.reason)}\nDefault: {_escape(key.shown)}.\n" for key in KEYS)
    return "".join(
        [
            '.TH MTUNNEL.TOML 5 "" "mtunnel\\-tx" "File Formats"\n',
            ".SH NAME\nmtunnel.toml \\- configuration of mtunnel\n",
            ".SH DESCRIPTION\nA file in TOML. Every key has a default; what is misspelled or out of bounds is an\n"
            "error that names the key. A name with a dot stands in a table:\n.B limits.stall_s\nis\n.B stall_s\nin\n"
            ".BR [limits] .\nIt is read by the daemon at its start, and by each command.\n.SH KEYS\n",
            *keys,
            ".SH FILES\n.I /etc/mtunnel/mtunnel.toml\n(root), or\n.I ~/.config/mtunnel/mtunnel.toml\n",
            ".SH SEE ALSO\n.BR mtunnel (1),\n.BR mtunnel (8)\n",
        ]
    )


def _paragraphs(text: str) -> str:
    return "\n.PP\n".join(_roff_lines(part) for part in text.strip().split("\n\n")) + "\n"


def _roff_lines(text: str) -> str:
    return _escape(" ".join(text.split()))


def _sentence(text: str) -> str:
    """A help text as a sentence."""
    text = " ".join(text.split())
    return _escape(f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}")


def _escape(text: str) -> str:
    """As roff wants it: a hyphen that is typed, no command at the beginning of a line."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped[:1] in (".", "'") else escaped


def write_all(tree: Path) -> None:
    """Write everything that has changed."""
    for name, text in generated_files(tree).items():
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")


def outdated(tree: Path) -> Mapping[str, str]:
    """The files that are not what they should be."""
    return {
        name: text
        for name, text in generated_files(tree).items()
        if not (tree / name).exists() or (tree / name).read_text("utf-8") != text
    }
