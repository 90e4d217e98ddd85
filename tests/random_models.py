"""Random small models: architectures of transformers and plain modules, wrappers round them, dtypes.

Everything is drawn from a `random.Random`; what `draw_model` gives builds the same model, to the bit, each time.
"""

import contextlib
import itertools
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

# fmt: off
CAUSAL = [
    "afmoe", "apertus", "arcee", "aria_text", "bailing_hybrid", "bart", "beam", "bert", "bert-generation",
    "big_bird", "biogpt", "blenderbot", "bloom", "camembert", "codegen", "cohere", "cohere2", "cohere2_moe",
    "cwm", "deepseek_v2", "deepseek_v3", "diffllama", "doge", "dots1", "electra", "ernie4_5", "ernie4_5_moe",
    "exaone4", "exaone_moe", "falcon", "falcon_mamba", "flex_olmo", "gemma", "gemma2", "gemma3_text", "glm",
    "glm4", "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neox", "gpt_oss", "gptj", "granite", "granitemoe",
    "granitemoeshared", "helium", "hunyuan_v1_dense", "hunyuan_v1_moe", "jetmoe", "lfm2", "llama",
    "llama4_text", "mamba", "marian", "mbart", "minicpm3", "minimax", "minimax_m2", "ministral", "mistral",
    "mixtral", "modernbert-decoder", "mpt", "nanochat", "nemotron", "olmo", "olmo2", "olmo3", "olmoe",
    "openai-gpt", "opt", "pegasus", "persimmon", "phi", "phi3", "phimoe", "plbart", "qwen2", "qwen2_moe",
    "qwen3", "qwen3_moe", "roberta", "roformer", "rwkv", "seed_oss", "smollm3", "stablelm", "starcoder2",
    "trocr", "vaultgemma", "whisper", "xglm", "xlm", "xlm-roberta",
]
COMMON = [
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi", "phi3", "gpt2", "gpt_neox", "opt",
    "bloom", "falcon", "mixtral", "gpt_oss",
]
# fmt: on
SEQ2SEQ = ["t5", "mt5", "bart", "mbart", "pegasus", "marian", "blenderbot", "plbart", "umt5"]
# fmt: off
MASKED = [
    "bert", "roberta", "distilbert", "albert", "electra", "mpnet", "xlm-roberta", "deberta", "deberta-v2",
    "modernbert",
]
# fmt: on
CLASSIFYING = ["bert", "roberta", "distilbert", "llama", "gpt2", "qwen2", "opt", "t5", "bart"]


@dataclass
class Drawn:
    """A model that can be built again and again, and what to call it with."""

    name: str
    build: Callable[[], nn.Module]
    inputs: dict | tuple
    causal: bool = False
    dtype: torch.dtype = torch.float32
    wrapper: str = "none"
    wrap: Callable[[nn.Module], nn.Module] = lambda model: model

    @property
    def is_hf(self) -> bool:
        return isinstance(self.inputs, dict)


def call(model: nn.Module, inputs) -> torch.Tensor:
    """All floating-point results of a call, as one flat float64 tensor with a gradient."""
    result = model(**inputs) if isinstance(inputs, dict) else model(*inputs)
    return torch.cat([t.reshape(-1).double() for t in _floats(result)])


def _floats(result):
    if isinstance(result, torch.Tensor):
        return [result] if result.is_floating_point() else []
    if hasattr(result, "logits"):
        return _floats(result.logits)
    if isinstance(result, dict):
        result = list(result.values())
    return [t for one in result if one is not None for t in _floats(one)] if isinstance(result, tuple | list) else []


# -- transformers


def _tiny_config(kind: str, changed: dict):
    """A configuration of this family in which all the sizes it knows are small."""
    made = transformers.models.auto.configuration_auto.CONFIG_MAPPING[kind]
    heads = changed["heads"]
    hidden, layers, vocabulary, middle = 8 * heads, changed["layers"], changed["vocabulary"], changed["middle"]
    small = {
        **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), vocabulary),
        **dict.fromkeys(
            ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "embedding_size", "dim", "emb_dim"), hidden
        ),
        **dict.fromkeys(
            ("intermediate_size", "ffn_dim", "d_ff", "n_inner", "encoder_ffn_dim", "decoder_ffn_dim", "hidden_dim"),
            middle,
        ),
        **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers"), layers),
        **dict.fromkeys(("encoder_layers", "decoder_layers"), 1),
        **dict.fromkeys(
            (
                "num_attention_heads",
                "n_head",
                "num_heads",
                "n_heads",
                "encoder_attention_heads",
                "decoder_attention_heads",
            ),
            heads,
        ),
        "num_key_value_heads": heads // 2,
        **dict.fromkeys(("head_dim", "d_kv", "v_head_dim", "kv_lora_rank", "q_lora_rank"), 8),
        **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "rotary_dim", "state_size", "time_step_rank"), 4),
        **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 64),
        **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
        "num_experts_per_tok": 2,
        **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 24),
        **dict.fromkeys(
            ("n_group", "topk_group", "n_shared_experts", "first_k_dense_replace", "decoder_sparse_step"), 1
        ),
        "mlp_only_layers": [],
        "sliding_window": 8,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 0,
        "is_decoder": changed["causal"],
        "tie_word_embeddings": changed["tied"],
        "attention_bias": changed["bias"],
        "mlp_bias": changed["bias"],
        "type_vocab_size": 2,
        "num_labels": 3,
    }
    if kind == "deepseek_v3":
        small |= {"num_key_value_heads": heads, "head_dim": 4}
    known = set(made().to_dict()) | set(getattr(made, "attribute_map", {}))
    options = {name: value for name, value in small.items() if name in known or name in ("num_labels", "is_decoder")}
    options |= {name: 0.0 for name in known if "dropout" in name or name.endswith(("pdrop", "layerdrop"))}
    kinds_of_layers = getattr(made(), "layer_types", None)
    if kinds_of_layers:
        options["layer_types"] = [*kinds_of_layers[: layers - 1], kinds_of_layers[-1]]
    return made(**options)


@contextlib.contextmanager
def quiet():
    """Nothing of transformers' reports and bars, and of the warnings that constructors give."""
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers.logging.set_verbosity(before)


def stirred(model: nn.Module) -> nn.Module:
    """Weights large enough that no output is all but constant."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2 and parameter.numel() > 1 and parameter.std() < 0.08:
                parameter.copy_(torch.randn(parameter.shape) * 0.15)
    return model


def _draw_hf(r: random.Random) -> Drawn:
    task = r.choices(("CausalLM", "Seq2SeqLM", "MaskedLM", "SequenceClassification"), (82, 8, 5, 5))[0]
    families = {"Seq2SeqLM": SEQ2SEQ, "MaskedLM": MASKED, "SequenceClassification": CLASSIFYING}.get(task)
    kind = r.choice(families or r.choice((CAUSAL, CAUSAL, COMMON)))
    changed = {
        "heads": r.choice((2, 4, 4, 8)),
        "layers": r.choice((1, 2, 2, 3)),
        "vocabulary": r.choice((48, 61, 64)),
        "middle": r.choice((24, 48, 49)),
        "tied": r.random() < 0.5,
        "bias": r.random() < 0.3,
        "causal": task == "CausalLM",
    }
    seed = r.randrange(2**31)
    auto = getattr(transformers, f"AutoModelFor{task}")

    def build():
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return stirred(auto.from_config(_tiny_config(kind, changed))).eval()

    tokens = torch.randint(3, 40, (2, r.choice((1, 5, 9))), generator=torch.Generator().manual_seed(seed))
    inputs = {"input_ids": tokens}
    if task == "Seq2SeqLM":
        inputs["decoder_input_ids"] = tokens[:, :4]
    elif task == "CausalLM":
        inputs["use_cache"] = False
    said = ",".join(f"{name}={value}" for name, value in changed.items() if name != "causal")
    return Drawn(f"{task}:{kind}({said})", build, inputs, causal=task == "CausalLM")


# -- plain modules


class Reading(nn.Module):
    """Uses the weight of one of its linear layers by itself."""

    def __init__(self, n, how):
        super().__init__()
        self.first, self.second, self.how = nn.Linear(n, n), nn.Linear(n, n), how

    def forward(self, x):
        x = self.first(x).relu()
        if self.how == "dtype":
            return self.second(x.to(self.second.weight.dtype))
        if self.how == "linear":
            return F.linear(x, self.second.weight, self.second.bias)
        if self.how == "matmul":
            return x @ self.second.weight.t() + self.second.bias
        if self.how == "norm":
            return self.second(x) / self.second.weight.norm()
        return self.second(x.to(self.second.weight.device)) + self.second.weight.shape[0] + self.second.in_features


class Shared(nn.Module):
    """One module, or one weight, in two places."""

    def __init__(self, n, how):
        super().__init__()
        self.first, self.second = nn.Linear(n, n), nn.Linear(n, n)
        if how == "module":
            self.second = self.first
        elif how == "nested":
            self.second = nn.Sequential(nn.Tanh(), self.first)
        elif how == "weight":
            self.second.weight = self.first.weight
        elif how == "storage":
            self.second.weight = nn.Parameter(self.first.weight.data)
        elif how == "transposed":
            self.second.weight = nn.Parameter(self.first.weight.data.t())
        elif how == "part":
            self.second.weight = nn.Parameter(self.first.weight.data[:, : n // 2])
            self.second.in_features = n // 2
        self.how = how

    def forward(self, x):
        x = self.first(x).tanh()
        return self.second(x[..., : x.shape[-1] // 2] if self.how == "part" else x)


class Scaled(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, x):
        return 2 * super().forward(x)


class Named(nn.Linear):
    """A subclass in name only."""


class Attention(nn.Module):
    def __init__(self, n, bias):
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(n, 2, bias=bias, batch_first=True), nn.Linear(n, n)

    def forward(self, x):
        return self.out(self.attention(x, x, x, need_weights=False)[0])


class Branches(nn.Module):
    """Layers in a ModuleDict, a ModuleList, and one more that is never called."""

    def __init__(self, n, bias):
        super().__init__()
        self.parts = nn.ModuleDict({"left": nn.Linear(n, n, bias=bias), "right": nn.Linear(n, n)})
        self.list = nn.ModuleList([nn.Linear(n, n), nn.Sequential(nn.Linear(n, n), nn.GELU())])
        self.unused = nn.Linear(n, 3)

    def forward(self, x):
        x = self.parts["left"](x) * self.parts["right"](input=x)
        for part in self.list:
            x = part(x)
        return x


class Two(nn.Module):
    def __init__(self, n, m):
        super().__init__()
        self.bilinear, self.out = nn.Bilinear(n, n, m), nn.Linear(m, n)

    def forward(self, x):
        return self.out(self.bilinear(x, x.tanh()))


class Convolving(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.convolution, self.out = nn.Conv1d(n, n, 3, padding=1), nn.Linear(n, n)

    def forward(self, x):
        return self.out(self.convolution(x.transpose(1, 2)).transpose(1, 2))


class Recurrent(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.cell, self.out = nn.LSTM(n, n, batch_first=True), nn.Linear(n, n)

    def forward(self, x):
        return self.out(self.cell(x)[0])


class OneDtype(nn.Module):
    """Each layer may have a dtype of its own: what comes in is cast."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x.to(next(layer.parameters()).dtype)).tanh()
        return x


def _mlp(r, n):
    sizes = [n, *(r.choice((0, 1, 2, 3, 7, 16, 33, 64)) for _ in range(r.choice((1, 2, 3)))), r.choice((1, 5, 16))]
    layers = [nn.Linear(a, b, bias=r.random() < 0.6) for a, b in itertools.pairwise(sizes)]
    return nn.Sequential(*(part for layer in layers for part in (layer, nn.SiLU()))), f"mlp{sizes}"


def _normed(r, n):
    kinds = {
        "weight_norm": parametrizations.weight_norm,
        "spectral_norm": parametrizations.spectral_norm,
        "orthogonal": parametrizations.orthogonal,
        "old weight_norm": nn.utils.weight_norm,
        "old spectral_norm": nn.utils.spectral_norm,
        "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        "bias pruned": lambda layer: prune.l1_unstructured(layer, "bias", 0.5),
        "bias parametrized": lambda layer: (
            nn.utils.parametrize.register_parametrization(layer, "bias", nn.Softplus()),
            layer,
        )[1],
    }
    kind = r.choice(list(kinds))
    layers = [nn.Linear(n, n), nn.Linear(n, n)]
    with quiet():
        changed = r.choice((0, 1))
        layers[changed] = kinds[kind](layers[changed])
    return nn.Sequential(layers[0], nn.Tanh(), layers[1]), kind


def _odd(r, n):
    kind = r.choice(
        ("column-major", "expanded", "frozen", "forward replaced", "weight is a view", "zeros", "one block", "tiny")
    )
    layer = nn.Linear(n, n)
    if kind == "column-major":
        layer.weight = nn.Parameter(torch.randn(n, n).t())
    elif kind == "expanded":
        layer.weight = nn.Parameter(torch.randn(n, 1).expand(n, n))
    elif kind == "frozen":
        layer.requires_grad_(False)
    elif kind == "forward replaced":
        layer.forward = lambda x, layer=layer: F.linear(x, layer.weight) * 3
    elif kind == "weight is a view":
        layer.weight = nn.Parameter(torch.randn(2 * n, n)[n:])
    elif kind == "zeros":
        nn.init.zeros_(layer.weight)
    elif kind == "one block":
        layer = nn.Linear(n, 1)
    elif kind == "tiny":
        nn.init.normal_(layer.weight, std=1e-30)
    return nn.Sequential(nn.Linear(n, n), nn.Tanh(), layer), f"odd:{kind}"


def _torch_layers(r, n):
    kind = r.choice(("encoder layer", "encoder", "decoder layer", "transformer"))
    options = {
        "dim_feedforward": 24,
        "dropout": 0.0,
        "batch_first": True,
        "norm_first": r.random() < 0.5,
        "bias": r.random() < 0.7,
    }
    layer = nn.TransformerEncoderLayer(n, 2, **options)
    if kind == "encoder layer":
        return layer, kind
    if kind == "encoder":
        return nn.TransformerEncoder(layer, 2, enable_nested_tensor=r.random() < 0.5), kind
    if kind == "decoder layer":
        return _Twofold(nn.TransformerDecoderLayer(n, 2, **options)), kind
    return _Twofold(nn.Transformer(n, 2, 1, 1, **options)), kind


class _Twofold(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x, x.tanh())


PLAIN = {
    "mlp": _mlp,
    "normed": _normed,
    "odd": _odd,
    "torch": _torch_layers,
    "reading": lambda r, n: (lambda how: (Reading(n, how), f"reading:{how}"))(
        r.choice(("dtype", "linear", "matmul", "norm", "shape"))
    ),
    "shared": lambda r, n: (lambda how: (Shared(n, how), f"shared:{how}"))(
        r.choice(("module", "nested", "weight", "storage", "transposed", "part"))
    ),
    "subclass": lambda r, n: (lambda cls: (nn.Sequential(nn.Linear(n, n), cls(n, n)), f"subclass:{cls.__name__}"))(
        r.choice((Scaled, Named))
    ),
    "attention": lambda r, n: (Attention(n, r.random() < 0.5), "attention"),
    "branches": lambda r, n: (Branches(n, r.random() < 0.5), "branches"),
    "bilinear": lambda r, n: (Two(n, r.choice((1, 6))), "bilinear"),
    "convolving": lambda r, n: (Convolving(n), "convolving"),
    "recurrent": lambda r, n: (Recurrent(n), "recurrent"),
    "lazy": lambda r, n: (nn.Sequential(nn.LazyLinear(n), nn.Tanh(), nn.Linear(n, 3)), "lazy"),
    "lonely": lambda r, n: (nn.Linear(n, r.choice((1, 7, 64))), "lonely"),
    "mixed": lambda r, n: (
        OneDtype([nn.Linear(n, n).to(r.choice((torch.float32, torch.bfloat16, torch.float64))) for _ in range(3)]),
        "mixed",
    ),
    "embedding": lambda r, n: (nn.Sequential(nn.Linear(n, 8), nn.LayerNorm(8), nn.Linear(8, 8)), "norm"),
}


def _draw_plain(r: random.Random) -> Drawn:
    kind, n = r.choice(list(PLAIN)), r.choice((2, 4, 8, 16, 32, 34))
    if kind == "torch":  # layer norms of two numbers leave their order alone, and of gradients nothing but rounding
        n = max(n, 4)
    seed = r.randrange(2**31)

    def make():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return PLAIN[kind](random.Random(seed), n)

    def build():
        return make()[0].eval()

    x = torch.randn(2, 5, n, generator=torch.Generator().manual_seed(seed))
    return Drawn(f"{make()[1]}(n={n})", build, (x,))


class TinyLM(nn.Module):
    """A causal language model of one's own, which does something to its logits."""

    def __init__(self, how, tied, head):
        super().__init__()
        self.how, self.says_head = how, head
        self.embed, self.layer = nn.Embedding(48, 16), nn.Linear(16, 16)
        self.lm_head = nn.Linear(16, 48, bias=how == "bias")
        if tied:
            self.lm_head.weight = self.embed.weight

    def get_output_embeddings(self):
        return self.lm_head if self.says_head else None

    def forward(self, input_ids, attention_mask=None, use_cache=False):
        h = self.embed(input_ids)
        h = h + self.layer(h.cumsum(1)).tanh()
        z = self.lm_head(h)
        if self.how == "in place":
            z /= 0.25
        elif self.how == "scaled":
            z = z * 3
        elif self.how == "capped":
            z = 5 * (z / 5).tanh()
        elif self.how == "masked in place":
            z[..., 3] = -30.0
        elif self.how == "twice":
            z = z + self.lm_head(h.tanh())
        elif self.how == "last":
            z[:, -1].mul_(2)
        elif self.how == "view":
            z.view(-1).mul_(0.5)
        elif self.how == "functional":
            z = F.linear(h, self.lm_head.weight) * 0.5
        return transformers.modeling_outputs.CausalLMOutput(logits=z)


def _draw_own(r: random.Random) -> Drawn:
    how = r.choice(
        ("plain", "bias", "in place", "scaled", "capped", "masked in place", "twice", "last", "view", "functional")
    )
    tied, head, seed = r.random() < 0.3, r.random() < 0.7, r.randrange(2**31)

    def build():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return TinyLM(how, tied, head).eval()

    tokens = torch.randint(3, 40, (2, 6), generator=torch.Generator().manual_seed(seed))
    return Drawn(f"own LM:{how}({tied=},{head=})", build, {"input_ids": tokens}, causal=True)


# -- round it


class Wrap(nn.Module):
    """A wrapper of one's own."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **options):
        return self.inner(*args, **options)


def blocks(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """(parent, name) of the blocks of the model: what lies in its ModuleLists, else its children that have children."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    found = [(module, name) for module in lists[:1] for name, _ in module.named_children()]
    return found or [(model, name) for name, child in model.named_children() if next(child.children(), None)]


def _each_block(wrap):
    def apply(model):
        for parent, name in blocks(model):
            setattr(parent, name, wrap(getattr(parent, name)))
        return model

    return apply


def _hooked(hook):
    """With the hook on the second linear layer (or the only one)."""

    def apply(model):
        linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
        for layer in linears[1:2] or linears[:1]:
            hook(layer)
        return model

    return apply


def _compiled(model):
    model.compile(backend="eager")
    return model


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compile()": _compiled,
    "compiled blocks": _each_block(lambda block: torch.compile(block, backend="eager")),
    "compile() of blocks": _each_block(_compiled),
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "checkpoint_wrapper of blocks": _each_block(checkpoint_wrapper),
    "own wrapper": Wrap,
    "own wrapper of blocks": _each_block(Wrap),
    "hook that changes the output": _hooked(lambda m: m.register_forward_hook(lambda module, x, y: y * 1.5)),
    "hook that changes the input": _hooked(lambda m: m.register_forward_pre_hook(lambda module, x: (x[0] * 0.5,))),
    "hook with keywords": _hooked(
        lambda m: m.register_forward_pre_hook(lambda module, x, options: (x, options), with_kwargs=True)
    ),
    "backward hook": _hooked(lambda m: m.register_full_backward_hook(lambda module, dx, dy: None)),
    "train mode": lambda model: model.train(),
}


def draw_model(r: random.Random) -> Drawn:
    """An architecture, its dtype, and what is round it."""
    drawn = r.choices((_draw_hf, _draw_plain, _draw_own), (58, 35, 7))[0](r)
    dtype = r.choices((torch.float32, torch.bfloat16, torch.float16, torch.float64), (64, 22, 10, 4))[0]
    wrapper = r.choice(list(WRAPPERS)) if r.random() < 0.4 else "none"
    if dtype != torch.float32 and not drawn.name.startswith(("mixed", "lazy")):
        plain = drawn.build
        drawn.build, drawn.dtype = (lambda: plain().to(dtype)), dtype
        if not drawn.is_hf:
            drawn.inputs = tuple(x.to(dtype) for x in drawn.inputs)
    drawn.wrapper, drawn.wrap = wrapper, WRAPPERS.get(wrapper, drawn.wrap)
    return drawn
