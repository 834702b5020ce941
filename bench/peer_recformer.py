"""PyTorch's side of bench/recformer.ts: full fine-tuning steps from the same checkpoint on the same batch, float32.

--form dense (plain modules, scaled_dot_product_attention with a mask over all pairs) | longformer (transformers' sliding
windows). Sequences are of one length, so that no mask of padding is needed. The first token reads by its own projections.
"""
import argparse, json, os, resource, time
os.environ['TRANSFORMERS_VERBOSITY'] = 'error'
import safetensors.torch, torch, torch.nn as nn, torch.nn.functional as F, transformers

a = argparse.ArgumentParser()
for name in ('model', 'task', 'items'): a.add_argument(f'--{name}', required=True)
a.add_argument('--steps', type=int, required=True); a.add_argument('--threads', type=int, required=True)
a.add_argument('--form', choices=['dense', 'longformer'], required=True)
o = a.parse_args(); torch.set_num_threads(o.threads)
c = json.load(open(os.path.join(o.model, 'config.json'))); task = json.load(open(o.task))
d, ffn, H, L, window = c['hidden_size'], c['intermediate_size'], c['num_attention_heads'], c['num_hidden_layers'], c['attention_window'][0]
assert set(c['attention_window']) == {window}

group = lambda **modules: nn.ModuleDict(modules)
norm = lambda: nn.LayerNorm(d, eps=c['layer_norm_eps'])


class Embeddings(nn.Module):
    item_positions = None  # [batch, time]: transformers' encoder has no argument for them

    def __init__(self):
        super().__init__()
        self.word_embeddings = nn.Embedding(c['vocab_size'], d); self.position_embeddings = nn.Embedding(c['max_position_embeddings'], d)
        self.token_type_embeddings = nn.Embedding(c['token_type_size'], d); self.item_position_embeddings = nn.Embedding(c['max_item_embeddings'], d)
        self.LayerNorm = norm()

    def forward(self, input_ids, token_type_ids, position_ids=None, inputs_embeds=None):
        positions = torch.arange(2, input_ids.shape[1] + 2)
        return self.LayerNorm(self.word_embeddings(input_ids) + self.position_embeddings(positions)
                              + self.token_type_embeddings(token_type_ids) + self.item_position_embeddings(self.item_positions))


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        names = ('query', 'key', 'value', 'query_global', 'key_global', 'value_global')
        self.attention = group(self=nn.ModuleDict({name: nn.Linear(d, d) for name in names}), output=group(dense=nn.Linear(d, d), LayerNorm=norm()))
        self.intermediate = group(dense=nn.Linear(d, ffn)); self.output = group(dense=nn.Linear(ffn, d), LayerNorm=norm())

    def forward(self, x, near):
        project, out = self.attention['self'], self.attention['output']
        heads = lambda name, x: project[name](x).unflatten(-1, (H, d // H)).transpose(1, 2)
        read = F.scaled_dot_product_attention(heads('query', x), heads('key', x), heads('value', x), attn_mask=near)
        first = F.scaled_dot_product_attention(heads('query_global', x[:, :1]), heads('key_global', x), heads('value_global', x))
        read = torch.cat((first, read[:, :, 1:]), 2).transpose(1, 2).flatten(2)
        x = out['LayerNorm'](x + out['dense'](read))
        return self.output['LayerNorm'](x + self.output['dense'](F.gelu(self.intermediate['dense'](x))))


class Dense(nn.Module):
    def __init__(self):
        super().__init__(); self.embeddings = Embeddings(); self.encoder = group(layer=nn.ModuleList(Layer() for _ in range(L)))

    def forward(self, ids, types):
        x = self.embeddings(ids, types); at = torch.arange(ids.shape[1])
        near = (at[:, None] - at).abs() <= window // 2; near[:, 0] = True
        for layer in self.encoder['layer']: x = layer(x, near)
        return x


tensor = lambda name: torch.tensor([row['sequence'][name] for row in task['batch']])
ids, types = tensor('ids'), tensor('tokenTypes')
if o.form == 'dense':
    model = Dense(); hidden = lambda: model(ids, types)
else:
    config = transformers.LongformerConfig(
        **{k: c[k] for k in ('vocab_size', 'hidden_size', 'intermediate_size', 'num_hidden_layers', 'num_attention_heads', 'max_position_embeddings', 'layer_norm_eps', 'attention_window')},
        type_vocab_size=1, pad_token_id=c['pad_token_id'], hidden_dropout_prob=0, attention_probs_dropout_prob=0)
    model = transformers.LongformerModel(config, add_pooling_layer=False); model.embeddings = Embeddings()
    everything = torch.ones_like(ids); first = torch.zeros_like(ids); first[:, 0] = 1
    hidden = lambda: model(input_ids=ids, attention_mask=everything, global_attention_mask=first, token_type_ids=types).last_hidden_state
model.load_state_dict(safetensors.torch.load_file(os.path.join(o.model, 'model.safetensors')))
model.embeddings.item_positions = tensor('itemPositions'); model.train()
items = safetensors.torch.load_file(o.items)['items']; labels = torch.tensor([row['label'] for row in task['batch']])
optimizer = torch.optim.AdamW(model.parameters(), lr=task['learningRate'], weight_decay=0, fused=True)
seconds = []
for step in range(o.steps + 1):  # the first one warms up
    started = time.perf_counter()
    optimizer.zero_grad()
    loss = F.cross_entropy(F.normalize(hidden()[:, 0], dim=-1) @ items.t() / task['temperature'], labels)
    loss.backward(); optimizer.step()
    if step > 0: seconds.append(time.perf_counter() - started)
print(json.dumps(dict(seconds=seconds, peakRssMiB=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, loss=loss.item(),
                      versions=dict(torch=torch.__version__, transformers=transformers.__version__))))
