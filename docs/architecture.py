"""Write the list of files in docs/architecture.md: `python docs/architecture.py`."""

from __future__ import annotations

import ast
import re
from pathlib import Path

PAGE = Path(__file__).with_suffix(".md")
PACKAGE = Path(__file__).resolve().parents[1] / "src" / "leanres"
SUBPACKAGES = (
    "data augment models metrics kernels training runs trials lr_finder report ship bench cli"
)
LIST = re.compile(r"(?<=<!-- files -->\n).*(?=<!-- end of files -->)", re.DOTALL)


def page() -> str:
    """The page with the first line of each file's docstring, subpackage by subpackage."""
    lines = table(PACKAGE.glob("*.py"))
    for name in SUBPACKAGES.split():
        own = PACKAGE / name / "__init__.py"
        lines += [f"\n### {name}/\n\n{purpose(own)}\n", *table({*own.parent.rglob("*.py")} - {own})]
    listed = "\n".join(["", *lines, "", ""])
    return LIST.sub(lambda _: listed, PAGE.read_text(encoding="utf-8"))


def table(paths) -> list[str]:
    names = {path.relative_to(PACKAGE).as_posix(): path for path in paths}
    rows = [f"| `{name}` | {purpose(names[name])} |" for name in sorted(names)]
    return ["| file | holds |", "|---|---|", *rows]


def purpose(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0].replace("|", r"\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
