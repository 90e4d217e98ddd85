"""Every causal language model that transformers can build on a CPU, tiny: what its code does is what users bring."""

import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

# the sizes of a tiny model, under all the names that configurations have for them
SIZES = {
    64: "vocab_size max_position_embeddings n_positions n_ctx",
    48: "intermediate_size n_inner d_ff ffn_dim ffn_hidden_size encoder_ffn_dim decoder_ffn_dim",
    32: "hidden_size n_embd d_model embedding_size attention_hidden_size",
    16: "moe_intermediate_size",
    8: "head_dim d_kv kv_lora_rank q_lora_rank v_head_dim sliding_window rotary_dim",
    4: "num_attention_heads n_head num_heads n_heads num_experts num_local_experts n_routed_experts moe_num_experts "
    "qk_rope_head_dim qk_nope_head_dim state_size mamba_d_state encoder_attention_heads decoder_attention_heads",
    2: "num_hidden_layers num_key_value_heads n_layer n_layers num_layers encoder_layers decoder_layers "
    "num_experts_per_tok eos_token_id",
    1: "n_group topk_group bos_token_id",
    0: "pad_token_id",
}
TINY = {name: size for size, names in SIZES.items() for name in names.split()}

NAMES = """
afmoe apertus arcee aria_text bart beam bert bert-generation big_bird bigbird_pegasus biogpt bitnet blenderbot
blenderbot-small bloom camembert codegen cohere cohere2 cohere2_moe ctrl cwm data2vec-text deepseek_v2 deepseek_v3
deepseek_v4 diffllama doge electra ernie ernie4_5 ernie4_5_moe exaone4 exaone_moe falcon falcon_mamba flex_olmo flint
gemma gemma2 gemma3_text gemma4_unified_text glm glm4 glm4_moe glm4_moe_lite gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox
gpt_neox_japanese gpt_oss gptj granite granite_swa granitemoe granitemoe_swa granitemoeshared helium hrm_text
hunyuan_v1_dense hunyuan_v1_moe hy_v3 hy_v4 hyperclovax inkling_text internlm3 iquestcoder jais2 jetmoe kolibri1 laguna
lfm2 llama llama4_text mamba marian mbart megatron-bert mellum mimo_v2_flash minicpm3 minimax minimax_m2
minimax_m3_vl_text ministral ministral3 mistral mixtral modernbert-decoder moshi mpt mvp nanochat nemotron olmo olmo2
olmo3 olmo_hybrid olmoe openai-gpt opt pegasus persimmon phi phi3 phimoe plbart prophetnet qwen2 qwen2_moe qwen3
qwen3_moe rembert roberta roberta-prelayernorm roformer seed_oss smollm3 solar_open stablelm starcoder2 trocr vaultgemma
whisper xglm xlm xlm-roberta xlm-roberta-xl xlnet youtu zaya
"""
FAMILIES = NAMES.split()


def tiny_config(family: str, **changed):
    """A configuration of the family with sizes as small as they go.

    Raises:
        KeyError: the installed transformers does not know it.
    """
    kind = CONFIG_MAPPING[family]
    names = {*kind().to_dict(), *kind.attribute_map}
    sizes = {name: size for name, size in TINY.items() if name in names}
    if "qk_rope_head_dim" in names:  # its heads are as large as their parts say
        sizes = {name: size for name, size in sizes.items() if name not in ("head_dim", "num_key_value_heads")}
        sizes |= {"num_key_value_heads": 4} if "num_key_value_heads" in names else {}
    if family in ("codegen", "gptj"):
        sizes["rotary_dim"] = 4
    if family == "gpt_neo":
        sizes["attention_types"] = [[["global", "local"], 1]]
    if family == "zaya":
        sizes["num_experts_per_tok"] = 1
    return kind(**sizes | changed)


def tiny_family(family: str, seed: int = 0, **changed):
    """Such a model, in eval mode, with weights large enough that its logits differ."""
    transformers.logging.set_verbosity_error()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(family, **changed)).eval()
        head = model.get_output_embeddings()
        if head is not None:
            head.weight.data.normal_(std=0.3)
    return model
