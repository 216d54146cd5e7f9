"""`python -m polder_airflow pools MANIFEST`: the pools of the orgs' limits, for `airflow pools import`."""

import argparse
import json
import sys

from polder_airflow.manifest import ManifestError, Org, load


def main(arguments: list[str] | None = None) -> int:
    """Prints the pools as JSON; 0, or 2 for a manifest that cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m polder_airflow", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    pools = commands.add_parser("pools", help="print a pool for each org")
    pools.add_argument("manifest", help="the file that `polder manifest --out` wrote")
    pools.add_argument("--prefix", default="polder", help="as given to dags()")
    asked = parser.parse_args(arguments)
    try:
        manifest = load(asked.manifest)
    except ManifestError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    made = {}
    for org in manifest.orgs():
        if isinstance(org, Org):
            slots = org.runs_max if org.runs_max is not None else manifest.runs_max
            made[f"{asked.prefix}_{org.id}"] = {
                "slots": max(slots or 1, 1),
                "description": f"steps of org {org.id} at the same time",
                "include_deferred": True,
            }
    json.dump(made, sys.stdout, indent=2, sort_keys=True)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
