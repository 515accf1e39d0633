"""The recipes that ship with Vitrail: YAML files, usable wherever a spec file is."""

from importlib import resources
from pathlib import Path

from schemas.errors import UsageError
from schemas.words import nearest


def recipe_files() -> dict[str, Path]:
    """Recipe name -> its file; those of a folder are called `FOLDER/NAME` and come last."""
    root = Path(str(resources.files("pipeline"))) / "recipes"
    found = sorted(root.rglob("*.yaml"), key=lambda path: (len(path.parts), path))
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in found}


def describe(path: Path) -> str:
    """The first comment line of a recipe."""
    return path.read_text().splitlines()[0].lstrip("# ")


def find_spec(name: str) -> Path:
    """The file that a user means: a path, or the name of a recipe.

    Raises:
        UsageError: If it is neither; the sentence has the nearest recipe.
    """
    path = Path(name)
    if path.is_file():
        return path
    recipes = recipe_files()
    if name in recipes:
        return recipes[name]
    close = nearest(name, list(recipes))
    raise UsageError(
        f"{name!r} is neither a file nor a recipe; the recipes are {', '.join(recipes)}"
        + (f"; did you mean {close!r}?" if close else ""),
        hint=f"vitrail init run.yaml --recipe {close or next(iter(recipes))}",
    )
