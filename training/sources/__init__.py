"""Reading events, items and users from files, and fetching public data sets."""

from training.sources.download import DATASETS, get
from training.sources.people import held_out
from training.sources.quarantine import Rejected
from training.sources.reading import READERS, Counts, Data, read

__all__ = ["DATASETS", "READERS", "Counts", "Data", "Rejected", "get", "held_out", "read"]
