"""QLoRA Lab: QLoRA built piece by piece, each piece proved against the library people use.

What the notebooks and the command line use is importable from here. The hour: these eight files are the subject, in
this order. `quantization/datatypes.py`, `quantization/blockwise.py`, `quantization/tensor.py`, `lora.py`, `qlora.py`,
`paging/adamw.py`, `loss.py`, `training/loop.py`. All the rest is room by room below, with the notebook it belongs to;
a folder inside a room is its engine and can be skipped. Which room may import which, the layers in pyproject.toml say.

qlora_lab/
    quantization/               01 02  weights in four bits
        datatypes.py            where the sixteen levels of INT4, FP4, NF4 and of what came after come from
        blockwise.py            codes and scales of blocks: the definitions
        tensor.py               quantize, and the tensor it gives: codes, scales, decoding, a file
        undecoded.py            a 4-bit tensor that any operation takes and decodes
        parameters.py           4-bit weights of modules: experts, and states that say what they are
        calibrated.py           10  rounding that looks at data: GPTQ and AWQ
        fast/                   the same bits, compiled
            kernels.py          the arithmetic, written for vector code
            triton_decoder.py   decoding on a GPU in one launch
            compilation.py      when it is compiled, and whether to trust it
            operator.py         decoding as an operator of PyTorch's
    lora.py                     03  the layer; put into a model, counted, merged
    paging/                     04  AdamW with its state on three tiers
        adamw.py                the arithmetic, operation by operation as torch.optim's
        paged_adamw.py          the optimizer: a sweep over the pages in each step
        layout.py               where in the pages a parameter's state lies
        store.py                which page is on which tier, and who has to leave
        eight_bit_state.py      moments in a byte each
        tiers/                  moving the bytes
            slots.py            places for pages in memory
            page_file.py        places for pages in a file
            copier.py           copies between them, in a thread of its own
    qlora.py                    05  4-bit base and adapter in one autograd function; put into a model
    memory/                     05 08  where every byte of a step goes
        ledger.py               measured: every storage of a real step, from birth to death
        records.py              what was measured, as plain numbers
        plan.py                 what is to be trained, as numbers
        closed_form.py          predicted on paper, from a model's configuration
        per_gpu.py              the same for each of several GPUs
        simulation.py           predicted by running the step on tensors without memory
        fit.py                  whether a step fits, and the cheapest change that makes it fit
    loss.py                     06  cross-entropy where there is a label
    tasks/                      06  what the model is to learn
        function_calls.py       commands in plain English, calls as JSON, what makes an answer right
        function_schema.py      which functions there are, and the check of calls against them
        own_data.py             files of one's own as records: conversations, questions, instructions, texts
        chat.py                 the tokenizer's own template, and where in it the assistant speaks
        encoding.py             examples as token ids, and which of them are learned
        inspection.py           what is to be known of the data before a step is taken, and the mask
        holding_back.py         a share of the examples for validation
        answer_metrics.py       what makes an answer to one's own question right
        batches.py              examples as tensors, in an order that a seed decides
        packing.py              several short examples in a row
        mixing.py               general text among them, against forgetting
    models/                     06  the base on its way in, the adapter on its way out
        base_model.py           load a model and its tokenizer
        never_quantized.py      real weights that no 4-bit format has touched
        adapters.py             save and load what was trained, in PEFT's format
        wrappers.py             the names that things have without what stands round them
        gradient_checkpointing.py  activations computed again instead of kept: on and off
        inputs.py               which tokens a model knows, and where they have to be
        packed_inputs.py        whether a model keeps packed examples apart
        hub.py                  from any model's name to a folder
        downloads.py            one file, there and right or not there at all
        conversion.py           from GGUF to safetensors
    training/                   06  the loop
        loop.py                 finetune: from examples to a trained adapter
        settings.py             what decides its result, and the learning rate of a step
        optimizer.py            AdamW, in memory or in pages
        validation.py           the loss on examples held back, and the best weights
        learning_rate.py        the default, by the size of the base
        rate_test.py            find_rate: which rate these examples want
        run_plan.py             run.json: what a run was, and its model again
        tensorboard_events.py   the same metrics for TensorBoard
        run_folder/             a run on disk, which survives a kill at any moment
            checkpoints.py      all that is needed to go on
            parts.py            tensors that several processes write together
            metrics.py          what each step measured
            folder.py           one run to a folder, one process at a time
    evaluation/                 06 07 10  how good a model is, and how sure one can be
        exact_match.py          greedy answers in batches, the share of right ones, loss per token
        intervals.py            Student's t, differences paired by seed
        recorded_runs.py        the runs that compare methods
        formats_record.py       what formats do before a run
        conclusions.py          sentences that follow from them
    export/                     09  the model taken home
        home.py                 from a run to files, checked before the first byte is written
        trained_run.py          what a run trained, and beside what
        merged.py               folded into a base, as 16-bit safetensors
        gguf_files.py           adapters and models as GGUF
        architectures.py        what llama.cpp calls a model's parts, and the order of their rows
        gguf_vocabulary.py      a tokenizer in GGUF's words
        chat_format.py          a chat template taken apart, and the token an answer stops at
        ollama.py               the Modelfile
        model_card.py           the README.md beside the weights
    distributed.py              08  the model in parts, on FSDP
    variants.py                 10  other starts and forms of the adapter: LoftQ, PiSSA, DoRA
    machine/                    what the computer is and has
        environment.py          versions, device, number formats, compiler
        processor.py            its name, its vectors, whether it multiplies bfloat16
        dtypes.py               the float dtypes, and which of them to compute in
        matmul.py               float32 products, by oneDNN where that is faster
        huge_pages.py           large tensors in large pages of memory
        other_work.py           how busy other processes keep the cores
        free_memory.py          what can still be allocated, containers included; what a process has
        stopwatch.py            seconds of a call, for comparing methods
        generators.py           states of random generators, taken and put back
        arguments.py            checks of arguments, in one set of words
        errors.py               errors that are told to a person in one line
        files.py                files written whole or not at all
        processes.py            one process, or several that torchrun started
        launch.py               a notebook's function in several processes
    plots/                      every figure, from plain numbers
        style.py                palette, type, alternative texts
        codebooks.py            levels and codes
        data_flow.py            the QLoRA layer's two passes, with dtypes and the gradient's path
        quantization_error.py   what quantizing costs
        scales.py               scales, their bits, decoding speed
        low_rank.py             the adapter drawn to scale, ranks
        page_moves.py           pages over time
        memory_categories.py    bytes by category
        learning_curves.py      loss and exact match of a run
        methods_compared.py     methods and ranks, over seeds
        formats.py              scales of four-bit floats, inputs, and errors that methods move
        errors_and_harm.py      formats by their errors, and what comes of these
        sharding.py             what is on which GPU when
        interactive.py          what the widgets redraw
    widgets/                    something to move in each notebook
        explorers.py            controls above a figure
        recorded.py             the same over recorded runs
        answer_box.py           two models answer one command
        display.py              a widget, or what stands in for it
    checks/                     the exercises: right, or what a wrong answer looks like
        exercise.py             what an exercise is, misconceptions as edits, the verdict
        differences.py          in what two results differ, in words
        resemblances.py         how wrong results follow from right ones: transposed, a part left out
        time_limit.py           a loop without an end is stopped
        kept.py                 right answers as files, in my_qlora
        verdict_card.py         a verdict as a notebook shows it
        notebook_00.py          what weights take
        notebook_01.py          codes, scales, packing, NF4, counter-examples
        notebook_02.py          scales, double quantization, bytes
        notebook_03.py          the adapter, its gradients, merging, counting
        notebook_04.py          AdamW's step, pages, eviction
        notebook_05.py          the layer forward and backward, bytes of a step
        notebook_06.py          labels, loss, a training step, right calls
        notebook_07.py          seeds, intervals, a rate, a rank, costs
        notebook_08.py          gradients of several processes, bytes on the wire
        notebook_09.py          labels of a conversation, early stopping, rows of q and k in GGUF
        notebook_10.py          MXFP4, errors of outputs, GPTQ, AWQ, rank correlation, LoftQ
    mine.py                     what the reader has made, or else the finished pieces; the board of both
    graduation/                 06  a model fine-tuned by the reader's pieces alone
        fine_tune.py            the page where the pieces meet
        pieces.py               which they are, whose, and that each is right
        proof.py                compared with the package, step by step, and with PEFT
    classroom/                  assignments made of the notebooks, answers graded in a sandbox
        course.py               the folder of a course
        questions.py            open questions and their rubrics
        release.py              notebooks become assignments
        submissions.py          what was handed in, as it comes
        archives.py             files in zips, with limits
        students.py             whose a file is
        open_answers.py         answers that a person grades
        hidden_tests.py         an exercise's check on inputs nobody has seen
        judging.py              find answers, run them, remember what came out
        sandbox.py              untrusted code, from outside
        inside/                 untrusted code, from inside: imports nothing of this package
            zygote.py           the process that forks sealed children
            sealing.py          what is taken from a child before it runs
            system_calls.py     the calls that are left to it
            reading.py          a cell as Python: IPython's lines, newer syntax
            answers.py          the answers in a notebook's cells
            masking.py          finished versions that cannot be used
            running.py          a call, and what it gives
            values.py           arguments and results as safe bytes
        grading.py              from handed-in folder to tables and pages
        gradebook.py            points in nbgrader's database
        results.py              statistics of a class, a page for each student
        reference.py            the teacher's reference, written from the checks
    cli/                        the command line
        commands.py             one function a command
        classroom_commands.py   the same for a class
        run.py                  a fine-tuning run from base model to report
        run_data.py             what a run trains on and is asked
        report.py               one HTML file with all of it
        terminal.py             bars, tables, errors in a line
        bundle.py               everything for a room without internet
        __main__.py             python -m qlora_lab.cli
"""

import os as _os
import sys as _sys

# OpenMP's threads wait for each other spinning, by default for longer than a busy machine takes to give the one they
# wait for a core. A hundredth of that costs a step next to nothing where the machine is quiet, and saves it a third
# where it is not (`benchmarks/busy.py`). OpenMP reads this when PyTorch is imported; what the user set is left alone.
if "torch" not in _sys.modules and not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & _os.environ.keys():
    _os.environ["GOMP_SPINCOUNT"] = "3000"

from qlora_lab.evaluation.exact_match import evaluate
from qlora_lab.lora import LoRALinear, count_parameters, inject_lora, merge, merge_and_unload, unmerge
from qlora_lab.memory.ledger import MemoryTrace
from qlora_lab.memory.simulation import simulate_training
from qlora_lab.models.adapters import load_adapter, save_adapter
from qlora_lab.models.base_model import load_model, load_tokenizer
from qlora_lab.paging.paged_adamw import PagedAdamW
from qlora_lab.qlora import QLoRALinear, quantize_model
from qlora_lab.quantization.datatypes import DATATYPES, SINCE_NF4, DataType, get_datatype
from qlora_lab.quantization.tensor import QuantizedTensor, quantize
from qlora_lab.tasks.inspection import inspect
from qlora_lab.tasks.own_data import load_dataset
from qlora_lab.training.loop import finetune

__version__ = "0.1.0"

__all__ = [
    "DATATYPES",
    "SINCE_NF4",
    "DataType",
    "LoRALinear",
    "MemoryTrace",
    "PagedAdamW",
    "QLoRALinear",
    "QuantizedTensor",
    "count_parameters",
    "evaluate",
    "finetune",
    "get_datatype",
    "inject_lora",
    "inspect",
    "load_adapter",
    "load_dataset",
    "load_model",
    "load_tokenizer",
    "merge",
    "merge_and_unload",
    "quantize",
    "quantize_model",
    "save_adapter",
    "simulate_training",
    "unmerge",
]
