"""Data sets by name, each with a training, a validation and a test split."""

from imagenet_codebase.data_providers.catalog import DATASETS, DatasetDefaults, open_dataset
from imagenet_codebase.data_providers.provider import DataProvider, Loader, Shard

__all__ = ["DATASETS", "DataProvider", "DatasetDefaults", "Loader", "Shard", "open_dataset"]
