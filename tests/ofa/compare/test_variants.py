from dataclasses import replace

import pytest

from ofa.ablation import Ablation
from ofa.compare.methods import METHODS
from ofa.compare.methods.norm_tuning import NormTuningOptions
from ofa.compare.variants import method_of, options_of

TRAINING = ["lr", "weight_decay", "epochs", "batch_size", "loss_over"]
ABLATION = [
    *("label_smoothing", "ratio_form", "trace_form", "first_layer", "p_norm"),
    *("trained_norms", "lambda_schedule", "lambda_scale", "pull"),
]
OF_NORM_TUNING = [
    *("lambda_step", "lambda_sharp", "n_probes", "sharpness_every", *TRAINING, "trained_depth"),
]


def test_every_method_has_the_numeric_options_of_its_own():
    """What the setting decides, the seed and the cap on steps, is none of them."""
    assert {name: list(options_of(method)) for name, method in METHODS.items()} == {
        "zero-shot": [],
        "icl": [],
        "linear-probe": [],
        "embedding": [],
        "setfit": [],
        "soft-prompt": TRAINING,
        "label-anchor": [],
        "task-vector": [],
        "i2cl": TRAINING,
        "ia3": TRAINING,
        "ln-ia3": TRAINING,
        "lora": [*TRAINING, "r", "lora_alpha"],
        "ln-tuning": [*OF_NORM_TUNING, "n_members", *ABLATION],
        "ofa": [*OF_NORM_TUNING, "n_members", *ABLATION],
        "paper-code": [*OF_NORM_TUNING, "n_members"],
    }


def test_a_plain_name_is_the_method_itself():
    assert all(method_of(name) is method for name, method in METHODS.items())


def test_options_change_what_they_name_and_nothing_else():
    found = method_of("ofa:lr=3e-3+n_probes=4")
    assert found.options == NormTuningOptions(lr=0.003, n_probes=4)
    assert type(found) is type(METHODS["ofa"]) and METHODS["ofa"].options == NormTuningOptions()
    found = method_of("ofa:lr=3e-3+loss_over=labels+pull=.5")
    assert found.options == NormTuningOptions(lr=0.003, loss_over="labels", ablation=Ablation(pull=0.5))
    assert method_of("lora:r=4").options == replace(METHODS["lora"].options, r=4)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("ofa:lr=3e-3", "ofa:lr=0.003"),
        ("ofa:lr=0.0030", "ofa:lr=0.003"),
        ("ofa:lr=.003+lambda_sharp=1e-1", "ofa:lambda_sharp=0.1+lr=0.003"),
        (" ofa : lambda_sharp = 0.1 + lr = 3E-3 ", "ofa:lambda_sharp=0.1+lr=0.003"),
        ("ofa:lambda_sharp=1e+1+lambda_step=+2", "ofa:lambda_step=2+lambda_sharp=10"),
        ("ofa:lambda_sharp=1e+20", "ofa:lambda_sharp=1e20"),
        ("ofa:lambda_step=-0.0", "ofa:lambda_step=0"),
        ("ofa:lr=1e-5", "ofa:lr=1e-05"),
        ("lora:r=04", "lora:r=4"),
        ("ofa:trained_norms= p +lr=1e-2", "ofa:lr=0.01+trained_norms=p"),
        ("ln-tuning:lr=1e-3", "ln-tuning:lr=0.001"),  # the default, and named all the same
    ],
)
def test_equal_settings_have_one_name_that_reads_back(text, name):
    found = method_of(text)
    assert found.name == name and method_of(name) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("magic", "unknown method 'magic'; known are zero-shot, .*, paper-code$"),
        ("magic:lr=1", "unknown method 'magic'"),
        ("lambda_sharp=0.1", r"unknown method 'lambda_sharp=0.1'.*join the options of a method by \+"),
        ("zero-shot:lr=1", "zero-shot:lr=1: this method has no options; leave out the colon"),
        ("lora:rank=4", r"lora:rank=4: unknown option 'rank'.*known options are lr, .*, r, lora_alpha$"),
        ("ofa:seed=3", "unknown option 'seed'"),
        ("ofa:terms=paper_code", "unknown option 'terms'"),
        ("ofa:", "ofa:: unknown option ''; write OPTION=VALUE"),
        ("ofa:lr=1+", r"unknown option ''"),
        ("ofa:lr", "lr must be a number, got ''; write lr=NUMBER"),
        ("ofa:lr=", "lr must be a number, got ''"),
        ("ofa:lr=fast", "lr must be a number, got 'fast'"),
        ("lora:r=4.5", "r must be an integer, got '4.5'"),
        ("ofa:batch_size=None", "batch_size must be an integer, got 'None'"),
        ("ofa:lr=1+lr=1", "lr is given twice; leave one out"),
        ("ofa:trained_norms=some", "trained_norms must be one of .*, got 'some'"),
        ("ofa:loss_over=", "loss_over must be one of .*, got '0'"),
        ("lora:loss_over=words", "loss_over must be one of .*, got 'words'"),
        ("paper-code:loss_over=labels", "the loss of the authors' code is over the vocabulary"),
        ("ofa:first_layer=0", "first_layer must be an integer of at least 1, got 0"),
        ("ofa:label_smoothing=1", "label_smoothing must be at least 0 and below 1"),
        ("ofa:pull=-1", "pull must be finite and not negative"),
        ("paper-code:pull=1", "unknown option 'pull'"),
    ],
)
def test_names_that_can_t_be_read_are_refused_with_what_would_do(text, message):
    with pytest.raises(ValueError, match=message):
        method_of(text)


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if options_of(method)])
@pytest.mark.parametrize(
    "option", ["lr=0", "lr=nan", "lr=1e999", "weight_decay=-1", "epochs=0", "batch_size=0"]
)
def test_values_no_training_can_take_are_refused_by_every_method(name, option):
    with pytest.raises(ValueError, match=f"{name}:.*{option.partition('=')[0]} must be"):
        method_of(f"{name}:{option}")


@pytest.mark.parametrize("text", ["lora:r=0", "lora:lora_alpha=0", "ofa:n_probes=0", "paper-code:n_probes=2"])
def test_values_the_method_can_t_take_are_refused(text):
    with pytest.raises(ValueError, match=f"^{text}: .* must be"):
        method_of(text)
