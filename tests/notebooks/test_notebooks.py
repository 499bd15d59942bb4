"""Every notebook runs from top to bottom with this interpreter, and is stored without outputs."""

import json
import pathlib
import sys

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parent.parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SLOW = ("coming_from_jaxopt", "schedules")


def test_there_are_notebooks():
    assert NOTEBOOKS


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """The name of a kernel that is this interpreter, whatever kernels the machine has installed."""
    for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_PATH"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    specification = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "this interpreter",
        "language": "python",
    }
    folder = tmp_path / "jupyter_path" / "kernels" / "this_interpreter"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(specification))
    return folder.name


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[pytest.mark.slow] if p.stem in SLOW else []) for p in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_notebook_runs(path, kernel):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells, "a notebook without code proves nothing"
    stored = [cell for cell in cells if cell.outputs or cell.execution_count is not None]
    assert not stored, "clear all outputs before committing, so that differences stay readable"
    # Warnings are errors in a notebook's code; before it, the kernel's own start may warn.
    strict = nbformat.v4.new_code_cell("import warnings; warnings.simplefilter('error')")
    notebook.cells.insert(0, strict)
    resources = {"metadata": {"path": str(ROOT)}}
    client = NotebookClient(notebook, kernel_name=kernel, timeout=120, resources=resources)
    client.execute()
    # A cell's exception has raised above; what is left is that every cell was reached.
    assert all(cell.execution_count for cell in cells)
