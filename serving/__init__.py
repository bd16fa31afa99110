"""The service: pipeline, policy, store and HTTP interface."""
