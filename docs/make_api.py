"""Write docs/api.md from the docstrings: `python docs/make_api.py`."""

import ast
import inspect
import textwrap
from pathlib import Path
from types import ModuleType

import ofa
import ofa_kernels

PAGE = Path(__file__).with_name("api.md")
HEAD = "# API\n\nMade from the docstrings by `python docs/make_api.py`; a test keeps it current.\n"


def signature(name: str, thing: object) -> str:
    """A call as it is written in the source; of a class, its constructor's or its fields."""
    node = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]
    if isinstance(node, ast.ClassDef):
        methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
        init = [part for part in methods if part.name == "__init__"]
        if not init:
            fields = [ast.unparse(part) for part in node.body if isinstance(part, ast.AnnAssign)]
            return f"class {name}({', '.join(fields)})"
        node = init[0]
        node.args.args = node.args.args[1:]
        return f"class {name}({ast.unparse(node.args)})"
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"{name}({ast.unparse(node.args)}){returns}"


def entry(name: str, thing: object) -> str:
    """One name: how it is called, and its docstring."""
    return f"\n```text\n{signature(name, thing)}\n\n{textwrap.indent(inspect.getdoc(thing), '    ')}\n```\n"


def entries(module: ModuleType) -> str:
    """Every public name of a package; of a class its methods too, of `models` what loads one."""
    parts = [f"\n## {module.__name__}\n\n{inspect.getdoc(module)}\n"]
    for name in module.__all__:
        thing = getattr(module, name)
        if isinstance(thing, ModuleType):
            name, thing = f"{name}.load", thing.load
        parts += [f"\n### {name}\n", entry(f"{module.__name__}.{name}", thing)]
        if inspect.isclass(thing):
            public = [key for key in vars(thing) if not key.startswith("_")]
            methods = [
                (key, getattr(thing, key)) for key in public if inspect.isfunction(getattr(thing, key))
            ]
            parts += [
                entry(f"{name}.{key}", method)
                for key, method in methods
                if method.__module__.startswith(module.__name__)  # scikit-learn adds some of its own
            ]
    return "".join(parts)


def page() -> str:
    """The whole page."""
    return HEAD + entries(ofa) + entries(ofa_kernels)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
