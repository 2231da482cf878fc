"""A model that trains in a second, for tests of what is around it."""

from __future__ import annotations

__all__ = ["CONFIG", "QUIET"]

CONFIG = {
    "nodes": 8,
    "layers": 1,
    "context_members": 1,
    "context_units": 8,
    "context_nodes": 8,
    "context_heads": 2,
    "context_samples": 2_000,
}
QUIET = {"progress": False}
