"""RAT+ models in transformers, without `trust_remote_code`: `import ratplus.hf` registers their classes there.

`modeling_ratplus.py` is also what `ratplus export --format hf` puts beside the weights, for those who have no ratplus.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from ratplus.hf.modeling_ratplus import RATPlusConfig, RATPlusForCausalLM

__all__ = ["RATPlusConfig", "RATPlusForCausalLM"]

AutoConfig.register(RATPlusConfig.model_type, RATPlusConfig, exist_ok=True)
AutoModelForCausalLM.register(RATPlusConfig, RATPlusForCausalLM, exist_ok=True)
