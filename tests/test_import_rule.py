"""The rooms: what may be imported from where."""

import pkgutil
import subprocess
import sys

import service


def run_python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout


def test_service_loads_neither_torch_nor_the_other_rooms() -> None:
    modules = [f"service.{module.name}" for module in pkgutil.iter_modules(service.__path__)]
    assert "service.app" in modules
    code = f"""
import importlib, sys
for module in {modules}:
    importlib.import_module(module)
print(sorted({{name.partition(".")[0] for name in sys.modules}} & {{"torch", "onnx", "models", "export"}}))
"""
    assert run_python(code).strip() == "[]"


def test_the_command_imports_no_room_to_show_its_help() -> None:
    code = """
import sys
from click.testing import CliRunner
from housenumber.cli import main
result = CliRunner().invoke(main, ["--help"])
assert result.exit_code == 0, result.output
heavy = {"service", "models", "export", "torch", "onnxruntime", "numpy", "fastapi", "PIL"}
print(sorted({name.partition(".")[0] for name in sys.modules} & heavy))
"""
    assert run_python(code).strip() == "[]"


def test_reading_files_needs_no_web_framework() -> None:
    code = """
import sys
import service.commands
print(sorted({name.partition(".")[0] for name in sys.modules} & {"fastapi", "starlette", "uvicorn"}))
"""
    assert run_python(code).strip() == "[]"
