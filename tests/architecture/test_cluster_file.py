import json
from importlib.resources import files
from pathlib import Path

import jsonschema
from ruamel.yaml import YAML


def test_the_cluster_file_fits_rays_own_schema(checkout: Path) -> None:
    schema = json.loads((files("ray") / "autoscaler" / "ray-schema.json").read_text())
    cluster = YAML(typ="safe").load((checkout / "ray_cluster.yaml").read_text())
    jsonschema.validate(cluster, schema)
    assert cluster["head_node_type"] in cluster["available_node_types"]


def test_the_cluster_file_ships_every_room(checkout: Path) -> None:
    cluster = YAML(typ="safe").load((checkout / "ray_cluster.yaml").read_text())
    shipped = {Path(path).name for path in cluster["file_mounts"].values()}
    assert {"schemas", "pipeline", "infra", "jobs", "constraints.txt"} <= shipped
    for source in cluster["file_mounts"].values():
        assert (checkout / source).exists()
