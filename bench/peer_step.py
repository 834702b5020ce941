"""The peer of `fellrec bench step`: one LoRA training step of a LLaMA-architecture model in PyTorch.

    pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2
    python bench/peer_step.py --config FOLDER/config.json --dtype fp32 [--batch 8 --length 128 --labels 15 --steps 4]

--dtype fp32 | bf16-autocast (float32 weights, autocast) | bf16 (bfloat16 weights). --impl hf (transformers + peft, what a user
would pick) | plain (hand-written modules, no framework overhead). Loss on the last --labels positions of every row, the head
computed on those rows only. Random weights: only the speed counts. Prints one JSON line: tokens/s of the best step, peak RSS.
"""
import argparse, contextlib, json, math, resource, time, torch, torch.nn as nn, torch.nn.functional as F

a = argparse.ArgumentParser()
a.add_argument('--config'); a.add_argument('--dtype', default='fp32'); a.add_argument('--impl', default='plain'); a.add_argument('--batch', type=int, default=8)
a.add_argument('--length', type=int, default=128); a.add_argument('--labels', type=int, default=15); a.add_argument('--steps', type=int, default=4)
a.add_argument('--rank', type=int, default=8); a.add_argument('--threads', type=int, default=2)
o = a.parse_args(); c = json.load(open(o.config)); torch.set_num_threads(o.threads); torch.manual_seed(0)
d, H, KV, f, V, L, r = c['hidden_size'], c['num_attention_heads'], c['num_key_value_heads'], c['intermediate_size'], c['vocab_size'], c['num_hidden_layers'], o.rank
hd = c.get('head_dim') or d // H; B, T, N = o.batch, o.length, o.labels

class Lora(nn.Module):
    def __init__(s, i, u):
        super().__init__(); s.w = nn.Linear(i, u, bias=False); s.w.weight.requires_grad_(False)
        s.A = nn.Parameter(torch.randn(r, i) * .02); s.B = nn.Parameter(torch.full((u, r), .001))
    def forward(s, x): return s.w(x) + (x @ s.A.t()) @ s.B.t() * 2
class Norm(nn.Module):
    def __init__(s): super().__init__(); s.w = nn.Parameter(torch.ones(d), requires_grad=False)
    def forward(s, x): return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * s.w
def frozen(i, u): m = nn.Linear(i, u, bias=False); m.weight.requires_grad_(False); return m
def rot(x): a, b = x.chunk(2, -1); return torch.cat((-b, a), -1)
class Layer(nn.Module):
    def __init__(s):
        super().__init__(); s.q, s.v = Lora(d, H * hd), Lora(d, KV * hd); s.k, s.o = frozen(d, KV * hd), frozen(H * hd, d)
        s.g, s.u, s.dn, s.n1, s.n2 = frozen(d, f), frozen(d, f), frozen(f, d), Norm(), Norm()
    def forward(s, x, cos, sin):
        h = s.n1(x); q = s.q(h).view(B, T, H, hd).transpose(1, 2); k = s.k(h).view(B, T, KV, hd).transpose(1, 2); v = s.v(h).view(B, T, KV, hd).transpose(1, 2)
        q, k = q * cos + rot(q) * sin, k * cos + rot(k) * sin
        y = F.scaled_dot_product_attention(q, k.repeat_interleave(H // KV, 1), v.repeat_interleave(H // KV, 1), is_causal=True)
        x = x + s.o(y.transpose(1, 2).reshape(B, T, H * hd)); h = s.n2(x)
        return x + s.dn(F.silu(s.g(h)) * s.u(h))
class Plain(nn.Module):
    def __init__(s):
        super().__init__(); s.e = nn.Embedding(V, d); s.e.weight.requires_grad_(False); s.l = nn.ModuleList([Layer() for _ in range(L)]); s.n = Norm()
        ang = torch.outer(torch.arange(T).float(), 1e5 ** (-torch.arange(0, hd, 2).float() / hd)); ang = torch.cat((ang, ang), -1)
        s.register_buffer('cos', ang.cos()); s.register_buffer('sin', ang.sin())
    def forward(s, ids, labels):
        x = s.e(ids)
        for l in s.l: x = l(x, s.cos, s.sin)
        return F.cross_entropy((s.n(x)[:, -N - 1:-1].reshape(-1, d) @ s.e.weight.t()).float(), labels.reshape(-1))
if o.impl == 'hf':
    from transformers import LlamaConfig, LlamaForCausalLM
    from peft import LoraConfig, get_peft_model
    cfg = LlamaConfig(**{k: v for k, v in c.items() if k not in ('architectures', 'model_type', 'torch_dtype')}, attn_implementation='sdpa', use_cache=False)
    m = get_peft_model(LlamaForCausalLM(cfg).float(), LoraConfig(r=r, lora_alpha=2 * r, lora_dropout=0.0, target_modules=['q_proj', 'v_proj'], task_type='CAUSAL_LM'))
    def loss_of(ids, labels):
        y = m(input_ids=ids, logits_to_keep=N + 1).logits[:, :-1]; return F.cross_entropy(y.float().reshape(-1, V), labels.reshape(-1))
else: m = Plain(); loss_of = m
if o.dtype == 'bf16': m = m.to(torch.bfloat16); loss_of = loss_of if o.impl == 'hf' else m
opt = torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-4)
ids = torch.randint(0, V, (B, T)); labels = ids[:, -N:]; best = 1e9; times = []
for _ in range(o.steps):
    t = time.time()
    with torch.autocast('cpu', dtype=torch.bfloat16) if o.dtype == 'bf16-autocast' else contextlib.nullcontext(): loss = loss_of(ids, labels)
    opt.zero_grad(); loss.backward(); opt.step(); times.append(time.time() - t)
print(json.dumps(dict(impl=o.impl, dtype=o.dtype, batch=B, length=T, labels=N, tokensPerSecond=round(B * T / min(times), 1), secondsPerStep=[round(x, 3) for x in times], peakRssMiB=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, torch=torch.__version__)))
