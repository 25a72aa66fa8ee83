from tests.ofa.conftest import model_folder, tokenizer  # noqa: F401 - fixtures
