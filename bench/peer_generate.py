"""PyTorch's side of bench/generation.ts: transformers' `generate` on the same prompts, padded on the left.

The dtype is that of the weights: float32 or bfloat16.
"""
import argparse, json, resource, time, torch
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

a = argparse.ArgumentParser()
a.add_argument('--task', required=True); a.add_argument('--weights', required=True)
a.add_argument('--batch', type=int, required=True); a.add_argument('--threads', type=int, required=True)
disable_progress_bar(); o = a.parse_args(); torch.set_num_threads(o.threads)
task = json.load(open(o.task)); prompts, ends = task['prompts'], task['eosIds']
model = AutoModelForCausalLM.from_pretrained(o.weights, dtype='auto', attn_implementation='sdpa').eval()

def best_beams(batch):
    length = max(map(len, batch))
    left = lambda row, value: [value] * (length - len(row)) + row
    ids = torch.tensor([left(p, ends[0]) for p in batch]); mask = torch.tensor([left([1] * len(p), 0) for p in batch])
    found = model.generate(input_ids=ids, attention_mask=mask, num_beams=task['beams'], max_new_tokens=task['maxNewTokens'],
                           do_sample=False, eos_token_id=ends, pad_token_id=ends[0])[:, length:].tolist()
    def until_end(row): return row[:next((i + 1 for i, id in enumerate(row) if id in ends), len(row))]
    return [until_end(row) for row in found]

best = []; seconds = []
with torch.inference_mode():
    best_beams(prompts[-o.batch:])
    for at in range(0, len(prompts), o.batch):
        started = time.perf_counter()
        best += best_beams(prompts[at:at + o.batch])
        seconds.append(time.perf_counter() - started)
print(json.dumps(dict(seconds=seconds, peakRssMiB=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, lists=[[ids] for ids in best])))
