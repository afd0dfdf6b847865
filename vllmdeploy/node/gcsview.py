"""Prints Ray's nodes as JSON lines, asked of the GCS directly: for clusters without a dashboard.

Runs as its own process, because it imports Ray and the warden must not.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from typing import Any

EVERY_S = 2.0


def snapshot(client: Any) -> list[dict[str, object]]:
    """`client` is Ray's own GcsClient, which has no public type."""
    usage = client.get_all_resource_usage()
    free = {
        batch.node_id: dict(batch.resources_available) for batch in usage.resource_usage_data.batch
    }
    return [
        {
            "name": info.node_name,
            "ip": info.node_manager_address,
            "alive": info.state == 0,  # GcsNodeInfo.ALIVE
            "resources": dict(info.resources_total),
            "used": {
                name: total - free.get(info.node_id, {}).get(name, 0.0)
                for name, total in info.resources_total.items()
                if info.node_id in free
            },
        }
        for info in client.get_all_node_info().values()
    ]


def main(address: str) -> None:
    # By name: Ray is not a dependency of this package, and this class of it has no types.
    client = importlib.import_module("ray._raylet").GcsClient(address=address)
    while True:
        sys.stdout.write(json.dumps(snapshot(client)) + "\n")
        sys.stdout.flush()
        time.sleep(EVERY_S)


if __name__ == "__main__":
    main(sys.argv[1])
