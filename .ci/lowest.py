"""Print pip constraints: of everything that the extra `test` needs, the lowest version that pyproject.toml allows.

Of torch the version that is installed here instead: another one would be a download of gigabytes.
"""

import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def needed(lines: Iterable[str]) -> Iterator[Requirement]:
    """Requirements, those of this project's own extras among them."""
    for line in lines:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            for extra in requirement.extras:
                yield from needed(PROJECT["optional-dependencies"][extra])
        else:
            yield requirement


def lowest() -> dict[str, str]:
    """The lowest version of each package. Raises ValueError for a requirement without one."""
    found = {}
    for requirement in needed([*PROJECT["dependencies"], f"{PROJECT['name']}[test]"]):
        bounds = [bound.version for bound in requirement.specifier if bound.operator == ">="]
        if len(bounds) != 1:
            raise ValueError(f"pyproject.toml: {requirement} needs one lower bound, such as {requirement.name}>=1.0")
        found[requirement.name] = bounds[0]
    return found | {"torch": version("torch")}


if __name__ == "__main__":
    print("\n".join(f"{name}=={number}" for name, number in lowest().items()))
