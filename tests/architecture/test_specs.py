import importlib
import inspect
import pkgutil

import pytest

import schemas
from schemas.spec import Spec, tag_of

MODULES = [f"schemas.{module.name}" for module in pkgutil.iter_modules(schemas.__path__)]
SPECS = sorted(
    {
        value
        for name in MODULES
        for value in vars(importlib.import_module(name)).values()
        if inspect.isclass(value) and issubclass(value, Spec) and value is not Spec
    },
    key=lambda spec: spec.__qualname__,
)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.__qualname__)
def test_every_field_of_every_spec_has_a_tag(spec: type[Spec]) -> None:
    untagged = [name for name, field in spec.model_fields.items() if tag_of(field) is None]
    assert not untagged, f"tag these as Semantic, Execution or Input: {untagged}"


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.__qualname__)
def test_every_spec_is_frozen_and_closed(spec: type[Spec]) -> None:
    assert spec.model_config["frozen"]
    assert spec.model_config["extra"] == "forbid"
