"""PyTorch's side of bench/constrained.ts: transformers' `generate` with `prefix_allowed_tokens_fn`, padded on the left.

The titles are a tree of dictionaries; a user's history closes the nodes that have nothing else below them.
"""
import argparse, json, resource, time, torch
from collections import Counter
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

a = argparse.ArgumentParser()
a.add_argument('--task', required=True); a.add_argument('--weights', required=True)
a.add_argument('--batch', type=int, required=True); a.add_argument('--threads', type=int, required=True)
disable_progress_bar(); o = a.parse_args(); torch.set_num_threads(o.threads)
task = json.load(open(o.task)); prompts, ends, beams = task['prompts'], task['eosIds'], task['beams']
sequences, histories = task['along']['sequences'], task['along']['histories']
model = AutoModelForCausalLM.from_pretrained(o.weights, dtype='auto', attn_implementation='sdpa').eval()

class Node:
    def __init__(self): self.children = {}; self.count = 0
root = Node()
def path(ids):
    node = root
    for id in ids:
        node = node.children.setdefault(id, Node())
        yield node
for ids in sequences:
    for node in path(ids): node.count += 1

def closed(history):
    left_out = Counter(node for index in set(history) for node in path(sequences[index]))
    return {node for node, count in left_out.items() if count == node.count}

def lists_of(batch, histories):
    length = max(map(len, batch)); shut = [closed(history) for history in histories]
    left = lambda row, value: [value] * (length - len(row)) + row
    ids = torch.tensor([left(p, ends[0]) for p in batch]); mask = torch.tensor([left([1] * len(p), 0) for p in batch])
    def allowed(user, row):
        node = root
        for id in row[length:].tolist():
            node = node.children.get(id)
            if node is None: return ends[:1]  # a beam that has ended
        return [id for id, child in node.children.items() if child not in shut[user]] or ends[:1]
    found = model.generate(input_ids=ids, attention_mask=mask, num_beams=beams, num_return_sequences=beams,
                           max_new_tokens=task['maxNewTokens'], do_sample=False, eos_token_id=ends, pad_token_id=ends[0],
                           prefix_allowed_tokens_fn=allowed, return_dict_in_generate=True, output_scores=True)
    def until_end(row): return row[:next((i + 1 for i, id in enumerate(row) if id in ends), len(row))]
    rows = [until_end(row) for row in found.sequences[:, length:].tolist()]
    # Greedy search gives no scores; places that no hypothesis has filled score -1e9 or nearly.
    scores = [0] * len(rows) if beams == 1 else found.sequences_scores.tolist()
    return [[row for row, score in zip(rows[at:at + beams], scores[at:at + beams]) if score > -1e6]
            for at in range(0, len(rows), beams)]

lists = []; seconds = []
with torch.inference_mode():
    lists_of(prompts[-o.batch:], histories[-o.batch:])
    for at in range(0, len(prompts), o.batch):
        started = time.perf_counter()
        lists += lists_of(prompts[at:at + o.batch], histories[at:at + o.batch])
        seconds.append(time.perf_counter() - started)
print(json.dumps(dict(seconds=seconds, peakRssMiB=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, lists=lists)))
