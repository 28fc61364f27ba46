"""Completion in the shell."""

from __future__ import annotations

import importlib
import re
import subprocess
from pathlib import Path

import pytest

from lora_moe_hgd import completion
from lora_moe_hgd.model.label_schemes import LABEL_SCHEMES
from lora_moe_hgd.training import config
from lora_moe_hgd_cli import COMMANDS, run


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    return {shell: completion.script(shell) for shell in completion.SHELLS}


def completed(script: Path, *words: str) -> list[str]:
    """What bash offers for the last word. Without a PATH it can start no program."""
    line = " ".join(f"'{word}'" for word in words)
    program = f"""source {script}; complete -p lora-moe-hgd >&2; PATH=
COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}
_shtab_lora_moe_hgd; printf '%s\\n' "${{COMPREPLY[@]}}" """
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip().endswith("lora-moe-hgd"), done.stderr
    return done.stdout.split()


def part_of(script: str, shell: str, command: str) -> str:
    """What a script says about one command."""
    if shell == "fish":
        return "\n".join(line for line in script.splitlines() if f"_using {command}' " in line)
    name = {"bash": "option_strings", "zsh": "options"}[shell]
    (part,) = re.findall(rf"^_shtab_lora_moe_hgd_{command}_{name}=\((.*?)\)$", script, re.DOTALL | re.MULTILINE)
    return part


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_a_script_has_every_command_and_every_option(scripts: dict[str, str], shell: str) -> None:
    for command, (module, _) in COMMANDS.items():
        part = part_of(scripts[shell], shell, command)
        for action in importlib.import_module(module).build_parser()._actions:
            if action.help != "==SUPPRESS==":
                for option in action.option_strings:
                    written = option if shell != "fish" else option.lstrip("-")
                    assert written in part, f"{command} {option}"


def test_bash_completes_commands_options_names_and_files(
    scripts: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "run.yaml").touch()
    script = tmp_path / "script"
    script.write_text(scripts["bash"])
    assert completed(script, "lora-moe-hgd", "pre") == ["prepare"]
    assert completed(script, "lora-moe-hgd", "segment", "--label-") == ["--label-scheme"]
    assert {*completed(script, "lora-moe-hgd", "check", "--label-scheme", "")} == {*LABEL_SCHEMES}
    assert completed(script, "lora-moe-hgd", "evaluate", "--checkpoint", "gl") == ["glioma"]
    assert completed(script, "lora-moe-hgd", "evaluate", "--checkpoint", "ru") == ["runs/"]
    assert completed(script, "lora-moe-hgd", "train", "--config", "run.") == ["run.yaml"]
    assert completed(script, "lora-moe-hgd", "train", "--num-w") == ["--num-workers"]
    assert completed(script, "lora-moe-hgd", "adapters", "merge", "--sc") == ["--scale"]


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_only_the_documents_say_where_the_script_belongs(scripts: dict[str, str], shell: str) -> None:
    comments = [line for line in scripts[shell].splitlines()[:8] if line.startswith("# ")]
    assert comments[0] == completion.HEADER.strip()
    assert not any("Copy this" in line for line in comments)


def test_the_command_prints_the_script(scripts: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    run("completion", ["zsh"])
    assert capsys.readouterr().out.strip() == scripts["zsh"].strip()


def test_the_paths_of_training_are_options() -> None:
    parser = config.build_parser()
    assert {*completion.TRAINING_PATHS} <= {action.dest for action in parser._actions}
