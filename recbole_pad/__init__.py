"""PAD (Pre-train, Align, Disentangle) as a plugin of RecBole: LLM-enhanced sequential recommendation.

Importing the package registers the model `PAD` with RecBole (see `recbole_pad.registration`), so that RecBole's own
`quick_start.run_recbole(model="PAD", ...)`, `load_data_and_model`, `objective_function` and `HyperTuning` know it.
"""

__version__ = "0.1.0"

from recbole_pad import compat as _compat

_compat.apply()

from recbole_pad import registration as _registration  # noqa: E402 - RecBole must be importable first

_registration.register()
