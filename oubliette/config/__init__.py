"""The configuration: one strict file, read once at start, every mistake named with its line.

``load_config`` is what the daemon uses; ``check_config`` lists everything that is wrong. Attributes are the keys of the
file in snake case: ``config.defaults.limits.max_cost_usd``.
"""

from oubliette.config.load import apply_environment, check_config, load_config, schema
from oubliette.config.models import BUILT_IN_MODELS, ModelAlias, ProviderCredential
from oubliette.config.root import Config, ResolvedProvider

__all__ = [
    "BUILT_IN_MODELS",
    "Config",
    "ModelAlias",
    "ProviderCredential",
    "ResolvedProvider",
    "apply_environment",
    "check_config",
    "load_config",
    "schema",
]
