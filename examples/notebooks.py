"""Form the notebooks from the scripts beside them, run them, and keep their outputs.

    python examples/notebooks.py            # run, and write the .ipynb files
    python examples/notebooks.py --check    # run, and fail if a .ipynb file is not what its script says

A script is cut into cells at its `# %%` lines. `# %% [markdown]` starts a cell of text.
"""

import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

HERE = Path(__file__).parent
SCRIPTS = ("debug_port", "move_run")
MARK = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}


def cells(script: str) -> list[NotebookNode]:
    """The cells of a script, without outputs."""
    _, *parts = MARK.split(script)
    found = []
    for kind, text in zip(parts[::2], parts[1::2], strict=True):
        if kind:
            found.append(new_markdown_cell(re.sub(r"^# ?", "", text.strip(), flags=re.MULTILINE)))
        else:
            found.append(new_code_cell(text.strip()))
    for number, cell in enumerate(found):
        cell.id = f"cell-{number}"  # random ones would differ each time
    return found


def executed(script: str) -> NotebookNode:
    """The notebook of a script with the outputs of this run. An assertion that fails is raised."""
    notebook = new_notebook(cells=cells(script), metadata=KERNEL)
    NotebookClient(notebook, timeout=600, record_timing=False).execute(cwd=str(HERE))
    notebook.metadata.pop("language_info")  # the version of Python that ran it
    return notebook


def sources(notebook: NotebookNode) -> list[tuple[str, str]]:
    """What is written in its cells."""
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def main() -> None:
    """Run the notebooks; write them, or check those that are kept."""
    check = "--check" in sys.argv[1:]
    for name in SCRIPTS:
        notebook = executed((HERE / f"{name}.py").read_text(encoding="utf-8"))
        path = HERE / f"{name}.ipynb"
        if not check:
            nbformat.write(notebook, path)
        elif sources(nbformat.read(path, 4)) != sources(notebook):
            sys.exit(f"{path.name} is not what {name}.py says. Run: python examples/notebooks.py")
        print(f"{path.name}: {'as its script says, and it runs' if check else 'written'}")


if __name__ == "__main__":
    main()
