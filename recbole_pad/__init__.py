"""PAD (Pre-train, Align, Disentangle) as a plugin of RecBole: LLM-enhanced sequential recommendation.

After `import recbole_pad` RecBole knows the model `PAD` (see `recbole_pad.activation`), so that its own
`quick_start.run_recbole(model="PAD", ...)`, `load_data_and_model`, `objective_function` and `HyperTuning` do. The
import itself is quick: torch and RecBole are not loaded before they are needed.
"""

__version__ = "0.3.0"

from recbole_pad import activation as _activation

_activation.activate_with_recbole()
