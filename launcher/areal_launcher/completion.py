"""`grpo completion`: scripts that complete the arguments of grpo, made from its parsers."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence

Parsers = Mapping[str, argparse.ArgumentParser]

BASH = """\
_grpo() {{
  local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}} command=${{COMP_WORDS[1]}} words=
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W {commands} -- "$current"))
    return
  fi
  case "$command $previous" in
{choices}
  esac
  if [ -z "$words" ] && [ "${{current#-}}" != "$current" ]; then
    case "$command" in
{options}
    esac
  fi
  if [ -n "$words" ]; then
    COMPREPLY=($(compgen -W "$words" -- "$current"))
  else
    compopt -o filenames 2>/dev/null
    COMPREPLY=($(compgen -f -- "$current"))
  fi
}}
complete -F _grpo grpo
"""


def print_script(shell: str, parsers: Parsers) -> int:
    """Print the script for ``shell``, one of ``SCRIPTS``."""
    sys.stdout.write(SCRIPTS[shell](parsers))
    return 0


def bash(parsers: Parsers) -> str:
    """A function for bash's ``complete``."""
    options, choices = [], []
    for command, parser in parsers.items():
        flags = [flag for action in _options(parser) for flag in _long(action)]
        options.append(f"      {command}) words={shlex.quote(' '.join(flags))} ;;")
        for action in _options(parser):
            if action.choices:
                cases = "|".join(f'"{command} {flag}"' for flag in action.option_strings)
                choices.append(f"    {cases}) words={shlex.quote(_words(action.choices))} ;;")
        for action in parser._get_positional_actions():
            if action.choices:
                choices.append(f'    "{command} {command}") words={shlex.quote(_words(action.choices))} ;;')
    return BASH.format(commands=shlex.quote(" ".join(parsers)), choices="\n".join(choices), options="\n".join(options))


def zsh(parsers: Parsers) -> str:
    """The same function, which zsh runs in its emulation of bash's completion."""
    return "autoload -U +X bashcompinit && bashcompinit\n" + bash(parsers)


def fish(parsers: Parsers) -> str:
    """Commands for fish."""
    lines = [f"complete -c grpo -n __fish_use_subcommand -f -a {shlex.quote(' '.join(parsers))}"]
    for command, parser in parsers.items():
        for action in _options(parser):
            for flag in _long(action):
                words = [f"complete -c grpo -n '__fish_seen_subcommand_from {command}' -l {flag.removeprefix('--')}"]
                if action.choices:
                    words.append(f"-x -a {shlex.quote(_words(action.choices))}")
                elif action.nargs != 0:
                    words.append("-r")
                lines.append(" ".join(words))
    return "\n".join(lines) + "\n"


SCRIPTS: dict[str, Callable[[Parsers], str]] = {"bash": bash, "fish": fish, "zsh": zsh}


def _options(parser: argparse.ArgumentParser) -> Sequence[argparse.Action]:
    return [action for action in parser._get_optional_actions() if action.help != argparse.SUPPRESS]


def _long(action: argparse.Action) -> list[str]:
    return [flag for flag in action.option_strings if flag.startswith("--")]


def _words(choices: object) -> str:
    assert isinstance(choices, (list, tuple))
    return " ".join(map(str, choices))
