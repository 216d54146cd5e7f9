"""A model that says how likely a deal is to be won: trained on a pin, on a Ray cluster, and asked about the
deals that are open now.

    polder pin create model-2026-11 --org 401
    python examples/win_probability.py http://127.0.0.1:7070 401 model-2026-11      # the key in POLDER_KEY

Training on the same pin gives the same model to the last bit, whatever was loaded, rewritten or removed
meanwhile: the rows are the pin's, they are put into one order by their keys, cut into the same
parts, and the parts' gradients are added in the same order.
"""

import hashlib
import json
import os
import sys
from dataclasses import dataclass

import numpy as np
import polder
import pyarrow as pa
import ray

FEATURES = ["amount", "activities", "days_open"]
PARTS = 4
STEPS = 200
RATE = 0.5
DAY_US = 86_400_000_000


@dataclass(frozen=True)
class Model:
    """Weights, and what makes features comparable."""

    weights: np.ndarray
    means: np.ndarray
    spreads: np.ndarray
    # What it was trained on: by table, the snapshot.
    snapshots: dict[str, int]

    def digest(self) -> str:
        """The same for models that are the same to the last bit."""
        parts = [self.weights.tobytes(), self.means.tobytes(), self.spreads.tobytes()]
        return hashlib.sha256(b"".join(parts)).hexdigest()

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """How likely each deal is to be won."""
        return _sigmoid(_with_bias((features - self.means) / self.spreads) @ self.weights)


def features(deals: pa.Table, activities: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Keys in order, features, and whether each deal was won."""
    deals = deals.sort_by("id")
    keys = deals["id"].to_numpy()
    amount = np.log1p(np.array([float(value or 0) for value in deals["amount"].to_pylist()]))
    counted = activities.group_by("opportunity_id").aggregate([("id", "count")])
    count = dict(zip(counted["opportunity_id"].to_pylist(), counted["id_count"].to_pylist(), strict=True))
    events = np.array([float(count.get(key, 0)) for key in keys.tolist()])
    created = deals["created_at"].cast(pa.int64()).to_numpy()
    touched = deals["touched_at"].cast(pa.int64()).to_numpy()
    days = (touched - created) / DAY_US
    won = np.array([stage == "won" for stage in deals["stage"].to_pylist()], dtype=np.float64)
    return keys, np.column_stack([amount, events, days]), won


def train(org: polder.Org, pin: str) -> Model:
    """Trains on the closed deals of a pin, on the Ray cluster that is connected."""
    deals_table = org.table("opportunity").at(pin)
    activity_table = org.table("activity").at(pin)
    closed = deals_table.where("stage in ('won', 'lost')").to_arrow()
    _, found, won = features(closed, activity_table.select("id", "opportunity_id").to_arrow())
    means, spreads = found.mean(axis=0), found.std(axis=0) + 1e-9
    scaled = _with_bias((found - means) / spreads)
    parts = [
        (ray.put(rows), ray.put(labels))
        for rows, labels in zip(np.array_split(scaled, PARTS), np.array_split(won, PARTS), strict=True)
    ]
    gradient = ray.remote(num_cpus=1)(_gradient)
    weights = np.zeros(scaled.shape[1])
    for _ in range(STEPS):
        here = ray.put(weights)
        sums = ray.get([gradient.remote(rows, labels, here) for rows, labels in parts])
        total = np.zeros_like(weights)
        # One order, whichever part was ready first.
        for part in sums:
            total += part
        weights = weights - RATE * total / len(scaled)
    snapshots = {table.name: int(table.snapshot_id or 0) for table in (deals_table, activity_table)}
    return Model(weights, means, spreads, snapshots)


def score(org: polder.Org, model: Model) -> dict[int, float]:
    """The open deals as they are now, with their probabilities: features at the moment of one bootstrap."""
    rows = org.bootstrap(["opportunity", "activity"]).to_arrow()
    keys, found, _ = features(rows["opportunity"], rows["activity"])
    stages = rows["opportunity"].sort_by("id")["stage"].to_pylist()
    chances = model.probabilities(found)
    return {
        int(key): float(chance)
        for key, chance, stage in zip(keys, chances, stages, strict=True)
        if stage not in ("won", "lost")
    }


def _gradient(rows: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return rows.T @ (_sigmoid(rows @ weights) - labels)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-values))


def _with_bias(values: np.ndarray) -> np.ndarray:
    return np.column_stack([np.ones(len(values)), values])


def main() -> None:
    address, org, pin = sys.argv[1:4]
    lake = polder.connect(address, os.environ.get("POLDER_KEY")).org(org)
    ray.init(ignore_reinit_error=True, log_to_driver=False)
    model = train(lake, pin)
    weights = dict(zip(["bias", *FEATURES], model.weights.tolist(), strict=True))
    print(json.dumps({"weights": weights, "digest": model.digest(), "snapshots": model.snapshots}))
    for key, chance in sorted(score(lake, model).items(), key=lambda found: -found[1])[:10]:
        print(f"{key}\t{chance:.3f}")


if __name__ == "__main__":
    main()
