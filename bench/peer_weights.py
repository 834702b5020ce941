"""Writes a model as a folder that transformers loads without converting, so that a peer's peak of memory is its computation's.

    python bench/peer_weights.py --model FOLDER --dtype float32 --out FOLDER

--model: a Hugging Face folder, or one with a single .gguf file (read by transformers; needs `pip install gguf`).
"""
import argparse, pathlib, torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar
disable_progress_bar()

a = argparse.ArgumentParser()
a.add_argument('--model', required=True); a.add_argument('--dtype', choices=['float32', 'bfloat16'], required=True); a.add_argument('--out', required=True)
o = a.parse_args()
folder = pathlib.Path(o.model)
ggufs = [] if list(folder.glob('*.safetensors')) else sorted(folder.glob('*.gguf'))
source = {'gguf_file': ggufs[0].name} if ggufs else {}
dtype = getattr(torch, o.dtype)
read = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **source)
# What came from GGUF counts as quantised and cannot be saved; a model made anew with its weights can.
config = read.config
if hasattr(config, 'quantization_config'): del config.quantization_config
plain = AutoModelForCausalLM.from_config(config, dtype=dtype)
plain.load_state_dict(read.state_dict())
plain.save_pretrained(o.out)
