"""Pages for a terminal: what is laid out, what is folded, what is written when something has changed."""

from __future__ import annotations

import io

import pytest

from shmdriver.cli.screen import Page, Screen, Styled, Table, render

NAMES = Table("streams", ("stream", ">messages"), (("ticks", "12"), ("a", Styled("3", "red"))))


def plain(*page, width: int = 80) -> list[str]:
    return render(page, width, colour=False)


def test_table_aligns_its_columns_under_title_and_head() -> None:
    assert plain(NAMES) == [
        "streams",
        "",
        " stream   messages",
        " " + "─" * 17,
        " ticks          12",
        " a               3",
        "",
    ]


def test_table_without_rows_is_one_line() -> None:
    assert plain(Table("errors", ("text",), ())) == ["errors: none"]


def test_styles_are_codes_around_the_text_and_cost_no_columns() -> None:
    with_colour = render([NAMES], 80, colour=True)
    assert with_colour[0] == "\x1b[1mstreams\x1b[0m"
    assert with_colour[5] == " a               \x1b[31m3\x1b[0m"
    assert render([(Styled("x", "bold red"), "y")], 80, colour=True) == ["\x1b[1;31mx\x1b[0my"]


def test_wide_table_first_narrows_its_gaps_then_folds_its_widest_cells() -> None:
    table = Table("t", ("name", "text"), (("a", "x" * 20),))
    assert plain(table, width=27)[4] == " a    " + "x" * 20
    lines = plain(table, width=17)
    assert [line.strip(" a") for line in lines[4:6]] == ["x" * 11, "x" * 9]
    assert all(len(line) <= 17 for line in lines)


@pytest.mark.parametrize("width", [1, 3, 7, 20, 200])
def test_no_text_is_lost_whatever_the_width(width: int) -> None:
    table = Table("", ("c", ">d"), (("word " * 9, "числа"), ("", "漢字漢字漢字")))
    rows = plain(table, width=width)[4:]
    assert sorted("".join(rows).replace(" ", "")) == sorted(("word" * 9) + "числа" + "漢字漢字漢字")
    line = "one two three " * 5 + "漢" * 30
    assert "".join(plain((line, Styled(line, "bold")), width=width)) == line * 2


def test_line_breaks_between_words() -> None:
    assert plain(("→ start it again",), width=12) == ["→ start it ", "again"]


def test_wide_characters_take_two_columns_and_combining_ones_none() -> None:
    table = Table("t", ("n", "m"), (("漢字", "x"), ("e\u0301e\u0301", "x")))
    rows = plain(table)[4:6]
    assert rows == [" 漢字   x", " e\u0301e\u0301     x"]


def test_names_cannot_drive_the_terminal() -> None:
    page: Page = [Table("t", ("n",), (("\x1b[2Jevil\r\n",),)), ("\x1b]0;title\x07",)]
    text = "\n".join(render(page, 80, colour=False))
    assert all(line.isprintable() for line in text.split("\n"))
    assert r"\x1b[2Jevil\r\n" in text


def test_screen_writes_what_has_changed_and_gives_the_terminal_back() -> None:
    out = io.StringIO()

    def written() -> str:
        text = out.getvalue()
        out.seek(0)
        out.truncate()
        return text

    with Screen(out, (40, 3)) as screen:
        assert written() == "\x1b[?1049h\x1b[?25l"
        screen.show([("one",), ("two",)])
        assert written() == "\x1b[2J\x1b[1Hone\x1b[K\x1b[2Htwo\x1b[K"
        screen.show([("one",), ("2",)])
        assert written() == "\x1b[2H2\x1b[K"
        screen.show([("one",), ("2",)])
        assert written() == ""
        screen.show([("one",)])
        assert written() == "\x1b[2H\x1b[K"
        screen.show([(str(number),) for number in range(9)])
        assert written() == "\x1b[1H0\x1b[K\x1b[2H1\x1b[K\x1b[3H2\x1b[K"
    assert written() == "\x1b[?25h\x1b[?1049l"
