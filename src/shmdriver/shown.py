"""Text of somebody else, made safe to show: no name drives a terminal or forges a line.

Others choose the names of clients and files, reasons, schemas and command lines. Control characters in them
could move a cursor, retitle a terminal or hide text. Bidirectional marks turn text around, and a newline
forges a line of a log. Called where text leaves: the driver's log, the tools' printing, the texts of
exceptions and of events. The C core does the same with its error texts (``shmd_fail``).
"""

from __future__ import annotations

__all__ = ["shown"]


def shown(text: str, keep: str = "") -> str:
    r"""``text`` with each character escaped that Python does not call printable, as ``\x1b`` or ``\u202e``.

    These are C0 and C1 controls, DEL, line and paragraph separators, format characters (bidirectional marks,
    overrides and isolates among them), blanks other than the space, lone surrogates. Those in ``keep`` stay.
    """
    if text.isprintable():
        return text
    return "".join(sign if sign.isprintable() or sign in keep else _escaped(sign) for sign in text)


def _escaped(sign: str) -> str:
    return sign.encode("unicode_escape", "surrogatepass").decode("ascii")
