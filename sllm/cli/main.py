"""The process of a command: its signals and standard streams, before the command and after it.

What weighs is imported when the command runs: until then Ctrl-C ends the process at once.
"""

import os
import sys

from sllm.cli.interrupts import interrupts_end_it, let_interrupts_end_it


def main() -> None:
    """Runs the command that the arguments name, and ends the process."""
    _open_closed_streams()
    with interrupts_end_it():
        from sllm.cli.app import app
    try:
        app()
    finally:
        let_interrupts_end_it()
        _give_up_unwritten_output()


def _open_closed_streams() -> None:
    """Has a standard stream that is closed lead to /dev/null.

    Otherwise the next file or socket would get its number, and a child that reads or writes the
    stream would find that.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
            setattr(sys, name, os.fdopen(number, mode))
    # Names that the terminal's encoding lacks are shown in another way, and stop nothing.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a TextIOWrapper


def _give_up_unwritten_output() -> None:
    """Drops what could not be written, which the command has told of.

    Python would try again at its end, and complain in its own words.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    main()
