"""The HTTP interface: one router a noun, one shape for every error."""

from __future__ import annotations

from serving.api.create import create_api

__all__ = ["create_api"]
