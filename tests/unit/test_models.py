"""The Spin models and their page, as far as it can be checked without spin; `make models` runs them."""

from __future__ import annotations

import re
from pathlib import Path

import check_models
import pytest

MODELS = check_models.all_models()


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_model_stands_for_functions_that_exist(model) -> None:
    assert check_models.missing_functions(model) == []


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_page_shows_every_mutation_of_the_model_as_caught(model) -> None:
    part = check_models.README.read_text().split(f"### {model.name}\n", 1)[1].split("\n### ", 1)[0]
    shown = dict(
        re.findall(r"^\| (\w+)(?: \(accepted limit\))? \| .*\| ([\w ]+) \| [\w ]+ \|$", part, re.MULTILINE)
    )
    assert shown == {mutation.name: "caught" for mutation in model.mutations}
    assert model.proves in part


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_every_mutation_of_a_model_is_a_macro_that_it_uses(model) -> None:
    body = model.path.read_text().split("*/", 1)[1]
    unused = [mutation.name for mutation in model.mutations if not re.search(rf"\b{mutation.name}\b", body)]
    assert unused == []


def test_model_without_a_mutation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lonely.pml"
    path.write_text(
        "/* lonely.pml: little.\n *\n * C: shmd_abort (shmd_producer.c).\n *\n * Property: none.\n *\n */"
    )
    with pytest.raises(ValueError, match="no mutation"):
        check_models.read_model(path)


def test_model_of_a_function_that_is_gone_is_found(tmp_path: Path) -> None:
    path = tmp_path / "stale.pml"
    path.write_text(
        "/* stale.pml.\n *\n * C: shmd_abort, shmd_gone (shmd_producer.c); X.way (driver/control.py);\n"
        " *    X.knock, gone (client/turns.py).\n *\n"
        " * Property: none.\n *\n * mutation NO_FENCE  a fence less\n */\n#ifdef NO_FENCE\n#endif\n"
    )
    assert check_models.missing_functions(check_models.read_model(path)) == [
        "shmd_gone in shmd_producer.c",
        "way in driver/control.py",
        "gone in client/turns.py",
    ]
