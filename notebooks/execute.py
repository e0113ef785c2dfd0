"""Executes notebooks from top to bottom and stores them with what they print and draw.

    python -m notebooks.execute                    # all of them
    python -m notebooks.execute quickstart moe     # some, by name

A stored notebook depends on its cells and on the versions of the libraries only: it has no times of execution, no
metadata of a kernel, no warnings, and no path of the machine. Where a cell fails, warns or prints such a path, the
file stays as it was and the program ends with 1.
"""

import base64
import io
import os
import re
import sys
import time
from pathlib import Path

import nbformat
from ipykernel.kernelspec import make_ipkernel_cmd
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
MAX_BYTES = 300_000  # of a stored notebook: code hosts do not show large ones
MACHINE_PATH = re.compile(r"(?<![\w/:.])/(?:home|root|Users|tmp|var|work|mnt|opt|usr)/[^\s'\"]*")
# A PNG of one version of matplotlib depends on the figure only.
FIGURES = ("--InlineBackend.figure_formats=['png']", "--InlineBackend.print_figure_kwargs={'dpi': 80}")
KERNEL_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # launch/, configs/ and benchmarks/ belong to the checkout
    "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
    "PYTHONHASHSEED": "0",
    "TF_CPP_MIN_LOG_LEVEL": "3",  # XLA's own warnings
}
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class ThisInterpreter(AsyncKernelManager):
    """The kernel of this interpreter, whatever kernels are installed under the name python3."""

    kernel_spec = KernelSpec(
        argv=[*make_ipkernel_cmd(), *FIGURES, "--log-level=ERROR"],
        display_name="Python 3",
        language="python",
        env=KERNEL_ENVIRONMENT,
    )


def execute(path: Path, cell_seconds: float | None = None) -> nbformat.NotebookNode:
    """The notebook with the outputs of a fresh kernel in the notebook's folder, as `make notebooks` starts one.

    Raises nbclient's CellExecutionError where a cell fails, CellTimeoutError where one takes more than `cell_seconds`.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        kernel_manager_class=ThisInterpreter,
        timeout=cell_seconds,
        record_timing=False,
        resources={"metadata": {"path": str(FOLDER)}},
    )
    return tidy(client.execute())


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without what differs from one execution to the next; lines of one stream are one output."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = joined(cell.outputs)
            for output in cell.outputs:
                if output.output_type in ("display_data", "execute_result"):
                    output.metadata = {}
                if "image/png" in output.get("data", ()):
                    output.data["image/png"] = smaller(output.data["image/png"])
    return notebook


def joined(outputs: list) -> list:
    """The outputs with neighbours of one stream joined: how they are cut depends on time."""
    result: list = []
    for output in outputs:
        if result and output.output_type == "stream" and output.get("name") == result[-1].get("name"):
            result[-1].text += output.text
        else:
            result.append(output)
    return result


def smaller(png: str) -> str:
    """A PNG (base64) with a palette of 128 colours, a third of the bytes; one that has a palette stays as it is."""
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    if image.mode == "P":
        return png
    file = io.BytesIO()
    image.convert("RGB").quantize(128).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def problems(notebook: nbformat.NotebookNode) -> list[str]:
    """What must not be stored, a line each: errors, warnings, paths of a machine, too many bytes."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            text = shown_text(output)
            if output.output_type == "error":
                found.append(f"cell {cell.id}: {output.ename}: {output.evalue}")
            if output.get("name") == "stderr":
                found.append(f"cell {cell.id} writes to stderr: {text.strip()[:200]}")
            if path := MACHINE_PATH.search(text):
                found.append(f"cell {cell.id} shows a path of this machine: {path.group()}")
    if (size := len(to_text(notebook).encode())) > MAX_BYTES:
        found.append(f"{size} bytes with outputs; at most {MAX_BYTES}: draw fewer or smaller figures")
    return found


def shown_text(output) -> str:
    """The text of an output; "" of a figure alone."""
    return output.get("text", "") + "".join(output.get("data", {}).get("text/plain", ""))


def to_text(notebook: nbformat.NotebookNode) -> str:
    return nbformat.writes(notebook) + "\n"


def main(names: list[str]) -> int:
    """Executes and stores the notebooks of these names (none: all); returns the exit code."""
    there = {path.stem: path for path in sorted(FOLDER.glob("*.ipynb"))}
    if unknown := [name for name in names if name not in there]:
        print(f"error: no notebook {unknown[0]!r} in {FOLDER}; expected some of {', '.join(there)}", file=sys.stderr)
        return 2
    failed = 0
    for name in names or there:
        begun = time.monotonic()
        try:
            notebook = execute(there[name])
            found = problems(notebook)
        except CellExecutionError as error:
            found = [str(error)]
        if found:
            failed = 1
            print(f"{name}: not stored\n  " + "\n  ".join(found), file=sys.stderr, flush=True)
            continue
        text = to_text(notebook)
        there[name].write_text(text)
        print(f"{name}: {time.monotonic() - begun:.0f} s, {len(text.encode()) / 1000:.0f} kB", flush=True)
    return failed


if __name__ == "__main__":
    os.environ.pop("XLA_FLAGS", None)
    sys.exit(main(sys.argv[1:]))
