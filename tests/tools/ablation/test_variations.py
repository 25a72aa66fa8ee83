import pytest

from tools.ablation.variations import Variation, grouped

REFERENCE = "ln-tuning:lr=0.003+epochs=30"


def of(name):
    return Variation.of(name, REFERENCE)


@pytest.mark.parametrize(
    ("name", "differing"),
    [
        (REFERENCE, ()),
        ("ofa:lambda_step=0+lambda_sharp=0+lr=0.003", ()),
        ("ofa:lambda_sharp=0.1+lambda_step=0+lr=0.003", ("lambda_sharp",)),
        ("ofa:lr=0.01", ("lambda_step", "lambda_sharp", "lr")),
        ("paper-code:lambda_sharp=0+lambda_step=0+lr=0.003+epochs=30", ("batch_size", "terms")),
        ("ln-tuning:lr=0.003+pull=1", ("pull",)),
        ("ofa:lr=0.003+lambda_step=1+lambda_sharp=0+lambda_scale=gradient", ("lambda_step", "lambda_scale")),
        ("lora:lr=0.003", None),
        ("zero-shot", None),
    ],
)
def test_what_differs_is_told_by_options_and_defaults_not_by_names(name, differing):
    assert of(name).differing == differing


@pytest.mark.parametrize(("name", "reference"), [("i2cl:lr=0.01", "ia3:lr=0.02"), ("zero-shot", "icl")])
def test_methods_of_another_kind_differ_in_no_option(name, reference):
    assert Variation.of(name, reference).differing is None


def test_settings_are_grouped_by_what_differs_whatever_the_schedule_and_listed_by_value():
    names = [
        "zero-shot", "ofa:lambda_step=0+lambda_sharp=10+lr=0.003", "ln-tuning:lr=0.01",
        "ln-tuning:lr=0.002+epochs=10", "ofa:lambda_step=0+lambda_sharp=-2+lr=0.01", "lora:r=4",
        "ofa:lambda_step=0+lambda_sharp=9+lr=0.003",
        "ln-tuning:lr=0.003+batch_size=2", "ofa:lambda_step=0.1+lambda_sharp=0+lr=0.003",
        "ofa:lambda_step=0+lambda_sharp=0+lr=0.003", "ofa:lr=0.003",
    ]  # fmt: skip
    found = grouped([of(name) for name in names])
    assert {title: [member.label for member in members] for title, members in found.items()} == {
        "lr, epochs, batch_size": ["lr=0.002, epochs=10", "batch_size=2", "lr=0.01"],
        "lambda_sharp": ["lambda_sharp=-2, lr=0.01", "lambda_sharp=9", "lambda_sharp=10"],
        "lambda_step": ["lambda_step=0.1"],
        "lambda_step, lambda_sharp": ["lambda_step=0.01, lambda_sharp=0.001"],
        "other methods": ["lora:r=4", "zero-shot"],
        "the reference's options by another name": ["ofa:lambda_step=0+lambda_sharp=0+lr=0.003"],
    }
    assert next(iter(found)) == "lr, epochs, batch_size" and "other methods" in list(found)[-2:]


def test_a_name_that_is_not_known_here_is_refused():
    with pytest.raises(ValueError, match="unknown option 'warp'"):
        of("ofa:warp=9")
