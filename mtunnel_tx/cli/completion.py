"""Completion for bash, zsh and fish, as a script made from the parsers: a shell completes without starting Python."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence

from mtunnel_tx.cli.words import CommandPlace, Option, Value

PROGRAM = "mtunnel"

_BASH = """\
# Completion of mtunnel for bash: eval "$(mtunnel --completion bash)"
_mtunnel() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD-1]}} i
    local place="" commands="" options="" files=""
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$place ${{COMP_WORDS[i]}}" in
{steps}
        esac
    done
    COMPREPLY=()
    case "$place:$prev" in
{values}
    esac
    case "$place" in
{places}
    esac
    if [[ $cur == -* ]]; then commands=$options files=""; fi
    COMPREPLY=($(compgen -W "$commands" -- "$cur"))
    if [[ $files ]]; then compopt -o filenames; COMPREPLY+=($(compgen -f -- "$cur")); fi
}}
complete -F _mtunnel mtunnel
"""

_ZSH = """\
#compdef mtunnel
# Completion of mtunnel for zsh: eval "$(mtunnel --completion zsh)", or as a file _mtunnel in a folder of $fpath.
_mtunnel() {{
    local cur=${{words[CURRENT]}} prev=${{words[CURRENT-1]}} place="" files="" i
    local -a commands options
    for ((i = 2; i < CURRENT; i++)); do
        case "$place ${{words[i]}}" in
{steps}
        esac
    done
    case "$place:$prev" in
{values}
    esac
    case "$place" in
{places}
    esac
    if [[ $cur == -* ]]; then
        _describe -o option options
    else
        (( $#commands )) && _describe command commands
        if [[ -n $files ]]; then _files; fi
    fi
}}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    _mtunnel "$@"
else
    compdef _mtunnel mtunnel
fi
"""

_FISH = """\
# Completion of mtunnel for fish: mtunnel --completion fish | source
function __mtunnel_place
    set -l place ""
    set -l skip ""
    for word in (commandline -opc)[2..-1]
        if test -n "$skip"
            set skip ""
            continue
        end
        switch "$place $word"
{steps}
        end
    end
    test "$place" = "$argv[1]"
end
complete -c mtunnel -f
{lines}
"""


def make_script(shell: str, places: Sequence[CommandPlace]) -> str:
    """Args: shell: one of SHELLS."""
    return SHELLS[shell](places)


def _make_bash(places: Sequence[CommandPlace]) -> str:
    values = {
        Value.CHOICE: lambda option: f'COMPREPLY=($(compgen -W {_quoted(" ".join(option.choices))} -- "$cur"))',
        Value.FILE: lambda _: 'compopt -o filenames; COMPREPLY=($(compgen -f -- "$cur"))',
        Value.TEXT: lambda _: ":",
    }
    return _BASH.format(
        steps=_lines(12, _posix_steps(places)),
        values=_lines(8, _value_cases(places, values)),
        places=_lines(8, map(_bash_place, places)),
    )


def _bash_place(place: CommandPlace) -> str:
    options = " ".join(name for option in place.options for name in option.names)
    words = " ".join((*place.commands, *_choices(place)))
    return f"{_quoted(place.path)}) commands={_quoted(words)}; options={_quoted(options)}{_files(place)};;"


def _make_zsh(places: Sequence[CommandPlace]) -> str:
    values = {
        Value.CHOICE: lambda option: f"compadd -- {' '.join(map(_quoted, option.choices))}",
        Value.FILE: lambda _: "_files",
        Value.TEXT: lambda _: ":",
    }
    return _ZSH.format(
        steps=_lines(12, _posix_steps(places)),
        values=_lines(8, _value_cases(places, values)),
        places=_lines(8, map(_zsh_place, places)),
    )


def _zsh_place(place: CommandPlace) -> str:
    commands = [_described(name, text) for name, text in place.commands.items()]
    commands += [_described(word, "") for word in _choices(place)]
    options = [_described(name, option.help) for option in place.options for name in option.names]
    return f"{_quoted(place.path)}) commands=({' '.join(commands)}); options=({' '.join(options)}){_files(place)};;"


def _described(name: str, text: str) -> str:
    return _quoted(f"{name}:{_one_line(text)}")


def _make_fish(places: Sequence[CommandPlace]) -> str:
    steps = [f"case {_quoted(before)}\n                set place {_quoted(after)}" for before, after in _steps(places)]
    steps += [f"case {' '.join(map(_quoted, words))}\n                set skip yes" for words in _with_values(places)]
    lines = [line for place in places for line in _fish_lines(place)]
    return _FISH.format(steps=_lines(12, steps), lines="\n".join(lines))


def _fish_lines(place: CommandPlace) -> Iterable[str]:
    start = f"complete -c {PROGRAM} -n {_fish_quoted(f'__mtunnel_place {_fish_quoted(place.path)}')}"
    for name, text in place.commands.items():
        yield f"{start} -a {_fish_quoted(name)} -d {_fish_quoted(_one_line(text))}"
    for word in _choices(place):
        yield f"{start} -a {_fish_quoted(word)}"
    if _takes_file(place):
        yield f"{start} -F"
    for option in place.options:
        names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
        yield f"{start} {names}{_fish_value(option)} -d {_fish_quoted(_one_line(option.help))}"


def _fish_value(option: Option) -> str:
    match option.value:
        case Value.NOTHING:
            return ""
        case Value.CHOICE:
            return f" -x -a {_fish_quoted(' '.join(option.choices))}"
        case Value.FILE:
            return " -r -F"
        case Value.TEXT:
            return " -x"


def _fish_quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _steps(places: Sequence[CommandPlace]) -> Iterable[tuple[str, str]]:
    """Where a word leads from a place: `PLACE WORD`, and the next place."""
    for place in places:
        for name in place.commands:
            yield f"{place.path} {name}", f"{place.path} {name}".strip()


def _with_values(places: Sequence[CommandPlace]) -> Iterable[list[str]]:
    """Options behind which a word stands that leads nowhere: `PLACE OPTION`."""
    for place in places:
        names = [name for option in place.options if option.value is not Value.NOTHING for name in option.names]
        if names:
            yield [f"{place.path} {name}" for name in names]


def _posix_steps(places: Sequence[CommandPlace]) -> Iterable[str]:
    for before, after in _steps(places):
        yield f"{_quoted(before)}) place={_quoted(after)};;"
    for words in _with_values(places):
        yield f"{'|'.join(map(_quoted, words))}) i=$((i + 1));;"


def _choices(place: CommandPlace) -> tuple[str, ...]:
    """Words that can stand as an argument."""
    return tuple(word for argument in place.arguments for word in argument.choices)


def _takes_file(place: CommandPlace) -> bool:
    return any(argument.value is Value.FILE for argument in place.arguments)


def _files(place: CommandPlace) -> str:
    return "; files=yes" if _takes_file(place) else ""


def _value_cases(places: Sequence[CommandPlace], values: Mapping[Value, Callable[[Option], str]]) -> Iterable[str]:
    for place in places:
        for option in place.options:
            if option.value is not Value.NOTHING:
                patterns = "|".join(_quoted(f"{place.path}:{name}") for name in option.names)
                yield f"{patterns}) {values[option.value](option)}; return;;"


def _lines(indent: int, lines: Iterable[str]) -> str:
    return "\n".join(" " * indent + line for line in lines)


def _quoted(text: str) -> str:
    return shlex.quote(text) if text else "''"


def _one_line(text: str) -> str:
    return " ".join(text.split())


SHELLS: Mapping[str, Callable[[Sequence[CommandPlace]], str]] = {
    "bash": _make_bash,
    "zsh": _make_zsh,
    "fish": _make_fish,
}
