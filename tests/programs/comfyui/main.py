"""A folder that looks like ComfyUI's: its script is the stand-in beside it."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "fake_comfyui.py"), run_name="__main__")
