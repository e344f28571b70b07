"""Prints Kubernetes objects as a JSON list, for `cargo xtask manifests` to compare.

    render.py chart DIRECTORY VALUES NAMESPACE    the chart's, by Helm's own engine; VALUES is a file, or empty
    render.py yaml                                those on standard input

YAML is read as 1.1, as Kubernetes' own tools read it.
"""

import json
import sys
from pathlib import Path

import yaml


def documents(text):
    return [document for document in yaml.safe_load_all(text) if document]


def chart(directory, values, namespace):
    from helm_python import Chart
    from helm_python.chart import lint

    values = yaml.safe_load(Path(values).read_text()) if values else {}
    findings = lint(directory, values, strict=True)
    # 2 is a warning; below it are remarks, such as that an icon is recommended.
    bad = [message for message in findings["messages"] if message["severity"] >= 2]
    if bad or findings["errors"]:
        sys.exit(f"helm lint: {bad} {findings['errors']}")
    with Chart.load(directory) as loaded:
        loaded.validate_schema(values)
        rendered = loaded.render(values, name="understudy", namespace=namespace)
        sources = [crd["data"] for crd in loaded.crds]
        sources += [text for path, text in rendered.items() if path.endswith(".yaml")]
    return [document for source in sources for document in documents(source)]


match sys.argv[1:]:
    case ["chart", directory, values, namespace]:
        objects = chart(directory, values, namespace)
    case ["yaml"]:
        objects = documents(sys.stdin.read())
    case _:
        sys.exit(__doc__)
json.dump(objects, sys.stdout)
