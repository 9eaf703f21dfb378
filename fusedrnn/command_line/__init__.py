"""The command line: what is here, whether its numbers are right, and how fast it is.

    fusedrnn info      versions, processor, CUDA, environment; how a given problem would be run
    fusedrnn verify    outputs, states and gradients by the numbers rule, against torch.nn
    fusedrnn bench     times against torch.nn
    fusedrnn tune      times the ways of computing on a GPU ahead, and keeps which are fastest

Each command is a file with the same four functions: `add_arguments` to its parser, `collect` all
that it has to say as plain data (which `--json` prints), `show` that data as tables, and `failed`,
which decides the exit status. A wrong argument ends in a message and status 2, as with argparse;
what fails while running is part of what is reported, and makes the status 1.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

import fusedrnn
from fusedrnn.command_line import bench, info, tune, verify
from fusedrnn.command_line.arguments import UsageError
from fusedrnn.command_line.tables import print_all

COMMANDS = {"info": info, "verify": verify, "bench": bench, "tune": tune}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; 0, or 1 where it found something wrong. Wrong arguments exit with 2."""
    parser, parsers = _parser()
    given = parser.parse_args(arguments)
    command = COMMANDS[given.command]
    status = 130
    try:
        report = command.collect(given)
        status = int(command.failed(report))
        if given.json:
            print(json.dumps(report, indent=1, allow_nan=False))
        else:
            print_all(command.show(report))
        sys.stdout.flush()
    except UsageError as error:
        parsers[given.command].error(str(error))
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # the reader, `head` perhaps, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        prog="fusedrnn",
        description="What is here, whether its numbers are right, and how fast it is.",
        epilog="Exit status: 0 all is well, 1 something failed, 2 wrong arguments.",
    )
    parser.add_argument("--version", action="version", version=f"fusedrnn {fusedrnn.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    parsers = {}
    for name, command in COMMANDS.items():
        summary, _, text = (command.__doc__ or "").partition("\n\n")
        parsers[name] = commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_arguments(parsers[name])
        parsers[name].add_argument(
            "--json", action="store_true", help="print one JSON document and nothing else"
        )
    return parser, parsers
