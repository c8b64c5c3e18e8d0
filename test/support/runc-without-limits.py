#!/usr/bin/env python3
"""runc where control groups have no controllers: leaves limits out of a container's specification. Devices need no controller."""

import json
import os
import sys

if "--bundle" in sys.argv:
    path = os.path.join(sys.argv[sys.argv.index("--bundle") + 1], "config.json")
    with open(path) as file:
        spec = json.load(file)
    resources = spec["linux"].get("resources", {})
    spec["linux"]["resources"] = {"devices": resources.get("devices", [])}
    with open(path, "w") as file:
        json.dump(spec, file)
os.execvp("runc", ["runc", *sys.argv[1:]])
