"""PyTorch's side of bench/epoch.ts: transformers + peft train the same adapter on the same batches.

--dtype fp32 | bf16-autocast (float32 weights, autocast) | bf16 (bfloat16 base, float32 adapter). The head computes labelled
places only; batches of like lengths are padded on the right, where causal attention needs no mask.
"""
import argparse, contextlib, json, resource, time, torch, torch.nn.functional as F
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

a = argparse.ArgumentParser()
a.add_argument('--task', required=True); a.add_argument('--adapter', required=True); a.add_argument('--weights', required=True)
a.add_argument('--dtype', choices=['fp32', 'bf16-autocast', 'bf16'], required=True); a.add_argument('--threads', type=int, required=True)
disable_progress_bar(); o = a.parse_args(); torch.set_num_threads(o.threads); torch.manual_seed(0)
task = json.load(open(o.task)); batches = task['batches']
base = AutoModelForCausalLM.from_pretrained(o.weights, dtype='auto', attn_implementation='sdpa')
model = PeftModel.from_pretrained(base, o.adapter, is_trainable=True); model.train(); model.config.use_cache = False
trained = [p for p in model.parameters() if p.requires_grad]
assert all(p.dtype == torch.float32 for p in trained)

def loss_of(batch):
    length = max(len(s['ids']) for s in batch)
    pad = lambda row, value: row + [value] * (length - len(row))
    ids = torch.tensor([pad(s['ids'], 0) for s in batch])
    labels = torch.tensor([pad(s['labels'][1:], -100) for s in batch])  # what follows each token
    keep = labels != -100
    with torch.autocast('cpu', dtype=torch.bfloat16) if o.dtype == 'bf16-autocast' else contextlib.nullcontext():
        logits = model(input_ids=ids, logits_to_keep=keep).logits  # [labels, vocabulary]
    return F.cross_entropy(logits.float(), labels[keep])

loss_of(max(batches, key=lambda b: len(b[-1]['ids']))).backward()
model.zero_grad()
optimizer = torch.optim.AdamW(trained, lr=task['learningRate'], weight_decay=0)
schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / len(batches))
total = 0.0; seconds = []
for batch in batches:
    started = time.perf_counter()
    loss = loss_of(batch); loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, task['clipNorm'])
    optimizer.step(); schedule.step(); optimizer.zero_grad()
    total += loss.item() / len(batches)
    seconds.append(time.perf_counter() - started)
print(json.dumps(dict(seconds=seconds, peakRssMiB=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, loss=total)))
