"""The run of notebook 09 as one meets it at work: TRL, PEFT and bitsandbytes, thirty lines.

    python benchmarks/thirty_lines.py BASE TRAIN.jsonl ADAPTER OUT

`benchmarks/with_trl.py` calls it, in an environment of its own, with the adapter that our run starts from and with the
examples in our run's order, so that both can be compared step by step. At work there is neither: leave out
`PeftModel.from_pretrained`, and hand SFTTrainer a `peft_config=LoraConfig(r=16, lora_alpha=32, ...)` instead.
"""

import json
import sys

import torch
from datasets import load_dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from trl import SFTConfig, SFTTrainer

base, train, adapter, out = sys.argv[1:]

# what notebooks 01 and 02 built
four_bits = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32,
)
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, quantization_config=four_bits)
# what notebooks 03 and 05 built
model = PeftModel.from_pretrained(model, adapter, is_trainable=True)

# what notebook 06 built: the prompt's tokens are in no loss
examples = load_dataset("json", data_files=train, split="train")
examples = examples.map(
    lambda row: {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}, remove_columns="messages"
)
settings = SFTConfig(
    output_dir=out,
    max_steps=len(examples) // 8,
    per_device_train_batch_size=8,
    learning_rate=2e-3,
    lr_scheduler_type="cosine_with_min_lr",
    lr_scheduler_kwargs={"min_lr_rate": 0.1},
    max_grad_norm=1.0,
    weight_decay=0.0,
    optim="adamw_torch",  # on a GPU "paged_adamw_32bit", which notebook 04 built
    bf16=False,  # in float32, as ours on a CPU
    gradient_checkpointing=False,
    shuffle_dataset=False,
    train_sampling_strategy="sequential",
    logging_steps=1,
    save_strategy="no",
    report_to="none",
)
trainer = SFTTrainer(model=model, args=settings, train_dataset=examples, processing_class=tokenizer)
first = trainer.train_dataset[0]
trainer.train()

if __name__ == "__main__":
    steps = [
        {"loss": entry["loss"], "rate": entry["learning_rate"]}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]
    learned = [token for token, label in zip(first["input_ids"], first["labels"], strict=True) if label != -100]
    trained = next(p.dtype for p in model.parameters() if p.requires_grad)
    found = {"steps": steps, "learned in the first example": tokenizer.decode(learned), "adapters in": str(trained)}
    with open(f"{out}/losses.json", "w") as file:
        json.dump(found, file)
