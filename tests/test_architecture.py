"""The shape of the source tree: imports go down, files stay small, twins agree."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# What each layer may import of numbadsd, besides itself. "root" is numbadsd/__init__.py.
BASE = {"config", "types", "errors", "files", "timing"}
KERNELS = {"kernels", "kernels.cpu", "kernels.cuda"}
BELOW_BENCH = BASE | KERNELS | {"selection", "pages", "decode", "serving", "workload", "analysis"}
MAY_IMPORT = {
    "config": set(),
    "types": set(),
    "errors": set(),
    "files": set(),
    "timing": {"config", "types", "errors"},
    "kernels": set(),
    "kernels.cpu": {"kernels"},
    "kernels.cuda": {"kernels"},
    "selection": BASE | KERNELS,
    "pages": BASE | KERNELS,
    "decode": BASE | KERNELS | {"pages"},
    "serving": BASE | {"pages", "decode"},
    "workload": BASE | KERNELS | {"pages"},
    "analysis": BASE | KERNELS | {"pages"},
    "root": BELOW_BENCH,
    "bench": BELOW_BENCH | {"root"},
    "integration": BASE | {"root", "pages", "decode", "serving"},
    "plots": {"bench", "analysis", "files"},
    "report": {"root", "bench", "analysis", "files", "plots"},
    "cli": BASE | {"root", "bench", "integration", "plots", "report"},  # hands one to another
    "oracle": set(),
}

# Packages that only these layers may import: the rest works without them.
ONLY_IN = {
    "click": {"cli", "plots"},
    "torch": {"integration"},
    "transformers": {"integration"},
    "ray": {"integration"},
    "distributed": {"integration"},
    "matplotlib": {"plots"},
}

MAX_SOURCE_LINES = 300
MAX_TEST_LINES = 500
MAX_FUNCTION_LINES = 80  # the aim is 50

# Decorators of code that a compiler reads, where unrolled bodies may be long.
DEVICE_DECORATORS = {"device", "kernel", "njit", "jit", "intrinsic", "overload", "lower_builtin"}

# Kernel files that exist for both targets. A GPU attends to pages in place, so gather has no twin.
TWIN_STEMS = ("score", "topk", "attend", "attend_prompts", "append", "prefill")

# Names of functions that prepare a launch: each target has its own, and they are nobody's API.
FACTORY_PREFIXES = ("make_",)
FACTORY_SUFFIXES = ("_kernel", "_size", "_sizes")


def module_name(root: Path, file: Path) -> str:
    """Return the dotted name under which a file of the tree is installed."""
    parts = list(file.relative_to(root).with_suffix("").parts)
    if parts[0] in ("cli", "plots"):
        parts.insert(0, "numbadsd")
    if parts[-1] == "__init__":
        parts.pop()
    return ".".join(parts)


def layer_of(module: str) -> str:
    """Return the key of MAY_IMPORT that a dotted name belongs to."""
    parts = module.split(".")
    if parts[0] != "numbadsd":
        return "oracle" if parts[-1] == "oracle" else parts[0]
    if parts[1:2] == ["kernels"] and parts[2:3] in (["cpu"], ["cuda"]):
        return ".".join(parts[1:3])
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else "root"


def imported_names(tree: ast.Module, module: str, is_package: bool):
    """Yield (line, dotted name) of every import in a file, wherever it stands."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            yield from ((node.lineno, f"{source}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            if node.args and isinstance(node.args[0], ast.Constant):
                yield node.lineno, str(node.args[0].value)


def python_files(root: Path, *folders: str) -> list[Path]:
    """Return the source files below some folders of the tree."""
    return sorted(file for folder in folders for file in (root / folder).rglob("*.py"))


def parse(file: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def import_faults(root: Path) -> list[str]:
    """Return one line for each import that a layer may not have."""
    faults = []
    files = python_files(root, "numbadsd", "cli", "plots")
    oracle = root / "tests" / "oracle.py"
    for file in files + ([oracle] if oracle.exists() else []):
        module = module_name(root, file)
        layer = layer_of(module)
        for line, name in imported_names(parse(file), module, file.name == "__init__.py"):
            owners = ONLY_IN.get(name.split(".")[0], {layer})
            target = layer_of(name) if name.split(".")[0] == "numbadsd" else layer
            if layer not in owners or (target != layer and target not in MAY_IMPORT[layer]):
                faults.append(f"{file.relative_to(root)}:{line}: {layer} imports {name}")
    return faults


def test_imports_go_down_only():
    assert not import_faults(ROOT)


def test_every_module_belongs_to_a_layer():
    modules = {module_name(ROOT, file) for file in python_files(ROOT, "numbadsd", "cli", "plots")}
    assert {name for name in modules if layer_of(name) == "root"} == {"numbadsd"}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("numbadsd/kernels/cpu/score.py", "import numbadsd.pages.pool"),
        ("numbadsd/kernels/cpu/score.py", "from numbadsd.config import ModelConfig"),
        ("numbadsd/kernels/cpu/score.py", "from numbadsd.kernels.cuda import score"),
        ("numbadsd/kernels/shared.py", "from numbadsd.kernels.cpu import score"),
        ("numbadsd/kernels/cpu/score.py", "from ...pages import pool"),
        ("numbadsd/kernels/cpu/__init__.py", "from .. import cuda"),
        ("numbadsd/kernels/__init__.py", "from ..config import ModelConfig"),
        ("numbadsd/pages/cache.py", "from numbadsd import decode"),
        ("numbadsd/pages/cache.py", "from numbadsd import make_path"),
        ("numbadsd/pages/cache.py", "def f():\n    from numbadsd.decode import path"),
        ("numbadsd/decode/path.py", "import_module('numbadsd.bench.decode')"),
        ("numbadsd/config/model.py", "import numbadsd.types"),
        ("numbadsd/analysis/quality.py", "import click"),
        ("numbadsd/bench/decode.py", "from numbadsd.integration import torch"),
        ("numbadsd/bench/decode.py", "from numbadsd.cli import dsd_bench"),
        ("numbadsd/bench/decode.py", "import torch.nn"),
        ("cli/dsd_bench.py", "from numbadsd.pages import pool"),
        ("cli/dsd_topk_bench.py", "import torch"),
        ("numbadsd/integration/selectors.py", "from numbadsd.bench import topk"),
        ("plots/plot_time.py", "from numbadsd.pages import pool"),
        ("numbadsd/bench/record.py", "from numbadsd.plots import draw_experiment"),
        ("numbadsd/report/page.py", "import matplotlib"),
        ("tests/oracle.py", "from numbadsd.config import ModelConfig"),
    ],
)
def test_the_walker_finds_a_planted_upward_import(tmp_path, path, source):
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(source + "\n")
    assert len(import_faults(tmp_path)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("numbadsd/kernels/cpu/score.py", "from numbadsd.kernels import shared"),
        ("numbadsd/kernels/cpu/score.py", "from .topk import select_pages"),
        ("numbadsd/pages/cache.py", "from numbadsd.kernels.cpu import append"),
        ("numbadsd/bench/decode.py", "import numbadsd"),
        ("cli/dsd_bench.py", "import click\nfrom numbadsd.bench import decode"),
        ("numbadsd/integration/torch.py", "import torch"),
        ("cli/dsd_topk_bench.py", "from numbadsd.integration import selectors"),
        ("tests/oracle.py", "import numpy as np"),
    ],
)
def test_the_walker_allows_a_downward_import(tmp_path, path, source):
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).write_text(source + "\n")
    assert not import_faults(tmp_path)


def test_files_are_short():
    limits = {"numbadsd": MAX_SOURCE_LINES, "cli": MAX_SOURCE_LINES, "plots": MAX_SOURCE_LINES}
    faults = [
        f"{file.relative_to(ROOT)}: {lines} lines, want at most {limit}"
        for folder, limit in (limits | {"tests": MAX_TEST_LINES}).items()
        for file in python_files(ROOT, folder)
        if (lines := len(file.read_text(encoding="utf-8").splitlines())) > limit
    ]
    assert not faults


def is_device_code(function: ast.FunctionDef) -> bool:
    """Tell whether a decorator hands the function to a compiler."""
    calls = [d.func if isinstance(d, ast.Call) else d for d in function.decorator_list]
    return any(ast.unparse(name).split(".")[-1] in DEVICE_DECORATORS for name in calls)


def is_factory(function: ast.FunctionDef) -> bool:
    """Tell whether a function makes kernels, or what they are launched with."""
    name = function.name.lstrip("_")
    return name.startswith(FACTORY_PREFIXES) or name.endswith(FACTORY_SUFFIXES)


def functions_in(tree: ast.AST) -> list[ast.FunctionDef]:
    """Return every function in a tree."""
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def kernel_bodies(tree: ast.AST) -> set[ast.FunctionDef]:
    """Return the functions that factories hand to ``Kernel(function=...)``."""
    bodies = set()
    for factory in filter(is_factory, functions_in(tree)):
        calls = [n for n in ast.walk(factory) if isinstance(n, ast.Call)]
        keywords = [k for c in calls if ast.unparse(c.func) == "Kernel" for k in c.keywords]
        names = {ast.unparse(k.value) for k in keywords if k.arg == "function"}
        bodies |= {f for f in functions_in(factory) if f.name in names and f is not factory}
    return bodies


def long_functions(tree: ast.AST) -> list[str]:
    """Return one line for each host function whose code, without its docstring, is too long."""
    faults = []
    device_code = {f for f in functions_in(tree) if is_device_code(f)} | kernel_bodies(tree)
    for node in functions_in(tree):
        if node in device_code:
            continue
        first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
        nested = [f for f in functions_in(node) if f in device_code]
        signature_lines = node.body[0].lineno - node.lineno
        lines = signature_lines + node.end_lineno - first.lineno + 1
        lines -= sum(n.end_lineno - n.lineno + 1 for n in nested)
        if lines > MAX_FUNCTION_LINES:
            faults.append(f"{node.name}, line {node.lineno}: {lines} lines")
    return faults


def test_host_functions_are_short():
    files = python_files(ROOT, "numbadsd", "cli", "plots", "tests")
    faults = [
        f"{file.relative_to(ROOT)}: {f}" for file in files for f in long_functions(parse(file))
    ]
    assert not faults


def test_a_long_function_is_found_and_a_long_kernel_is_not():
    body = "".join(f"    x = {n}\n" for n in range(MAX_FUNCTION_LINES))
    source = f"def host():\n{body}\n@cuda.jit(cache=True)\ndef kernel_code():\n{body}"
    assert [fault.split(",")[0] for fault in long_functions(ast.parse(source))] == ["host"]


def test_a_long_body_of_a_kernel_is_not_found_and_a_long_factory_is():
    body = "".join(f"        x = {n}\n" for n in range(MAX_FUNCTION_LINES + 1))
    source = f"def a_kernel():\n    def b():\n{body}\n    return Kernel(name='b', function=b)"
    assert not long_functions(ast.parse(source))
    assert len(long_functions(ast.parse(source.replace("Kernel(", "other(")))) == 2
    assert len(long_functions(ast.parse(source.replace("a_kernel", "host")))) == 2
    source = f"def a_kernel():\n    if 1:\n{body}\n    def b(): ...\n    Kernel(function=b)"
    assert [f.split(",")[0] for f in long_functions(ast.parse(source))] == ["a_kernel"]


def undocumented(node: ast.Module | ast.ClassDef, name: str) -> list[str]:
    """Return the public things in a module or class, itself included, that have no docstring."""
    faults = [] if ast.get_docstring(node) else [name]
    for child in node.body:
        if not isinstance(child, (ast.FunctionDef, ast.ClassDef)) or child.name.startswith("_"):
            continue
        if isinstance(child, ast.ClassDef):
            faults += undocumented(child, f"{name}.{child.name}")
        elif not ast.get_docstring(child) and not is_accessor(child):
            faults.append(f"{name}.{child.name}")
    return faults


def is_accessor(function: ast.FunctionDef) -> bool:
    """Tell whether a function is a property's setter, which its getter documents."""
    return any(ast.unparse(d).endswith((".setter", ".deleter")) for d in function.decorator_list)


def test_everything_public_has_a_docstring():
    files = python_files(ROOT, "numbadsd", "cli", "plots")
    assert not [fault for f in files for fault in undocumented(parse(f), module_name(ROOT, f))]


def test_a_missing_docstring_is_found():
    source = '"""M."""\nclass A:\n    "A."\n    def f(self): ...\n    def _g(self): ...\n'
    assert undocumented(ast.parse(source), "m") == ["m.A.f"]


def public_signatures(file: Path) -> dict[str, ast.arguments]:
    """Return the signatures of the functions that callers launch, read without importing them."""
    functions = [n for n in parse(file).body if isinstance(n, ast.FunctionDef)]
    hidden = [f for f in functions if f.name[0] == "_" or is_device_code(f) or is_factory(f)]
    return {f.name: f.args for f in functions if f not in hidden}


def positional(arguments: ast.arguments) -> list[str]:
    """Return the positional arguments, in order, with their defaults as source text."""
    names = [a.arg for a in arguments.posonlyargs + arguments.args]
    defaults = [f"={ast.unparse(d)}" for d in arguments.defaults]
    return [
        n + d for n, d in zip(names, [""] * (len(names) - len(defaults)) + defaults, strict=True)
    ]


def keyword_only(arguments: ast.arguments) -> set[str]:
    """Return the keyword-only arguments with their defaults as source text."""
    pairs = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return {a.arg + (f"={ast.unparse(d)}" if d else "") for a, d in pairs}


def twin_faults(cpu_file: Path, cuda_file: Path) -> list[str]:
    """Return what differs between twins; the CUDA one may add keyword-only arguments."""
    cpu, cuda = public_signatures(cpu_file), public_signatures(cuda_file)
    faults = [f"{name}: has no twin" for name in sorted(cpu.keys() ^ cuda.keys())]
    for name in sorted(cpu.keys() & cuda.keys()):
        if positional(cpu[name]) != positional(cuda[name]):
            faults.append(f"{name}: {positional(cpu[name])} != {positional(cuda[name])}")
        missing = keyword_only(cpu[name]) - keyword_only(cuda[name])
        faults += [f"{name}: {argument} is not in the twin" for argument in sorted(missing)]
    return faults


@pytest.mark.parametrize("stem", TWIN_STEMS)
def test_cpu_and_cuda_twins_have_the_same_arguments(stem):
    cpu_file, cuda_file = (ROOT / "numbadsd/kernels" / t / f"{stem}.py" for t in ("cpu", "cuda"))
    assert public_signatures(cpu_file), f"{cpu_file} has no public function"
    assert not twin_faults(cpu_file, cuda_file)


@pytest.mark.parametrize(
    ("cuda_source", "num_faults"),
    [
        ("def f(a, b=1, *, c, stream=None): ...", 0),
        ("def f(a, b=1, *, c): ...\ndef _kernel(): ...", 0),
        ("def f(a, b=1, *, c): ...\n@device\ndef g(): ...", 0),
        ("def f(a, b=1, *, c): ...\ndef f_kernel(): ...\ndef g_size(): ...\nclass A: ...", 0),
        ("def f(b, a=1, *, c): ...", 1),
        ("def f(a, b=2, *, c): ...", 1),
        ("def f(a, b=1, stream=None, *, c): ...", 1),
        ("def f(a, b=1): ...", 1),
        ("def f(a, b=1, *, c): ...\ndef g(): ...", 1),
        ("def g(): ...", 2),
    ],
)
def test_a_twin_that_differs_is_found(tmp_path, cuda_source, num_faults):
    (tmp_path / "cpu.py").write_text("def f(a, b=1, *, c): ...\n")
    (tmp_path / "cuda.py").write_text(cuda_source + "\n")
    assert len(twin_faults(tmp_path / "cpu.py", tmp_path / "cuda.py")) == num_faults
