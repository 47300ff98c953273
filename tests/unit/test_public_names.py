"""The package's public names: those that a type checker sees are those that can be imported."""

import ast
from pathlib import Path

import abathur_nb


def test_a_type_checker_sees_the_names_that_are_imported_on_first_use() -> None:
    tree = ast.parse(Path(abathur_nb.__file__).read_text(encoding="utf-8"))
    (checked,) = (node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name))
    imports = [node for node in checked.body if isinstance(node, ast.ImportFrom)]
    seen = {(node.module, alias.name, alias.asname) for node in imports for alias in node.names}
    homes = {(f"abathur_nb.{module}", name, name) for name, module in abathur_nb._HOMES.items()}
    assert seen == homes | {("abathur_nb", "charts", "charts")}
    assert all(hasattr(abathur_nb, name) for name in (*abathur_nb.__all__, "__version__"))
    assert not hasattr(abathur_nb, "validate")
    assert dir(abathur_nb.charts) == abathur_nb.charts.__all__
