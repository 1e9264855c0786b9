"""Known failure texts of A1111, Forge and their start script, and what to do about them.

From webui.sh, modules/launch_utils.py, modules/sd_models.py and argparse (A1111 @c8a5322d, Forge @dfdcbab).
"""

from juggler.backends.hints import compiled

HINTS = compiled(
    (
        r"must not be launched as root",
        "webui.sh refuses to run as root unless `-f` is its first argument: let the juggler run `webui.sh` itself, or "
        "run it as another user",
    ),
    (
        r"error: unrecognized arguments: (.+)",
        "this web UI does not know {1}: correct `parameters` (or COMMANDLINE_ARGS in its webui-user.sh); options of an "
        "extension need the extension",
    ),
    (
        r"error: (ambiguous option: .+|argument .+)",
        "correct `parameters` (or COMMANDLINE_ARGS in the web UI's webui-user.sh): {1}",
    ),
    (
        r"Torch is not able to use GPU",
        "PyTorch sees no GPU: check the driver and CUDA_VISIBLE_DEVICES; without a GPU add `--skip-torch-cuda-test`, "
        "`--use-cpu all` and `--no-half` to `parameters`",
    ),
    (
        r"python3-venv is not installed",
        "install the package python3-venv, which webui.sh needs for its first start",
    ),
    (
        r"Cannot activate python venv",
        "the folder `venv` of the web UI is damaged: remove it, and run webui.sh once by hand",
    ),
    (
        r"ERROR: (\S+) is not installed, aborting",
        "webui.sh needs {1}, which is not on the PATH: install it, or set PATH in `env`",
    ),
    (
        r"INCOMPATIBLE PYTHON VERSION",
        "the web UI wants Python 3.10: set `python_cmd` in its webui-user.sh, remove its folder `venv`, and run "
        "webui.sh once by hand",
    ),
    (
        r"Couldn't (?:install|clone|fetch|checkout|determine) ([^\r\n]*?)\.?\s*$",
        "the web UI could not get {1}: run webui.sh once by hand, with network, until it starts; then add "
        "`--skip-prepare-environment` to skip this step",
    ),
    (
        r"fatal: unable to access '([^']+)'|Could not resolve host",
        "git needs the network: run webui.sh once by hand until it starts. In a folder without `.git` (from an "
        "archive) it clones the web UI anew: set `install_dir` and `clone_dir` in webui-user.sh",
    ),
    (
        r"Can't cd to (\S+), aborting",
        "there is no folder {1}: correct `install_dir` and `clone_dir` in the web UI's webui-user.sh",
    ),
    (
        r"can't open file '([^']+\.py)'|No such file or directory: '([^']*launch\.py)'",
        "the web UI's launch.py is missing: set `cwd` to its folder, or `binary` to its webui.sh",
    ),
    (
        r"No checkpoints found|You do not have any model",
        "the web UI has no checkpoint: put one into models/Stable-diffusion, or name a folder with `--ckpt-dir`",
    ),
    (
        r"Cannot find empty port in range",
        "another program has taken the port meanwhile; another start gets another port",
    ),
    (
        r"no kernel image is available for execution",
        "this build of PyTorch does not support this GPU: set TORCH_COMMAND in webui-user.sh to one that does, and "
        "start once with `--reinstall-torch`",
    ),
    (
        r"Stable diffusion model failed to load",
        "the checkpoint could not be loaded: the lines above in the log say why; choose another one in the settings",
    ),
)
