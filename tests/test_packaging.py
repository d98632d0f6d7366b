import ast
import os
import re
import shutil
import subprocess
import sys
from importlib import metadata
from importlib.resources import files
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml
from packaging.requirements import Requirement

import groot_graph
from groot_graph import cluster, datasets, models, nn, transforms

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
CUDA_FILES = sorted(path.name for path in (ROOT / "cuda").iterdir() if path.is_file())


def blocks(language, text=README):
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run_python(code, *args, **kwargs):
    command = [sys.executable, "-c", code, *map(str, args)]
    result = subprocess.run(command, capture_output=True, text=True, **kwargs)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.parametrize(
    ("extra", "command"),
    [("examples", "python examples/image_classification.py"), ("test", "pytest")],
    ids=["main_job", "tests"],
)
def test_readme_command_has_its_own_block(extra, command):
    line = f'pip install -c constraints.txt -e ".[{extra}]" && {command}\n'
    assert blocks("bash").count(line) == 1


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(name, marks=() if name == "README.md" else pytest.mark.full)
        for name, text in DOCUMENTS.items()
        if blocks("python", text)
    ],
)
def test_code_in_documents_prints_what_it_says(document, capsys, tmp_path, monkeypatch):
    # The blocks of a page build on each other, and may write files.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    namespace = {"__name__": "__main__"}
    for number, code in enumerate(blocks("python", DOCUMENTS[document]), start=1):
        exec(compile(code, f"{document}, block {number}", "exec"), namespace)
        printed = capsys.readouterr().out.splitlines()
        assert printed == re.findall(r"^ *print\(.*\)  # (.*)$", code, re.MULTILINE), number


@pytest.mark.full
def test_commands_for_several_processes_print_what_they_say(tmp_path):
    text = DOCUMENTS["docs/guides/distributed.md"]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }
    commands, expected = blocks("bash", text), blocks("text", text)
    assert len(commands) == 2
    for command, output in zip(commands, expected, strict=True):
        result = subprocess.run(
            ["bash", "-euc", command], capture_output=True, text=True, cwd=tmp_path, env=environment
        )
        assert result.returncode == 0, result.stderr
        assert result.stdout == output


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_in_documents_exist(document):
    path = ROOT / document
    text = re.sub(r"^```.*?^```$", "", DOCUMENTS[document], flags=re.MULTILINE | re.DOTALL)
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
    assert "docs/images/mnist5k.png" in links or document != "README.md"
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_every_page_of_the_documentation_is_in_a_list_of_contents():
    pages, listed = set(), {"docs/index"}
    for document, text in DOCUMENTS.items():
        if document != "README.md":
            pages.add(document.removesuffix(".md"))
        for block in blocks("{toctree}", text):
            entries = [line for line in block.splitlines() if line and not line.startswith(":")]
            listed |= {(Path(document).parent / entry).as_posix() for entry in entries}
    assert pages == listed


def test_every_public_name_is_in_the_api_pages():
    pages = "".join(text for name, text in DOCUMENTS.items() if name.startswith("docs/api/"))
    modules = [groot_graph, cluster, datasets, models, nn, transforms]
    names = {f"{module.__name__}.{name}" for module in modules for name in module.__all__}
    submodules = {"groot_graph.datasets", "groot_graph.nn", "groot_graph.transforms"}
    documented = set(
        re.findall(r"^\.\. auto(?:class|exception|function):: (\S+)$", pages, re.MULTILINE)
    )
    assert names - submodules <= documented


def test_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]
    assert metadata.version("groot-graph") == groot_graph.__version__
    assert citation["version"] == groot_graph.__version__
    assert newest == groot_graph.__version__


def test_citation_holds_what_the_format_requires():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert citation["license"] == "MIT"
    assert "2406.02395" in citation["references"][0]["url"]


def requirements():
    return [Requirement(line) for line in metadata.requires("groot-graph")]


def test_required_dependencies():
    required = {item.name for item in requirements() if item.marker is None}
    assert required == {"torch", "torch-geometric", "numpy", "numba"}


def test_constraints_pin_what_the_commands_install():
    extras = ["", "examples", "text", "eval", "vision", "benchmark", "test", "docs"]
    named = {
        item.name.lower()
        for item in requirements()
        if item.marker is None or any(item.marker.evaluate({"extra": extra}) for extra in extras)
    }
    constraints = (ROOT / "constraints.txt").read_text()
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", constraints.lower(), re.MULTILINE))
    assert named - {"groot-graph"} <= pins.keys()
    (torch_of_nvrtc,) = re.findall("the one that torch (.*) with CUDA requires", constraints)
    assert torch_of_nvrtc == pins["torch"]


def imports_of(folder: str) -> set[str]:
    """The modules of others, by their first name."""
    nodes = [
        node
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
    ]
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.split(".")[0] for name in names} - sys.stdlib_module_names - {folder}


@pytest.mark.parametrize("folder", ["benchmarks", "experiments"])
def test_the_extra_benchmark_brings_what_benchmarks_and_experiments_import(folder):
    brought = {
        item.name.lower()
        for item in requirements()
        if item.marker is None or item.marker.evaluate({"extra": "benchmark"})
    }
    owners = metadata.packages_distributions()
    # CuPy is brought by the extras for a GPU.
    for name in imports_of(folder) - {"groot_graph", "benchmarks", "experiments", "cupy"}:
        assert brought & {owner.lower() for owner in owners[name]}, name


def test_kernel_sources_are_a_package():
    installed = {path.name for path in files("groot_graph.cuda").iterdir()}
    assert set(CUDA_FILES) <= installed


def test_wheel_is_pure_and_holds_every_file(tmp_path):
    source = tmp_path / "source"
    without_caches = shutil.ignore_patterns("__pycache__")
    for folder in ["groot_graph", "cuda"]:
        shutil.copytree(ROOT / folder, source / folder, ignore=without_caches)
    for name in ["setup.cfg", "pyproject.toml", "README.md", "LICENSE"]:
        shutil.copy(ROOT / name, source)

    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    run_python(code, tmp_path, cwd=source)

    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name == f"groot_graph-{groot_graph.__version__}-py3-none-any.whl"
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "groot_graph").rglob("*.py")}
    kernels = {f"groot_graph/cuda/{name}" for name in CUDA_FILES}
    marker = {"groot_graph/py.typed"}
    assert modules | kernels | marker <= set(ZipFile(wheel).namelist())


def test_cuda_folder_does_not_hide_the_cuda_packages_of_others(tmp_path):
    (tmp_path / "cuda" / "stranger").mkdir(parents=True)
    (tmp_path / "cuda" / "stranger" / "__init__.py").write_text("found = True")
    code = (
        "import sys; sys.path.append(sys.argv[1]); import cuda; from cuda.stranger import found;"
        "print(cuda.__file__)"
    )
    assert run_python(code, tmp_path, cwd=ROOT).strip() == str(ROOT / "cuda" / "__init__.py")


def test_import_needs_no_heavy_package():
    # None in sys.modules refuses the import: PyG takes some of these where they are installed.
    code = (
        "import sys; sys.modules.update(dict.fromkeys(sys.argv[1:]));"
        "import groot_graph; print(groot_graph.__version__)"
    )
    heavy = ["cupy", "matplotlib", "numba", "pandas", "scipy", "sklearn", "transformers"]
    assert run_python(code, *heavy).strip() == groot_graph.__version__
